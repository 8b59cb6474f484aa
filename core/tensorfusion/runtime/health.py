"""Health: named checks behind ``/livez`` and ``/readyz``."""

import threading


class Health:
    """What is alive, what is ready, and why not.

    Concurrency: safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._failed: dict[str, str] = {}

    def expect(self, *names: str) -> None:
        """Declare checks that must become ready before ``/readyz`` is green."""
        with self._lock:
            self._pending.update(names)

    def ready(self, name: str) -> None:
        """Say that a check is ready (and no longer failed)."""
        with self._lock:
            self._pending.discard(name)
            self._failed.pop(name, None)

    def fail(self, name: str, why: str) -> None:
        """Say that a check failed; both endpoints turn red."""
        with self._lock:
            self._failed[name] = why

    def live(self) -> tuple[bool, list[str]]:
        """Return whether nothing failed, and a line per failed check."""
        with self._lock:
            return not self._failed, [
                f"[-]{n} failed: {w}" for n, w in sorted(self._failed.items())
            ]

    def readiness(self) -> tuple[bool, list[str]]:
        """Return whether everything is ready, and a line per check that is not."""
        alive, lines = self.live()
        with self._lock:
            lines += [f"[-]{name} not ready yet" for name in sorted(self._pending)]
            return alive and not self._pending, lines
