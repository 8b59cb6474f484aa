"""How a workload's resources and replicas follow its use: part of several kinds.

The documentation and the reference's code spell some settings differently; both spellings are
fields here, and the code's spelling wins where both are given.
"""

from typing import Annotated

from tensorfusion.api.amounts import Resources
from tensorfusion.api.fields import Doc, Duration, Int32, Ratio, Wire, mapping, named

AUTOSCALE_TARGETS = ("", "all", "compute", "tflops", "vram")


class AutoSetResources(Wire, frozen=True, kw_only=True):
    """Vertical scaling: requests and limits follow percentiles of the measured use."""

    enable: Annotated[
        bool | None, Doc("Apply recommendations; otherwise they only appear in the status.")
    ] = None
    target_resource: Annotated[
        str,
        Doc(
            "Which resource to set; without one, only recommendations are made.",
            enum=AUTOSCALE_TARGETS,
        ),
    ] = ""
    interval: Annotated[Duration, Doc("Time between two evaluations.")] = ""
    history_data_period: Annotated[
        Duration, Doc("How far back use is looked at; 2h if absent.")
    ] = ""
    initial_delay_period: Annotated[
        Duration, Doc("How old a workload must be before it is changed; 30m if absent.")
    ] = ""
    target_compute_percentile: Annotated[
        Ratio | None, Doc("Percentile of compute use that becomes the request; 0.9 if absent.")
    ] = None
    lower_bound_compute_percentile: Annotated[
        Ratio | None, Doc("Percentile below which compute counts as too small; 0.5 if absent.")
    ] = None
    upper_bound_compute_percentile: Annotated[
        Ratio | None, Doc("Percentile above which compute counts as too large; 0.95 if absent.")
    ] = None
    target_vram_percentile: Annotated[
        Ratio | None, Doc("Percentile of VRAM use that becomes the request; 0.9 if absent.")
    ] = None
    lower_bound_vram_percentile: Annotated[
        Ratio | None, Doc("Percentile below which VRAM counts as too small; 0.5 if absent.")
    ] = None
    upper_bound_vram_percentile: Annotated[
        Ratio | None, Doc("Percentile above which VRAM counts as too large; 0.95 if absent.")
    ] = None
    margin_fraction: Annotated[
        Ratio | None, Doc("Share of the use added as a safety margin; 0.15 if absent.")
    ] = None
    update_threshold: Annotated[
        Ratio | None, Doc("Smallest relative change worth applying; 0.1 if absent.")
    ] = None
    min_vram_resources_ratio: Annotated[
        Ratio | None, Doc("Least VRAM relative to what was first asked for; 0.2 if absent.")
    ] = None
    max_vram_resources_ratio: Annotated[
        Ratio | None, Doc("Most VRAM relative to what was first asked for; 5 if absent.")
    ] = None
    min_compute_resources_ratio: Annotated[
        Ratio | None, Doc("Least compute relative to what was first asked for; 0.1 if absent.")
    ] = None
    max_compute_resources_ratio: Annotated[
        Ratio | None, Doc("Most compute relative to what was first asked for; 10 if absent.")
    ] = None
    target_tflops_percentile: Annotated[
        Ratio | None, Doc("The documentation's name of targetComputePercentile.", added=True)
    ] = named("targetTflopsPercentile")
    lower_bound_tflops_percentile: Annotated[
        Ratio | None, Doc("The documentation's name of lowerBoundComputePercentile.", added=True)
    ] = named("lowerBoundTflopsPercentile")
    upper_bound_tflops_percentile: Annotated[
        Ratio | None, Doc("The documentation's name of upperBoundComputePercentile.", added=True)
    ] = named("upperBoundTflopsPercentile")
    documented_target_vram_percentile: Annotated[
        Ratio | None, Doc("The documentation's name of targetVRAMPercentile.", added=True)
    ] = named("targetVramPercentile")
    documented_lower_bound_vram_percentile: Annotated[
        Ratio | None, Doc("The documentation's name of lowerBoundVRAMPercentile.", added=True)
    ] = named("lowerBoundVramPercentile")
    documented_upper_bound_vram_percentile: Annotated[
        Ratio | None, Doc("The documentation's name of upperBoundVRAMPercentile.", added=True)
    ] = named("upperBoundVramPercentile")
    request_margin_fraction: Annotated[
        Ratio | None, Doc("The documentation's name of marginFraction.", added=True)
    ] = None
    confidence_interval: Annotated[
        Duration,
        Doc("History length at which bounds stop widening for want of data.", added=True),
    ] = ""
    recommender: Annotated[
        str,
        Doc("Name of the recommender plugin; the built-in percentile one if absent.", added=True),
    ] = ""
    parameters: Annotated[
        dict[str, str], Doc("Settings of the recommender plugin, by its own names.", added=True)
    ] = mapping()


