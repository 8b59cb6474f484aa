"""Series in memory: recent samples at full rate, and usage of workers in one-minute bins."""

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RAW_SAMPLES = 1200
"""Samples kept per series: 20 minutes at one a second, enough for every window of a rule."""


@dataclass(slots=True)
class Series:
    """Times (epoch seconds) and values of one series; appends are amortised constant."""

    times: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def append(self, time: float, value: float) -> None:
        """Add a sample; one that is older than the last is dropped."""
        if self.times and time <= self.times[-1]:
            if time == self.times[-1]:
                self.values[-1] = value
            return
        self.times.append(time)
        self.values.append(value)
        if len(self.times) >= 2 * RAW_SAMPLES:
            del self.times[:-RAW_SAMPLES]
            del self.values[:-RAW_SAMPLES]

    def window(self, start: float, end: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return copies of times and values in (start, end]."""
        times = np.frombuffer(self.times, dtype=np.float64)
        low = int(np.searchsorted(times, start, side="right"))
        high = int(np.searchsorted(times, end, side="right"))
        found = times[low:high].copy()
        values = np.frombuffer(self.values, dtype=np.float64)[low:high].copy()
        del times
        return found, values

    def stale_after(self) -> float:
        """How long after its last sample the series counts as gone, in seconds.

        Three of its own sampling intervals, at least 5 s and at most the 300 s look-back of
        Prometheus (its ``--query.lookback-delta``).
        """
        if len(self.times) < 2:
            return 30.0
        return min(300.0, max(5.0, 3.0 * (self.times[-1] - self.times[-2])))


def increase(values: NDArray[np.float64]) -> float:
    """Return the growth of a counter over its samples; a drop is a reset that began at zero."""
    if len(values) < 2:
        return 0.0
    steps = np.diff(values)
    return float(np.where(steps >= 0, steps, values[1:]).sum())
