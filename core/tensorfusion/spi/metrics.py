"""Where samples are kept and asked: the MetricStore Protocol."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from tensorfusion.spi.recommender import UsageSeries
from tensorfusion.spi.rules import Expression

Labels = tuple[tuple[str, str], ...]
"""Label pairs sorted by name: the identity of a series together with the metric's name."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One value of one series at one time (epoch seconds)."""

    name: str
    labels: Labels
    time: float
    value: float


class SeriesValue(msgspec.Struct, frozen=True, gc=False):
    """One series of an evaluated expression."""

    labels: Labels
    value: float


@runtime_checkable
class MetricStore(Protocol):
    """Keeps samples and answers questions about them.

    Concurrency: every method may be called from any thread.
    """

    name: str

    def open(self, folder: str, retention_seconds: float) -> None:
        """Make ready; ``folder`` may hold what an earlier process kept."""
        ...

    def write(self, samples: Sequence[Sample]) -> None:
        """Add samples; for one series, times do not go backwards."""
        ...

    def usage_history(
        self, workloads: Sequence[str], start: float, end: float
    ) -> Mapping[str, UsageSeries]:
        """Return usage of workloads (``namespace/name``) in the half-open interval [start, end)."""
        ...

    def evaluate(self, expression: Expression, now: float) -> Sequence[SeriesValue]:
        """Evaluate a rule's expression at ``now``."""
        ...

    def close(self) -> None:
        """Write out what is not yet on disk and release everything."""
        ...
