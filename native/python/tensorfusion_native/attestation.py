"""The files in which a worker's processes say what is enforced in them.

A tenant can write them: they tell what the limiter found, they prove nothing against a hostile one.
"""

from contextlib import suppress
from pathlib import Path

import msgspec

from tensorfusion.spi.limited import Attested
from tensorfusion_native.processes import UNREADABLE, start_ticks

MOST_BYTES = 4096
"""Of one file; the limiter writes at most 512."""


class _Row(msgspec.Struct):
    pid: int
    state: str
    reason: str = ""
    memory: bool = False
    compute: bool = False


def decode_attestation(content: bytes) -> Attested | None:
    """Read one file's content; None when it is not what a limiter writes."""
    if len(content) > MOST_BYTES:
        return None
    try:
        row = msgspec.json.decode(content, type=_Row)
    except UNREADABLE:
        return None
    if not 0 < row.pid < 1 << 31:
        return None
    return Attested(row.pid, row.state, row.reason, row.memory, row.compute)


def read_attestations(folder: Path) -> list[Attested]:
    """Read the files of the processes that still run, by process id."""
    found = []
    for path in folder.glob("attest.*"):
        with suppress(OSError):
            with path.open("rb") as file:
                row = decode_attestation(file.read(MOST_BYTES + 1))
            if row is not None and start_ticks(row.pid):
                found.append(row)
    return sorted(found, key=lambda row: row.pid)
