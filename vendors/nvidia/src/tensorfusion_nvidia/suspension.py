"""Freezing and snapshots by the driver's checkpoint calls (release 570 and later), where they can be used."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import NodeContext, WorkerSpec

if TYPE_CHECKING:
    from tensorfusion_native.checkpoint import Checkpoints
    from tensorfusion_native.suspension import Suspension


def find_checkpoints() -> "Checkpoints | None":
    """Find the calls of this machine's driver; None where it has none, or tensorfusion-native is missing."""
    try:
        from tensorfusion_native.checkpoint import Checkpoints

        checkpoints = Checkpoints()
    except (ImportError, BackendError):
        return None
    return checkpoints if checkpoints.offered() else None


def open_suspension(
    checkpoints: "Checkpoints",
    context: NodeContext,
    *,
    processes: Callable[[WorkerSpec], Mapping[int, Mapping[str, int]]],
    free_bytes: Callable[[], Mapping[str, int]],
) -> "Suspension":
    """Open what a node's session needs to freeze its workers."""
    from tensorfusion_native.suspension import Suspension

    folder = context.state_dir / "native" / "frozen"
    return Suspension(checkpoints, folder, processes=processes, free_bytes=free_bytes)
