"""From a workload's autoscaling block, in either dialect, to the recommender's settings. Pure."""

from tensorfusion.api.amounts import Resource, Resources
from tensorfusion.api.autoscaling import AutoSetResources
from tensorfusion.api.workload import TensorFusionWorkload
from tensorfusion.spi.recommender import Amounts, RecommenderConfig
from tensorfusion.units import parse_bytes, parse_duration, parse_fraction, parse_gflops

DEFAULTS = RecommenderConfig()
COMPUTE_TARGETS = frozenset({"all", "compute", "tflops"})
VRAM_TARGETS = frozenset({"all", "vram"})


def auto_set_of(workload: TensorFusionWorkload) -> AutoSetResources | None:
    """Return the block that asks for recommendations, if there is one."""
    scaling = workload.spec.auto_scaling_config if workload.spec else None
    return scaling.auto_set_resources if scaling else None


def is_applied(block: AutoSetResources) -> bool:
    """Whether recommendations are applied: ``enable`` and a target are both needed."""
    return bool(block.enable) and bool(block.target_resource)


def recommender_config(block: AutoSetResources) -> RecommenderConfig:
    """Resolve a block; the code's spelling wins over the documentation's."""
    return RecommenderConfig(
        target_compute_percentile=_ratio(
            block.target_compute_percentile,
            block.target_tflops_percentile,
            default=DEFAULTS.target_compute_percentile,
        ),
        lower_compute_percentile=_ratio(
            block.lower_bound_compute_percentile,
            block.lower_bound_tflops_percentile,
            default=DEFAULTS.lower_compute_percentile,
        ),
        upper_compute_percentile=_ratio(
            block.upper_bound_compute_percentile,
            block.upper_bound_tflops_percentile,
            default=DEFAULTS.upper_compute_percentile,
        ),
        target_vram_percentile=_ratio(
            block.target_vram_percentile,
            block.documented_target_vram_percentile,
            default=DEFAULTS.target_vram_percentile,
        ),
        lower_vram_percentile=_ratio(
            block.lower_bound_vram_percentile,
            block.documented_lower_bound_vram_percentile,
            default=DEFAULTS.lower_vram_percentile,
        ),
        upper_vram_percentile=_ratio(
            block.upper_bound_vram_percentile,
            block.documented_upper_bound_vram_percentile,
            default=DEFAULTS.upper_vram_percentile,
        ),
        margin_ratio=_ratio(
            block.margin_fraction, block.request_margin_fraction, default=DEFAULTS.margin_ratio
        ),
        update_threshold_ratio=_ratio(
            block.update_threshold, default=DEFAULTS.update_threshold_ratio
        ),
        min_vram_ratio=_ratio(block.min_vram_resources_ratio, default=DEFAULTS.min_vram_ratio),
        max_vram_ratio=_ratio(block.max_vram_resources_ratio, default=DEFAULTS.max_vram_ratio),
        min_compute_ratio=_ratio(
            block.min_compute_resources_ratio, default=DEFAULTS.min_compute_ratio
        ),
        max_compute_ratio=_ratio(
            block.max_compute_resources_ratio, default=DEFAULTS.max_compute_ratio
        ),
        confidence_interval_seconds=_seconds(
            block.confidence_interval, DEFAULTS.confidence_interval_seconds
        ),
        history_seconds=_seconds(block.history_data_period, DEFAULTS.history_seconds),
        initial_delay_seconds=_seconds(block.initial_delay_period, DEFAULTS.initial_delay_seconds),
    )


def interval_seconds(block: AutoSetResources, default: float) -> float:
    """How often this workload is looked at."""
    return _seconds(block.interval, default)


def amounts_of(resource: Resource | None) -> Amounts:
    """Read a resource block as base units; a percentage is not an amount."""
    if resource is None:
        return Amounts()
    return Amounts(parse_gflops(resource.tflops or 0), parse_bytes(resource.vram or 0))


def original_of(workload: TensorFusionWorkload) -> tuple[Amounts, Amounts]:
    """Return request and limit as the workload's spec has them."""
    resources = (workload.spec.resources if workload.spec else None) or Resources()
    return amounts_of(resources.requests), amounts_of(resources.limits)


def keep_targets(amounts: Amounts, target: str) -> Amounts:
    """Drop the resource that the target does not name."""
    return Amounts(
        amounts.gflops if target in COMPUTE_TARGETS else 0,
        amounts.vram_bytes if target in VRAM_TARGETS else 0,
    )


def _ratio(*values: str | float | None, default: float) -> float:
    for value in values:
        if value is not None and value != "":
            return parse_fraction(value)
    return default


def _seconds(text: str, default: float) -> float:
    return parse_duration(text) if text else default
