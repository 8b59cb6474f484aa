"""TensorFusionWorkload: the GPU workers behind a set of pods."""

from typing import Annotated

from tensorfusion.api.amounts import Resources
from tensorfusion.api.autoscaling import CronScalingRule
from tensorfusion.api.fields import Doc, Int32, Time, Wire, defaulted
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.api.workload_profile import WorkloadProfileSpec
from tensorfusion.names import API_VERSION

WORKLOAD_PHASES = ("Pending", "Running", "Failed", "Unknown")
GANG_PHASES = ("Pending", "Waiting", "Scheduling", "Running", "TimedOut", "Failed")
ENFORCEMENT_LEVELS = ("none", "simulated", "cooperative", "driver")


class GangStatus(Wire, frozen=True, kw_only=True):
    """How far a gang is."""

    phase: Annotated[str, Doc("State of the gang.", enum=GANG_PHASES)] = defaulted("Pending")
    group_key: Annotated[str, Doc("What members of this gang have in common.")] = ""
    desired_members: Annotated[Int32 | None, Doc("Members that should exist.")] = None
    ready_members: Annotated[Int32 | None, Doc("Members that are ready.")] = None
    scheduled_members: Annotated[Int32 | None, Doc("Members that are placed.")] = None
    waiting_members: Annotated[Int32 | None, Doc("Members that wait for others.")] = None
    backoff_until: Annotated[str, Doc("When the gang is tried again.")] = ""
    last_transition_time: Annotated[Time | None, Doc("When the phase last changed.")] = None
    reason: Annotated[str, Doc("One CamelCase word for programs.")] = ""
    message: Annotated[str, Doc("What happened, for people.")] = ""


class WorkloadStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a workload."""

    phase: Annotated[str, Doc("State of the workload.", enum=WORKLOAD_PHASES)] = defaulted(
        "Pending"
    )
    worker_count: Annotated[Int32 | None, Doc("Workers that exist.")] = None
    ready_workers: Annotated[Int32 | None, Doc("Workers that are ready.")] = None
    pod_template_hash: Annotated[str, Doc("Hash of the template the workers were made from.")] = ""
    recommendation: Annotated[Resources | None, Doc("Latest recommended resources.")] = None
    applied_recommended_replicas: Annotated[
        Int32 | None, Doc("Workers that run with the recommendation.")
    ] = None
    active_cron_scaling_rule: Annotated[
        CronScalingRule | None, Doc("The cron rule whose window is open.")
    ] = None
    gang: Annotated[GangStatus | None, Doc("How far the gang is.")] = None
    conditions: Conditions = ()
    observed_generation: ObservedGeneration = None
    current_resources: Annotated[
        Resources | None, Doc("Resources that the workers have now.", added=True)
    ] = None
    enforcement: Annotated[
        str,
        Doc(
            "What really keeps the workers inside their limits.",
            enum=ENFORCEMENT_LEVELS,
            added=True,
        ),
    ] = ""


class TensorFusionWorkload(Wire, frozen=True, kw_only=True):
    """The GPU workers behind a set of pods, their resources and their state."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("TensorFusionWorkload")
    metadata: Metadata
    spec: Annotated[WorkloadProfileSpec | None, Doc("What the workers need.")] = None
    status: Annotated[WorkloadStatus | None, Doc("What is observed.")] = None
