"""Cutting devices: the partition that the scheduler chose for a worker, made or found again.

A partition stays when its worker leaves: the next worker of the same shape takes it as it is. One
that is in the way of another shape is removed.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from tensorfusion.api.registry import GPUS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.errors import BackendError, NotFound
from tensorfusion.model.hardware import geometry_of
from tensorfusion.model.partitions import Cut, legal_starts
from tensorfusion.spi.backend import DeviceInfo, NodeBackend, Partition, Share, WorkerSpec
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-hypervisor"
ISOLATION = "partitioned"


def cut_for(
    session: NodeBackend,
    spec: WorkerSpec,
    devices: Sequence[DeviceInfo],
    cuts: Mapping[str, Cut],
) -> WorkerSpec:
    """Give a worker its partitions; idempotent.

    Args:
        session: Of the worker's node.
        spec: The worker; its share becomes that of its partition on the first device.
        devices: Its devices, in order.
        cuts: Template and slot by name of the GPU object, as on the pod.

    Raises:
        BackendError: The pod does not say where, or the device cannot be cut so.
    """
    made = [_cut(session, spec, device, cuts) for device in devices]
    first = made[0]
    amounts = (first.compute_gflops, first.vram_bytes)
    return dataclasses.replace(
        spec,
        share=Share(*amounts, *amounts),
        partition_template=first.template,
        partitions=tuple(one.uuid for one in made),
    )


def idle_of(session: NodeBackend) -> list[Partition]:
    """List the partitions of a node that no worker uses."""
    used = _used(session)
    return [one for one in session.partitions() if one.uuid not in used]


def _used(session: NodeBackend, besides: str = "") -> set[str]:
    """Name the partitions that workers of a node use, leaving out one worker's."""
    others = (spec for spec in session.workers() if spec.worker != besides)
    return {uuid for spec in others for uuid in spec.partitions}


def _cut(
    session: NodeBackend, spec: WorkerSpec, device: DeviceInfo, cuts: Mapping[str, Cut]
) -> Partition:
    cut = cuts.get(device.uuid.lower())
    if cut is None:
        raise BackendError(
            "hypervisor",
            f"worker {spec.namespace}/{spec.name}: no partition was chosen on device {device.uuid}",
        )
    others = _used(session, besides=spec.worker)
    there = [one for one in session.partitions() if one.parent == device.uuid]
    for one in there:
        if one.uuid not in others and (one.template, one.start) == (cut.template, cut.start):
            return one
    held = tuple(sorted(Cut(o.template, o.start) for o in there if o.uuid in others))
    if not _is_legal(device, held, cut):
        raise BackendError(
            "hypervisor",
            f"worker {spec.namespace}/{spec.name}: no room for {cut.template} at slot {cut.start}"
            f" of device {device.uuid} beside the partitions in use",
        )
    for one in there:
        beside = Cut(one.template, one.start)
        if one.uuid not in others and not _is_legal(device, (*held, cut), beside):
            session.remove_partition(one.uuid)
            log.info("idle partition removed", extra={"partition": one.uuid, "gpu": device.uuid})
        elif one.uuid not in others:
            held = (*held, beside)
    return session.create_partition(device.uuid, cut.template, cut.start)


def _is_legal(device: DeviceInfo, others: tuple[Cut, ...], cut: Cut) -> bool:
    """Tell whether a partition fits beside others, as far as the catalogue knows the device."""
    geometry = geometry_of(device.model, device.full_model)
    if geometry is None:
        return True
    return cut.start in legal_starts(geometry, tuple(sorted(others)), cut.template)


class IdlePartitions:
    """Shows partitions that nobody uses in the status of their GPU, so that they are used again.

    Those in use are the scheduler's to show.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._shown: dict[str, dict[str, JsonObject]] = {}
        """By name of the GPU object, the entries that are there."""

    def publish(self, session: NodeBackend, devices: Mapping[str, DeviceInfo]) -> None:
        """Bring the status of a node's GPUs up to date; writes only what changed.

        Raises:
            ApiError: The store cannot be written; the next call tries again.
        """
        found: dict[str, dict[str, JsonObject]] = {uuid.lower(): {} for uuid in devices}
        for one in idle_of(session):
            found.setdefault(one.parent.lower(), {})[f"idle-{one.uuid}"] = {
                "templateId": one.template,
                "allocatedSlotStart": one.start,
                "podUid": "",
                "podName": "",
                "namespace": "",
            }
        for name, entries in found.items():
            before = self._before(name)
            if {k: _place(v) for k, v in before.items()} == {
                k: _place(v) for k, v in entries.items()
            }:
                continue
            now = format_timestamp(self._clock.now())
            for key, entry in entries.items():
                entry["allocatedAt"] = before.get(key, {}).get("allocatedAt", now)
            patch = {"status": {"allocatedPartitions": {**dict.fromkeys(before), **entries}}}
            try:
                self._store.patch(GPUS, name, patch, subresource="status", field_manager=MANAGER)
            except NotFound:
                continue
            self._shown[name] = entries

    def _before(self, name: str) -> dict[str, JsonObject]:
        """The entries that are shown, also those of an earlier run."""
        known = self._shown.get(name)
        if known is None:
            try:
                status = self._store.get(GPUS, name).get("status", {})
            except NotFound:
                return {}
            shown = status.get("allocatedPartitions") or {}
            known = {k: v for k, v in shown.items() if not v.get("podUid")}
            self._shown[name] = known
        return known


def _place(entry: JsonObject) -> tuple[object, object]:
    return entry.get("templateId"), entry.get("allocatedSlotStart")
