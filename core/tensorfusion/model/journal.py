"""Which nodes changed since a reader last looked, in bounded memory."""

import numpy as np
from numpy.typing import NDArray


class Journal:
    """An append-only list of changed node slots of which the newest entries are kept.

    A reader remembers `version` and asks for what came `since`. One that stayed away for too
    long is told so and looks at everything.
    """

    __slots__ = ("_base", "_buffer", "_length", "_window")

    def __init__(self, window: int = 1 << 14) -> None:
        self._window = window
        self._buffer: NDArray[np.intp] = np.empty(2 * window, dtype=np.intp)
        self._base = 0
        self._length = 0

    @property
    def version(self) -> int:
        """Number of entries ever appended."""
        return self._base + self._length

    def append(self, slot: int) -> None:
        """Note that the node in ``slot`` changed."""
        if self._length == 2 * self._window:
            self._buffer[: self._window] = self._buffer[self._window :]
            self._base += self._window
            self._length = self._window
        self._buffer[self._length] = slot
        self._length += 1

    def since(self, version: int) -> NDArray[np.intp] | None:
        """Return the slots changed since ``version``, repeats included.

        Returns:
            None when that is longer ago than the journal remembers. The array is a view that is
            valid until the next append.
        """
        start = version - self._base
        if start < 0:
            return None
        return self._buffer[start : self._length]
