"""Processes of workers, as the kernel knows them."""

from pathlib import Path

PROC = Path("/proc")
WORKER_NAME_VARIABLE = "TENSORFUSION_WORKER"
"""Names the worker in the environment of its processes; children inherit it."""


def start_ticks(pid: int) -> int:
    """When a process started, in the kernel's ticks; 0 when it is gone or a zombie.

    Fields 3 and 22 of ``stat`` (proc(5)); the second may contain spaces, the last ``)`` ends it.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def worker_of(pid: int) -> str:
    """The worker that a process says it belongs to; empty when it says nothing or is gone."""
    try:
        entries = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = WORKER_NAME_VARIABLE.encode() + b"="
    return next(
        (e[len(prefix) :].decode(errors="replace") for e in entries if e.startswith(prefix)), ""
    )
