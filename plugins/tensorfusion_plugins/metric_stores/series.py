"""Recent samples of one series at full rate, in memory."""

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tensorfusion_plugins.metric_stores.growth import Floats

RAW_SECONDS = 660.0
"""How far back samples are kept at full rate: the longest window of a bundled rule, and a bit."""
TRIM_RATIO = 1.1
"""A series is cut when it is this much longer than it has to be: few cuts, little waste."""


@dataclass(slots=True)
class Series:
    """Times (epoch seconds) and values of one series; appends are amortised constant.

    Attributes:
        keep_seconds: How far back samples are kept.
        usage_key: (``namespace/workload``, worker), for series of a worker's use.
        is_trimmed: Whether older samples were dropped.
    """

    keep_seconds: float = RAW_SECONDS
    usage_key: tuple[str, str] | None = None
    is_trimmed: bool = False
    times: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def append(self, time: float, value: float) -> None:
        """Add a sample; one that is older than the last is dropped."""
        times = self.times
        if times and time <= times[-1]:
            if time == times[-1]:
                self.values[-1] = value
            return
        times.append(time)
        self.values.append(value)
        if time - times[0] > self.keep_seconds * TRIM_RATIO:
            stale = bisect_right(times, time - self.keep_seconds)
            # Two samples stay whatever their age: the pace of a slow series is known by them.
            stale = max(0, min(stale, len(times) - 2))
            if stale:
                del times[:stale]
                del self.values[:stale]
                self.is_trimmed = True

    def window(self, start: float, end: float) -> tuple[Floats, Floats]:
        """Return copies of times and values in (start, end], as rules look at them."""
        return self._slice(start, end, "right")

    def values_within(self, start: float, end: float) -> "array[float]":
        """Return a copy of the values in (start, end]; windows are short, so no array library."""
        return self.values[bisect_right(self.times, start) : bisect_right(self.times, end)]

    def between(self, start: float, end: float) -> tuple[Floats, Floats]:
        """Return copies of times and values in [start, end), as histories are asked for."""
        return self._slice(start, end, "left")

    def _slice(self, start: float, end: float, side: str) -> tuple[Floats, Floats]:
        # Copies: an array cannot grow while a view of it exists.
        times: NDArray[np.float64] = np.array(self.times)
        low, high = np.searchsorted(times, (start, end), side="left" if side == "left" else "right")
        return times[low:high], np.array(self.values[int(low) : int(high)])

    def stale_after(self) -> float:
        """How long after its last sample the series counts as gone, in seconds.

        Three of its own sampling intervals, at least 5 s and at most the 300 s look-back of
        Prometheus (its ``--query.lookback-delta``).
        """
        if len(self.times) < 2:
            return 30.0
        return min(300.0, max(5.0, 3.0 * (self.times[-1] - self.times[-2])))
