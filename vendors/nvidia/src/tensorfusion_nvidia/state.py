"""Prepared workers on disk, so that a restart finds them."""

import os
from pathlib import Path

import msgspec

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import WorkerSpec
from tensorfusion_nvidia.nvml import VENDOR


class State(msgspec.Struct):
    """What a session keeps: prepared workers by their name, in the order they came."""

    workers: dict[str, WorkerSpec] = {}


def load_state(path: Path) -> State:
    """Read the state; a missing file is an empty one.

    Raises:
        BackendError: The file is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except (OSError, msgspec.MsgspecError) as error:
        raise BackendError(VENDOR, f"{path} cannot be read: {error}") from error


def save_state(path: Path, state: State) -> None:
    """Replace the file, so that a kill at any moment leaves the old or the new one.

    Raises:
        BackendError: It cannot be written.
    """
    part = path.with_suffix(".part")
    try:
        part.write_bytes(msgspec.json.encode(state))
        os.replace(part, path)
    except OSError as error:
        raise BackendError(VENDOR, f"{path} cannot be written: {error.strerror}") from error
