"""Where a pod may run: affinity, tolerations and spread constraints."""

from typing import Annotated

from tensorfusion.api.fields import Doc, Int32, Int64, Time, Wire
from tensorfusion.api.meta import LabelSelector


class NodeSelectorRequirement(Wire, frozen=True, kw_only=True):
    """One condition on a node's labels or fields."""

    key: Annotated[str, Doc("Label key of the node.")]
    operator: Annotated[
        str,
        Doc(
            "How the label is compared with the values.",
            enum=("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
        ),
    ]
    values: Annotated[
        tuple[str, ...], Doc("Values for In and NotIn; one number for Gt and Lt.")
    ] = ()


class NodeSelectorTerm(Wire, frozen=True, kw_only=True):
    """Conditions that must all hold for a node."""

    __atomic__ = True

    match_expressions: Annotated[
        tuple[NodeSelectorRequirement, ...], Doc("Conditions on node labels.")
    ] = ()
    match_fields: Annotated[
        tuple[NodeSelectorRequirement, ...],
        Doc("Conditions on node fields, such as metadata.name."),
    ] = ()


class NodeSelector(Wire, frozen=True, kw_only=True):
    """Terms of which a node must satisfy at least one."""

    __atomic__ = True

    node_selector_terms: Annotated[
        tuple[NodeSelectorTerm, ...],
        Doc("A node must satisfy at least one of these terms.", min_items=1),
    ]


class PreferredSchedulingTerm(Wire, frozen=True, kw_only=True):
    """A weighted preference for nodes."""

    preference: Annotated[NodeSelectorTerm, Doc("Nodes that are preferred.")]
    weight: Annotated[Int32, Doc("How much, from 1 to 100.", minimum=1, maximum=100)]


class NodeAffinity(Wire, frozen=True, kw_only=True):
    """Which nodes are required and which are preferred."""

    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredSchedulingTerm, ...], Doc("Preferences, weighed against each other.")
    ] = ()
    required_during_scheduling_ignored_during_execution: Annotated[
        NodeSelector | None, Doc("Nodes that are allowed at all.")
    ] = None


class PodAffinityTerm(Wire, frozen=True, kw_only=True):
    """Pods to be near to, or away from, within a topology domain."""

    topology_key: str
    label_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    mismatch_label_keys: tuple[str, ...] = ()
    namespace_selector: LabelSelector | None = None
    namespaces: tuple[str, ...] = ()


class WeightedPodAffinityTerm(Wire, frozen=True, kw_only=True):
    """A weighted preference about other pods."""

    pod_affinity_term: PodAffinityTerm
    weight: Annotated[Int32, Doc(minimum=1, maximum=100)]


class PodAffinity(Wire, frozen=True, kw_only=True):
    """Pods to run near to."""

    preferred_during_scheduling_ignored_during_execution: tuple[WeightedPodAffinityTerm, ...] = ()
    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = ()


class PodAntiAffinity(Wire, frozen=True, kw_only=True):
    """Pods to keep away from."""

    preferred_during_scheduling_ignored_during_execution: tuple[WeightedPodAffinityTerm, ...] = ()
    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = ()


class Affinity(Wire, frozen=True, kw_only=True):
    """Scheduling constraints about nodes and other pods."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAntiAffinity | None = None


class Toleration(Wire, frozen=True, kw_only=True):
    """A taint that the pod puts up with."""

    effect: Annotated[str, Doc(enum=("NoSchedule", "PreferNoSchedule", "NoExecute"))] = ""
    key: str = ""
    operator: Annotated[str, Doc(enum=("Exists", "Equal", "Lt", "Gt"))] = ""
    toleration_seconds: Int64 | None = None
    value: str = ""


class TopologySpreadConstraint(Wire, frozen=True, kw_only=True):
    """How evenly matching pods spread over a topology."""

    max_skew: Annotated[Int32, Doc(minimum=1)]
    topology_key: str
    when_unsatisfiable: Annotated[str, Doc(enum=("DoNotSchedule", "ScheduleAnyway"))]
    label_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    min_domains: Int32 | None = None
    node_affinity_policy: str = ""
    node_taints_policy: str = ""


class Taint(Wire, frozen=True, kw_only=True):
    """A mark on a node that repels pods without a matching toleration."""

    effect: Annotated[str, Doc(enum=("NoSchedule", "PreferNoSchedule", "NoExecute"))]
    key: str
    time_added: Time | None = None
    value: str = ""
