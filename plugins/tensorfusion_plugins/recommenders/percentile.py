"""The percentile recommender: decaying histograms, margin, confidence bounds.

Semantics are those of the documentation: the target is the P90 of usage plus a margin, and a
new value is proposed only when the present request lies outside [lower, upper], the P50 and
P95 widened by how little history there is. Source of the confidence factors: the Vertical Pod
Autoscaler's recommender (``confidence multiplier``), upper (1 + 1/c), lower (1 + 0.001/c)^-2.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tensorfusion.spi.recommender import (
    Amounts,
    Proposal,
    RecommenderConfig,
    UsageSeries,
    WorkloadView,
)
from tensorfusion.units import human_bytes, human_tflops
from tensorfusion_plugins.recommenders.histogram import (
    COMPUTE_BUCKETS,
    VRAM_BUCKETS,
    Histogram,
)

FLOOR_GFLOPS = 1000
"""Never propose less than 1 TFLOPS, the unit in which users allocate."""
FLOOR_VRAM = 256 << 20
"""Never propose less than 256 MiB: a CUDA context alone takes about that."""
PEAK_SECONDS = 3600.0
"""Memory counts once per worker and hour, as that hour's peak."""
MAXIMUM = 1e14
SAMPLE_WEIGHT = 0.1
"""Weight of a minute of compute use: the smallest the VPA gives a sample."""


class PercentileRecommender:
    """Stateless: every pass builds its histograms from the store's history."""

    name = "percentile"

    def propose(
        self, batch: Sequence[WorkloadView], history: Mapping[str, UsageSeries], now: float
    ) -> Sequence[Proposal]:
        """Propose for every workload of the batch that has usable history."""
        proposals = []
        for view in batch:
            series = history.get(view.key)
            if series is not None and len(series.time):
                proposals.append(self._propose_one(view, series, now))
        return proposals

    def _propose_one(self, view: WorkloadView, series: UsageSeries, now: float) -> Proposal:
        config = view.config
        half_life = max(config.history_seconds / 2, 1.0)
        minutes = minutes_of(series)
        compute = Histogram(
            COMPUTE_BUCKETS, series.gflops, series.time, SAMPLE_WEIGHT * minutes, half_life
        )
        times, peaks = peaks_of(series)
        vram = Histogram(VRAM_BUCKETS, peaks, times, np.ones(len(times)), half_life)
        confidence = confidence_of(series, minutes, config)
        bounds = {
            which: self._bound(which, config, compute, vram, confidence)
            for which in ("lower", "target", "upper")
        }
        request, whys = self._decide(view, bounds)
        limit = Amounts(
            _scaled(view.limit.gflops, request.gflops, view.request.gflops),
            _scaled(view.limit.vram_bytes, request.vram_bytes, view.request.vram_bytes),
        )
        if now - view.created < config.initial_delay_seconds:
            reason = "LowConfidence"
            # No age in the text: it would make every pass a new status to write.
            why = (
                "the workload is younger than its initialDelayPeriod of"
                f" {config.initial_delay_seconds:.0f} s"
            )
        else:
            reason = "OutOfEstimatedBound" if whys else "InsideEstimatedBound"
            why = ", ".join(whys) or "requests are within the estimated bounds"
        return Proposal(
            key=view.key,
            request=request,
            limit=limit,
            lower=bounds["lower"],
            upper=bounds["upper"],
            confidence=min(1.0, confidence),
            reason=reason,
            why=why,
            expires=now + 600,
        )

    def _bound(
        self,
        which: str,
        config: RecommenderConfig,
        compute: Histogram,
        vram: Histogram,
        confidence: float,
    ) -> Amounts:
        factor = {
            "target": 1.0,
            "upper": 1.0 + 1.0 / max(confidence, 1e-9),
            "lower": (1.0 + 0.001 / max(confidence, 1e-9)) ** -2,
        }[which]
        scale = (1.0 + config.margin_ratio) * factor
        gflops = compute.percentile(getattr(config, f"{which}_compute_percentile")) * scale
        vram_bytes = vram.percentile(getattr(config, f"{which}_vram_percentile")) * scale
        return Amounts(round(min(gflops, MAXIMUM)), round(min(vram_bytes, MAXIMUM)))

    def _decide(
        self, view: WorkloadView, bounds: Mapping[str, Amounts]
    ) -> tuple[Amounts, list[str]]:
        """Return the request to set (0 leaves a resource alone) and why."""
        config, whys = view.config, []
        values = {"gflops": 0, "vram_bytes": 0}
        for field, title, low_ratio, high_ratio, floor, show in (
            ("gflops", "TFLOPS", config.min_compute_ratio, config.max_compute_ratio, FLOOR_GFLOPS, human_tflops),
            ("vram_bytes", "VRAM", config.min_vram_ratio, config.max_vram_ratio, FLOOR_VRAM, human_bytes),
        ):  # fmt: skip
            present = getattr(view.request, field)
            original = getattr(view.original_request, field)
            lower, upper = getattr(bounds["lower"], field), getattr(bounds["upper"], field)
            if not present or lower <= present <= upper:
                continue
            target = getattr(bounds["target"], field)
            target = max(target, floor, round(original * low_ratio))
            target = min(target, max(round(original * high_ratio), floor))
            if (target > present) != (present < lower):
                continue  # floor, ratio or margin would move it away from the bound it broke
            if abs(target - present) <= present * config.update_threshold_ratio:
                continue
            values[field] = target
            side, bound = ("below lower", lower) if present < lower else ("above upper", upper)
            verb = "up" if target > present else "down"
            whys.append(
                f"{title} scaled {verb} to {show(target)}: request {show(present)}"
                f" is {side} bound {show(bound)}"
            )
        return Amounts(values["gflops"], values["vram_bytes"]), whys


