"""Hardware partitions of simulated cards: cut by the same tables of slots as the real ones, in both fidelities."""

import uuid as uuids
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from tensorfusion.errors import BackendError
from tensorfusion.model.hardware import Card
from tensorfusion.model.partitions import (
    Cut,
    Cuts,
    Geometry,
    PartitionTemplate,
    best_cut,
    legal_starts,
)
from tensorfusion.spi.backend import Partition, Share, WorkerSpec

ISOLATION = "partitioned"
NAMESPACE = uuids.UUID("0c0f5a0e-58a4-4f7c-9d52-62f0d5b1a9c3")


class Cutter(Protocol):
    """What has the partitions of one node's cards: a file of ours, or a driver."""

    def all(self) -> list[Partition]:
        """List the partitions, in any order."""
        ...

    def cut(self, uuid: str, card: Card, shape: PartitionTemplate, start: int) -> Partition:
        """Cut a card where there is room."""
        ...

    def remove(self, uuid: str) -> bool:
        """Give a partition back; False when there was none."""
        ...


class Partitions:
    """The partitions of one node's cards, and who may have which. The session's lock guards it."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter

    def all(self) -> list[Partition]:
        """List the partitions in order of card and slot."""
        return sorted(self._cutter.all(), key=lambda p: (p.parent, p.start, p.uuid))

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
        if start is not None and start not in shape.starts:
            raise BackendError(
                "simulated",
                f"device {uuid}: {shape.id} may start at slots"
                f" {', '.join(map(str, shape.starts))}, not at {start}",
            )
        made = (p for p in self._cutter.all() if p.parent == uuid)
        cuts = tuple(sorted(Cut(p.template, p.start) for p in made))
        place = _place(geometry, cuts, shape.id, start)
        if place is None:
            where = "" if start is None else f" at slot {start}"
            raise BackendError(
                "simulated",
                f"device {uuid}: no room for {shape.id}{where} beside"
                f" {', '.join(f'{cut.template} at {cut.start}' for cut in cuts) or 'nothing'}",
            )
        return self._cutter.cut(uuid, card, shape, place)

    def remove(self, uuid: str, workers: Mapping[str, WorkerSpec]) -> bool:
        """Give a partition back; False when there was none.

        Raises:
            BackendError: A worker uses it, or a process does.
        """
        for worker, spec in workers.items():
            if uuid in spec.partitions:
                raise BackendError("simulated", f"partition {uuid} is used by worker {worker}")
        return self._cutter.remove(uuid)

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
        parents = {made.uuid: made.parent for made in self._cutter.all()}
        for device, uuid in zip(spec.devices, spec.partitions, strict=True):
            if parents.get(uuid) != device:
                raise BackendError("simulated", f"{who}: device {device} has no partition {uuid!r}")
            if uuid in taken:
                raise BackendError(
                    "simulated", f"{who}: partition {uuid} is used by worker {taken[uuid]}"
                )

    def share_on(self, spec: WorkerSpec, device: str) -> Share:
        """Return what a partitioned worker has of a device: all of its partition; nothing when that is gone."""
        wanted = spec.partitions[spec.devices.index(device)]
        for made in self._cutter.all():
            if made.uuid == wanted:
                amounts = (made.compute_gflops, made.vram_bytes)
                return Share(*amounts, *amounts)
        return Share(0, 0, 0, 0)


def check_resizable(spec: WorkerSpec, share: Share) -> None:
    """Refuse another share for a worker in a partition; the one that it has is fine.

    Raises:
        BackendError: The worker is in one.
    """
    if spec.isolation == ISOLATION and share != spec.share:
        raise BackendError(
            "simulated", f"worker {spec.worker}: a partition has the size of its template"
        )


def partition_of(card: Card, parent: str, shape: str, start: int, uuid: str) -> Partition:
    """Describe a partition of a card, by the tables of what its template is there.

    Args:
        parent: Uuid of the card.
        shape: A template that the card has.
        uuid: Of the partition.
    """
    assert card.geometry is not None
    kinds = card.geometry.kinds(card.compute_gflops, card.vram_bytes)
    kind = next(kind for kind in kinds if kind.template == shape)
    return Partition(
        uuid=uuid,
        parent=parent,
        template=shape,
        start=start,
        compute_gflops=kind.gflops,
        vram_bytes=kind.vram_bytes,
    )


class SavedPartitions:
    """Partitions that exist because we remember them: those of the fidelity ``model``.

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
        """List the partitions."""
        return list(self._made.values())

    def cut(self, uuid: str, card: Card, shape: PartitionTemplate, start: int) -> Partition:
        """Remember one more."""
        made = partition_of(card, uuid, shape.id, start, self._name(uuid, shape.id, start))
        self._made[made.uuid] = made
        return made

    def remove(self, uuid: str) -> bool:
        """Forget one; False when there was none."""
        return self._made.pop(uuid, None) is not None

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
