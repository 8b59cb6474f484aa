"""A clock for tests: time stands still until somebody moves it."""

import threading

START_SECONDS = 1_750_000_000.0
"""Where a fake clock starts unless told otherwise: 15 June 2025, 15:06:40 UTC."""

POLL_SECONDS = 0.002
"""Real time between two looks at an event that somebody else may set."""


class FakeClock:
    """Implements `tensorfusion.clock.Clock`; wall-clock and monotonic time move together.

    Args:
        now: Seconds since the epoch at the start.
        auto_advance: A wait moves the time by its own length and returns at once, which suits
            code that runs on the test's thread. Otherwise a wait blocks until `advance` has
            moved the time far enough, or its event is set.

    Concurrency: every method may be called from any thread.
    """

    def __init__(self, now: float = START_SECONDS, *, auto_advance: bool = False) -> None:
        self._now = now
        self._start = now
        self._auto_advance = auto_advance
        self._moved = threading.Condition()
        self._waiting = 0

    def now(self) -> float:
        """Return seconds since the epoch."""
        with self._moved:
            return self._now

    def monotonic(self) -> float:
        """Return seconds since the clock was made."""
        with self._moved:
            return self._now - self._start

    def advance(self, seconds: float) -> float:
        """Move the time forward and wake who waited for it.

        Returns:
            The new time, in seconds since the epoch.

        Raises:
            ValueError: The time would go backwards.
        """
        if seconds < 0:
            raise ValueError(f"a clock never goes backwards, got {seconds} s")
        with self._moved:
            self._now += seconds
            self._moved.notify_all()
            return self._now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until ``event`` is set or the fake time has moved by ``seconds``.

        Returns:
            True when the event was set.
        """
        if event.is_set() or seconds <= 0:
            return event.is_set()
        if self._auto_advance:
            self.advance(seconds)
            return event.is_set()
        with self._moved:
            deadline = self._now + seconds
            self._waiting += 1
            try:
                while self._now < deadline and not event.is_set():
                    self._moved.wait(POLL_SECONDS)
            finally:
                self._waiting -= 1
        return event.is_set()

    def waiting(self) -> int:
        """How many threads wait for the time to move; lets a test know that a loop is idle."""
        with self._moved:
            return self._waiting