def peaks_of(series: UsageSeries) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (time, bytes) of the memory peak of each worker in each hour."""
    hour = np.floor(series.time / PEAK_SECONDS).astype(np.int64)
    key = series.worker * (hour.max() + 1) + hour
    order = np.lexsort((series.vram_bytes, key))
    last = np.append(np.flatnonzero(np.diff(key[order])), len(order) - 1)
    chosen = order[last]
    return series.time[chosen], series.vram_bytes[chosen]


def minutes_of(series: UsageSeries) -> NDArray[np.float64]:
    """Return how many minutes each sample stands for: those since its worker's last, at most one.

    A history has one sample a minute in the past and many of the last minutes; without this the
    last minutes would outweigh the hours before them.
    """
    order = np.lexsort((series.time, series.worker))
    gaps = np.diff(series.time[order], prepend=-np.inf)
    gaps[np.diff(series.worker[order], prepend=-1) != 0] = np.inf
    # A worker's first sample stands for as long as its second does.
    firsts = np.flatnonzero(np.isinf(gaps))
    followed = firsts[(firsts + 1 < len(gaps)) & ~np.isinf(np.append(gaps, np.inf)[firsts + 1])]
    gaps[followed] = gaps[followed + 1]
    result = np.empty(len(gaps))
    result[order] = np.minimum(gaps, 60.0) / 60.0
    return result


def confidence_of(
    series: UsageSeries, minutes: NDArray[np.float64], config: RecommenderConfig
) -> float:
    """Return how much history there is, over the interval of full confidence.

    The smaller of covered time and minutes with samples decides, as in the VPA.
    """
    interval = max(config.confidence_interval_seconds, 1e-9)
    covered = float(series.time.max() - series.time.min()) / interval
    return min(covered, float(minutes.sum()) * 60.0 / interval)


def _scaled(limit: int, request: int, present: int) -> int:
    """Keep the ratio of limit to request, never below the request; no limit stays no limit."""
    if not request or not present or not limit:
        return 0
    return max(request, limit * request // present)
