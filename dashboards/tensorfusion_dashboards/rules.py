"""The bundled alert rules, declared once.

The built-in evaluator runs them on the metric store; `tensorfusion_dashboards.rule_file` prints
the same trees as a Prometheus rule file.
"""

from tensorfusion.spi.rules import (
    AlertRule,
    Binary,
    Both,
    Compare,
    Increase,
    Metric,
    Over,
)

RUNBOOKS = "docs/runbooks/"
FULL_RATIO = 0.97
"""A card above this has no room for one more allocation of ordinary size."""
THROTTLED_RATIO = 0.1
"""A worker that waits a tenth of its time is slower by a ninth: its user notices."""
IDLE_RATIO = 0.01

RULES: tuple[AlertRule, ...] = (
    AlertRule(
        name="TensorFusionGpuVramFull",
        expression=Compare(
            Binary(
                "/",
                Metric("tensorfusion_gpu_vram_used_bytes"),
                Metric("tensorfusion_gpu_vram_capacity_bytes"),
                on=("pool", "node", "gpu_uuid"),
            ),
            ">",
            FULL_RATIO,
        ),
        for_seconds=60,
        severity="warning",
        summary="A GPU's memory is almost full.",
        description=(
            "GPU {gpu_uuid} on node {node} (pool {pool}) uses {value} of its memory; the next"
            " allocation may fail."
        ),
        runbook=RUNBOOKS + "TensorFusionGpuVramFull.md",
        unit="ratio",
    ),
    AlertRule(
        name="TensorFusionWorkerThrottled",
        expression=Compare(
            Increase(Metric("tensorfusion_worker_throttled_seconds_total"), 60, per_second=True),
            ">",
            THROTTLED_RATIO,
        ),
        for_seconds=10,
        severity="warning",
        summary="A worker wants more compute than its limit or its neighbours leave.",
        description=(
            "Worker {namespace}/{worker} of workload {workload} spent {value} of the last minute"
            " waiting for compute on GPU {gpu_uuid} (node {node})."
        ),
        runbook=RUNBOOKS + "TensorFusionWorkerThrottled.md",
        unit="ratio",
    ),
    AlertRule(
        name="TensorFusionGpuIdle",
        expression=Both(
            Compare(
                Over("avg", Metric("tensorfusion_gpu_compute_utilization_ratio"), 600),
                "<",
                IDLE_RATIO,
            ),
            Compare(Metric("tensorfusion_gpu_workers"), ">", 0),
            on=("pool", "node", "gpu_uuid"),
        ),
        for_seconds=1200,
        severity="info",
        summary="A GPU with workers on it does nothing.",
        description=(
            "GPU {gpu_uuid} on node {node} (pool {pool}) holds workers but was used {value} of"
            " the last 10 minutes."
        ),
        runbook=RUNBOOKS + "TensorFusionGpuIdle.md",
        unit="ratio",
    ),
)
