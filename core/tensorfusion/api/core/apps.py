"""Deployments and replica sets."""

from typing import Annotated

from tensorfusion.api.core.pod import PodTemplateSpec
from tensorfusion.api.fields import Doc, Int32, Int64, IntOrString, Time, Wire, defaulted
from tensorfusion.api.meta import LabelSelector, ObjectMeta


class RollingUpdateDeployment(Wire, frozen=True, kw_only=True):
    """How many pods a rolling update adds and removes at once."""

    max_surge: IntOrString = defaulted("25%")
    max_unavailable: IntOrString = defaulted("25%")


class DeploymentStrategy(Wire, frozen=True, kw_only=True):
    """How old pods are replaced by new ones."""

    rolling_update: RollingUpdateDeployment | None = None
    type: Annotated[str, Doc(enum=("RollingUpdate", "Recreate"))] = defaulted("RollingUpdate")


class DeploymentSpec(Wire, frozen=True, kw_only=True):
    """The pods wanted, and how to change them."""

    selector: Annotated[
        LabelSelector,
        Doc("Which pods belong here; must match the template's labels and cannot change."),
    ]
    template: Annotated[PodTemplateSpec, Doc("The pods to create.")]
    min_ready_seconds: Annotated[
        Int32 | None, Doc("Seconds a new pod must be ready to count as available.", minimum=0)
    ] = None
    paused: Annotated[bool | None, Doc("Changes of the template do not start a rollout.")] = None
    progress_deadline_seconds: Annotated[
        Int32, Doc("Seconds without progress after which a rollout counts as failed.")
    ] = defaulted(600)
    replicas: Annotated[Int32, Doc("Number of pods wanted.", minimum=0)] = defaulted(1)
    revision_history_limit: Annotated[
        Int32, Doc("Old replica sets kept for rollback.", minimum=0)
    ] = defaulted(10)
    strategy: Annotated[DeploymentStrategy, Doc("How old pods are replaced.")] = defaulted(
        DeploymentStrategy(rolling_update=RollingUpdateDeployment())
    )


class DeploymentCondition(Wire, frozen=True, kw_only=True):
    """One observed fact about a deployment."""

    last_transition_time: Time | None = None
    last_update_time: Time | None = None
    message: str = ""
    reason: str = ""
    status: str = ""
    type: str = ""


class DeploymentStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a deployment."""

    available_replicas: Int32 | None = None
    collision_count: Int32 | None = None
    conditions: Annotated[
        tuple[DeploymentCondition, ...], Doc(map_keys=("type",), merge_key="type")
    ] = ()
    observed_generation: Int64 | None = None
    ready_replicas: Int32 | None = None
    replicas: Int32 | None = None
    terminating_replicas: Int32 | None = None
    unavailable_replicas: Int32 | None = None
    updated_replicas: Int32 | None = None


class Deployment(Wire, frozen=True, kw_only=True):
    """A number of equal pods, replaced gradually when their template changes."""

    api_version: str = defaulted("apps/v1")
    kind: str = defaulted("Deployment")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[DeploymentSpec, Doc("The pods wanted.")]
    status: Annotated[DeploymentStatus | None, Doc("What is observed.")] = None


class ReplicaSetSpec(Wire, frozen=True, kw_only=True):
    """The number of pods wanted, and their template."""

    selector: Annotated[
        LabelSelector,
        Doc("Which pods belong here; must match the template's labels and cannot change."),
    ]
    min_ready_seconds: Annotated[
        Int32 | None, Doc("Seconds a new pod must be ready to count as available.", minimum=0)
    ] = None
    replicas: Annotated[Int32, Doc("Number of pods wanted.", minimum=0)] = defaulted(1)
    template: Annotated[PodTemplateSpec | None, Doc("The pods to create.")] = None


class ReplicaSetCondition(Wire, frozen=True, kw_only=True):
    """One observed fact about a replica set."""

    last_transition_time: Time | None = None
    message: str = ""
    reason: str = ""
    status: str = ""
    type: str = ""


class ReplicaSetStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a replica set."""

    replicas: Int32 | None = None
    available_replicas: Int32 | None = None
    conditions: Annotated[
        tuple[ReplicaSetCondition, ...], Doc(map_keys=("type",), merge_key="type")
    ] = ()
    fully_labeled_replicas: Int32 | None = None
    observed_generation: Int64 | None = None
    ready_replicas: Int32 | None = None
    terminating_replicas: Int32 | None = None


class ReplicaSet(Wire, frozen=True, kw_only=True):
    """A number of equal pods of one template revision."""

    api_version: str = defaulted("apps/v1")
    kind: str = defaulted("ReplicaSet")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[ReplicaSetSpec, Doc("The pods wanted.")]
    status: Annotated[ReplicaSetStatus | None, Doc("What is observed.")] = None
