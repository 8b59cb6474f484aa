"""Usage history: full-rate samples of late, one-minute peaks of the past, over restarts."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.spi.metrics import Sample
from tensorfusion_plugins.metric_stores.embedded import COMPUTE, VRAM, EmbeddedMetricStore

DAY = 86400.0
T0 = 1_700_000_040.0  # a whole minute


def use(time, gflops, vram, worker="w0", gpu="g0", workload="job"):
    pairs = {
        "pool": "p",
        "node": "n",
        "namespace": "ns",
        "workload": workload,
        "worker": worker,
        "gpu_uuid": gpu,
    }
    labels = tuple(sorted(pairs.items()))
    return [Sample(COMPUTE, labels, time, gflops * 1e9), Sample(VRAM, labels, time, vram)]


def rows(series):
    return list(
        zip(
            series.time.tolist(),
            series.worker.tolist(),
            series.gflops.tolist(),
            series.vram_bytes.tolist(),
            strict=True,
        )
    )


@pytest.fixture
def store(tmp_path):
    made = EmbeddedMetricStore()
    made.open(str(tmp_path), 8 * DAY)
    yield made
    made.close()


def test_history_of_nothing_is_empty(store):
    assert store.usage_history(["ns/job"], 0, T0) == {}


def test_history_is_half_open_and_by_workload(store):
    for second in range(5):
        store.write(use(T0 + second, second, 10 * second))
        store.write(use(T0 + second, 99, 99, workload="other"))
    found = store.usage_history(["ns/job", "ns/nothing"], T0 + 1, T0 + 4)

    assert found.keys() == {"ns/job"}
    assert rows(found["ns/job"]) == [(T0 + s, 0, s, 10 * s) for s in (1, 2, 3)]


def test_worker_on_several_gpus_counts_its_maximum(store):
    store.write(use(T0, 5, 100, gpu="g0") + use(T0, 7, 50, gpu="g1"))
    store.write(use(T0, 1, 1, worker="w1"))

    assert rows(store.usage_history(["ns/job"], T0, T0 + 1)["ns/job"]) == [
        (T0, 0, 7, 100),
        (T0, 1, 1, 1),
    ]


def test_history_survives_a_restart_as_peaks_of_minutes(store, tmp_path):
    for second in range(150):
        store.write(use(T0 + second, second, 1000 - second))
    store.close()
    again = EmbeddedMetricStore()
    again.open(str(tmp_path), 8 * DAY)
    found = rows(again.usage_history(["ns/job"], T0, T0 + 600)["ns/job"])
    again.close()

    assert found == [(T0, 0, 59, 1000), (T0 + 60, 0, 119, 940), (T0 + 120, 0, 149, 880)]


def test_kill_loses_at_most_the_running_minute(store, tmp_path):
    for second in range(150):
        store.write(use(T0 + second, second, 1))
    again = EmbeddedMetricStore()  # the first one is never closed
    again.open(str(tmp_path), 8 * DAY)
    found = rows(again.usage_history(["ns/job"], T0, T0 + 600)["ns/job"])
    again.close()

    assert [r[0] for r in found][:2] == [T0, T0 + 60]


def test_old_bins_are_deleted(tmp_path):
    store = EmbeddedMetricStore()
    store.open(str(tmp_path), 3 * 3600.0)
    for hour in range(8):
        store.write(use(T0 + 3600 * hour, 1, 1))
    store.close()
    database = sqlite3.connect(tmp_path / "usage.db")
    kept = database.execute("SELECT count(*) FROM usage").fetchone()[0]
    database.close()

    assert 3 <= kept <= 5


def test_series_of_dead_workers_are_forgotten_and_their_history_is_not(store):
    store.write(use(T0, 1, 1, gpu="g0") + use(T0, 1, 1, worker="w1"))
    for minute in range(1, 75):
        store.write(use(T0 + 60 * minute, 2, 2, gpu="g1"))

    assert {len(by) for by in store._series.values()} == {1}
    assert store._workers == {"ns/job": {"w0": {store._series[COMPUTE].__iter__().__next__()}}}
    assert store.usage_history(["ns/job"], T0, T0 + 60)["ns/job"].worker.tolist() == [0, 1]


def test_full_disk_costs_history_and_nothing_else(store, caplog):
    store.write(use(T0, 1, 1))
    store._database.execute("PRAGMA query_only = ON")
    store.write(use(T0 + 61, 2, 2))

    assert "usage history not written" in caplog.text
    assert len(store.usage_history(["ns/job"], T0, T0 + 100)["ns/job"].time) == 2


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 9)), min_size=1, max_size=60),
    st.booleans(),
)
def test_history_loses_no_peak_and_counts_nothing_twice(tmp_path_factory, steps, restart):
    folder = str(tmp_path_factory.mktemp("h"))
    store = EmbeddedMetricStore()
    store.open(folder, 8 * DAY)
    time, truth = T0, []
    for gap, value in steps:
        time += gap
        truth.append((time, value))
        store.write(use(time, value, 2 * value))
    if restart:
        store.close()
        store = EmbeddedMetricStore()
        store.open(folder, 8 * DAY)
    series = store.usage_history(["ns/job"], T0, time + 1)["ns/job"]
    store.close()

    wanted, found = peaks(truth), peaks(zip(series.time, series.gflops, strict=True))
    assert found == wanted
    assert np.array_equal(series.vram_bytes, 2 * series.gflops)
    assert np.all(np.diff(series.time) >= 0)
    for minute, values in by_minute(zip(series.time, series.gflops, strict=True)).items():
        assert len(values) in (1, len(by_minute(truth)[minute]))


def by_minute(samples):
    result = {}
    for time, value in samples:
        result.setdefault(int(time // 60), []).append(float(value))
    return result


def peaks(samples):
    return {minute: max(values) for minute, values in by_minute(samples).items()}