class AutoSetReplicas(Wire, frozen=True, kw_only=True):
    """Horizontal scaling: the number of workers follows their use."""

    enable: Annotated[bool | None, Doc("Whether replicas are set.", added=True)] = None
    target_tflops_of_limits: Annotated[
        Ratio | None,
        Doc("Share of the compute limit that a worker should use on average.", added=True),
    ] = None
    evaluation_period: Annotated[
        Duration, Doc("Length of the window that is averaged.", added=True)
    ] = ""
    scale_up_step: Annotated[Int32 | None, Doc("Workers added at once.", minimum=1, added=True)] = (
        None
    )
    scale_down_step: Annotated[
        Int32 | None, Doc("Workers removed at once.", minimum=1, added=True)
    ] = None
    scale_up_cool_down_time: Annotated[Duration, Doc("Time between two steps up.", added=True)] = ""
    scale_down_cool_down_time: Annotated[
        Duration, Doc("Time between two steps down.", added=True)
    ] = ""


class CronScalingRule(Wire, frozen=True, kw_only=True):
    """Resources that hold during a recurring time window."""

    name: Annotated[str, Doc("Name of the rule, for status and events.")] = ""
    enable: Annotated[bool | None, Doc("Whether the rule is used.")] = None
    start: Annotated[str, Doc("Cron expression at which the window opens.")] = ""
    end: Annotated[str, Doc("Cron expression at which the window closes.")] = ""
    desired_resources: Annotated[
        Resources | None, Doc("Requests and limits inside the window.")
    ] = None
    time_zone: Annotated[
        str, Doc("IANA time zone of start and end; UTC if absent.", added=True)
    ] = ""


class SecretReference(Wire, frozen=True, kw_only=True):
    """A secret by name and namespace."""

    name: Annotated[str, Doc("Name of the secret.")] = ""
    namespace: Annotated[str, Doc("Namespace of the secret.")] = ""


class ExternalScaler(Wire, frozen=True, kw_only=True):
    """A web service that decides about resources."""

    enable: Annotated[bool | None, Doc("Whether the service is asked.")] = None
    url: Annotated[str, Doc("Where to post the current resources.")] = ""
    api_key_secret_ref: Annotated[
        SecretReference | None, Doc("Secret with the bearer token of the service.")
    ] = None
    initial_delay_period: Annotated[
        Duration, Doc("How old a workload must be before the service is asked.")
    ] = ""
    interval: Annotated[Duration, Doc("Time between two questions.")] = ""


class AutoScalingConfig(Wire, frozen=True, kw_only=True):
    """How resources and replicas follow use, the clock or an outside service."""

    auto_set_resources: Annotated[
        AutoSetResources | None, Doc("Vertical scaling from measured use.")
    ] = None
    auto_set_replicas: Annotated[
        AutoSetReplicas | None, Doc("Horizontal scaling from measured use.", added=True)
    ] = None
    cron_scaling_rules: Annotated[
        tuple[CronScalingRule, ...], Doc("Resources by time of day; the first open rule wins.")
    ] = ()
    external_scaler: Annotated[ExternalScaler | None, Doc("A web service that decides.")] = None
