"""The decision log on disk: append-only lines, compacted by replacing the whole file at once.

A line is complete when its newline is there: a kill in the middle of a write leaves a torn last
line, which the reader reports and `cut` removes. Writes reach the operating system before
`append` returns, so they survive the end of the process (not of the machine).
"""

import os
from collections.abc import Iterator
from pathlib import Path


class DecisionLogFile:
    """One log file.

    Concurrency: the owner serialises calls.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their newline; the last may be torn."""
        with self._path.open("rb") as file:
            yield from file

    def append(self, data: bytes) -> None:
        """Add whole lines."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def cut(self, torn_bytes: int) -> None:
        """Remove an incomplete last line."""
        os.truncate(self._path, self._path.stat().st_size - torn_bytes)

    def compact(self, checkpoint: bytes) -> None:
        """Replace everything by one checkpoint line; a crash leaves the old log or the new one."""
        part = self._path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, checkpoint)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, self._path)
        os.close(self._descriptor)
        self._descriptor = self._open()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
