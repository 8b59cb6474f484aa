"""The driver's checkpoint calls: take a process's device memory off its cards, and bring it back.

They act on any process of this machine by its id. Names, states and error codes are those of the
driver's published interface, from release 570 (CUDA 12.8) on; restoring onto other cards is of
CUDA 13.0.
"""

import ctypes as c
import os
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Tier
from tensorfusion_native.driver_library import open_library

REAL_LIBRARY: Final = "libcuda.so.1"
INVALID_VALUE: Final = 1
OUT_OF_MEMORY: Final = 2
NOT_INITIALIZED: Final = 3
ILLEGAL_STATE: Final = 401
NOT_READY: Final = 600
NOT_SUPPORTED: Final = 801
_TEXTS: Final[Mapping[int, str]] = {
    INVALID_VALUE: "no such process uses the driver, or an argument is wrong",
    OUT_OF_MEMORY: "out of memory",
    NOT_INITIALIZED: "the driver is not initialised",
    ILLEGAL_STATE: "the process is in another state",
    NOT_READY: "not done within the time",
    NOT_SUPPORTED: "this driver has no checkpoint calls",
}
_DEVICES: Final = 8
"""Cards of a simulated machine at most."""


class ProcessState(IntEnum):
    """Where a process is: ``running`` -> ``locked`` -> ``checkpointed`` and back the same way."""

    RUNNING = 0
    LOCKED = 1
    """Its calls block; what it had submitted has ended."""
    CHECKPOINTED = 2
    """Its device memory is in host memory, and the cards are free of it."""
    FAILED = 3
    """It cannot be brought back."""


class _Lock(c.Structure):
    _fields_ = (("timeout_ms", c.c_uint), ("zero", c.c_uint), ("zeros", c.c_uint64 * 7))


class _Pair(c.Structure):
    _fields_ = (("old", c.c_ubyte * 16), ("new", c.c_ubyte * 16))


class _Restore(c.Structure):
    _fields_ = (
        ("pairs", c.POINTER(_Pair)),
        ("count", c.c_uint),
        ("zeros", c.c_ubyte * 44),
        ("zero", c.c_uint64),
    )


class CheckpointError(BackendError):
    """A checkpoint call failed.

    Attributes:
        result: The driver's code.
    """

    def __init__(self, call: str, pid: int, result: int) -> None:
        text = _TEXTS.get(result, "driver error")
        super().__init__("CUDA", f"{call} of process {pid}: {text}", code=str(result))
        self.result = result


@dataclass(frozen=True, slots=True)
class Held:
    """What the simulated driver knows of a process beyond its state.

    Attributes:
        waiting: Threads that are held at a call.
        stored: The contents are in a file.
        vram_bytes: What its checkpoint took off all cards; 0 when it has none.
    """

    waiting: int
    stored: bool
    vram_bytes: int


class Checkpoints:
    """The checkpoint calls of one driver.

    Args:
        library: Name or path of the driver's library.
        state: State file of a simulated machine; None for the real driver, which is initialised.
        config: Its configuration.

    Concurrency: the driver's calls are safe from any thread, and block until they are done.

    Raises:
        BackendError: The library is missing, or does not start.
    """

    def __init__(
        self,
        library: str | Path = REAL_LIBRARY,
        state: Path | None = None,
        config: Path | None = None,
    ) -> None:
        self._library = open_library("CUDA", library, state, config)
        self.simulated = state is not None
        self.tiers = (Tier.WARM, Tier.COLD) if self.simulated else (Tier.WARM,)
        """A real driver keeps the contents in the process: they cannot go to disk."""
        if state is None and (code := self._library.cuInit(0)):
            raise BackendError("CUDA", f"{library}: cuInit failed ({code})", code=str(code))

    def offered(self) -> bool:
        """Whether the driver has these calls: asked about this process, which is harmless."""
        try:
            self.state(os.getpid())
        except CheckpointError as error:
            return error.result == INVALID_VALUE
        return True

    def state(self, pid: int) -> ProcessState:
        """Read where a process is.

        Raises:
            CheckpointError: It is unknown to the driver, or the driver has no such calls.
        """
        found = c.c_int()
        self._call("GetState", pid, c.byref(found))
        return ProcessState(found.value)

    def known(self, pid: int) -> bool:
        """Whether the driver knows the process."""
        try:
            self.state(pid)
        except CheckpointError:
            return False
        return True

    def restore_thread(self, pid: int) -> int:
        """Read which thread of a process carries restores out.

        Raises:
            CheckpointError: As for `state`.
        """
        found = c.c_int()
        self._call("GetRestoreThreadId", pid, c.byref(found))
        return found.value

    def lock(self, pid: int, timeout_seconds: float = 0.0) -> None:
        """Let submitted work end and hold every further call; running -> locked.

        Args:
            pid: The process.
            timeout_seconds: After that the process is left running; 0 is no limit.

        Raises:
            CheckpointError: As for `state`; it is not running, or the time is over.
        """
        self._call("Lock", pid, c.byref(_Lock(timeout_ms=round(timeout_seconds * 1000))))

    def checkpoint(self, pid: int) -> None:
        """Move device memory to host memory and give the cards back; locked -> checkpointed.

        Raises:
            CheckpointError: As for `state`; it is not locked, or there is no room.
        """
        self._call("Checkpoint", pid, None)

    def restore(self, pid: int, pairs: Mapping[str, str] | None = None) -> None:
        """Take cards again and bring the contents back; checkpointed -> locked.

        Args:
            pid: The process.
            pairs: The card, as ``GPU-...``, for each card that it was on; of the same model.

        Raises:
            CheckpointError: As for `state`; it is not checkpointed, or the cards have no room.
        """
        if not pairs:
            self._call("Restore", pid, None)
            return
        rows = (_Pair * len(pairs))(
            *(_Pair(_bytes_of(old), _bytes_of(new)) for old, new in pairs.items())
        )
        self._call("Restore", pid, c.byref(_Restore(pairs=rows, count=len(rows))))

    def unlock(self, pid: int) -> None:
        """Let the held calls go on; locked -> running.

        Raises:
            CheckpointError: As for `state`; it is not locked.
        """
        self._call("Unlock", pid, None)

    def store(self, pid: int, path: Path | None) -> None:
        """Move a checkpoint's contents to a file, or back to host memory; simulated driver only.

        It stands for the storage that a caller of the real driver may provide from CUDA 13.4 on.

        Raises:
            CheckpointError: The process is not checkpointed, or the file cannot be written.
        """
        code = self._library.tfSimCheckpointStore(pid, str(path or "").encode())
        if code:
            raise CheckpointError(f"store {path}", pid, code)

    def held(self, pid: int) -> Held | None:
        """What the simulated driver knows of a process; None when it is gone."""
        waiting, stored, taken = c.c_uint32(), c.c_uint32(), (c.c_uint64 * _DEVICES)()
        if self._library.tfSimCheckpoint(pid, c.byref(waiting), c.byref(stored), taken):
            return None
        return Held(waiting.value, bool(stored.value), sum(taken))

    def _call(self, name: str, pid: int, argument: object) -> None:
        function = getattr(self._library, f"cuCheckpointProcess{name}", None)
        code = function(pid, argument) if function is not None else NOT_SUPPORTED
        if code:
            raise CheckpointError(name.lower(), pid, code)


def _bytes_of(device: str) -> "c.Array[c.c_ubyte]":
    return (c.c_ubyte * 16)(*uuids.UUID(device.removeprefix("GPU-")).bytes)
