"""SchedulingConfigTemplate: how a pool places, resizes and throttles workers."""

from typing import Annotated, Any

from tensorfusion.api.amounts import Qos
from tensorfusion.api.autoscaling import AutoScalingConfig
from tensorfusion.api.fields import (
    Doc,
    Duration,
    Int64,
    Raw,
    Wire,
    defaulted,
    mapping,
)
from tensorfusion.api.meta import Conditions, LabelSelector, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION

PLACEMENT_MODES = ("CompactFirst", "LowLoadFirst", "NodeCompactGPULowLoad")
TIES = ("name", "pack", "random")


class GpuFilter(Wire, frozen=True, kw_only=True):
    """An extra filter of candidate GPUs."""

    type: Annotated[str, Doc("Name of the filter.")] = ""
    params: Annotated[Any, Doc("Parameters of the filter, by its own names.")] = None


class Placement(Wire, frozen=True, kw_only=True):
    """How GPUs are chosen."""

    mode: Annotated[
        str, Doc("Fill nodes and GPUs up, or spread over them.", enum=PLACEMENT_MODES)
    ] = defaulted("NodeCompactGPULowLoad")
    allow_using_local_gpu: Annotated[
        bool, Doc("Whether pods may run on the node of their GPU.")
    ] = defaulted(True)
    gpu_filters: Annotated[tuple[GpuFilter, ...], Doc("Extra filters of candidates.")] = ()
    policy: Annotated[str, Doc("Name of a placement policy plugin; replaces mode.", added=True)] = (
        ""
    )
    ties: Annotated[
        str,
        Doc("What decides between equal scores: name if absent.", enum=TIES, added=True),
    ] = ""
    seed: Annotated[Int64 | None, Doc("Seed of random ties; 0 if absent.", added=True)] = None
    parameters: Annotated[
        dict[str, str], Doc("Settings of the policy plugin, by its own names.", added=True)
    ] = mapping()


class VerticalScalingRule(Wire, frozen=True, kw_only=True):
    """Autoscaling settings of the pods that match."""

    name: Annotated[str, Doc("Name of the rule.")] = ""
    selector: Annotated[LabelSelector | None, Doc("Pods that the rule is about.")] = None
    auto_scaling: Annotated[AutoScalingConfig | None, Doc("Settings of those pods.")] = None


class ReBalancerThreshold(Wire, frozen=True, kw_only=True):
    """When balance counts as bad."""

    match_any: Annotated[Raw, Doc("Conditions of which one suffices.")] = mapping()


class ReBalancer(Wire, frozen=True, kw_only=True):
    """Moving workers for a better balance."""

    enable: Annotated[bool | None, Doc("Whether workers are moved.")] = None
    interval: Annotated[Duration, Doc("Time between two looks.")] = ""
    re_balance_cool_down_time: Annotated[Duration, Doc("Rest after a move.")] = ""
    threshold: Annotated[ReBalancerThreshold | None, Doc("When to move.")] = None


class AutoFreeze(Wire, frozen=True, kw_only=True):
    """When idle workers of a quality of service are frozen."""

    qos: Annotated[Qos, Doc("Quality of service that this is about.")] = ""
    enable: Annotated[bool | None, Doc("Whether idle workers are frozen.")] = None
    freeze_to_mem_ttl: Annotated[Duration, Doc("Idle time before VRAM moves to memory.")] = ""
    freeze_to_disk_ttl: Annotated[Duration, Doc("Idle time before VRAM moves to disk.")] = ""


class IntelligenceWarmup(Wire, frozen=True, kw_only=True):
    """Resuming frozen workers before they are needed."""

    enable: Annotated[bool | None, Doc("Whether use is predicted.")] = None
    model: Annotated[str, Doc("Prediction model.")] = ""
    history_data_period: Annotated[Duration, Doc("How far back use is looked at.")] = ""
    prediction_period: Annotated[Duration, Doc("How far ahead use is predicted.")] = ""


