"""Processes of workers, as the kernel knows them."""

import re
from pathlib import Path
from typing import Final

import msgspec

from tensorfusion.spi.limited import Attachment

PROC = Path("/proc")
DRIVER_LINE: Final = re.compile(rb"/libcuda\.so[.0-9]*(?: \(deleted\))?$", re.MULTILINE)
LIMITER_LINE: Final = re.compile(rb"/libtensorfusion_limiter\.so(?: \(deleted\))?$", re.MULTILINE)
"""How lines of ``maps`` end (proc(5)); a file that was replaced since is deleted."""
WORKER_NAME_VARIABLE = "TENSORFUSION_WORKER"
"""Names the worker in the environment of its processes; children inherit it."""
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a JSON file raises that is damaged, or that somebody else wrote."""


def start_ticks(pid: int) -> int:
    """When a process started, in the kernel's ticks; 0 when it is gone or a zombie.

    Fields 3 and 22 of ``stat`` (proc(5)); the second may contain spaces, the last ``)`` ends it.
    """
    try:
        # A process may give itself a name that is no text.
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


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


def attachment(pid: int) -> Attachment:
    """What a process has mapped: the driver, the limiter, or neither."""
    try:
        maps = (PROC / str(pid) / "maps").read_bytes()
    except OSError:
        return Attachment.NONE
    if LIMITER_LINE.search(maps):
        return Attachment.LIMITED
    return Attachment.BYPASSED if DRIVER_LINE.search(maps) else Attachment.NONE
