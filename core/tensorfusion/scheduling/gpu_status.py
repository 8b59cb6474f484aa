"""Writes what the ledger knows of each GPU into its object: free capacity and who runs there.

Only devices whose usage changed are written, in one commit per pass where the store can.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from tensorfusion.api.registry import GPUS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.errors import ApiError, NotFound
from tensorfusion.model.allocation import Allocation, DeviceUsage
from tensorfusion.model.partitions import Geometry
from tensorfusion.runtime.instruments import Instruments, Row
from tensorfusion.scheduling.placer import Placer
from tensorfusion.store.interface import Store
from tensorfusion.units import format_bytes, format_tflops

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-scheduler"
CHUNK = 25
SHOW_SECONDS = 10.0
"""How often the series of all GPUs are handed to the exposition: more often than scrapes come."""


class GpuStatusWriter:
    """Keeps GPU objects in step with the ledger."""

    def __init__(
        self,
        store: Store,
        placer: Placer,
        instruments: Instruments,
        clock: Clock,
        batch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._store = store
        self._placer = placer
        self._instruments = instruments
        self._clock = clock
        self._batch = batch
        self._stale = False
        self._show_due = 0.0
        self._partitions: dict[str, JsonObject] = {}
        """By GPU, the partitions of its status."""

    def run(self, stop: threading.Event, interval_seconds: float) -> None:
        """Write until ``stop`` is set, and once more at the end."""
        while not stop.is_set():
            self.flush()
            self._clock.wait(stop, interval_seconds)
        self.flush()

    def flush(self) -> int:
        """Write every changed device; returns how many."""
        taken = self._placer.take_dirty()
        for start in range(0, len(taken), CHUNK):
            part = taken[start : start + CHUNK]
            statuses = self._statuses(part)
            try:
                with self._batch():
                    for uuid, status in statuses:
                        self._write(uuid, status)
            except ApiError as error:
                log.warning("GPU status not written", extra={"error": str(error)})
                with self._placer.lock:
                    self._placer.dirty.update(part)
        self._stale = self._stale or bool(taken)
        if self._stale and self._clock.monotonic() >= self._show_due:
            self._show_due = self._clock.monotonic() + SHOW_SECONDS
            self._stale = False
            self._show()
        return len(taken)

    def _write(self, uuid: str, status: JsonObject) -> None:
        try:
            self._mark_partitions(uuid, status)
            self._store.patch(
                GPUS, uuid, {"status": status}, subresource="status", field_manager=MANAGER
            )
        except NotFound:
            log.debug("GPU object is gone", extra={"gpu": uuid})

    def _mark_partitions(self, uuid: str, status: JsonObject) -> None:
        """Say since when partitions are held, and take those away that are not held any more."""
        held = status.get("allocatedPartitions")
        if held is None:
            return
        if uuid not in self._partitions:
            shown = self._store.get(GPUS, uuid).get("status", {}).get("allocatedPartitions") or {}
            self._partitions[uuid] = {k: v for k, v in shown.items() if v.get("podUid")}
        before = self._partitions[uuid]
        now = format_timestamp(self._clock.now())
        for key, entry in held.items():
            entry["allocatedAt"] = before.get(key, {}).get("allocatedAt", now)
        self._partitions[uuid] = held
        status["allocatedPartitions"] = {**dict.fromkeys(before), **held}

    def _statuses(self, uuids: list[str]) -> list[tuple[str, JsonObject]]:
        with self._placer.lock:
            ledger = self._placer.ledger
            found = []
            for uuid in uuids:
                usage = ledger.devices.get(uuid)
                if usage is not None and usage.device is not None:
                    members = [ledger.allocations[key] for key in sorted(usage.members)]
                    found.append((uuid, gpu_status(usage, members)))
            return found

    def _show(self) -> None:
        compute: list[Row] = []
        vram: list[Row] = []
        with self._placer.lock:
            for uuid, usage in self._placer.ledger.devices.items():
                if usage.device is None:
                    continue
                labels = (usage.device.pool, usage.device.node, uuid)
                compute.append((labels, usage.used_gflops * 1e9))
                vram.append((labels, float(usage.used_vram_bytes)))
        self._instruments.replace("tensorfusion_gpu_compute_allocated_flops", compute)
        self._instruments.replace("tensorfusion_gpu_vram_allocated_bytes", vram)


def gpu_status(usage: DeviceUsage, members: list[Allocation]) -> JsonObject:
    """Build the part of a GPU's status that the scheduler owns."""
    apps: dict[tuple[str, str], list[Allocation]] = {}
    for allocation in members:
        apps.setdefault((allocation.namespace, allocation.workload), []).append(allocation)
    partitions: JsonObject = {}
    if usage.device is not None and usage.device.geometry is not None:
        partitions = {"allocatedPartitions": _partitions(usage, usage.device.geometry, members)}
    return {
        **partitions,
        "available": {
            "tflops": format_tflops(usage.free_gflops),
            "vram": format_bytes(usage.free_vram_bytes),
        },
        "activeIsolationMode": usage.active_isolation,
        "dynamicIsolationConflict": usage.conflict or None,
        "runningApps": [
            {
                "name": workload,
                "namespace": namespace,
                "count": len(workers),
                "pods": [_pod_usage(usage.uuid, worker) for worker in workers],
            }
            for (namespace, workload), workers in sorted(apps.items())
        ],
    }


def _partitions(
    usage: DeviceUsage, geometry: Geometry, members: list[Allocation]
) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    for worker in members:
        cut = worker.cut_on(usage.uuid)
        template = geometry.template(cut.template) if cut is not None else None
        if cut is None or template is None:
            continue
        found[f"{cut.template}-{worker.key}"] = {
            "templateId": cut.template,
            "podUid": worker.key,
            "podName": worker.name,
            "namespace": worker.namespace,
            "allocatedSlotStart": cut.start,
            "allocatedSlotEnd": cut.start + template.width,
        }
        if not geometry.divides_memory:
            found[f"{cut.template}-{worker.key}"]["isolationGroupId"] = cut.start
    return found


def _pod_usage(uuid: str, worker: Allocation) -> JsonObject:
    take = next(t for t in worker.takes if t.uuid == uuid)
    return {
        "name": worker.name,
        "namespace": worker.namespace,
        "uid": worker.key,
        "qos": worker.qos,
        "requests": {
            "tflops": format_tflops(take.gflops),
            "vram": format_bytes(take.vram_bytes),
        },
        "limits": {
            "tflops": format_tflops(take.limit_gflops),
            "vram": format_bytes(take.limit_vram_bytes),
        },
    }
