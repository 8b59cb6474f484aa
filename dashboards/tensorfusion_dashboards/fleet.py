"""The fleet dashboard: what there is, what is promised, what is used, who waits."""

import json
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from tensorfusion_dashboards.panels import SELECTOR, SOURCE, graph, number

PATH = "dashboards/tensorfusion_dashboards/generated/fleet.json"


def generate() -> dict[str, str]:
    """Return path to content."""
    encoded = JSONEncoder(sort_keys=True, indent=2).encode(build())
    return {PATH: json.dumps(json.loads(encoded), sort_keys=True, indent=2) + "\n"}


def build() -> Any:
    """Build the dashboard's model."""
    board = (
        dashboard.Dashboard("TensorFusion / Fleet")
        .uid("tensorfusion-fleet")
        .description("Capacity, allocation and use of every GPU pool.")
        .tags(["tensorfusion"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("pool", "tensorfusion_gpu_info"))
        .with_variable(_variable("node", 'tensorfusion_gpu_info{pool=~"$pool"}'))
    )
    board = _capacity(board)
    board = _use(board)
    built = _pressure(board).build()
    for position, panel in enumerate(built.panels or (), start=1):
        panel.id_val = position
    return built


def _variable(label: str, series: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(label)
        .label(label.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({series}, {label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _sum(name: str) -> str:
    return f"sum(tensorfusion_{name}{{{SELECTOR}}})"


def _capacity(board: dashboard.Dashboard) -> dashboard.Dashboard:
    allocated, capacity = _sum("gpu_compute_allocated_flops"), _sum("gpu_compute_capacity_flops")
    vram, vram_capacity = _sum("gpu_vram_allocated_bytes"), _sum("gpu_vram_capacity_bytes")
    return (
        board.with_row(dashboard.Row("Capacity"))
        .with_panel(number("GPUs", "Healthy GPUs of the selection.", "none", _sum("gpu_healthy")))
        .with_panel(
            number(
                "Workers",
                "Workers that share the GPUs of the selection.",
                "none",
                _sum("gpu_workers"),
            )
        )
        .with_panel(
            number(
                "Compute promised",
                "Sum of compute requests over the rated capacity.",
                "percentunit",
                f"{allocated} / {capacity}",
            )
        )
        .with_panel(
            number(
                "Memory promised",
                "Sum of memory requests over the physical capacity.",
                "percentunit",
                f"{vram} / {vram_capacity}",
            )
        )
    )


def _use(board: dashboard.Dashboard) -> dashboard.Dashboard:
    return (
        board.with_row(dashboard.Row("Use"))
        .with_panel(
            graph(
                "Compute",
                "Rated capacity, what is promised to workers, and what they use.",
                "flops",
                (_sum("gpu_compute_capacity_flops"), "capacity"),
                (_sum("gpu_compute_allocated_flops"), "promised"),
                (_sum("worker_compute_used_flops"), "used"),
            )
        )
        .with_panel(
            graph(
                "Memory",
                "Physical memory, what is promised to workers, and what is in use.",
                "bytes",
                (_sum("gpu_vram_capacity_bytes"), "capacity"),
                (_sum("gpu_vram_allocated_bytes"), "promised"),
                (_sum("gpu_vram_used_bytes"), "used"),
            )
        )
        .with_panel(
            graph(
                "Utilization by node",
                "Average over the node's GPUs of the fraction of time with work running.",
                "percentunit",
                (
                    f"avg by (node) (tensorfusion_gpu_compute_utilization_ratio{{{SELECTOR}}})",
                    "{{node}}",
                ),
                maximum=1,
            )
        )
        .with_panel(
            graph(
                "Temperature",
                "The hottest GPU of each node.",
                "celsius",
                (f"max by (node) (tensorfusion_gpu_temperature_celsius{{{SELECTOR}}})", "{{node}}"),
            )
        )
    )


def _pressure(board: dashboard.Dashboard) -> dashboard.Dashboard:
    throttled = f"tensorfusion_worker_throttled_seconds_total{{{SELECTOR}}}[$__rate_interval]"
    denied = f"tensorfusion_worker_vram_denials_total{{{SELECTOR}}}[$__rate_interval]"
    return (
        board.with_row(dashboard.Row("Pressure"))
        .with_panel(
            graph(
                "Throttled workers",
                "Share of time that workers of a workload waited for compute, the worst worker.",
                "percentunit",
                (f"max by (namespace, workload) (rate({throttled}))", "{{namespace}}/{{workload}}"),
                maximum=1,
            )
        )
        .with_panel(
            graph(
                "Refused allocations",
                "Allocations refused at a worker's memory limit.",
                "ops",
                (f"sum by (namespace, workload) (rate({denied}))", "{{namespace}}/{{workload}}"),
            )
        )
        .with_panel(
            graph(
                "Waiting workers",
                "Workers that found no place yet.",
                "none",
                (
                    'sum by (pool) (tensorfusion_scheduler_pending_workers{pool=~"$pool"})',
                    "{{pool}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Placement decisions",
                "Attempts to place a worker, by result.",
                "ops",
                (
                    "sum by (result) (rate(tensorfusion_scheduler_attempts_total"
                    '{pool=~"$pool"}[$__rate_interval]))',
                    "{{result}}",
                ),
            )
        )
    )
