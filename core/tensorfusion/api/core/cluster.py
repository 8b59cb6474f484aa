"""The small kinds around workloads: namespaces, events, leases, secrets, budgets."""

from typing import Annotated

from tensorfusion.api.fields import (
    Doc,
    Int32,
    Int64,
    IntOrString,
    Labels,
    MicroTime,
    Time,
    Wire,
    defaulted,
    mapping,
)
from tensorfusion.api.meta import Condition, LabelSelector, ObjectMeta


class NamespaceSpec(Wire, frozen=True, kw_only=True):
    """What holds back the removal of a namespace."""

    finalizers: Annotated[
        tuple[str, ...], Doc("What must finish before the namespace goes away.")
    ] = ()


class NamespaceCondition(Wire, frozen=True, kw_only=True):
    """One observed fact about a namespace."""

    status: str
    type: str
    last_transition_time: Time | None = None
    message: str = ""
    reason: str = ""


class NamespaceStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a namespace."""

    conditions: Annotated[
        tuple[NamespaceCondition, ...], Doc(map_keys=("type",), merge_key="type")
    ] = ()
    phase: str = ""


class Namespace(Wire, frozen=True, kw_only=True):
    """A scope for names, quotas and defaults."""

    api_version: str = defaulted("v1")
    kind: str = defaulted("Namespace")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[NamespaceSpec | None, Doc("What holds back removal.")] = None
    status: Annotated[NamespaceStatus | None, Doc("What is observed.")] = None


class ObjectReference(Wire, frozen=True, kw_only=True):
    """Another object, by kind, namespace and name."""

    __atomic__ = True

    api_version: str = ""
    field_path: str = ""
    kind: str = ""
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    uid: str = ""


class EventSeries(Wire, frozen=True, kw_only=True):
    """How often an event was seen again."""

    count: Int32 | None = None
    last_observed_time: MicroTime | None = None


class EventSource(Wire, frozen=True, kw_only=True):
    """Who reported an event."""

    component: str = ""
    host: str = ""


class Event(Wire, frozen=True, kw_only=True):
    """Something that happened to an object, kept for a while."""

    api_version: str = defaulted("v1")
    kind: str = defaulted("Event")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    involved_object: Annotated[ObjectReference, Doc("What the event is about.")]
    action: Annotated[str, Doc("What was done or attempted.")] = ""
    count: Annotated[Int32 | None, Doc("How often it happened.")] = None
    event_time: Annotated[MicroTime | None, Doc("When it was first seen, to the microsecond.")] = (
        None
    )
    first_timestamp: Annotated[Time | None, Doc("When it was first seen.")] = None
    last_timestamp: Annotated[Time | None, Doc("When it was last seen.")] = None
    message: Annotated[str, Doc("What happened, for people.")] = ""
    reason: Annotated[str, Doc("One CamelCase word for programs.")] = ""
    related: Annotated[ObjectReference | None, Doc("A second object involved.")] = None
    reporting_component: Annotated[str, Doc("Who reported it.")] = ""
    reporting_instance: Annotated[str, Doc("Which instance of the reporter.")] = ""
    series: Annotated[EventSeries | None, Doc("How often it was seen again.")] = None
    source: Annotated[EventSource | None, Doc("Who reported it (former form).")] = None
    type: Annotated[str, Doc("Normal or Warning.")] = ""


class LeaseSpec(Wire, frozen=True, kw_only=True):
    """Who holds a lease, and until when."""

    acquire_time: Annotated[MicroTime | None, Doc("When the holder got the lease.")] = None
    holder_identity: Annotated[str, Doc("Who holds the lease.")] = ""
    lease_duration_seconds: Annotated[
        Int32 | None, Doc("Seconds without renewal after which others may take it.", minimum=1)
    ] = None
    lease_transitions: Annotated[Int32 | None, Doc("How often the holder changed.", minimum=0)] = (
        None
    )
    preferred_holder: Annotated[str, Doc("Who should get the lease next.")] = ""
    renew_time: Annotated[MicroTime | None, Doc("When the holder last renewed.")] = None
    strategy: Annotated[str, Doc("How a coordinated election picks the holder.")] = ""


class Lease(Wire, frozen=True, kw_only=True):
    """A lock with expiry, for leader election and heartbeats."""

    api_version: str = defaulted("coordination.k8s.io/v1")
    kind: str = defaulted("Lease")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[LeaseSpec | None, Doc("Who holds it, and until when.")] = None


class Secret(Wire, frozen=True, kw_only=True):
    """Small confidential data."""

    api_version: str = defaulted("v1")
    kind: str = defaulted("Secret")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    data: Annotated[Labels, Doc("Values, base64-encoded.")] = mapping()
    immutable: Annotated[bool | None, Doc("The data cannot change any more.")] = None
    string_data: Annotated[Labels, Doc("Values in plain text; merged into data on write.")] = (
        mapping()
    )
    type: Annotated[str, Doc("What the data is for.")] = defaulted("Opaque")


class ConfigMap(Wire, frozen=True, kw_only=True):
    """Small non-confidential data."""

    api_version: str = defaulted("v1")
    kind: str = defaulted("ConfigMap")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    binary_data: Annotated[Labels, Doc("Values, base64-encoded.")] = mapping()
    data: Annotated[Labels, Doc("Values as text.")] = mapping()
    immutable: Annotated[bool | None, Doc("The data cannot change any more.")] = None


class PriorityClass(Wire, frozen=True, kw_only=True):
    """A named pod priority."""

    api_version: str = defaulted("scheduling.k8s.io/v1")
    kind: str = defaulted("PriorityClass")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    description: Annotated[str, Doc("When to use the class.")] = ""
    global_default: Annotated[bool | None, Doc("Pods without a class get this one.")] = None
    preemption_policy: Annotated[
        str,
        Doc("Whether pods of the class may evict others.", enum=("PreemptLowerPriority", "Never")),
    ] = defaulted("PreemptLowerPriority")
    value: Annotated[Int32 | None, Doc("The priority; higher wins.", maximum=2000001000)] = None


class PodDisruptionBudgetSpec(Wire, frozen=True, kw_only=True):
    """How many pods must stay up through voluntary disruptions."""

    max_unavailable: Annotated[
        IntOrString | None, Doc("Most pods that may be down: a number or a percentage.")
    ] = None
    min_available: Annotated[
        IntOrString | None, Doc("Fewest pods that must be up: a number or a percentage.")
    ] = None
    selector: Annotated[LabelSelector | None, Doc("Which pods the budget is about.")] = None
    unhealthy_pod_eviction_policy: Annotated[
        str,
        Doc(
            "When pods that are not ready may be evicted.", enum=("IfHealthyBudget", "AlwaysAllow")
        ),
    ] = ""


class PodDisruptionBudgetStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a budget."""

    conditions: Annotated[tuple[Condition, ...], Doc(map_keys=("type",), merge_key="type")] = ()
    current_healthy: Int32 | None = None
    desired_healthy: Int32 | None = None
    disrupted_pods: dict[str, Time] = mapping()
    disruptions_allowed: Int32 | None = None
    expected_pods: Int32 | None = None
    observed_generation: Int64 | None = None


class PodDisruptionBudget(Wire, frozen=True, kw_only=True):
    """A limit on voluntary disruptions of a group of pods."""

    api_version: str = defaulted("policy/v1")
    kind: str = defaulted("PodDisruptionBudget")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[PodDisruptionBudgetSpec | None, Doc("What must stay up.")] = None
    status: Annotated[PodDisruptionBudgetStatus | None, Doc("What is observed.")] = None
