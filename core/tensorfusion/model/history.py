"""Who held what, when and why, read from the decision log."""

from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from tensorfusion.model.allocation import Allocation
from tensorfusion.model.decision_log import LogRecord, decode_line

SUBJECTS: Final = ("gpu", "pod", "namespace")


class Subject(msgspec.Struct, frozen=True):
    """What a history is about.

    Attributes:
        kind: One of `SUBJECTS`.
        name: Uuid of the GPU in any case, or name of the pod or namespace.
        namespace: Of the pod.
    """

    kind: Literal["gpu", "pod", "namespace"]
    name: str
    namespace: str = ""

    def matches(self, allocation: Allocation) -> bool:
        """Tell whether an allocation concerns it."""
        if self.kind == "gpu":
            name = self.name.casefold()
            return any(take.uuid.casefold() == name for take in allocation.takes)
        if self.kind == "namespace":
            return allocation.namespace == self.name
        return (allocation.namespace, allocation.name) == (self.namespace, self.name)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One decision.

    Attributes:
        seq: Its number in the log.
        time: Epoch seconds.
        operation: ``allocate``, ``resize``, ``hold``, ``settle`` or ``release``.
        reason: Why.
        before: What was held until then; None when nothing was.
        after: What is held from then on; None when nothing is.
    """

    seq: int
    time: float
    operation: str
    reason: str
    before: Allocation | None
    after: Allocation | None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says about a subject.

    Attributes:
        since: Epoch seconds of the oldest record; what came before is no longer known.
        entries: Decisions, oldest first; none after the time that was asked for.
        held: Allocations at that time, by key.
    """

    since: float
    entries: tuple[Entry, ...]
    held: tuple[Allocation, ...]


def history(lines: Iterable[bytes], subject: Subject, until: float | None = None) -> History:
    """Read the decisions about a subject.

    A torn last line is left out, as in a replay. A subject is followed through its whole log, so
    an allocation that moved to a GPU by a resize or recovery is there from then on.

    Args:
        lines: Of the log with its kept segments, oldest first.
        subject: What to look for.
        until: Leave out what came later, epoch seconds.
    """
    holding: dict[str, Allocation] = {}
    entries: list[Entry] = []
    since: float | None = None
    for record in _records(lines):
        if until is not None and record.time > until:
            break
        if since is None:
            since = record.time
        if record.operation == "checkpoint":
            holding = {a.key: a for a in record.allocations or () if subject.matches(a)}
            continue
        before = holding.pop(record.key, None)
        after = record.allocation
        if after is not None and subject.matches(after):
            holding[record.key] = after
        elif before is None:
            continue
        entries.append(
            Entry(
                seq=record.seq,
                time=record.time,
                operation=record.operation,
                reason=record.reason,
                before=before,
                after=after,
            )
        )
    held = tuple(allocation for _, allocation in sorted(holding.items()))
    return History(since=since or 0.0, entries=tuple(entries), held=held)


def _records(lines: Iterable[bytes]) -> Iterator[LogRecord]:
    for line in lines:
        if line.endswith(b"\n"):
            yield decode_line(line)
