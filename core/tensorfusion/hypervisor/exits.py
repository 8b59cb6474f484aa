"""Watching processes that are not our children: a file per process, one thread.

A process that ends makes its pidfd readable (pidfd_open(2)); nobody has to look in the meantime.
"""

import os
import select
import threading
from collections.abc import Callable
from typing import Final

from tensorfusion.clock import Clock

POLL_MILLISECONDS: Final = 500
CHORE_SECONDS: Final = 10.0
"""How often something is done for all that run."""


class ExitWatch:
    """Calls back once a watched process has ended.

    Args:
        ended: Gets the key that a process was watched under.
        chore: Done now and then on the same thread.

    Concurrency: `watch` may be called from any thread; `run` belongs to one.
    """

    def __init__(
        self, ended: Callable[[str], None], chore: Callable[[], None], clock: Clock
    ) -> None:
        self._ended = ended
        self._chore = chore
        self._clock = clock
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._keys: dict[int, tuple[str, int]] = {}
        self._watched: set[tuple[str, int]] = set()

    def watch(self, key: str, pid: int) -> None:
        """Watch a process; again is fine. One that has ended already is told at once."""
        with self._lock:
            if (key, pid) in self._watched:
                return
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                descriptor = -1
            if descriptor >= 0:
                self._watched.add((key, pid))
                self._keys[descriptor] = (key, pid)
                self._epoll.register(descriptor, select.EPOLLIN)
        if descriptor < 0:
            self._ended(key)

    def watched(self, key: str) -> int:
        """How many running processes are watched under a key."""
        with self._lock:
            return sum(name == key for name, _ in self._watched)

    def key_of(self, pid: int) -> str:
        """The key under which a process is watched; empty for any other."""
        with self._lock:
            return next((key for key, watched in self._watched if watched == pid), "")

    def run(self, stop: threading.Event) -> None:
        """Wait for ends until ``stop`` is set."""
        due = self._clock.monotonic() + CHORE_SECONDS
        while not stop.is_set():
            if self._clock.monotonic() >= due:
                self._chore()
                due = self._clock.monotonic() + CHORE_SECONDS
            for descriptor, _ in self._epoll.poll(POLL_MILLISECONDS / 1000):
                with self._lock:
                    key, pid = self._keys.pop(descriptor)
                    self._watched.discard((key, pid))
                    self._epoll.unregister(descriptor)
                    os.close(descriptor)
                self._ended(key)

    def close(self) -> None:
        """Let go of every process."""
        with self._lock:
            for descriptor in self._keys:
                os.close(descriptor)
            self._keys.clear()
            self._watched.clear()
            self._epoll.close()
