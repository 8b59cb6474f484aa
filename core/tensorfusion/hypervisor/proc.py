"""Files of the kernel about a process (proc(5), cgroups(7)), decoded by pure functions."""

import re
from dataclasses import dataclass
from typing import Final

POD: Final = re.compile(
    rb"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
)
"""A pod in the path of a cgroup, as kubelets name it; with the systemd driver dashes are
underscores, and static pods have a uid without either."""


@dataclass(frozen=True, slots=True)
class Stat:
    """Parts of ``stat``: parent and session as process ids, start in the kernel's ticks."""

    parent: int
    session: int
    start_ticks: int


def decode_stat(data: bytes) -> Stat | None:
    """Read ``/proc/PID/stat``; None for a zombie, a process that is gone, or anything else.

    Fields 3, 4, 6 and 22; the second may contain anything, the last ``)`` ends it.
    """
    fields = data.rpartition(b")")[2].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    try:
        return Stat(int(fields[1]), int(fields[3]), int(fields[19]))
    except ValueError:
        return None


def decode_environment(data: bytes) -> dict[str, str]:
    """Read ``/proc/PID/environ``; of a name that occurs again the first counts, as getenv does."""
    found: dict[str, str] = {}
    for entry in data.split(b"\0"):
        name, separator, value = entry.partition(b"=")
        if separator:
            found.setdefault(name.decode(errors="replace"), value.decode(errors="replace"))
    return found


def decode_cgroup(data: bytes) -> str:
    """The uid of the pod that ``/proc/PID/cgroup`` names; empty when it names none.

    The innermost wins: a path may go through the cgroup of a pod in which a whole node runs.
    """
    found = POD.findall(data)
    return found[-1].decode().replace("_", "-") if found else ""
