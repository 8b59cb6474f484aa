"""What a session answers for freezing, thawing, snapshots and resuming, for any driver with checkpoint calls."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import FrozenWorker, Tier, WorkerSpec
from tensorfusion_native.checkpoint import Checkpoints
from tensorfusion_native.freezer import Freezer, FrozenRecord, read_record, write_record

MARK = "snapshot"
"""Names, in the folder of a frozen worker, where its snapshot is."""


class Suspension:
    """Takes workers off their devices and brings them back.

    Args:
        checkpoints: The driver's calls.
        folder: Of its own, below the session's state folder.
        processes: A worker's processes, each with its bytes by device.
        free_bytes: What the devices have left, by uuid.

    Concurrency: any thread; one worker is moved at a time, and `frozen` never waits for that.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        folder: Path,
        *,
        processes: Callable[[WorkerSpec], Mapping[int, Mapping[str, int]]],
        free_bytes: Callable[[], Mapping[str, int]],
    ) -> None:
        self._freezer = Freezer(checkpoints, folder)
        self._processes = processes
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._tiers = checkpoints.tiers

    def freeze(self, spec: WorkerSpec, tier: Tier) -> None:
        """As `NodeBackend.freeze`."""
        if tier not in self._tiers:
            raise BackendError(
                "freezer",
                f"worker {spec.worker}: tier {tier.value!r} is not offered; allowed:"
                f" {', '.join(self._tiers)}",
            )
        with self._lock:
            self._check_not_saved(spec.worker)
            self._suspend(self._freezer.path(spec.worker), spec, tier)

    def thaw(self, spec: WorkerSpec) -> float:
        """As `NodeBackend.thaw`."""
        with self._lock:
            self._check_not_saved(spec.worker)
            if not self._freezer.is_frozen(spec.worker):
                return 0.0
            return self._freezer.thaw(spec.worker, self._free_bytes(), spec.devices)

    def frozen(self) -> Sequence[FrozenWorker]:
        """As `NodeBackend.frozen`."""
        return self._freezer.frozen()

    def snapshot(self, spec: WorkerSpec, target: Path) -> None:
        """As `NodeBackend.snapshot`."""
        with self._lock:
            self._check_not_saved(spec.worker)
            if self._freezer.is_frozen(spec.worker):
                self._freezer.thaw(spec.worker, self._free_bytes(), spec.devices)
            self._suspend(target, spec, self._tiers[-1])
            if read_record(target) is None:
                write_record(
                    target,
                    FrozenRecord(
                        worker=spec.worker,
                        tier=self._tiers[-1],
                        processes=[],
                        devices=list(spec.devices),
                    ),
                )
            mark = self._mark(spec.worker)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(str(target.absolute()))

    def resume(self, spec: WorkerSpec, source: Path) -> None:
        """As `NodeBackend.resume`."""
        with self._lock:
            record = read_record(source)
            if record is None:
                raise BackendError("freezer", f"{source} holds no snapshot")
            if record.worker != spec.worker:
                raise BackendError(
                    "freezer", f"{source} is of worker {record.worker}, not of {spec.worker}"
                )
            if len(record.devices) != len(spec.devices):
                raise BackendError(
                    "freezer",
                    f"worker {spec.worker}: the snapshot is of {len(record.devices)} devices, it"
                    f" has {len(spec.devices)} now",
                )
            self._freezer.release_from(source, self._free_bytes(), spec.devices)
            self.forget(spec.worker)

    def forget(self, worker: str) -> None:
        """Drop what is kept of a worker that is released."""
        self._freezer.forget(worker)

    def _suspend(self, folder: Path, spec: WorkerSpec, tier: Tier) -> None:
        processes = self._processes(spec)
        used = dict.fromkeys(spec.devices, 0)
        for held in processes.values():
            for uuid, count in held.items():
                used[uuid] = used.get(uuid, 0) + count
        self._freezer.suspend(
            folder,
            spec.worker,
            sorted(processes),
            tier,
            devices=spec.devices,
            vram_bytes={uuid: count for uuid, count in used.items() if count},
        )

    def _check_not_saved(self, worker: str) -> None:
        mark = self._mark(worker)
        if mark.exists():
            raise BackendError(
                "freezer", f"worker {worker} waits for `resume` of {mark.read_text()}"
            )

    def _mark(self, worker: str) -> Path:
        return self._freezer.path(worker) / MARK
