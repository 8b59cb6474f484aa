"""The decision log on disk: append-only lines, compacted by replacing the whole file at once.

What a compaction replaces is kept for a while as a segment beside the file, for `history`; a
replay needs the file alone.

A line is complete when its newline is there: a kill in the middle of a write leaves a torn last
line, which the reader reports and `cut` removes. Writes reach the operating system before
`append` returns, so they survive the end of the process; with ``sync`` they survive the end of
the machine too.
"""

import os
from collections.abc import Iterator
from pathlib import Path

KEPT_SEGMENTS = 8
"""Old segments that stay: 400,000 decisions, about 240 MB."""


class DecisionLogFile:
    """One log file.

    Concurrency: the owner serialises calls.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        """Open or create the file, readable by its owner only.

        Args:
            path: The log.
            sync: Wait for the disk on every append; costs milliseconds each.
        """
        self._path = path
        self._sync = sync
        self._descriptor = self._open()
        newest = self._segments()[-1:]
        if newest and newest[0].samefile(path):
            newest[0].unlink()  # a crash in the middle of a compaction left it

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their newline; the last may be torn."""
        with self._path.open("rb") as file:
            yield from file

    def append(self, data: bytes) -> None:
        """Add whole lines.

        Raises:
            OSError: The disk is full or broken. What was written of the lines is taken back, so
                that the next append does not follow half a line.
        """
        size = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, data)
            if self._sync:
                os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def cut(self, torn_bytes: int) -> None:
        """Remove an incomplete last line."""
        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - torn_bytes)

    def history(self) -> Iterator[bytes]:
        """Yield the lines of kept segments and of the log, oldest first; the last may be torn.

        Concurrency: safe beside the owner; a compaction meanwhile may show its segment twice or
        not at all.
        """
        for path in (*self._segments(), self._path):
            try:
                with path.open("rb") as file:
                    yield from file
            except FileNotFoundError:
                continue

    def compact(self, checkpoint: bytes) -> None:
        """Replace everything by one checkpoint line; a crash leaves the old log or the new one.

        The old log stays as the newest segment; the oldest ones beyond `KEPT_SEGMENTS` go.
        """
        part = self._path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, checkpoint)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        segments = self._segments()
        number = int(segments[-1].suffix[1:]) + 1 if segments else 1
        os.link(self._path, self._path.with_name(f"{self._path.name}.{number:06d}"))
        part.replace(self._path)
        self._sync_folder()
        for old in self._segments()[:-KEPT_SEGMENTS]:
            old.unlink()
        os.close(self._descriptor)
        self._descriptor = self._open()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _segments(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.name}.[0-9]*"))

    def _sync_folder(self) -> None:
        """Make the rename itself durable."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
