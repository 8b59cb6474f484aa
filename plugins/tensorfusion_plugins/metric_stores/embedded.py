"""The embedded metric store: enough for rules, recommenders and ``top`` without any server.

Recent samples live in memory at full rate. Usage of workers is also kept in one-minute bins
(the maximum of each minute), written to a SQLite file, so that recommendations survive a
restart. A kill loses at most the running minute.
"""

import logging
import math
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
from tensorfusion_plugins.metric_stores.growth import Floats
from tensorfusion_plugins.metric_stores.series import Series

COMPUTE = names.METRIC_PREFIX + "worker_compute_used_flops"
VRAM = names.METRIC_PREFIX + "worker_vram_used_bytes"
BIN_SECONDS = 60.0
USAGE_SECONDS = 180.0
"""How far back use is kept at full rate; the bins have it from there on."""
DEAD_SECONDS = 3600.0
PRUNE_SECONDS = 3600.0
GIGA = 1e9
UsagePart = tuple[str, Floats, Floats, Floats]
"""Worker, times, GFLOP/s, bytes."""
log = logging.getLogger(__name__)


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
        self._pruned = 0.0

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
                by_labels = self._series.get(sample.name)
                if by_labels is None:
                    by_labels = self._series[sample.name] = {}
                series = by_labels.get(sample.labels)
                if series is None:
                    series = by_labels[sample.labels] = self._new_series(sample)
                series.append(sample.time, sample.value)
                if series.usage_key is not None:
                    self._bin(series.usage_key, sample)
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
                recent, cuts = self._recent(workload, start, end)
                parts = [*self._binned(workload, start, end, cuts), *recent]
                if parts:
                    result[workload] = _usage_series(parts)
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

    def _new_series(self, sample: Sample) -> Series:
        if sample.name not in (COMPUTE, VRAM):
            return Series()
        pairs = dict(sample.labels)
        workload, worker = f"{pairs['namespace']}/{pairs['workload']}", pairs["worker"]
        self._workers.setdefault(workload, {}).setdefault(worker, set()).add(sample.labels)
        return Series(keep_seconds=USAGE_SECONDS, usage_key=(workload, worker))

    def _bin(self, usage_key: tuple[str, str], sample: Sample) -> None:
        key = (*usage_key, int(sample.time // BIN_SECONDS))
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
        if now - self._pruned >= PRUNE_SECONDS:
            self._pruned = now
            oldest = int((now - self._retention) // BIN_SECONDS)
            self._change("DELETE FROM usage WHERE minute < ?", [(oldest,)])

    def _flush_bins(self) -> None:
        self._change(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (workload, minute, worker)"
            " DO UPDATE SET gflops = max(gflops, excluded.gflops), vram = max(vram, excluded.vram)",
            [(*key, *value) for key, value in self._bins.items()],
        )

    def _change(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        """Write to the file; what a full disk refuses is lost to history, not to rules."""
        if self._database is None or not rows:
            return
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            log.error("usage history not written", extra={"error": str(error)})

    def _forget_dead(self, now: float) -> None:
        """Drop series that had no sample for an hour: their workers are long gone."""
        for by_labels in self._series.values():
            for labels in [k for k, s in by_labels.items() if now - s.times[-1] > DEAD_SECONDS]:
                series = by_labels.pop(labels)
                if series.usage_key is not None:
                    self._forget_worker(*series.usage_key, labels)

    def _forget_worker(self, workload: str, worker: str, labels: Labels) -> None:
        workers = self._workers.get(workload, {})
        label_sets = workers.get(worker, set())
        label_sets.discard(labels)
        if not label_sets:
            workers.pop(worker, None)
        if not workers:
            self._workers.pop(workload, None)

    def _recent(
        self, workload: str, start: float, end: float
    ) -> tuple[list[UsagePart], dict[str, int]]:
        """Return full-rate samples, and per worker the minute before which bins take over."""
        parts: list[UsagePart] = []
        cuts: dict[str, int] = {}
        for worker, label_sets in self._workers.get(workload, {}).items():
            found = [
                (place, series)
                for place, name in enumerate((COMPUTE, VRAM))
                for labels in label_sets
                if (series := self._series.get(name, {}).get(labels)) is not None
            ]
            cut = max(_whole_from(series) for _, series in found)
            cuts[worker] = int(cut // BIN_SECONDS)
            windows = [(p, *series.between(max(start, cut), end)) for p, series in found]
            times = np.unique(np.concatenate([times for _, times, _ in windows]))
            if len(times):
                use = np.zeros((2, len(times)))
                for place, at, values in windows:
                    where = np.searchsorted(times, at)
                    use[place, where] = np.maximum(use[place, where], values)
                parts.append((worker, times, use[0] / GIGA, use[1]))
        return parts, cuts

    def _binned(
        self, workload: str, start: float, end: float, cuts: Mapping[str, int]
    ) -> list[UsagePart]:
        if self._database is None:
            return []
        rows = self._database.execute(
            "SELECT worker, minute, gflops, vram FROM usage"
            " WHERE workload = ? AND minute >= ? AND minute < ? ORDER BY minute",
            (workload, math.ceil(start / BIN_SECONDS), math.ceil(end / BIN_SECONDS)),
        )
        by_worker: dict[str, list[tuple[float, float, float]]] = {}
        for worker, minute, gflops, vram in rows:
            if minute < cuts.get(worker, math.inf):
                by_worker.setdefault(worker, []).append((minute * BIN_SECONDS, gflops, vram))
        return [(worker, *np.array(found).T) for worker, found in by_worker.items()]


def _whole_from(series: Series) -> float:
    """From when on the raw samples are complete: the first whole minute after a cut."""
    first = series.times[0]
    return math.ceil(first / BIN_SECONDS) * BIN_SECONDS if series.is_trimmed else first


def _usage_series(parts: list[UsagePart]) -> UsageSeries:
    order = {worker: i for i, worker in enumerate(sorted({part[0] for part in parts}))}
    time = np.concatenate([part[1] for part in parts])
    worker = np.concatenate([np.full(len(p[1]), order[p[0]], dtype=np.int64) for p in parts])
    by_time = np.lexsort((worker, time))
    return UsageSeries(
        time=time[by_time],
        worker=worker[by_time],
        gflops=np.concatenate([part[2] for part in parts])[by_time],
        vram_bytes=np.concatenate([part[3] for part in parts])[by_time],
    )
