"""Processes on a device, and the workers that they belong to.

A process says who it is in two ways: its environment carries `WORKER_VARIABLE`, which `prepare`
set and children inherit; or its cgroup carries the pod's uid, as a kubelet names it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tensorfusion_nvidia.devices import Found
from tensorfusion_nvidia.nvml import Nvml

WORKER_VARIABLE = "TENSORFUSION_WORKER"


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process uses of one device: memory in bytes, and a fraction of its compute."""

    pid: int
    vram_bytes: int = 0
    compute_ratio: float = 0.0


class ProcessTable:
    """Finds the worker of a process.

    Args:
        proc: The kernel's process folder.

    Concurrency: not safe from several threads; the session's lock guards it.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._known: dict[tuple[int, str], str] = {}

    def worker_of(self, pid: int, workers: Iterable[str]) -> str:
        """Name the worker of a process, out of those given; empty when it is none of them."""
        stamp = self._started(pid)
        if not stamp:
            return ""
        candidates = set(workers)
        known = self._known.get((pid, stamp), "")
        if known in candidates:
            return known
        worker = self._from_environment(pid, candidates) or self._from_cgroup(pid, candidates)
        if worker:
            self._known[pid, stamp] = worker
        return worker

    def forget(self, worker: str) -> None:
        """Drop what is remembered of a worker's processes."""
        self._known = {key: known for key, known in self._known.items() if known != worker}

    def _started(self, pid: int) -> str:
        """When a process started, in the kernel's ticks: a pid alone may be used again.

        Field 22 of ``stat`` (proc(5)); the second field may contain spaces, the last ``)`` ends it.
        """
        fields = self._read(pid, "stat").rpartition(")")[2].split()
        return fields[19] if len(fields) > 19 else ""

    def _from_environment(self, pid: int, candidates: set[str]) -> str:
        for entry in self._read(pid, "environ").split("\0"):
            key, _, value = entry.partition("=")
            if key == WORKER_VARIABLE and value in candidates:
                return value
        return ""

    def _from_cgroup(self, pid: int, candidates: set[str]) -> str:
        # The systemd driver of cgroups writes the dashes of a uid as underscores.
        groups = self._read(pid, "cgroup").replace("_", "-")
        return next((uid for uid in sorted(candidates) if f"pod{uid}" in groups), "")

    def _read(self, pid: int, name: str) -> str:
        try:
            return (self._proc / str(pid) / name).read_text(errors="replace")
        except OSError:
            return ""


def process_uses(nvml: Nvml, device: Found, since_microseconds: int) -> list[ProcessUse]:
    """Read what each process uses of a device.

    Compute is the mean of the driver's samples (percent of the window in which kernels of the
    process ran) since ``since_microseconds`` of the epoch.
    """
    memory: dict[int, int] = {}
    for function in (
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
    ):
        for process in nvml.ask(function, device.handle) or ():
            # The driver tells no memory inside some containers and on Windows.
            used = int(process.usedGpuMemory or 0)
            memory[int(process.pid)] = max(memory.get(int(process.pid), 0), used)
    samples: dict[int, list[int]] = {}
    function = "nvmlDeviceGetProcessUtilization"
    for sample in nvml.ask(function, device.handle, since_microseconds) or ():
        if int(sample.timeStamp) > since_microseconds:
            samples.setdefault(int(sample.pid), []).append(int(sample.smUtil))
    return [
        ProcessUse(
            pid,
            memory.get(pid, 0),
            min(1.0, sum(samples.get(pid, ())) / len(samples.get(pid, (0,))) / 100),
        )
        for pid in sorted({*memory, *samples})
    ]
