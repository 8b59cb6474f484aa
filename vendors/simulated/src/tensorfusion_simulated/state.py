"""What a session keeps on disk: prepared workers with their counters, and injected faults."""

import errno
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import WorkerSpec

Kind = TypeVar("Kind", bound=msgspec.Struct)


class CounterState(msgspec.Struct, kw_only=True):
    """What a worker holds of one card and has counted on it."""

    vram_bytes: int = 0
    oom_total: int = 0
    throttled_seconds: float = 0.0
    refused: bool = False


class WorkerState(msgspec.Struct, kw_only=True):
    """A prepared worker; ``cards`` maps device uuid to its counters."""

    spec: dict[str, Any]
    started: float
    cards: dict[str, CounterState] = {}


class WorkerChange(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of the change log: a worker as it is from now on; without a spec it is gone."""

    worker: str
    started: float = 0.0
    spec: dict[str, Any] | None = None


class CardState(msgspec.Struct, kw_only=True):
    """Counters of one card that survive a restart."""

    joules: float = 0.0
    celsius: float = 30.0


class SessionState(msgspec.Struct, kw_only=True):
    """One node's session."""

    workers: dict[str, WorkerState] = {}
    cards: dict[str, CardState] = {}
    partitions: list[dict[str, Any]] = []


class Fault(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is wrong with a card: failed with a message, pulled out, or slowed down."""

    failed: str = ""
    removed: bool = False
    speed_ratio: float = 1.0


class Faults(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Injected faults of one node, by uuid, and the models of cards that were added."""

    cards: dict[str, Fault] = {}
    added: list[str] = []


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a kill at any moment, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)


def change_log(path: Path) -> Path:
    """Name the log of what has changed since the state at ``path`` was written."""
    return path.with_suffix(".log")


def append_change(path: Path, change: WorkerChange) -> None:
    """Add a line to the change log of a state.

    A kill leaves the line whole or torn at the end; a full disk leaves the log as it was.
    """
    line = msgspec.json.encode(change) + b"\n"
    with change_log(path).open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def load_state(path: Path) -> SessionState:
    """Read a session's state and what has changed since it was written.

    Missing files are an empty state. Changes that the state has already change nothing, so a kill
    between writing the state and emptying the log does no harm.

    Raises:
        BackendError: A file is damaged.
    """
    state, changes = _load(path, SessionState), change_log(path)
    try:
        lines = changes.read_bytes().split(b"\n")
    except FileNotFoundError:
        return state
    except OSError as error:
        raise BackendError("simulated", f"{changes} cannot be read: {error}") from error
    for line in lines[:-1]:  # what follows the last newline is nothing, or torn
        try:
            change = msgspec.json.decode(line, type=WorkerChange)
        except msgspec.MsgspecError as error:
            raise BackendError("simulated", f"{changes} is damaged: {error}") from error
        if change.spec is None:
            state.workers.pop(change.worker, None)
            continue
        known = state.workers.get(change.worker)
        state.workers[change.worker] = WorkerState(
            spec=change.spec, started=change.started, cards=known.cards if known else {}
        )
    return state


def load_faults(path: Path) -> Faults:
    """Read the faults; a missing file has none.

    Raises:
        BackendError: The file is damaged.
    """
    return _load(path, Faults)


def _load(path: Path, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.MsgspecError) as error:
        raise BackendError("simulated", f"{path} cannot be read: {error}") from error


def spec_to_json(spec: WorkerSpec) -> dict[str, Any]:
    """Turn a spec into what `spec_from_json` reads."""
    result: dict[str, Any] = msgspec.to_builtins(spec)
    return result


def spec_from_json(data: dict[str, Any]) -> WorkerSpec:
    """Restore a spec."""
    return msgspec.convert(data, WorkerSpec)
