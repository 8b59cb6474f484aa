"""WorkloadProfile: a reusable description of a GPU workload, and the spec it shares with one."""

from typing import Annotated

from tensorfusion.api.amounts import Isolation, Qos, Resources
from tensorfusion.api.autoscaling import AutoScalingConfig
from tensorfusion.api.core.scheduling import NodeAffinity
from tensorfusion.api.fields import (
    Doc,
    Duration,
    Int32,
    Raw,
    Rule,
    Wire,
    defaulted,
    mapping,
    named,
)
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION


def _either_compute_or_tflops(side: str) -> Rule:
    """One of tflops and compute; a zero counts as absent, as the reference writes both."""
    amount = f"self.resources.{side}"
    return Rule(
        f"!has(self.resources) || !has({amount}) || !has({amount}.tflops) || !has({amount}.compute)"
        f" || {amount}.tflops == 0 || {amount}.tflops == '0'"
        f" || {amount}.compute == 0 || {amount}.compute == '0'",
        "tflops and compute exclude each other: set one of them",
        f".resources.{side}",
    )


class GangScheduling(Wire, frozen=True, kw_only=True):
    """Workers that are placed together or not at all."""

    __rules__ = (
        Rule(
            "!has(self.minMembers) || self.minMembers == 0 || self.minMembers >= 2",
            "minMembers must be 0 (no gang) or at least 2",
            ".minMembers",
        ),
    )

    min_members: Annotated[
        Int32 | None, Doc("Workers that must fit together; 0 means no gang.", minimum=0)
    ] = None
    timeout: Annotated[Duration, Doc("How long members wait for each other; forever if 0.")] = ""
    mode: Annotated[
        str, Doc("What happens to members when the gang does not fit.", enum=("Strict",))
    ] = defaulted("Strict")


class WorkloadProfileSpec(Wire, frozen=True, kw_only=True):
    """What a GPU workload needs. A field left out is inherited from namespace and pool."""

    __rules__ = (
        Rule(
            "!has(self.gangScheduling) || !has(self.gangScheduling.minMembers)"
            " || self.gangScheduling.minMembers == 0 || !has(self.replicas)"
            " || self.gangScheduling.minMembers <= self.replicas",
            "gangScheduling.minMembers must not exceed replicas",
            ".gangScheduling.minMembers",
        ),
        _either_compute_or_tflops("requests"),
        _either_compute_or_tflops("limits"),
    )

    pool_name: Annotated[str, Doc("GPUPool to run in; the default pool if absent.")] = ""
    replicas: Annotated[
        Int32 | None,
        Doc("Number of workers; if absent it follows the pods that ask.", minimum=0),
    ] = None
    resources: Annotated[Resources | None, Doc("GPU amounts per worker and device.")] = None
    gpu_count: Annotated[
        Int32 | None, Doc("GPU devices per worker; 1 if absent.", minimum=1, maximum=128)
    ] = None
    gpu_indices: Annotated[
        tuple[Int32, ...], Doc("Only devices with these indices on their node may be used.")
    ] = ()
    gpu_model: Annotated[str, Doc("Only devices of this model may be used, such as A100.")] = ""
    vendor: Annotated[str, Doc("Only devices of this vendor may be used, such as NVIDIA.")] = ""
    qos: Annotated[Qos, Doc("Quality of service; decides priority and price.")] = ""
    isolation: Annotated[
        Isolation, Doc("How a worker is kept inside its limits; soft if nothing says otherwise.")
    ] = ""
    partition_template_id: Annotated[
        str, Doc("Partition template by id or name; partitioned isolation only.")
    ] = named("partitionTemplateId", "")
    is_local_gpu: Annotated[
        bool | None, Doc("Run on the node that has the GPU instead of over the network.")
    ] = None
    sidecar_worker: Annotated[
        bool | None, Doc("Run the worker as a container beside the application.")
    ] = None
    node_affinity: Annotated[NodeAffinity | None, Doc("Which nodes may run the workers.")] = None
    gang_scheduling: Annotated[
        GangScheduling | None, Doc("Place workers together or not at all.")
    ] = None
    auto_scaling_config: Annotated[
        AutoScalingConfig | None, Doc("How resources and replicas follow use.")
    ] = None
    worker_pod_template: Annotated[
        Raw, Doc("Template of remote worker pods; replaces the pool's.")
    ] = mapping()


class WorkloadProfileStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a profile."""

    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None


class WorkloadProfile(Wire, frozen=True, kw_only=True):
    """A reusable description of a GPU workload; pods name it in an annotation."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("WorkloadProfile")
    metadata: Metadata
    spec: Annotated[WorkloadProfileSpec | None, Doc("What a workload of this profile needs.")] = (
        None
    )
    status: Annotated[WorkloadProfileStatus | None, Doc("What is observed.")] = None
