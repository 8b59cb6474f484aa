"""The embedded metric store: enough for rules, recommenders and ``top`` without any server.

Recent samples live in memory at full rate. Usage of workers is also kept in one-minute bins
(the maximum of each minute), written to a SQLite file, so that recommendations survive a
restart. A kill loses at most the running minute.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tensorfusion import names
from tensorfusion.spi.metrics import Labels, Sample, SeriesValue
from tensorfusion.spi.recommender import UsageSeries
from tensorfusion.spi.rules import Expression
from tensorfusion_plugins.metric_stores.evaluate import evaluate
from tensorfusion_plugins.metric_stores.series import Series

COMPUTE = names.METRIC_PREFIX + "worker_compute_used_flops"
VRAM = names.METRIC_PREFIX + "worker_vram_used_bytes"
BIN_SECONDS = 60.0
GIGA = 1e9


class EmbeddedMetricStore:
    """Series by name and labels; one lock guards everything."""

    name = "embedded"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._series: dict[str, dict[Labels, Series]] = {}
        self._workers: dict[str, dict[str, set[Labels]]] = {}
        self._bins: dict[tuple[str, str, int], tuple[float, float]] = {}
        self._retention = 8 * 86400.0
        self._database: sqlite3.Connection | None = None
        self._flushed = 0.0

    def open(self, folder: str, retention_seconds: float) -> None:
        """Open the file of the bins."""
        self._retention = retention_seconds
        Path(folder).mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(Path(folder) / "usage.db", check_same_thread=False)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS usage (workload TEXT, worker TEXT, minute INTEGER,"
            " gflops REAL, vram REAL, PRIMARY KEY (workload, minute, worker)) WITHOUT ROWID"
        )
        self._database = database

    def write(self, samples: Sequence[Sample]) -> None:
        """Add samples."""
        with self._lock:
            for sample in samples:
                by_labels = self._series.setdefault(sample.name, {})
                series = by_labels.get(sample.labels)
                if series is None:
                    series = by_labels[sample.labels] = Series()
                    if sample.name in (COMPUTE, VRAM):
                        self._index(sample.labels)
                series.append(sample.time, sample.value)
                if sample.name in (COMPUTE, VRAM):
                    self._bin(sample)
            if samples and samples[-1].time - self._flushed >= BIN_SECONDS:
                self._flush(samples[-1].time)

    def usage_history(
        self, workloads: Sequence[str], start: float, end: float
    ) -> Mapping[str, UsageSeries]:
        """Merge bins of the past with the full-rate samples of the last minutes."""
        result = {}
        with self._lock:
            self._flush_bins()
            for workload in workloads:
                rows = self._recent_rows(workload, start, end)
                oldest = min((row[0] for row in rows), default=end)
                rows += self._binned_rows(workload, start, min(oldest, end))
                if rows:
                    result[workload] = _usage_series(rows)
        return result

    def evaluate(self, expression: Expression, now: float) -> Sequence[SeriesValue]:
        """Evaluate a rule's expression."""
        with self._lock:
            vector = evaluate(expression, self._lookup, now)
        return [SeriesValue(labels, value) for labels, value in sorted(vector.items())]

    def close(self) -> None:
        """Write the running minute and close the file."""
        with self._lock:
            self._flush_bins()
            if self._database is not None:
                self._database.close()
                self._database = None

    def _lookup(self, name: str) -> Iterator[tuple[Labels, Series]]:
        yield from self._series.get(name, {}).items()

    def _index(self, labels: Labels) -> None:
        pairs = dict(labels)
        key = f"{pairs['namespace']}/{pairs['workload']}"
        self._workers.setdefault(key, {}).setdefault(pairs["worker"], set()).add(labels)

    def _bin(self, sample: Sample) -> None:
        pairs = dict(sample.labels)
        key = (
            f"{pairs['namespace']}/{pairs['workload']}",
            pairs["worker"],
            int(sample.time // BIN_SECONDS),
        )
        gflops, vram = self._bins.get(key, (0.0, 0.0))
        if sample.name == COMPUTE:
            gflops = max(gflops, sample.value / GIGA)
        else:
            vram = max(vram, sample.value)
        self._bins[key] = (gflops, vram)

    def _flush(self, now: float) -> None:
        self._flushed = now
        self._flush_bins()
        running = int(now // BIN_SECONDS)
        self._bins = {k: v for k, v in self._bins.items() if k[2] >= running}
        self._forget_dead(now)
        if self._database is not None:
            oldest = int((now - self._retention) // BIN_SECONDS)
            self._database.execute("DELETE FROM usage WHERE minute < ?", (oldest,))
            self._database.commit()

    def _flush_bins(self) -> None:
        if self._database is None or not self._bins:
            return
        rows = [(*key, *value) for key, value in self._bins.items()]
        self._database.executemany(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (workload, minute, worker)"
            " DO UPDATE SET gflops = max(gflops, excluded.gflops), vram = max(vram, excluded.vram)",
            rows,
        )
        self._database.commit()

    def _forget_dead(self, now: float) -> None:
        """Drop series that had no sample for an hour: their workers are long gone."""
        for name, by_labels in self._series.items():
            for labels in [k for k, s in by_labels.items() if now - s.times[-1] > 3600]:
                del by_labels[labels]
                if name in (COMPUTE, VRAM):
                    pairs = dict(labels)
                    key = f"{pairs['namespace']}/{pairs['workload']}"
                    self._workers.get(key, {}).pop(pairs["worker"], None)

    def _recent_rows(
        self, workload: str, start: float, end: float
    ) -> list[tuple[float, str, float, float]]:
        rows: list[tuple[float, str, float, float]] = []
        for worker, label_sets in self._workers.get(workload, {}).items():
            at: dict[float, list[float]] = {}
            for name, place in ((COMPUTE, 0), (VRAM, 1)):
                for labels in label_sets:
                    series = self._series.get(name, {}).get(labels)
                    if series is None:
                        continue
                    for time, value in zip(*series.window(start, end), strict=True):
                        pair = at.setdefault(float(time), [0.0, 0.0])
                        pair[place] = max(pair[place], float(value))
            rows += [(time, worker, pair[0] / GIGA, pair[1]) for time, pair in at.items()]
        return rows

    def _binned_rows(
        self, workload: str, start: float, end: float
    ) -> list[tuple[float, str, float, float]]:
        if self._database is None:
            return []
        found = self._database.execute(
            "SELECT minute, worker, gflops, vram FROM usage"
            " WHERE workload = ? AND minute >= ? AND minute < ?",
            (workload, int(start // BIN_SECONDS), int(end // BIN_SECONDS)),
        )
        return [(minute * BIN_SECONDS, worker, g, v) for minute, worker, g, v in found]


def _usage_series(rows: list[tuple[float, str, float, float]]) -> UsageSeries:
    rows.sort()
    order = {worker: i for i, worker in enumerate(sorted({row[1] for row in rows}))}
    return UsageSeries(
        time=np.array([row[0] for row in rows]),
        worker=np.array([order[row[1]] for row in rows], dtype=np.int64),
        gflops=np.array([row[2] for row in rows]),
        vram_bytes=np.array([row[3] for row in rows]),
    )
