"""What a session answers for freezing, thawing, snapshots and resuming, for any driver with checkpoint calls."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    Concurrency: any thread; a worker is moved by one at a time, several workers side by side, and
    `frozen` waits for none of them.
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
        self._moved: dict[str, threading.Lock] = {}
        self._coming: dict[str, Mapping[str, int]] = {}
        """By worker that is being thawed: the bytes that it takes of each device."""
        self._tiers = checkpoints.tiers

    def freeze(self, spec: WorkerSpec, tier: Tier) -> None:
        """As `NodeBackend.freeze`."""
        if tier not in self._tiers:
            raise BackendError(
                "freezer",
                f"worker {spec.worker}: tier {tier.value!r} is not offered; allowed:"
                f" {', '.join(self._tiers)}",
            )
        with self._alone(spec.worker):
            self._check_not_saved(spec.worker)
            self._suspend(self._freezer.path(spec.worker), spec, tier)

    def thaw(self, spec: WorkerSpec) -> float:
        """As `NodeBackend.thaw`."""
        with self._alone(spec.worker):
            self._check_not_saved(spec.worker)
            if not self._freezer.is_frozen(spec.worker):
                return 0.0
            with self._room(self._freezer.path(spec.worker), spec) as free:
                return self._freezer.thaw(spec.worker, free, spec.devices)

    def frozen(self) -> Sequence[FrozenWorker]:
        """As `NodeBackend.frozen`."""
        return self._freezer.frozen()

    def snapshot(self, spec: WorkerSpec, target: Path) -> None:
        """As `NodeBackend.snapshot`."""
        with self._alone(spec.worker):
            self._check_not_saved(spec.worker)
            if self._freezer.is_frozen(spec.worker):
                with self._room(self._freezer.path(spec.worker), spec) as free:
                    self._freezer.thaw(spec.worker, free, spec.devices)
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
        with self._alone(spec.worker):
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
            with self._room(source, spec) as free:
                self._freezer.release_from(source, free, spec.devices)
            self._freezer.forget(spec.worker)

    def forget(self, worker: str) -> None:
        """Drop what is kept of a worker that is released."""
        self._freezer.forget(worker)
        with self._lock:
            self._moved.pop(worker, None)

    @contextmanager
    def _alone(self, worker: str) -> Iterator[None]:
        with self._lock:
            moved = self._moved.setdefault(worker, threading.Lock())
        with moved:
            yield

    @contextmanager
    def _room(self, folder: Path, spec: WorkerSpec) -> Iterator[Mapping[str, int]]:
        """What the devices have left for a worker, by uuid, without what others are about to take.

        Some of these may have it already and are counted twice: then the worker is tried again.
        """
        record = read_record(folder)
        held = record.vram_bytes if record is not None else {}
        places = dict(zip(record.devices, spec.devices, strict=False)) if record is not None else {}
        with self._lock:
            free = dict(self._free_bytes())
            for taken in self._coming.values():
                for uuid, count in taken.items():
                    free[uuid] = free.get(uuid, 0) - count
            self._coming[spec.worker] = {places.get(u, u): count for u, count in held.items()}
        try:
            yield free
        finally:
            with self._lock:
                del self._coming[spec.worker]

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
