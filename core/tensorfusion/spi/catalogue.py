"""The metric catalogue: every series this product exposes, declared once.

Exporter, alert rules, dashboards and the reference page are checked against it. Names follow
the Prometheus conventions: base units, ratios 0 to 1, ``_total`` for counters, ``_info`` for
facts. Labels reuse the community's words; ``gpu_uuid`` is the join key of a card.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]

GPU = ("pool", "node", "gpu_uuid")
WORKER = ("pool", "node", "namespace", "workload", "worker")
WORKER_GPU = (*WORKER, "gpu_uuid")
WORKLOAD = ("pool", "namespace", "workload")
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric.

    Attributes:
        name: Full name with the prefix.
        unit: Base unit; ``1`` for counts, ``bool`` for 0 or 1.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    help: str


def _m(name: str, kind: Kind, labels: tuple[str, ...], unit: str, text: str) -> MetricInfo:
    return MetricInfo(f"tensorfusion_{name}", kind, labels, unit, text)


METRICS: tuple[MetricInfo, ...] = (
    # Cards, read by the hypervisor.
    _m(
        "gpu_info",
        "gauge",
        (*GPU, "gpu_index", "vendor", "model", "driver_version", "isolation_mode"),
        "1",
        "Static facts of one card; the join key for every other card series.",
    ),
    _m("gpu_vram_capacity_bytes", "gauge", GPU, "bytes", "Physical memory of the card."),
    _m("gpu_vram_used_bytes", "gauge", GPU, "bytes", "Memory in use by anyone."),
    _m("gpu_compute_capacity_flops", "gauge", GPU, "flops", "Dense FP16 rate of the card."),
    _m(
        "gpu_compute_utilization_ratio",
        "gauge",
        GPU,
        "ratio",
        "Fraction of the sample window with work running on the card.",
    ),
    _m("gpu_temperature_celsius", "gauge", GPU, "celsius", "Core temperature."),
    _m("gpu_power_watts", "gauge", GPU, "watts", "Power draw."),
    _m("gpu_energy_joules_total", "counter", GPU, "joules", "Energy since the driver loaded."),
    _m("gpu_healthy", "gauge", GPU, "bool", "1 while the card may take work."),
    _m(
        "gpu_last_sample_timestamp_seconds",
        "gauge",
        GPU,
        "seconds",
        "When the card was last read.",
    ),
    # Allocation, known to the control plane.
    _m(
        "gpu_compute_allocated_flops",
        "gauge",
        GPU,
        "flops",
        "Sum of compute requests placed on the card.",
    ),
    _m(
        "gpu_vram_allocated_bytes",
        "gauge",
        GPU,
        "bytes",
        "Sum of memory requests placed on the card.",
    ),
    _m("gpu_workers", "gauge", GPU, "1", "Workers that share the card."),
    # Workers.
    _m("worker_ready", "gauge", WORKER, "bool", "1 while the worker serves."),
    _m("worker_compute_used_flops", "gauge", WORKER_GPU, "flops", "Compute rate of the worker."),
    _m(
        "worker_compute_utilization_ratio",
        "gauge",
        WORKER_GPU,
        "ratio",
        "Share of the card's time that the worker used.",
    ),
    _m("worker_vram_used_bytes", "gauge", WORKER_GPU, "bytes", "Memory used by the worker."),
    _m("worker_compute_request_flops", "gauge", WORKER, "flops", "Requested compute, per card."),
    _m("worker_compute_limit_flops", "gauge", WORKER, "flops", "Compute limit, per card."),
    _m("worker_vram_request_bytes", "gauge", WORKER, "bytes", "Requested memory, per card."),
    _m("worker_vram_limit_bytes", "gauge", WORKER, "bytes", "Memory limit, per card."),
    _m(
        "worker_throttled_seconds_total",
        "counter",
        WORKER_GPU,
        "seconds",
        "Time in which the worker wanted more compute than it was given.",
    ),
    _m(
        "worker_vram_denials_total",
        "counter",
        WORKER_GPU,
        "1",
        "Allocations refused at the memory limit.",
    ),
    _m(
        "worker_limiter_opened_total",
        "counter",
        WORKER,
        "1",
        "Times that the limiter let work through for a fault of ours, such as a silent agent.",
    ),
    _m(
        "worker_limiter_bypassed_processes",
        "gauge",
        WORKER,
        "1",
        "Processes that have the driver open without the limiter, though the worker is limited.",
    ),
    _m(
        "worker_limiter_closed_total",
        "counter",
        WORKER,
        "1",
        "Times that the limiter held work back for a fault of ours, such as a silent agent.",
    ),
    _m(
        "worker_vram_spilled_bytes",
        "gauge",
        WORKER_GPU,
        "bytes",
        "Memory of the worker that is in host memory because the card was full.",
    ),
    _m(
        "worker_vram_spilled_bytes_total",
        "counter",
        WORKER_GPU,
        "bytes",
        "Memory that ever went to host memory because the card was full.",
    ),
    _m(
        "worker_vram_wanted_bytes",
        "gauge",
        WORKER_GPU,
        "bytes",
        "Memory that the worker waits for because the card is full.",
    ),
    _m(
        "worker_vram_waits_total",
        "counter",
        WORKER_GPU,
        "1",
        "Allocations within the limit that waited for room on the card.",
    ),
    _m(
        "worker_vram_waited_seconds_total",
        "counter",
        WORKER_GPU,
        "seconds",
        "How long they waited, summed over threads.",
    ),
    _m(
        "worker_vram_evict_requests_total",
        "counter",
        WORKER_GPU,
        "1",
        "Allocations for which the node was asked to freeze an idle neighbour.",
    ),
    _m(
        "worker_vram_full_denials_total",
        "counter",
        WORKER_GPU,
        "1",
        "Allocations within the limit that were refused because the card was full.",
    ),
    _m("workload_desired_workers", "gauge", WORKLOAD, "1", "Workers asked for."),
    _m("workload_ready_workers", "gauge", WORKLOAD, "1", "Workers that serve."),
    # Scheduler.
    _m(
        "scheduler_attempts_total",
        "counter",
        ("pool", "result"),
        "1",
        "Placement attempts: scheduled, unschedulable, error.",
    ),
    _m(
        "scheduler_rejections_total",
        "counter",
        ("pool", "reason"),
        "1",
        "Unschedulable attempts by the constraint that excluded the most cards.",
    ),
    _m(
        "scheduler_placement_duration_seconds",
        "histogram",
        ("pool",),
        "seconds",
        "From the first attempt to the bind.",
    ),
    _m(
        "scheduler_decision_duration_seconds",
        "histogram",
        (),
        "seconds",
        "One decision of the placement engine with its reservation.",
    ),
    _m("scheduler_preemptions_total", "counter", (), "1", "Pods evicted to make room for others."),
    _m(
        "defrag_moves_total",
        "counter",
        ("result",),
        "1",
        "Workers moved to free nodes: evicted, landed or lost (not running again in time).",
    ),
    _m("scheduler_pending_workers", "gauge", ("pool",), "1", "Workers that wait for a place."),
    # Quota.
    _m("quota_compute_limit_flops", "gauge", ("namespace", "quota"), "flops", "Ceiling, compute."),
    _m("quota_compute_used_flops", "gauge", ("namespace", "quota"), "flops", "Charged, compute."),
    _m("quota_vram_limit_bytes", "gauge", ("namespace", "quota"), "bytes", "Ceiling, memory."),
    _m("quota_vram_used_bytes", "gauge", ("namespace", "quota"), "bytes", "Charged, memory."),
    _m("quota_workers_limit", "gauge", ("namespace", "quota"), "1", "Ceiling, workers."),
    _m("quota_workers_used", "gauge", ("namespace", "quota"), "1", "Charged, workers."),
    _m(
        "quota_threshold_reached",
        "gauge",
        ("namespace", "quota"),
        "1",
        "Whether a bound is used beyond the alert threshold of its quota: 1 or 0.",
    ),
    # Autoscaler.
    _m(
        "autoscaler_recommended_compute_flops",
        "gauge",
        (*WORKLOAD, "recommender", "bound"),
        "flops",
        "Recommended compute: target, lower, upper.",
    ),
    _m(
        "autoscaler_recommended_vram_bytes",
        "gauge",
        (*WORKLOAD, "recommender", "bound"),
        "bytes",
        "Recommended memory: target, lower, upper.",
    ),
    _m(
        "autoscaler_confidence_ratio",
        "gauge",
        (*WORKLOAD, "recommender"),
        "ratio",
        "How much history stands behind the recommendation.",
    ),
    _m(
        "autoscaler_decisions_total",
        "counter",
        ("recommender", "action"),
        "1",
        "Decisions: raise, lower, recommend, blocked.",
    ),
    _m(
        "autoscaler_loop_duration_seconds",
        "histogram",
        (),
        "seconds",
        "One pass over every workload.",
    ),
    # Control plane.
    _m("build_info", "gauge", ("version",), "1", "Facts of the build."),
    _m("reconcile_total", "counter", ("controller", "result"), "1", "Reconciles by result."),
    _m(
        "reconcile_duration_seconds",
        "histogram",
        ("controller",),
        "seconds",
        "One reconcile.",
    ),
    _m("workqueue_depth", "gauge", ("controller",), "1", "Keys that wait."),
    _m(
        "plugin_info",
        "gauge",
        ("plugin", "distribution", "version", "state"),
        "1",
        "Plugins found; the state says whether they work.",
    ),
    _m(
        "hypervisor_last_heartbeat_timestamp_seconds",
        "gauge",
        ("node",),
        "seconds",
        "Last sampling pass of the node's hypervisor.",
    ),
    _m(
        "hypervisor_frozen_workers",
        "gauge",
        ("pool", "node", "tier"),
        "1",
        "Workers that are off their devices, by where their memory is.",
    ),
    _m(
        "hypervisor_freeze_seconds",
        "histogram",
        ("pool", "node", "tier"),
        "seconds",
        "How long it took to take a worker off its devices.",
    ),
    _m(
        "hypervisor_thaw_seconds",
        "histogram",
        ("pool", "node", "tier"),
        "seconds",
        "How long it took to bring a worker back to its devices.",
    ),
    _m(
        "hypervisor_thaw_failures_total",
        "counter",
        ("pool", "node", "tier"),
        "1",
        "Thaws that failed, mostly for want of room on the device; they are tried again.",
    ),
    _m(
        "alert_evaluations_total",
        "counter",
        ("rule", "result"),
        "1",
        "Passes of the built-in evaluator.",
    ),
    _m(
        "alert_notifications_total",
        "counter",
        ("sink", "result"),
        "1",
        "Alerts handed to sinks.",
    ),
)

BY_NAME: dict[str, MetricInfo] = {metric.name: metric for metric in METRICS}