class AutoFreezeAndResume(Wire, frozen=True, kw_only=True):
    """Freezing idle workers and resuming them."""

    auto_freeze: Annotated[tuple[AutoFreeze, ...], Doc("Freezing, by quality of service.")] = ()
    intelligence_warmup: Annotated[IntelligenceWarmup | None, Doc("Resuming before use.")] = None


class ElasticRateLimit(Wire, frozen=True, kw_only=True):
    """The controller that refills a worker's compute tokens."""

    max_refill_rate: Annotated[str, Doc("Most tokens per second.")] = ""
    min_refill_rate: Annotated[str, Doc("Fewest tokens per second.")] = ""
    filter_alpha: Annotated[str, Doc("Smoothing of the measured use, 0 to 1.")] = ""
    kp: Annotated[str, Doc("Proportional gain.")] = ""
    ki: Annotated[str, Doc("Integral gain.")] = ""
    kd: Annotated[str, Doc("Derivative gain.")] = ""
    burst_window: Annotated[str, Doc("Seconds of tokens that may pile up.")] = ""
    capacity_min: Annotated[str, Doc("Smallest token bucket.")] = ""
    capacity_max: Annotated[str, Doc("Largest token bucket.")] = ""
    integral_decay_factor: Annotated[str, Doc("How fast the integral forgets, 0 to 1.")] = ""


class MultiProcessQueuing(Wire, frozen=True, kw_only=True):
    """Who waits when processes on one device want more than it has."""

    computing_threshold_for_preempt: Annotated[
        str, Doc("Utilization in percent from which low classes wait.")
    ] = ""
    trigger_preempt_duration: Annotated[Duration, Doc("How long it must last.")] = ""
    computing_threshold_for_resume: Annotated[
        str, Doc("Utilization in percent below which they go on.")
    ] = ""
    trigger_resume_duration: Annotated[Duration, Doc("How long that must last.")] = ""
    coefficient_low: Annotated[str, Doc("Weight of class low.")] = ""
    coefficient_medium: Annotated[str, Doc("Weight of class medium.")] = ""
    coefficient_high: Annotated[str, Doc("Weight of class high.")] = ""
    slow_start_ratio: Annotated[str, Doc("Share of its weight a resumed process starts with.")] = ""


class HypervisorScheduling(Wire, frozen=True, kw_only=True):
    """What the hypervisor does on its node."""

    auto_freeze_and_resume: Annotated[AutoFreezeAndResume | None, Doc("Freezing idle workers.")] = (
        None
    )
    elastic_rate_limit_parameters: Annotated[
        ElasticRateLimit | None, Doc("Refilling compute tokens.")
    ] = None
    multi_process_queuing_parameters: Annotated[
        MultiProcessQueuing | None, Doc("Queuing between classes.")
    ] = None
    lend_idle_compute: Annotated[
        bool | None,
        Doc("Whether workers may use idle compute beyond their limits.", added=True),
    ] = None


class SchedulingConfigTemplateSpec(Wire, frozen=True, kw_only=True):
    """How a pool places, resizes and throttles workers."""

    placement: Annotated[Placement, Doc("How GPUs are chosen.")]
    vertical_scaling_rules: Annotated[
        tuple[VerticalScalingRule, ...], Doc("Autoscaling by pod labels; the first match counts.")
    ] = ()
    hypervisor: Annotated[HypervisorScheduling | None, Doc("What happens on the node.")] = None
    re_balancer: Annotated[ReBalancer | None, Doc("Moving workers for balance.")] = None


class SchedulingConfigTemplateStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a template."""

    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None


class SchedulingConfigTemplate(Wire, frozen=True, kw_only=True):
    """How a pool places, resizes and throttles workers."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("SchedulingConfigTemplate")
    metadata: Metadata
    spec: Annotated[SchedulingConfigTemplateSpec | None, Doc("The settings.")] = None
    status: Annotated[SchedulingConfigTemplateStatus | None, Doc("What is observed.")] = None
