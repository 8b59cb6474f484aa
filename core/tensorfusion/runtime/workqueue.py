"""WorkQueue: keys to reconcile, each at most once at a time, with delays and backoff."""

import heapq
import itertools
import threading
from collections import deque

from tensorfusion.clock import Backoff, Clock


class WorkQueue:
    """A queue of keys with the semantics of client-go's rate-limiting queue.

    A key that is added while it waits is there once; one that is added while it is worked on is
    worked on again afterwards, never at the same time.

    Concurrency: safe from any thread.
    """

    def __init__(self, name: str, clock: Clock, backoff: Backoff | None = None) -> None:
        self.name = name
        self._clock = clock
        self._backoff = backoff or Backoff(0.02, 60.0)
        self._ready: deque[str] = deque()
        self._waiting: set[str] = set()
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._later: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._order = itertools.count()
        self._condition = threading.Condition()
        self._closed = False

    def share(self, condition: threading.Condition) -> None:
        """Wake waiters of ``condition`` instead of our own; before anything is added or taken."""
        self._condition = condition

    def take(self) -> tuple[str | None, float | None]:
        """Take the next key without waiting; else None and the seconds until one is due.

        The caller holds the shared condition.
        """
        wait = self._promote()
        if self._closed or not self._ready:
            return None, wait
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._working.add(key)
        return key, None

    def add(self, key: str) -> None:
        """Ask for ``key`` to be worked on soon."""
        with self._condition:
            self._add(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Ask for ``key`` after a delay; the earliest wish wins."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.monotonic() + seconds
        with self._condition:
            if self._due.get(key, float("inf")) <= due:
                return
            self._due[key] = due
            heapq.heappush(self._later, (due, next(self._order), key))
            self._condition.notify()

    def retry(self, key: str) -> float:
        """Ask for ``key`` again after its backoff; returns the delay in seconds."""
        seconds = self._backoff.next_seconds(key)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: str) -> None:
        """Reset the backoff of ``key``."""
        self._backoff.reset(key)

    def get(self, timeout_seconds: float | None = None) -> str | None:
        """Take the next key; None when the queue is closed or nothing came in time."""
        end = None if timeout_seconds is None else self._clock.monotonic() + timeout_seconds
        with self._condition:
            while True:
                if self._closed:
                    return None
                key, wait = self.take()
                if key is not None:
                    return key
                if end is not None:
                    left = end - self._clock.monotonic()
                    if left <= 0:
                        return None
                    wait = left if wait is None else min(wait, left)
                self._condition.wait(wait)

    def done(self, key: str) -> None:
        """Say that ``key`` is no longer worked on."""
        with self._condition:
            self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self._add(key)

    def close(self) -> None:
        """Wake every waiter; nothing is handed out any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def __len__(self) -> int:
        return len(self._ready)

    def idle(self) -> bool:
        """Tell whether nothing waits for now and nothing is worked on (delayed keys aside)."""
        with self._condition:
            self._promote()
            return not self._ready and not self._working

    def _add(self, key: str) -> None:
        if self._closed or key in self._waiting:
            return
        if key in self._working:
            self._again.add(key)
            return
        self._waiting.add(key)
        self._ready.append(key)
        self._condition.notify()

    def _promote(self) -> float | None:
        """Move what is due to the ready queue; return seconds until the next, if any."""
        now = self._clock.monotonic()
        while self._later:
            due, _, key = self._later[0]
            if self._due.get(key) != due:
                heapq.heappop(self._later)
                continue
            if due > now:
                return due - now
            heapq.heappop(self._later)
            del self._due[key]
            self._add(key)
        return None
