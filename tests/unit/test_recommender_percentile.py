"""The percentile recommender: bounds, confidence, margins, clamps, and the words it gives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.spi.recommender import (
    Amounts,
    Recommender,
    RecommenderConfig,
    UsageSeries,
    WorkloadView,
)
from tensorfusion_plugins.recommenders.percentile import (
    FLOOR_GFLOPS,
    FLOOR_VRAM,
    PercentileRecommender,
    confidence_of,
    minutes_of,
    peaks_of,
)

NOW = 1_700_000_000.0
GIB = 1 << 30
HOUR, DAY = 3600, 86400


def series(seconds, gflops, vram, every=60, workers=1):
    """Constant use, or a function of the time."""
    times = np.arange(NOW - seconds, NOW + 1, every)
    count = len(times)

    def column(value):
        return np.array([value(t) if callable(value) else value for t in times], dtype=float)

    return UsageSeries(
        time=np.tile(times, workers),
        worker=np.repeat(np.arange(workers), count),
        gflops=np.tile(column(gflops), workers),
        vram_bytes=np.tile(column(vram), workers),
    )


def view(request=(10_000, 8 * GIB), limit=(20_000, 16 * GIB), original=None, **config):
    original = original or request
    return WorkloadView(
        key="ns/job",
        config=RecommenderConfig(**config),
        request=Amounts(*request),
        limit=Amounts(*limit),
        original_request=Amounts(*original),
        original_limit=Amounts(*limit),
        workers=1,
        created=NOW - 7 * DAY,
    )


def propose(view, history):
    (proposal,) = PercentileRecommender().propose([view], {"ns/job": history}, NOW)
    return proposal


def test_it_is_a_recommender():
    assert isinstance(PercentileRecommender(), Recommender)


def test_workload_without_history_gets_no_proposal():
    empty = UsageSeries(*(np.array([]) for _ in range(4)))

    assert PercentileRecommender().propose([view()], {}, NOW) == []
    assert PercentileRecommender().propose([view()], {"ns/job": empty}, NOW) == []


@pytest.mark.parametrize(
    ("seconds", "upper", "lower"),
    [
        (5 * 60, 289, 0.603),
        (30 * 60, 49, 0.910),
        (HOUR, 25, 0.954),
        (12 * HOUR, 3, 0.996),
        (DAY, 2, 0.998),
        (7 * DAY, 1.143, 0.9997),
    ],
    ids=["5 min", "30 min", "1 h", "12 h", "24 h", "7 d"],
)
def test_bounds_widen_by_how_little_history_there_is(seconds, upper, lower):
    found = propose(view(), series(seconds, 10_000, 8 * GIB))
    alone = 10_162.8 * 1.15

    assert found.upper.gflops == pytest.approx(alone * upper, rel=2e-3)
    assert found.lower.gflops == pytest.approx(alone * lower, rel=2e-3)
    assert found.confidence == pytest.approx(min(1, seconds / DAY), rel=1e-3)


def test_sparse_history_gives_less_confidence_than_its_length():
    history = series(DAY, 10_000, GIB, every=300)

    assert propose(view(), history).confidence == pytest.approx(0.2, rel=0.01)


def test_full_rate_samples_give_no_more_confidence_than_the_time_they_cover():
    history = series(600, 10_000, GIB, every=1)
    config = RecommenderConfig(confidence_interval_seconds=1200)

    assert confidence_of(history, minutes_of(history), config) == pytest.approx(0.5, rel=1e-3)


def test_full_rate_samples_of_late_do_not_outweigh_the_hours_before():
    past = series(5 * HOUR, 20_000, GIB)
    late = series(180, 1_000, GIB, every=1)
    both = UsageSeries(
        *(
            np.concatenate([getattr(past, f)[:-4], getattr(late, f)])
            for f in ("time", "worker", "gflops", "vram_bytes")
        )
    )
    proposal = propose(view(history_seconds=DAY), both)

    # Three minutes against five hours: the median is still the past's.
    assert proposal.lower.gflops > 20_000


@pytest.mark.parametrize(
    ("request_gflops", "use", "wanted", "words"),
    [
        (2_000, 10_000, 11_687, "TFLOPS scaled up to 11.69: request 2 is below lower bound"),
        (100_000, 10_000, 11_687, "TFLOPS scaled down to 11.69: request 100 is above upper bound"),
        (12_000, 10_000, 0, "requests are within the estimated bounds"),
    ],
    ids=["too small", "too large", "inside"],
)
def test_request_moves_only_when_it_is_out_of_bounds(request_gflops, use, wanted, words):
    proposal = propose(view((request_gflops, 0)), series(7 * DAY, use, 0))

    assert proposal.request.gflops == pytest.approx(wanted, abs=2)
    assert words in proposal.why
    assert proposal.reason == ("OutOfEstimatedBound" if wanted else "InsideEstimatedBound")
    assert proposal.expires > NOW


def test_request_exactly_on_a_bound_is_inside():
    history = series(7 * DAY, 10_000, 0)
    bounds = propose(view((1, 0)), history)
    for request in (bounds.lower.gflops, bounds.upper.gflops):
        assert propose(view((request, 0)), history).request.gflops == 0
    for request in (bounds.lower.gflops - 1, bounds.upper.gflops + 1):
        proposal = propose(view((request, 0), update_threshold_ratio=0), history)
        assert proposal.reason == "OutOfEstimatedBound"


def test_both_resources_are_explained():
    proposal = propose(view((2_000, GIB)), series(7 * DAY, 10_000, 8 * GIB))

    assert "TFLOPS scaled up" in proposal.why
    assert "VRAM scaled up" in proposal.why


def test_limit_keeps_its_ratio_to_the_request():
    proposal = propose(view((2_000, GIB), (5_000, 3 * GIB)), series(7 * DAY, 10_000, 8 * GIB))

    assert proposal.limit.gflops == 5_000 * proposal.request.gflops // 2_000
    assert proposal.limit.vram_bytes == 3 * proposal.request.vram_bytes


def test_resource_without_a_limit_gets_none():
    proposal = propose(view((2_000, GIB), (0, 0)), series(7 * DAY, 10_000, 8 * GIB))

    assert proposal.request.gflops > 2_000
    assert proposal.limit == Amounts(0, 0)


@pytest.mark.parametrize(
    ("config", "request_", "use", "wanted"),
    [
        ({"margin_ratio": 0.5}, (2_000, 0), (10_000, 0), (15_244, 0)),
        ({"max_compute_ratio": 2.0}, (2_000, 0), (10_000, 0), (4_000, 0)),
        ({"min_compute_ratio": 0.5}, (100_000, 0), (10_000, 0), (50_000, 0)),
        ({"max_vram_ratio": 2.0}, (0, GIB), (0, 8 * GIB), (0, 2 * GIB)),
        ({"min_vram_ratio": 0.5}, (0, 80 * GIB), (0, 1 * GIB), (0, 40 * GIB)),
        ({}, (80_000, 0), (0, 0), (8_000, 0)),
        ({"min_compute_ratio": 0.0}, (80_000, 0), (0, 0), (FLOOR_GFLOPS, 0)),
        ({"min_vram_ratio": 0.0}, (0, 80 * GIB), (0, 0), (0, FLOOR_VRAM)),
    ],
    ids=["margin", "max", "min", "max vram", "min vram", "idle", "floor", "floor vram"],
)
def test_target_is_clamped(config, request_, use, wanted):
    found = propose(view(request_, **config), series(7 * DAY, *use)).request

    assert (found.gflops, found.vram_bytes) == pytest.approx(wanted, rel=1e-3)


def test_change_below_the_threshold_is_not_worth_it():
    history = series(7 * DAY, 10_000, 0)
    near = view((11_000, 0))

    assert propose(near, history).request.gflops == 0
    assert propose(
        replace(near, config=RecommenderConfig(update_threshold_ratio=0.05)), history
    ).request.gflops == pytest.approx(11_687, abs=2)


def test_young_workload_is_only_told():
    young = replace(view((2_000, 0)), created=NOW - 100)
    proposal = propose(young, series(100, 10_000, 0, every=1))

    assert proposal.reason == "LowConfidence"
    assert "younger than its initialDelayPeriod of 1800 s" in proposal.why
    older = propose(replace(young, created=NOW - 110), series(100, 10_000, 0, every=1))
    assert older.why == proposal.why  # no age in the text, so no write per pass


def test_memory_counts_as_the_peak_of_each_worker_and_hour():
    history = series(2 * HOUR, 0, lambda t: 5 * GIB if t % HOUR < 60 else GIB, workers=2)
    _, peaks = peaks_of(history)

    # One peak per worker and started hour, not 121 samples of each.
    assert set(peaks) <= {5 * GIB, GIB}
    assert len(peaks) == 2 * len({int(t // HOUR) for t in history.time})
    median = view((0, GIB), original=(0, 4 * GIB), target_vram_percentile=0.5)
    assert propose(median, history).request.vram_bytes > 5 * GIB


USE = st.lists(st.integers(0, 200_000), min_size=1, max_size=30)


@given(
    USE,
    st.integers(1, 400_000),
    st.integers(1, 400_000),
    st.sampled_from([60, 600, 3600]),
)
def test_proposal_is_consistent(use, request, original, every):
    times = NOW - every * np.arange(len(use))[::-1]
    history = UsageSeries(
        time=times,
        worker=np.zeros(len(use), dtype=np.int64),
        gflops=np.array(use, dtype=float),
        vram_bytes=np.zeros(len(use)),
    )
    asked = view((request, 0), (2 * request, 0), original=(original, 0))
    proposal = propose(asked, history)
    target = proposal.request.gflops

    assert proposal.lower.gflops <= proposal.upper.gflops
    assert 0 <= proposal.confidence <= 1
    if not target:
        assert proposal.reason == "InsideEstimatedBound"
        return
    assert (target > request) == (request < proposal.lower.gflops)
    assert abs(target - request) > 0.1 * request
    assert target >= FLOOR_GFLOPS
    assert target <= max(10 * original, FLOOR_GFLOPS)
    assert target >= round(0.1 * original)
    assert proposal.limit.gflops >= target
