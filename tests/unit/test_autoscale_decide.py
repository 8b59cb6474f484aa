"""Pure parts of autoscaling: both dialects of its settings, merging, targets."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.api.autoscaling import AutoSetResources
from tensorfusion.autoscale.config import (
    interval_seconds,
    is_applied,
    keep_targets,
    recommender_config,
)
from tensorfusion.autoscale.decide import changes, merge, overlay
from tensorfusion.spi.recommender import Amounts, Proposal, RecommenderConfig


def block(**fields):
    return msgspec.convert(fields, AutoSetResources)


DIALECTS = [
    # field, the code's spelling, the documentation's spelling
    ("target_compute_percentile", "targetComputePercentile", "targetTflopsPercentile"),
    ("lower_compute_percentile", "lowerBoundComputePercentile", "lowerBoundTflopsPercentile"),
    ("upper_compute_percentile", "upperBoundComputePercentile", "upperBoundTflopsPercentile"),
    ("target_vram_percentile", "targetVRAMPercentile", "targetVramPercentile"),
    ("lower_vram_percentile", "lowerBoundVRAMPercentile", "lowerBoundVramPercentile"),
    ("upper_vram_percentile", "upperBoundVRAMPercentile", "upperBoundVramPercentile"),
    ("margin_ratio", "marginFraction", "requestMarginFraction"),
]


@pytest.mark.parametrize(("field", "code", "documentation"), DIALECTS, ids=lambda x: x)
def test_both_spellings_are_read_and_the_codes_wins(field, code, documentation):
    def read(**fields):
        return getattr(recommender_config(block(**fields)), field)

    assert read(**{code: "0.7"}) == 0.7
    assert read(**{documentation: 0.6}) == 0.6
    assert read(**{code: 0.7, documentation: 0.6}) == 0.7
    assert read() == getattr(RecommenderConfig(), field)


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"updateThreshold": "0.2"}, "update_threshold_ratio", 0.2),
        ({"minVRAMResourcesRatio": "0.3"}, "min_vram_ratio", 0.3),
        ({"maxVRAMResourcesRatio": "4"}, "max_vram_ratio", 4),
        ({"minComputeResourcesRatio": 0.2}, "min_compute_ratio", 0.2),
        ({"maxComputeResourcesRatio": 8}, "max_compute_ratio", 8),
        ({"confidenceInterval": "30m"}, "confidence_interval_seconds", 1800),
        ({"historyDataPeriod": "2h"}, "history_seconds", 7200),
        ({"initialDelayPeriod": "1h30m"}, "initial_delay_seconds", 5400),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_setting_reaches_the_recommender(fields, field, value):
    assert getattr(recommender_config(block(**fields)), field) == value


def test_defaults_are_those_of_the_documentation():
    config = recommender_config(block())

    assert config == RecommenderConfig()
    assert (config.target_compute_percentile, config.lower_compute_percentile) == (0.9, 0.5)
    assert (config.upper_compute_percentile, config.margin_ratio) == (0.95, 0.15)
    assert config.confidence_interval_seconds == 86400


@pytest.mark.parametrize(
    ("fields", "applied"),
    [
        ({}, False),
        ({"enable": True}, False),
        ({"targetResource": "all"}, False),
        ({"enable": False, "targetResource": "all"}, False),
        ({"enable": True, "targetResource": "all"}, True),
    ],
)
def test_recommendation_is_applied_only_with_switch_and_target(fields, applied):
    assert is_applied(block(**fields)) is applied


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("all", Amounts(1, 2)),
        ("compute", Amounts(1, 0)),
        ("tflops", Amounts(1, 0)),
        ("vram", Amounts(0, 2)),
        ("", Amounts(0, 0)),
    ],
)
def test_target_says_which_resource_is_set(target, kept):
    assert keep_targets(Amounts(1, 2), target) == kept


def test_interval_is_the_workloads_own():
    assert interval_seconds(block(interval="15s"), 60) == 15
    assert interval_seconds(block(), 60) == 60


def proposal(key="a", request=(0, 0), limit=(0, 0), **fields):
    return Proposal(key=key, request=Amounts(*request), limit=Amounts(*limit), **fields)


def test_larger_request_wins_per_resource_and_brings_its_limit():
    merged = merge(
        [
            proposal(request=(10, 1), limit=(20, 2), why="compute"),
            proposal(request=(5, 8), limit=(50, 9), why="memory"),
        ]
    )["a"]

    assert merged.request == Amounts(10, 8)
    assert merged.limit == Amounts(20, 9)
    assert merged.why == "compute; memory"


@pytest.mark.parametrize("order", [1, -1])
def test_proposal_that_changes_nothing_does_not_compete(order):
    quiet = proposal(reason="InsideEstimatedBound", why="all is well")
    loud = proposal(request=(10, 0), limit=(20, 0), reason="Updated", why="more")
    merged = merge([quiet, loud][::order])["a"]

    assert (merged.request, merged.reason, merged.why) == (Amounts(10, 0), "Updated", "more")


AMOUNTS = st.tuples(st.integers(0, 20), st.integers(0, 20))
PROPOSALS = st.lists(
    st.builds(
        proposal,
        st.sampled_from(["a", "b"]),
        AMOUNTS,
        AMOUNTS,
        expires=st.integers(1, 9),
    ),
    max_size=6,
)


@given(PROPOSALS)
def test_merge_takes_the_maximum_of_requests_and_the_earliest_expiry(proposals):
    merged = merge(proposals)

    assert merged.keys() == {p.key for p in proposals}
    for key, found in merged.items():
        mine = [p for p in proposals if p.key == key]
        assert found.request.gflops == max(p.request.gflops for p in mine)
        assert found.request.vram_bytes == max(p.request.vram_bytes for p in mine)
        assert found.expires == min(p.expires for p in mine)
        assert changes(found) == any(changes(p) for p in mine)
        pairs = {(p.request.gflops, p.limit.gflops) for p in mine}
        assert (found.request.gflops, found.limit.gflops) in pairs


def test_overlay_keeps_what_is_not_wanted_otherwise():
    assert overlay(Amounts(1, 2), Amounts(0, 5)) == Amounts(1, 5)
