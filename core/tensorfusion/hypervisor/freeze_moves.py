"""Workers that are being frozen or thawed, each by a thread, so that nobody waits for another's copy."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Final

from tensorfusion.errors import BackendError

log = logging.getLogger(__name__)
THAWS: Final = 8
"""Thaws at a time: enough for one per card of most nodes, whose links work side by side."""
FREEZES: Final = 2
"""Freezes at a time. They have threads of their own: a thaw never queues behind one."""
Key = tuple[str, str]
"""Node and worker."""


class Moves:
    """Moves that are under way, at most one per worker.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: set[Key] = set()
        self._futures: set[Future[None]] = set()
        self._thaws = ThreadPoolExecutor(THAWS, thread_name_prefix="thaw")
        self._freezes = ThreadPoolExecutor(FREEZES, thread_name_prefix="freeze")

    def under_way(self) -> frozenset[Key]:
        """The workers that are being moved."""
        with self._lock:
            return frozenset(self._keys)

    def thaw(self, key: Key, call: Callable[[], None]) -> None:
        """Begin a thaw, unless the worker is being moved."""
        self._begin(self._thaws, key, call)

    def freeze(self, key: Key, call: Callable[[], None]) -> None:
        """Begin a freeze, unless the worker is being moved."""
        self._begin(self._freezes, key, call)

    @contextmanager
    def alone(self, key: Key) -> Iterator[None]:
        """Move a worker in the calling thread.

        Raises:
            BackendError: It is being moved.
        """
        if not self._claim(key):
            raise BackendError("freezer", f"worker {key[1]!r} is being moved")
        try:
            yield
        finally:
            self._release(key)

    def wait(self) -> None:
        """Return when what was begun so far has ended."""
        with self._lock:
            futures = set(self._futures)
        wait(futures)

    def close(self) -> None:
        """Begin nothing more, drop what did not begin, and wait for the rest."""
        for pool in (self._thaws, self._freezes):
            pool.shutdown(cancel_futures=True)

    def _claim(self, key: Key) -> bool:
        with self._lock:
            if key in self._keys:
                return False
            self._keys.add(key)
            return True

    def _release(self, key: Key) -> None:
        with self._lock:
            self._keys.discard(key)

    def _begin(self, pool: ThreadPoolExecutor, key: Key, call: Callable[[], None]) -> None:
        if not self._claim(key):
            return
        future = pool.submit(self._run, key, call)
        with self._lock:
            self._futures = {one for one in self._futures if not one.done()} | {future}

    def _run(self, key: Key, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            # Nobody reads the result; the next look tries again.
            log.exception("not moved", extra={"node": key[0], "worker": key[1]})
        finally:
            self._release(key)
