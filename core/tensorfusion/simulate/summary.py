"""What runs of several seeds say together: means, confidence, paired differences."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from tensorfusion.simulate.replay import Run

HOURS_PER_YEAR = 8_760


class Estimate(NamedTuple):
    """A mean and the half width of its 95 % confidence interval; infinite for one value."""

    mean: float
    margin: float


class Series(NamedTuple):
    """The runs of one policy and one rule for ties, in order of seed."""

    policy: str
    ties: str
    runs: tuple[Run, ...]

    def estimate(self, field: str, demand_pct: int) -> Estimate:
        """Estimate a field of `Point` at a demand."""
        return estimate([getattr(run.points[demand_pct], field) for run in self.runs])

    @property
    def last_demand_pct(self) -> int:
        """The largest demand that every run reached."""
        return min(len(run.points) for run in self.runs) - 1


class Difference(NamedTuple):
    """How much more one series allocates than another, seed by seed."""

    series: Series
    baseline: Series
    points: Estimate


def series_of(runs: Sequence[Run]) -> list[Series]:
    """Group runs by policy and rule for ties, in order of appearance."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.policy, run.ties), []).append(run)
    return [
        Series(policy, ties, tuple(sorted(found, key=lambda run: run.seed)))
        for (policy, ties), found in groups.items()
    ]


def differences(series: Sequence[Series], demand_pct: int) -> list[Difference]:
    """Compare every series with the first one on the same seeds, which cancels their luck."""
    if not series:
        return []
    first = series[0]
    found = []
    for other in series[1:]:
        pairs = zip(other.runs, first.runs, strict=True)
        points = [
            one.points[demand_pct].allocated_pct - two.points[demand_pct].allocated_pct
            for one, two in pairs
        ]
        found.append(Difference(other, first, estimate(points)))
    return found


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with its interval by Student's t."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.inf)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, student_t_95(count - 1) * math.sqrt(variance / count))


@cache
def student_t_95(freedom: int) -> float:
    """Return the t that 95 % of the distribution lies within, by bisection."""
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, freedom: int) -> float:
    """Return the probability of at most ``t`` in size: Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(freedom // 2):
        if step:
            term *= cosine**2 * (2 * step - 1 + odd) / (2 * step + odd)
        total += term
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
