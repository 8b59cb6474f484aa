"""Time as a collaborator: the only module that may read the clock or sleep.

Every component takes a `Clock`, so a test moves time instead of waiting for it.
"""

import random
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

SHORT_SECONDS = 0.25
"""Nobody minds to learn an end that much later."""


class Clock(Protocol):
    """A source of time.

    Concurrency: every method may be called from any thread.
    """

    def now(self) -> float:
        """Return wall-clock time in seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds from a clock that never goes backwards; the zero is arbitrary."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until ``event`` is set or ``seconds`` have passed.

        Returns:
            True when the event was set.
        """
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Return wall-clock seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block on ``event`` for at most ``seconds``; a short wait notices it at its end only.

        Waiting on an event with a timeout takes twice the time of the machine that sleeping does,
        which counts where a loop turns many times a second.
        """
        if seconds > SHORT_SECONDS:
            return event.wait(seconds)
        if not event.is_set():
            time.sleep(max(0.0, seconds))
        return event.is_set()


def format_timestamp(seconds: float) -> str:
    """Print epoch seconds as Kubernetes ``metav1.Time`` (RFC 3339, UTC, whole seconds)."""
    return _whole_seconds(int(seconds))


@lru_cache(maxsize=64)
def _whole_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_timestamp(seconds: float) -> str:
    """Print epoch seconds as Kubernetes ``metav1.MicroTime`` (RFC 3339, UTC, microseconds)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_timestamp(text: str) -> float:
    """Read an RFC 3339 timestamp as epoch seconds.

    Raises:
        ValueError: The text is not RFC 3339, or has no zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"timestamp {text!r} has no time zone")
    return moment.timestamp()


class Backoff:
    """Exponential delays with full jitter, kept per key.

    Full jitter (a uniform draw between zero and the cap of the step) spreads retries best;
    source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. A floor
    of a tenth of the step keeps a retry from being immediate.

    Concurrency: safe from any thread; a lost update costs one step at most.
    """

    def __init__(
        self,
        base_seconds: float = 0.05,
        cap_seconds: float = 60.0,
        *,
        seed: int | None = None,
    ) -> None:
        self._base = base_seconds
        self._cap = cap_seconds
        self._random = random.Random(seed)  # noqa: S311 - spreading load, not a secret
        self._failures: dict[object, int] = {}

    def next_seconds(self, key: object = None) -> float:
        """Return the delay before the next try of ``key`` and count a failure."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        step = min(self._cap, self._base * 2.0 ** min(failures, 32))
        return max(step / 10, self._random.uniform(0, step))

    def failures(self, key: object = None) -> int:
        """How often ``key`` failed since it last worked."""
        return self._failures.get(key, 0)

    def reset(self, key: object = None) -> None:
        """Forget the failures of ``key``: it worked."""
        self._failures.pop(key, None)
