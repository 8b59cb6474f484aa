"""The decaying histogram against the definition of the Vertical Pod Autoscaler, one value at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion_plugins.recommenders.histogram import (
    COMPUTE_BUCKETS,
    VRAM_BUCKETS,
    Histogram,
)


class SlowHistogram:
    """Buckets in a list, every sample added by itself, weights referred to the last sample."""

    def __init__(self, buckets, samples, half_life):
        self.b = buckets
        self.weights = [0.0] * buckets.count
        latest = max(time for _, time, _ in samples)
        for value, time, weight in samples:
            self.weights[self.bucket(value)] += weight * 2 ** ((time - latest) / half_life)

    def bucket(self, value):
        if value < self.b.first:
            return 0
        exact = math.log(value * (self.b.ratio - 1) / self.b.first + 1, self.b.ratio)
        return min(math.floor(exact + 1e-12), self.b.count - 1)

    def start(self, index):
        return self.b.first * (self.b.ratio**index - 1) / (self.b.ratio - 1)

    def percentile(self, ratio):
        filled = [i for i, w in enumerate(self.weights) if w >= 1e-10]
        total, reached = sum(self.weights), 0.0
        if total < 1e-4:
            return 0.0
        for index in range(filled[0], filled[-1] + 1):
            reached += self.weights[index]
            if reached >= ratio * total - 1e-12:
                break
        return self.start(index if index == self.b.count - 1 else index + 1)


SAMPLES = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 2e7), st.sampled_from([0.0, 99.9, 100.0, 1e12])),
        st.integers(0, 48 * 3600),
        st.sampled_from([0.1, 1.0, 0.5]),
    ),
    min_size=1,
    max_size=50,
)


def fast(buckets, samples, half_life):
    values, times, weights = (
        np.array(column, dtype=float) for column in zip(*samples, strict=True)
    )
    return Histogram(buckets, values, times, weights, half_life)


@given(SAMPLES, st.floats(0, 1), st.sampled_from([3600.0, 12 * 3600.0, 86400.0]))
def test_histogram_equals_the_definition(samples, ratio, half_life):
    wanted = SlowHistogram(COMPUTE_BUCKETS, samples, half_life).percentile(ratio)

    assert fast(COMPUTE_BUCKETS, samples, half_life).percentile(ratio) == pytest.approx(wanted)


@given(SAMPLES, st.floats(0, 1), st.floats(0, 1))
def test_percentiles_grow(samples, a, b):
    histogram = fast(COMPUTE_BUCKETS, samples, 3600.0)

    assert histogram.percentile(min(a, b)) <= histogram.percentile(max(a, b))


@given(SAMPLES, st.floats(0, 1))
def test_percentile_is_the_same_wherever_time_starts(samples, ratio):
    later = [(value, time + 1_700_000_000, weight) for value, time, weight in samples]

    assert fast(COMPUTE_BUCKETS, later, 3600.0).percentile(ratio) == pytest.approx(
        fast(COMPUTE_BUCKETS, samples, 3600.0).percentile(ratio)
    )


@pytest.mark.parametrize(
    ("buckets", "last_start"),
    [(COMPUTE_BUCKETS, 10_211_090), (VRAM_BUCKETS, 1.0211e12)],
)
def test_buckets_are_those_of_the_autoscaler(buckets, last_start):
    assert buckets.count == 176
    assert float(buckets.start(175)) == pytest.approx(last_start, rel=1e-4)
    assert float(buckets.start(0)) == 0


@pytest.mark.parametrize(
    ("buckets", "value", "shown"),
    [(COMPUTE_BUCKETS, 10_000, 10_162.8), (VRAM_BUCKETS, 8 << 30, 8_790_737_608)],
)
@pytest.mark.parametrize("ratio", [0, 0.5, 0.9, 1])
def test_constant_use_reads_as_the_end_of_its_bucket(buckets, value, shown, ratio):
    histogram = fast(buckets, [(value, t, 1.0) for t in range(10)], 3600.0)

    assert histogram.percentile(ratio) == pytest.approx(shown, rel=1e-5)


@pytest.mark.parametrize(("ratio", "same_as"), [(-1, 0), (2, 1)])
def test_percentile_outside_is_the_nearest(ratio, same_as):
    histogram = fast(COMPUTE_BUCKETS, [(100 * n, n, 1.0) for n in range(20)], 3600.0)

    assert histogram.percentile(ratio) == histogram.percentile(same_as)


def test_empty_histogram_answers_zero():
    empty = Histogram(COMPUTE_BUCKETS, *(np.array([]) for _ in range(3)), 3600.0)

    assert [empty.percentile(p) for p in (0, 0.5, 1)] == [0, 0, 0]


def test_what_is_too_large_goes_to_the_last_bucket():
    histogram = fast(COMPUTE_BUCKETS, [(1e15, 0, 1.0)], 3600.0)

    assert histogram.percentile(0.9) == pytest.approx(float(COMPUTE_BUCKETS.start(175)))


def test_sample_counts_half_after_a_half_life():
    samples = [(1_000, 0, 1.0), (5_000, 3600, 0.5), (9_000, 3600, 0.01)]
    histogram = fast(COMPUTE_BUCKETS, samples, 3600.0)

    assert histogram.total == pytest.approx(0.5 + 0.5 + 0.01)
    assert histogram.percentile(0.49) < 1_200
    assert histogram.percentile(0.51) > 4_900
