"""The decaying histogram of the Vertical Pod Autoscaler, built in one vectorised pass.

Source: kubernetes/autoscaler, vertical-pod-autoscaler, packages ``util`` (histogram with
exponential buckets, decay by half-life). Buckets grow by 5 %; a percentile answers the end of
the bucket in which it falls, so its relative error is at most one bucket.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-4
"""The smallest weight that counts: the VPA's 0.001 times its smallest sample weight, 0.1."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Exponential buckets: ``first`` wide, each ``ratio`` times wider, up to ``maximum``."""

    maximum: float
    first: float
    ratio: float = 1.05

    @property
    def count(self) -> int:
        """Number of buckets."""
        grown = self.maximum * (self.ratio - 1) / self.first + 1
        return math.ceil(math.log(grown, self.ratio)) + 1

    def start(self, index: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Return where a bucket begins."""
        return np.asarray(self.first * (self.ratio ** np.asarray(index) - 1) / (self.ratio - 1))

    def index(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bucket of each value; what is too large goes to the last one."""
        grown = np.log(np.maximum(values, 0) * (self.ratio - 1) / self.first + 1)
        found = np.floor(grown / math.log(self.ratio) + 1e-12).astype(np.int64)
        return np.clip(np.where(values < self.first, 0, found), 0, self.count - 1)


COMPUTE_BUCKETS = Buckets(maximum=10_000e3, first=100.0)
"""GFLOP/s: up to 10,000 TFLOPS in steps that begin at 0.1 TFLOPS."""
VRAM_BUCKETS = Buckets(maximum=1e12, first=1e7)
"""Bytes: up to 1 TB in steps that begin at 10 MB, as the VPA's for memory."""


class Histogram:
    """Weights per bucket, decayed to one reference time.

    Args:
        times: Epoch seconds of the samples.
        weights: Weight of each sample before decay.
        half_life_seconds: After this long a sample counts half.
    """

    def __init__(
        self,
        buckets: Buckets,
        values: NDArray[np.float64],
        times: NDArray[np.float64],
        weights: NDArray[np.float64],
        half_life_seconds: float,
    ) -> None:
        self._buckets = buckets
        latest = times.max() if len(times) else 0.0
        decayed = weights * np.exp2((times - latest) / half_life_seconds)
        self._weights = np.bincount(buckets.index(values), weights=decayed, minlength=buckets.count)
        self.total = float(self._weights.sum())

    def percentile(self, ratio: float) -> float:
        """Return the value below which ``ratio`` of the weight lies; 0 when it is empty."""
        if self.total < EPSILON:
            return 0.0
        reached = np.cumsum(self._weights) >= min(max(ratio, 0.0), 1.0) * self.total - 1e-12
        filled = np.flatnonzero(self._weights >= EPSILON * 1e-6)
        first = int(np.argmax(reached))
        index = int(min(max(first, filled[0]), filled[-1]))
        last = self._buckets.count - 1
        return float(self._buckets.start(index if index == last else index + 1))
