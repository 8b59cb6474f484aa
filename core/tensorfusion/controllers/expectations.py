"""Expectations: what a controller did that its informer has not shown yet.

Without them a controller that looks twice within the lag of its cache would act twice.
"""

from collections.abc import Callable

from tensorfusion.clock import Clock

FORGET_SECONDS = 30.0


class Expectations:
    """Names that were created or deleted per owner, until they are seen or forgotten.

    Concurrency: one owner is reconciled by one thread at a time; entries are independent.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[str, dict[str, float]] = {}

    def expect(self, owner: str, name: str) -> None:
        """Remember that ``name`` will appear, or disappear."""
        self._entries.setdefault(owner, {})[name] = self._clock.monotonic()

    def settle(self, owner: str, seen: set[str]) -> set[str]:
        """Drop what is seen or too old; return what is still expected to appear."""
        return self._retain(owner, lambda name: name not in seen)

    def keep(self, owner: str, seen: set[str]) -> set[str]:
        """Drop what is no longer seen or too old; return what is still expected to go."""
        return self._retain(owner, lambda name: name in seen)

    def waits(self, owner: str) -> bool:
        """Whether anything is still expected of an owner."""
        return owner in self._entries

    def _retain(self, owner: str, stays: Callable[[str], bool]) -> set[str]:
        now = self._clock.monotonic()
        waiting = {
            name: since
            for name, since in self._entries.get(owner, {}).items()
            if stays(name) and now - since < FORGET_SECONDS
        }
        if waiting:
            self._entries[owner] = waiting
        else:
            self._entries.pop(owner, None)
        return set(waiting)

    def forget(self, owner: str) -> None:
        """Drop everything of an owner that is gone."""
        self._entries.pop(owner, None)
