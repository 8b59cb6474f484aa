"""What a session adds whose workers are held by a limiter inside their own processes.

Not part of `NodeBackend`: a vendor whose hardware enforces has none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Attested:
    """What a process of a worker says is enforced in it.

    Attributes:
        state: The limiter's own word, such as ``enforced``.
        reason: Why nothing is enforced; empty when limits hold.
        memory: The memory cap holds. ``compute``: the share of compute does.
    """

    pid: int
    state: str
    reason: str
    memory: bool
    compute: bool


@dataclass(frozen=True, slots=True)
class LimiterFaults:
    """How often a limiter could not do its part.

    Attributes:
        opened: Work was let through. ``closed``: work was held back.
        recovered: Dead processes whose memory was given back.
        unreadable: Limits could not be read, and the last good ones stayed.
    """

    opened: int = 0
    closed: int = 0
    recovered: int = 0
    unreadable: int = 0


@runtime_checkable
class LimitedWorkers(Protocol):
    """Signs of life to the workers, and what they tell.

    Concurrency: every method may be called from any thread.
    """

    def beat(self) -> None:
        """Tell every worker that its node agent lives.

        From the first call on, a worker takes silence of 2.5 s for a fault and does what its
        policy says; a session that never calls it leaves its workers without that rule.
        """
        ...

    def wants_memory(self) -> bool:
        """Whether some worker waits for memory of a full device.

        Asked several times a second in place of a whole reading, so it must cost little; it may be
        true for nothing now and then.
        """
        ...

    def attest(self, worker: str) -> Sequence[Attested]:
        """What the running processes of a worker attest; empty for one that is not known."""
        ...

    def faults(self, worker: str) -> LimiterFaults:
        """Counters of a worker's limiter; zeros for one that is not known."""
        ...


class Attachment(StrEnum):
    """How a process of a worker stands to the driver."""

    NONE = "none"
    """It has neither the driver nor the limiter."""
    LIMITED = "limited"
    """The limiter is in it."""
    BYPASSED = "bypassed"
    """It has the driver, and no limiter in front of it."""
    EXEMPT = "exempt"
    """Its worker has its devices to itself and runs without the limiter."""


@runtime_checkable
class TellsAttachment(Protocol):
    """Tells which processes go past the limiter.

    Concurrency: may be called from any thread.
    """

    def attachment(self, worker: str, pid: int) -> Attachment:
        """How a process of a worker stands to the driver; NONE for one that is gone.

        It is what the kernel shows of the process: who hides from that is not found.
        """
        ...
