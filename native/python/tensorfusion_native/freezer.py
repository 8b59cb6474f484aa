"""Freezing all processes of a worker by the driver's checkpoint calls, and bringing them back.

The driver knows where each process is; beside that a record on disk tells which processes belong
together and where their contents went, so that another session can go on. The record is written
before anything is done, and goes after everything is undone.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import FrozenWorker, Tier
from tensorfusion_native.checkpoint import (
    INVALID_VALUE,
    CheckpointError,
    Checkpoints,
    ProcessState,
)
from tensorfusion_native.processes import UNREADABLE, start_ticks

log = logging.getLogger(__name__)
RECORD = "frozen.json"
LOCK_SECONDS = 5.0
"""How long the work of a worker may take to end before it is left running."""


class FrozenProcess(msgspec.Struct, frozen=True):
    """A process, known by its start among those that have its number later."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Whether it still runs."""
        return start_ticks(self.pid) == self.start_ticks


class FrozenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is frozen and where it is.

    Attributes:
        tier: Warm or cold.
        vram_bytes: By device, what was taken off it.
        devices: The worker's devices, in its order.
    """

    worker: str
    tier: Tier
    processes: list[FrozenProcess]
    devices: list[str]
    vram_bytes: dict[str, int] = {}


class Freezer:
    """Freezes and thaws the workers of one node session.

    Args:
        checkpoints: The driver's calls.
        folder: Of the freezer's own, below the session's state folder; one per frozen worker.

    Concurrency: a worker is moved by one thread at a time; `frozen` may be called from any. Nobody
    else writes below the folder, so that `frozen`, which is asked many times a second, reads no files.
    """

    def __init__(self, checkpoints: Checkpoints, folder: Path) -> None:
        self._checkpoints = checkpoints
        self._folder = folder
        found = {unquote(path.name): read_record(path) for path in folder.glob("*/")}
        self._records = {name: record for name, record in found.items() if record is not None}
        """The records below the folder, by worker."""

    def suspend(
        self,
        folder: Path,
        worker: str,
        pids: Sequence[int],
        tier: Tier,
        *,
        devices: Sequence[str],
        vram_bytes: Mapping[str, int],
    ) -> None:
        """Take all processes of a worker off their devices, or move frozen ones between tiers.

        Args:
            folder: Takes the record, and the contents of the tier cold.
            worker: Its name.
            pids: Its processes; those that the driver does not know are left out.
            tier: Warm or cold.
            devices: Its devices, in its order.
            vram_bytes: What it has on each, by uuid.

        Raises:
            BackendError: One of them cannot be frozen; all run on.
        """
        before = read_record(folder)
        known = {p.pid: p for p in before.processes if p.alive()} if before is not None else {}
        for pid in pids:
            if pid not in known and self._checkpoints.known(pid):
                known[pid] = FrozenProcess(pid, start_ticks(pid))
        if not known:
            return
        record = FrozenRecord(
            worker=worker,
            tier=tier,
            processes=[known[pid] for pid in sorted(known)],
            devices=list(devices),
            vram_bytes=dict(before.vram_bytes if before is not None else vram_bytes),
        )
        self._keep(folder, record)
        try:
            self._take_off(folder, record)
        except BackendError:
            if before is None:
                shutil.rmtree(folder, ignore_errors=True)
                self._records.pop(worker, None)
            else:
                self._keep(folder, before)
            raise

    def thaw(self, worker: str, free_bytes: Mapping[str, int], devices: Sequence[str]) -> float:
        """Bring a frozen worker back; one that is not frozen is left alone.

        Args:
            worker: Its name.
            free_bytes: What its devices have left, by uuid; asked first, because a real driver
                may leave a process stuck whose restore runs out of memory.
            devices: Where it shall be, in its order.

        Returns:
            Seconds that it took; 0 for one that was not frozen.

        Raises:
            BackendError: There is no room, or the driver fails; it stays frozen.
        """
        seconds = self.release_from(self.path(worker), free_bytes, devices)
        self.forget(worker)
        return seconds

    def release_from(
        self, folder: Path, free_bytes: Mapping[str, int], devices: Sequence[str]
    ) -> float:
        """As `thaw`, with the record in a folder that the caller chose."""
        record = read_record(folder)
        if record is None:
            return 0.0
        pairs = {old: new for old, new in zip(record.devices, devices, strict=False) if old != new}
        _check_room(record, pairs, free_bytes)
        started = time.monotonic()
        live = [process for process in record.processes if process.alive()]
        restored: list[FrozenProcess] = []
        try:
            for process in live:
                with self._unless_gone(process):
                    if self._checkpoints.state(process.pid) is ProcessState.CHECKPOINTED:
                        self._checkpoints.restore(process.pid, pairs)
                        restored.append(process)
        except BackendError:
            # All together or none: one that runs while its peers do not would wait for them.
            for process in restored:
                self._try(process, self._checkpoints.checkpoint)
            raise
        for process in live:
            with self._unless_gone(process):
                if self._checkpoints.state(process.pid) is ProcessState.LOCKED:
                    self._checkpoints.unlock(process.pid)
        for image in folder.glob("image-*"):
            image.unlink(missing_ok=True)
        return time.monotonic() - started

    def frozen(self) -> list[FrozenWorker]:
        """List what is frozen; a worker whose processes all ended is not."""
        if not self._records:
            return []
        rows = []
        for worker, record in self._records.copy().items():
            live = [p for p in record.processes if p.alive()]
            if not live:
                continue
            rows.append(
                FrozenWorker(
                    worker=worker,
                    tier=record.tier,
                    vram_bytes=sum(record.vram_bytes.values()),
                    waiting=self._waiting(live),
                )
            )
        return rows

    def is_frozen(self, worker: str) -> bool:
        """Whether there is a record of it."""
        return (self.path(worker) / RECORD).exists()

    def forget(self, worker: str) -> None:
        """Drop what is kept of a worker that is released; its processes are its owner's to end."""
        shutil.rmtree(self.path(worker), ignore_errors=True)
        self._records.pop(worker, None)

    def path(self, worker: str) -> Path:
        """The folder of a frozen worker."""
        return self._folder / quote(worker, safe="")

    def _keep(self, folder: Path, record: FrozenRecord) -> None:
        write_record(folder, record)
        if folder == self.path(record.worker):
            self._records[record.worker] = record

    def _waiting(self, processes: Sequence[FrozenProcess]) -> bool | None:
        """Whether a thread is held at a call; the real driver does not tell."""
        if not self._checkpoints.simulated:
            return None
        held = [self._checkpoints.held(process.pid) for process in processes]
        return any(one is not None and one.waiting for one in held)

    def _take_off(self, folder: Path, record: FrozenRecord) -> None:
        """Lock all, then checkpoint all, then move the contents; undo all when one fails."""
        until = time.monotonic() + LOCK_SECONDS
        touched: list[FrozenProcess] = []
        try:
            for process in record.processes:
                with self._unless_gone(process):
                    if self._checkpoints.state(process.pid) is ProcessState.RUNNING:
                        left = max(until - time.monotonic(), 0.001)
                        self._checkpoints.lock(process.pid, left)
                        touched.append(process)
            for process in record.processes:
                with self._unless_gone(process):
                    if self._checkpoints.state(process.pid) is ProcessState.LOCKED:
                        self._checkpoints.checkpoint(process.pid)
        except BackendError:
            for process in touched:
                if self._state_of(process) is ProcessState.CHECKPOINTED:
                    self._try(process, self._checkpoints.restore)
            for process in touched:
                if self._state_of(process) is ProcessState.LOCKED:
                    self._try(process, self._checkpoints.unlock)
            raise
        self._move(folder, record)

    def _move(self, folder: Path, record: FrozenRecord) -> None:
        """Put the contents of each process where its tier says."""
        if not self._checkpoints.simulated:
            return
        for process in record.processes:
            image = folder / f"image-{process.pid}"
            with self._unless_gone(process):
                held = self._checkpoints.held(process.pid)
                if held is not None and held.stored != (record.tier is Tier.COLD):
                    self._checkpoints.store(
                        process.pid, image if record.tier is Tier.COLD else None
                    )
            if record.tier is not Tier.COLD:
                image.unlink(missing_ok=True)

    def _state_of(self, process: FrozenProcess) -> ProcessState | None:
        try:
            return self._checkpoints.state(process.pid)
        except CheckpointError:
            return None

    @contextlib.contextmanager
    def _unless_gone(self, process: FrozenProcess) -> Iterator[None]:
        """A process that ended meanwhile needs nothing more."""
        try:
            yield
        except CheckpointError as error:
            if error.result != INVALID_VALUE or process.alive():
                raise

    def _try(self, process: FrozenProcess, call: Callable[[int], None]) -> None:
        try:
            call(process.pid)
        except CheckpointError as error:
            log.warning("not undone", extra={"pid": process.pid, "error": str(error)})


def read_record(folder: Path) -> FrozenRecord | None:
    """Read what is frozen; None where nothing is, or the record is not complete."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=FrozenRecord)
    except (OSError, *UNREADABLE):
        return None


def write_record(folder: Path, record: FrozenRecord) -> None:
    """Write the record, whole or not at all.

    Raises:
        BackendError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{RECORD}.part"
        part.write_bytes(msgspec.json.encode(record))
        os.replace(part, folder / RECORD)
    except OSError as error:
        raise BackendError("freezer", f"{folder} cannot be written: {error.strerror}") from error


def _check_room(
    record: FrozenRecord, pairs: Mapping[str, str], free_bytes: Mapping[str, int]
) -> None:
    for uuid, needed in record.vram_bytes.items():
        target = pairs.get(uuid, uuid)
        if needed > free_bytes.get(target, 0):
            raise BackendError(
                "freezer",
                f"worker {record.worker}: device {target} has {free_bytes.get(target, 0)} bytes"
                f" free, {needed} are needed",
            )
