"""What a recommender is given and gives back: a batch of workloads in, proposals out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Amounts:
    """Compute and memory of one GPU of one worker, GFLOP/s and bytes; 0 means not set."""

    gflops: int = 0
    vram_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommenderConfig:
    """The workload's ``autoSetResources`` after both dialects and defaults are applied.

    Ratios are 0 to 1, durations are seconds. Defaults are the documentation's (P90, P50, P95,
    margin 0.15, full confidence after 24 h).
    """

    target_compute_percentile: float = 0.9
    lower_compute_percentile: float = 0.5
    upper_compute_percentile: float = 0.95
    target_vram_percentile: float = 0.9
    lower_vram_percentile: float = 0.5
    upper_vram_percentile: float = 0.95
    margin_ratio: float = 0.15
    confidence_interval_seconds: float = 86400.0
    history_seconds: float = 86400.0
    update_threshold_ratio: float = 0.1
    min_vram_ratio: float = 0.2
    max_vram_ratio: float = 5.0
    min_compute_ratio: float = 0.1
    max_compute_ratio: float = 10.0
    initial_delay_seconds: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadView:
    """One workload as a recommender sees it; amounts are per GPU of one worker.

    Attributes:
        key: ``namespace/name``.
        request: What it holds now. ``original_request`` is what its user wrote.
        created: Seconds since the epoch.
    """

    key: str
    config: RecommenderConfig
    request: Amounts
    limit: Amounts
    original_request: Amounts
    original_limit: Amounts
    qos: str = "medium"
    workers: int = 0
    created: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class UsageSeries:
    """Usage samples of one workload in time order; a worker on several GPUs counts its maximum.

    Shape: all arrays have the same length. Units: epoch seconds, GFLOP/s, bytes.
    """

    time: NDArray[np.float64]
    worker: NDArray[np.int64]
    gflops: NDArray[np.float64]
    vram_bytes: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a recommender would set, and why.

    Attributes:
        request: Proposed; a 0 leaves that resource as it is.
        lower: Below this the present request is too small. ``upper``: above it, too large.
        confidence: 0 to 1, how much history stands behind it.
        reason: CamelCase, for the condition and the event.
        why: One sentence with the figures that decided.
        expires: Epoch seconds after which it must not be applied.
    """

    key: str
    request: Amounts
    limit: Amounts
    lower: Amounts = field(default_factory=Amounts)
    upper: Amounts = field(default_factory=Amounts)
    confidence: float = 0.0
    reason: str = "Updated"
    why: str = ""
    expires: float = float("inf")


@runtime_checkable
class Recommender(Protocol):
    """Proposes resources from history.

    Concurrency: called from one thread; must not block on the network.
    """

    name: str

    def propose(
        self, batch: Sequence[WorkloadView], history: Mapping[str, UsageSeries], now: float
    ) -> Sequence[Proposal]:
        """Propose for those workloads of the batch that need a change; nothing for the rest.

        Args:
            batch: Workloads that ask for this recommender.
            history: By workload key; a key without samples is missing.
            now: Epoch seconds.
        """
        ...
