"""The NVIDIA backend: real devices of this machine, through the driver's management library."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Capabilities, NodeBackend, NodeContext
from tensorfusion_nvidia.devices import mig_mode
from tensorfusion_nvidia.limiter import is_there, levels
from tensorfusion_nvidia.nvml import VENDOR, Library, Nvml
from tensorfusion_nvidia.session import NvidiaSession
from tensorfusion_nvidia.suspension import find_checkpoints

if TYPE_CHECKING:
    from tensorfusion_native.checkpoint import Checkpoints


class NvidiaBackend:
    """NVIDIA GPUs: finds, reads and hands out devices; limits bind where the limiter is installed.

    Args:
        library: A stand-in for ``pynvml``, for tests.
        proc: The kernel's process folder.
        sysfs: The kernel's device folder.
        limiter: Whether to use the limiter; None uses it where it is installed and built.
        checkpoints: A stand-in for the driver's checkpoint calls, for tests.
    """

    name = "nvidia"
    vendor = "NVIDIA"

    def __init__(
        self,
        library: Library | None = None,
        *,
        proc: Path = Path("/proc"),
        sysfs: Path = Path("/sys"),
        limiter: bool | None = None,
        checkpoints: "Checkpoints | None" = None,
    ) -> None:
        self._limiter = is_there() if limiter is None else limiter
        self._nvml = Nvml(library)
        self._checkpoints = checkpoints
        self._looked = library is not None or checkpoints is not None
        self._proc = proc
        self._sysfs = sysfs
        self._partitions: bool | None = None

    def available(self) -> tuple[bool, str]:
        """Tell whether the driver answers and has a device."""
        try:
            self._nvml.start()
            count = self._nvml.call("nvmlDeviceGetCount")
        except BackendError as error:
            return False, str(error).removeprefix(f"{VENDOR}: ")
        return (True, "") if count else (False, "the NVIDIA driver has no device")

    def capabilities(self) -> Capabilities:
        """Tell what works; without the limiter nothing holds a worker to its limits.

        Partitions are offered where a device was in MIG mode when this process first looked.
        """
        checkpoints = self._find_checkpoints()
        cut = self._find_partitions()
        tiers = () if checkpoints is None else checkpoints.tiers
        return Capabilities(
            isolation=levels(limiter=self._limiter, partitions=cut),
            partitions=cut,
            metrics=True,
            process_usage=True,
            live_limits=True,
            freeze=tiers,
            tells_waiting=checkpoints is not None and checkpoints.simulated,
            snapshot=bool(tiers),
        )

    def nodes(self, settings: Mapping[str, object]) -> Sequence[str]:
        """Name this machine."""
        return [socket.gethostname().lower()]

    def open(self, context: NodeContext) -> NodeBackend:
        """Start a session with this machine's devices.

        Raises:
            BackendError: The driver does not answer.
        """
        self._nvml.start()
        return NvidiaSession(
            self._nvml,
            context,
            proc=self._proc,
            sysfs=self._sysfs,
            limiter=self._limiter,
            partitions=self._find_partitions(),
            checkpoints=self._find_checkpoints(),
        )

    def _find_checkpoints(self) -> "Checkpoints | None":
        """Look once: the driver does not change while this process runs."""
        if not self._looked:
            self._looked = True
            self._checkpoints = find_checkpoints() if self.available()[0] else None
        return self._checkpoints

    def _find_partitions(self) -> bool:
        """Look once: capabilities do not change while this process runs."""
        if self._partitions is None:
            self._partitions = self.available()[0] and any(
                mig_mode(self._nvml, handle)[0]
                for index in range(int(self._nvml.call("nvmlDeviceGetCount")))
                if (handle := self._nvml.ask("nvmlDeviceGetHandleByIndex", index)) is not None
            )
        return self._partitions
