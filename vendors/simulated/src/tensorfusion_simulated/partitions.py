"""Hardware partitions of simulated cards: cut by the same tables of slots as the real ones."""

import uuid as uuids
from collections.abc import Mapping
from typing import Any

import msgspec

from tensorfusion.errors import BackendError
from tensorfusion.model.hardware import Card
from tensorfusion.model.partitions import Cut, Cuts, Geometry, best_cut, legal_starts
from tensorfusion.spi.backend import Partition, Share, WorkerSpec

NAMESPACE = uuids.UUID("0c0f5a0e-58a4-4f7c-9d52-62f0d5b1a9c3")


class Partitions:
    """The partitions of one node's cards. The session's lock guards it.

    Args:
        saved: What `state` returned before a restart.
    """

    def __init__(self, saved: list[dict[str, Any]]) -> None:
        self._made = {one.uuid: one for one in msgspec.convert(saved, list[Partition])}

    def state(self) -> list[dict[str, Any]]:
        """Return what the constructor takes."""
        rows: list[dict[str, Any]] = msgspec.to_builtins(self.all())
        return rows

    def all(self) -> list[Partition]:
        """List the partitions in order of card and slot."""
        return sorted(self._made.values(), key=lambda p: (p.parent, p.start, p.uuid))

    def create(self, uuid: str, card: Card, template: str, start: int | None) -> Partition:
        """Cut a card.

        Raises:
            BackendError: No such template, or no room for it, or not at that slot.
        """
        geometry = card.geometry
        shape = geometry.template(template) if geometry is not None else None
        if geometry is None or shape is None:
            known = ", ".join(t.id for t in card.templates) or "none"
            raise BackendError(
                "simulated",
                f"device {uuid}: no partition template {template!r}; allowed for {card.model}:"
                f" {known}",
            )
        cuts = self._cuts(uuid)
        place = _place(geometry, cuts, shape.id, start)
        if place is None:
            where = "" if start is None else f" at slot {start}"
            raise BackendError(
                "simulated",
                f"device {uuid}: no room for {shape.id}{where} beside"
                f" {', '.join(f'{cut.template} at {cut.start}' for cut in cuts) or 'nothing'}",
            )
        kinds = geometry.kinds(card.compute_gflops, card.vram_bytes)
        kind = next(kind for kind in kinds if kind.template == shape.id)
        made = Partition(
            uuid=self._name(uuid, shape.id, place),
            parent=uuid,
            template=shape.id,
            start=place,
            compute_gflops=kind.gflops,
            vram_bytes=kind.vram_bytes,
        )
        self._made[made.uuid] = made
        return made

    def remove(self, uuid: str, workers: Mapping[str, WorkerSpec]) -> bool:
        """Give a partition back; False when there was none.

        Raises:
            BackendError: A worker uses it.
        """
        for worker, spec in workers.items():
            if uuid in spec.partitions:
                raise BackendError("simulated", f"partition {uuid} is used by worker {worker}")
        return self._made.pop(uuid, None) is not None

    def check(self, spec: WorkerSpec, workers: Mapping[str, WorkerSpec]) -> None:
        """Refuse a worker whose partitions are missing, of other devices, or in use.

        Raises:
            BackendError: As said; names the partition.
        """
        who = f"worker {spec.namespace}/{spec.name}"
        if len(spec.partitions) != len(spec.devices):
            raise BackendError(
                "simulated",
                f"{who}: {len(spec.partitions)} partitions for {len(spec.devices)} devices;"
                " allowed is one for each",
            )
        taken = {
            uuid: worker
            for worker, other in workers.items()
            if worker != spec.worker
            for uuid in other.partitions
        }
        for device, uuid in zip(spec.devices, spec.partitions, strict=True):
            made = self._made.get(uuid)
            if made is None or made.parent != device:
                raise BackendError("simulated", f"{who}: device {device} has no partition {uuid!r}")
            if uuid in taken:
                raise BackendError(
                    "simulated", f"{who}: partition {uuid} is used by worker {taken[uuid]}"
                )

    def share_on(self, spec: WorkerSpec, device: str) -> Share:
        """Return what a partitioned worker has of a device: all of its partition."""
        made = self._made[spec.partitions[spec.devices.index(device)]]
        amounts = (made.compute_gflops, made.vram_bytes)
        return Share(*amounts, *amounts)

    def _cuts(self, parent: str) -> Cuts:
        made = (p for p in self._made.values() if p.parent == parent)
        return tuple(sorted(Cut(p.template, p.start) for p in made))

    def _name(self, parent: str, template: str, start: int) -> str:
        """Name a partition: the same for the same place, unless that name is in use."""
        number = 0
        while True:
            name = f"part-{uuids.uuid5(NAMESPACE, f'{parent}/{template}/{start}/{number}')}"
            if name not in self._made:
                return name
            number += 1


def _place(geometry: Geometry, cuts: Cuts, template: str, start: int | None) -> int | None:
    if start is not None:
        return start if start in legal_starts(geometry, cuts, template) else None
    choice = best_cut(geometry, cuts, (), template)
    return choice.cut.start if choice is not None else None
