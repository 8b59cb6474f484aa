"""Samples and the alerts that must come of them, for the built-in evaluator and for promtool.

One table, two evaluators: what the product alerts on by itself is what Prometheus alerts on with
the generated rule file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

STEP_SECONDS = 15
GPU = {"pool": "shared", "node": "n1", "gpu_uuid": "gpu-0"}
OTHER_GPU = {**GPU, "gpu_uuid": "gpu-1"}
WORKER = {**GPU, "namespace": "ml", "workload": "job", "worker": "job-0"}
USED = "tensorfusion_gpu_vram_used_bytes"
CAPACITY = "tensorfusion_gpu_vram_capacity_bytes"
THROTTLED = "tensorfusion_worker_throttled_seconds_total"
BUSY = "tensorfusion_gpu_compute_utilization_ratio"
WORKERS = "tensorfusion_gpu_workers"


@dataclass(frozen=True)
class SampledSeries:
    """A series with a value every `STEP_SECONDS`; after the last one it is gone."""

    metric: str
    labels: Mapping[str, str]
    values: Sequence[float]

    def samples(self) -> Iterator[tuple[float, float]]:
        for index, value in enumerate(self.values):
            yield index * STEP_SECONDS, value


@dataclass(frozen=True)
class RuleCase:
    """Series, and per point in time the labels and the printed value of what fires then."""

    name: str
    rule: str
    series: Sequence[SampledSeries]
    firing: Mapping[int, Sequence[tuple[Mapping[str, str], str]]]


def flat(value: float, seconds: int) -> list[float]:
    return [value] * (seconds // STEP_SECONDS)


def rising(per_second: float, seconds: int, start: float = 0) -> list[float]:
    return [start + per_second * STEP_SECONDS * n for n in range(seconds // STEP_SECONDS)]


def vram(used: Sequence[float], labels: Mapping[str, str] = GPU) -> list[SampledSeries]:
    return [
        SampledSeries(USED, labels, [100 * ratio for ratio in used]),
        SampledSeries(CAPACITY, labels, [100.0] * len(used)),
    ]


def idle(
    busy: Sequence[float], workers: float, labels: Mapping[str, str] = GPU
) -> list[SampledSeries]:
    return [
        SampledSeries(BUSY, labels, busy),
        SampledSeries(WORKERS, labels, [workers] * len(busy)),
    ]


FULL, SLOW, IDLE = "TensorFusionGpuVramFull", "TensorFusionWorkerThrottled", "TensorFusionGpuIdle"
CASES = [
    RuleCase(
        "full memory fires after a minute and resolves",
        FULL,
        vram(flat(0.98, 180) + flat(0.5, 120)),
        {45: [], 60: [(GPU, "98%")], 165: [(GPU, "98%")], 180: [], 285: []},
    ),
    RuleCase("memory at the threshold is not full", FULL, vram(flat(0.97, 300)), {285: []}),
    RuleCase(
        "a moment of room starts the minute anew",
        FULL,
        vram(flat(0.98, 45) + flat(0.9, 15) + flat(0.98, 120)),
        {60: [], 105: [], 120: [(GPU, "98%")]},
    ),
    RuleCase(
        "only the full one of two cards fires",
        FULL,
        vram(flat(0.99, 120)) + vram(flat(0.2, 120), OTHER_GPU),
        {105: [(GPU, "99%")]},
    ),
    RuleCase(
        "a card that vanishes resolves",
        FULL,
        vram(flat(0.98, 120)),
        {105: [(GPU, "98%")], 240: []},
    ),
    RuleCase(
        "a worker that waits a fifth of its time fires and resolves",
        SLOW,
        [SampledSeries(THROTTLED, WORKER, rising(0.2, 180) + flat(0.2 * 165, 180))],
        {15: [], 120: [(WORKER, "20%")], 165: [(WORKER, "20%")], 270: []},
    ),
    RuleCase(
        "a worker that waits a twentieth of its time does not",
        SLOW,
        [SampledSeries(THROTTLED, WORKER, rising(0.05, 300))],
        {120: [], 285: []},
    ),
    RuleCase(
        "a counter that starts anew is not a drop",
        SLOW,
        [SampledSeries(THROTTLED, WORKER, rising(0.4, 180, 1000) + rising(0.4, 120, 6))],
        {165: [(WORKER, "40%")], 195: [(WORKER, "40%")], 285: [(WORKER, "40%")]},
    ),
    RuleCase(
        "a card with workers that does nothing fires after twenty minutes",
        IDLE,
        idle(flat(0, 1500) + flat(0.5, 120), 2),
        {600: [], 1185: [], 1200: [(GPU, "0%")], 1485: [(GPU, "0%")], 1605: []},
    ),
    RuleCase("a card without workers may idle", IDLE, idle(flat(0, 1500), 0), {1485: []}),
    RuleCase("a little work is work", IDLE, idle(flat(0.02, 1500), 1), {1485: []}),
    RuleCase(
        "one busy moment counts for ten minutes",
        IDLE,
        idle([*flat(0, 600), 1.0, *flat(0, 2100)], 1) + idle(flat(0, 2700), 1, OTHER_GPU),
        {1260: [(OTHER_GPU, "0%")], 2460: [(GPU, "0%"), (OTHER_GPU, "0%")]},
    ),
]
