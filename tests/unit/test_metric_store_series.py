"""Series of the embedded metric store: windows, trimming, staleness, growth of counters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion_plugins.metric_stores.growth import growth, increase
from tensorfusion_plugins.metric_stores.series import Series

SAMPLES = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 50)), max_size=60, unique_by=lambda s: s[0]
).map(sorted)


def series_of(samples, **kwargs):
    series = Series(**kwargs)
    for time, value in samples:
        series.append(time, value)
    return series


@given(SAMPLES, st.integers(-10, 2000), st.integers(0, 2000))
def test_windows_hold_what_lies_in_them(samples, start, length):
    series = series_of(samples, keep_seconds=1e9)
    end = start + length

    times, values = series.window(start, end)
    assert list(zip(times, values, strict=True)) == [s for s in samples if start < s[0] <= end]
    times, values = series.between(start, end)
    assert list(zip(times, values, strict=True)) == [s for s in samples if start <= s[0] < end]


@given(SAMPLES)
def test_trimming_keeps_everything_that_is_recent(samples):
    series = series_of(samples, keep_seconds=300)
    if not samples:
        return
    recent = [s for s in samples if s[0] > samples[-1][0] - 300]
    kept = list(zip(series.times, series.values, strict=True))

    assert kept[len(kept) - len(recent) :] == recent
    assert kept == samples[len(samples) - len(kept) :]
    assert series.is_trimmed == (len(kept) < len(samples))
    assert len(kept) <= 2 or series.times[-1] - series.times[0] <= 330


def test_late_sample_is_dropped_and_an_equal_time_replaces():
    series = series_of([(10, 1), (20, 2), (15, 9), (20, 3)])

    assert (list(series.times), list(series.values)) == ([10, 20], [1, 3])


@pytest.mark.parametrize(
    ("times", "seconds"), [([0], 30), ([0, 1], 5), ([0, 15], 45), ([0, 60], 180), ([0, 500], 300)]
)
def test_series_is_stale_after_three_of_its_steps(times, seconds):
    assert series_of([(t, 0) for t in times]).stale_after() == seconds


def test_window_is_a_copy():
    series = series_of([(1, 1), (2, 2)])
    _, values = series.window(0, 5)
    series.append(3, 3)
    values[0] = 99

    assert list(series.values) == [1, 2, 3]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.sets(st.integers(1, 39)))
def test_increase_adds_up_over_resets(steps, resets):
    shown, total, value = [0.0], 0, 0
    for index, step in enumerate(steps):
        if index in resets and value > step:
            value = 0  # the process restarted and counted `step` since
        value += step
        total += step
        shown.append(float(value))

    assert increase(np.array(shown)) == total


@pytest.mark.parametrize(
    ("samples", "start", "end", "wanted"),
    [
        # A steady second of growth a second: the window's edges are filled in.
        ([(t, t) for t in range(101, 160)], 100, 160, 60),
        # The series began inside the window: half a step before its first sample.
        ([(130, 100), (140, 110), (150, 120)], 100, 155, 30),
        # ... but never below the counter's zero.
        ([(130, 1), (140, 11), (150, 21)], 100, 150, 21),
        # It ended inside the window: half a step after its last sample.
        ([(101, 0), (111, 10), (121, 20)], 100, 160, 25),
        ([(110, 5), (120, 5)], 100, 130, 0),
    ],
)
def test_growth_reaches_to_the_edges_as_prometheus_does(samples, start, end, wanted):
    times, values = np.array(samples, dtype=float).T

    assert growth(times, values, start, end) == pytest.approx(wanted)
