"""Instruments: the process's own metrics, kept in a cache and printed by the stock exposition.

Two ways in: events (`count`, `observe`) and snapshots (`replace`), where a collector hands over
all series of a gauge at once. Scrapes read the cache only; they never touch a store or a device.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as PromCounter
from prometheus_client import Histogram as PromHistogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tensorfusion.spi.catalogue import BY_NAME, LATENCY_BUCKETS, METRICS

Row = tuple[tuple[str, ...], float]
"""Label values in the catalogue's order, and the value."""


class Instruments(Collector):
    """Metrics of this process by catalogue name; a name that is not there is a KeyError.

    Concurrency: safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], list[Row]] = {}
        self._gauges: dict[str, dict[tuple[str, ...], float]] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self._counters: dict[str, PromCounter] = {}
        self._histograms: dict[str, PromHistogram] = {}
        self.registry.register(self)

    def count(self, name: str, labels: Mapping[str, str] | None = None, amount: float = 1) -> None:
        """Add to a counter."""
        info = BY_NAME[name]
        with self._lock:
            counter = self._counters.get(name)
            if counter is None:
                counter = PromCounter(
                    name.removesuffix("_total"), info.help, info.labels, registry=self.registry
                )
                self._counters[name] = counter
        (counter.labels(**labels) if labels else counter).inc(amount)

    def observe(self, name: str, seconds: float, labels: Mapping[str, str] | None = None) -> None:
        """Add an observation to a histogram."""
        info = BY_NAME[name]
        with self._lock:
            histogram = self._histograms.get(name)
            if histogram is None:
                histogram = PromHistogram(
                    name, info.help, info.labels, registry=self.registry, buckets=LATENCY_BUCKETS
                )
                self._histograms[name] = histogram
        (histogram.labels(**labels) if labels else histogram).observe(seconds)

    def set(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Set one series of a gauge."""
        info = BY_NAME[name]
        key = tuple((labels or {})[label] for label in info.labels)
        with self._lock:
            self._gauges.setdefault(name, {})[key] = value

    def forget(self, name: str, labels: Mapping[str, str]) -> None:
        """Drop one series of a gauge whose object is gone."""
        info = BY_NAME[name]
        key = tuple(labels[label] for label in info.labels)
        with self._lock:
            self._gauges.get(name, {}).pop(key, None)

    def replace(self, name: str, rows: Iterable[Row], source: str = "") -> None:
        """Replace all series of a gauge or counter that ``source`` handed over before."""
        BY_NAME[name]
        with self._lock:
            self._rows[name, source] = list(rows)

    def reconciled(self, controller: str, result: str, seconds: float) -> None:
        """Count one reconcile."""
        self.count("tensorfusion_reconcile_total", {"controller": controller, "result": result})
        self.observe("tensorfusion_reconcile_duration_seconds", seconds, {"controller": controller})

    def collect(self) -> Iterator[Metric]:
        """Yield the cached families (called by the registry)."""
        with self._lock:
            rows = {key: list(value) for key, value in self._rows.items()}
            gauges = {name: dict(series) for name, series in self._gauges.items()}
        by_name: dict[str, list[Row]] = {}
        for (name, _), part in rows.items():
            by_name.setdefault(name, []).extend(part)
        for name, series in gauges.items():
            by_name.setdefault(name, []).extend(series.items())
        for info in METRICS:
            found = by_name.get(info.name)
            if not found:
                continue
            family: GaugeMetricFamily | CounterMetricFamily
            if info.kind == "counter":
                family = CounterMetricFamily(info.name, info.help, labels=info.labels)
            else:
                family = GaugeMetricFamily(info.name, info.help, labels=info.labels)
            for labels, value in found:
                family.add_metric(list(labels), value)
            yield family

    def exposition(self) -> bytes:
        """Print everything in the Prometheus text format."""
        return generate_latest(self.registry)
