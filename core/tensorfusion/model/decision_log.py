"""The append-only record of every change to the ledger, as JSON lines.

A line is ``{"crc":"8 hex digits","record":{...}}``: the checksum covers the bytes of the record,
and the record carries the ledger's digest after it. Replaying the lines gives the allocations
bit for bit. Files are the business of others: lines go in and out as bytes.
"""

import zlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from tensorfusion.errors import TensorFusionError
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.ledger import Change, Ledger, Operation


class LogCorrupt(TensorFusionError):
    """A line before the last one cannot be trusted; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"decision log, line {line}: {message}")
        self.line = line


class LogRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line.

    Attributes:
        seq: Grows by one per record; a checkpoint keeps the number of the last record it covers.
        time: Epoch seconds of the decision.
        operation: What happened; ``checkpoint`` carries the whole state.
        key: Key of the allocation.
        reason: Why, for people.
        allocation: State of the allocation afterwards; None after a release.
        allocations: Every allocation, in a checkpoint.
        digest: Digest of the ledger afterwards, 32 hexadecimal digits.
    """

    seq: int
    time: float
    operation: Operation | Literal["checkpoint"]
    digest: str
    key: str = ""
    reason: str = ""
    allocation: Allocation | None = None
    allocations: tuple[Allocation, ...] | None = None


class _Line(msgspec.Struct, frozen=True):
    crc: str
    record: msgspec.Raw


class Replay(msgspec.Struct, frozen=True):
    """What a log says.

    Attributes:
        ledger: State after the last whole record.
        last_seq: Its number, 0 for an empty log.
        records: Whole records read.
        torn_bytes: Length of an incomplete last line, to be cut off before appending.
    """

    ledger: Ledger
    last_seq: int
    records: int
    torn_bytes: int


class LogEncoder:
    """Numbers changes and turns them into lines."""

    def __init__(self, last_seq: int = 0) -> None:
        self.last_seq = last_seq
        self._encoder = msgspec.json.Encoder()

    def encode(self, change: Change, time: float, reason: str = "") -> bytes:
        """Return the line for one change, with its newline.

        Args:
            change: As the ledger returned it.
            time: Epoch seconds.
            reason: Why it was decided.
        """
        self.last_seq += 1
        return self._line(
            LogRecord(
                seq=self.last_seq,
                time=time,
                operation=change.operation,
                key=change.key,
                reason=reason,
                allocation=change.after,
                digest=f"{change.digest:032x}",
            )
        )

    def checkpoint(self, ledger: Ledger, time: float) -> bytes:
        """Return a line that carries the whole state and replaces all earlier lines."""
        return self._line(
            LogRecord(
                seq=self.last_seq,
                time=time,
                operation="checkpoint",
                allocations=tuple(value for _, value in sorted(ledger.allocations.items())),
                digest=f"{ledger.digest:032x}",
            )
        )

    def _line(self, record: LogRecord) -> bytes:
        body = self._encoder.encode(record)
        return b'{"crc":"%08x","record":%s}\n' % (zlib.crc32(body), body)


_LINE_DECODER = msgspec.json.Decoder(_Line)
_RECORD_DECODER = msgspec.json.Decoder(LogRecord)


def decode_line(line: bytes) -> LogRecord:
    """Read one line.

    Raises:
        ValueError: The line is incomplete, is not a record, or its checksum is wrong.
    """
    if not line.endswith(b"\n"):
        raise ValueError("the line is incomplete")
    outer = _LINE_DECODER.decode(line)
    body = bytes(outer.record)
    if f"{zlib.crc32(body):08x}" != outer.crc:
        raise ValueError("the checksum does not match")
    return _RECORD_DECODER.decode(body)


def replay(lines: Iterable[bytes]) -> Replay:
    """Rebuild the ledger's allocations from a log.

    A last line that was cut short by a crash is left out: it was never acknowledged.

    Args:
        lines: Lines with their newline, oldest first.

    Raises:
        LogCorrupt: A line before the last is damaged, a number is missing, or a digest
            disagrees with the state it follows.
    """
    ledger = Ledger()
    last_seq = records = 0
    pending: tuple[int, bytes, Exception] | None = None
    for number, line in enumerate(lines, 1):
        if pending is not None:
            raise LogCorrupt(pending[0], str(pending[2]))
        try:
            record = decode_line(line)
        except (ValueError, msgspec.MsgspecError) as error:
            pending = (number, line, error)
            continue
        ledger = _apply(ledger, record, number, last_seq if records else None)
        last_seq = record.seq
        records += 1
    if pending is not None and pending[1].endswith(b"\n"):
        # A crash cuts a line short, it does not damage one that ends as it should.
        raise LogCorrupt(pending[0], str(pending[2]))
    return Replay(ledger, last_seq, records, len(pending[1]) if pending else 0)


def _apply(ledger: Ledger, record: LogRecord, line: int, last_seq: int | None) -> Ledger:
    if record.operation == "checkpoint":
        ledger = Ledger()
        for allocation in record.allocations or ():
            ledger.restore(allocation)
    else:
        if last_seq is not None and record.seq != last_seq + 1:
            raise LogCorrupt(line, f"record {record.seq} follows record {last_seq}")
        if record.allocation is not None:
            ledger.restore(record.allocation)
        else:
            released = ledger.allocations.get(record.key)
            if released is None:
                raise LogCorrupt(line, f"releases {record.key}, which holds nothing")
            for holder in released.holders:
                ledger.release(holder)
    if f"{ledger.digest:032x}" != record.digest:
        raise LogCorrupt(line, "the state does not have the digest that was recorded")
    return ledger
