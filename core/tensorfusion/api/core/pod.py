"""The pod, and the template that other kinds stamp pods from."""

from typing import Annotated

from tensorfusion.api.core.container import Container, EphemeralContainer, ResourceRequirements
from tensorfusion.api.core.pod_status import PodStatus
from tensorfusion.api.core.scheduling import Affinity, Toleration, TopologySpreadConstraint
from tensorfusion.api.core.security import PodSecurityContext
from tensorfusion.api.core.volume import LocalObjectReference, Volume
from tensorfusion.api.fields import (
    CoreQuantity,
    Doc,
    Int32,
    Int64,
    Labels,
    Wire,
    defaulted,
    mapping,
)
from tensorfusion.api.meta import ObjectMeta


class PodDNSConfigOption(Wire, frozen=True, kw_only=True):
    """One resolver option."""

    name: str = ""
    value: str = ""


class PodDNSConfig(Wire, frozen=True, kw_only=True):
    """Resolver settings beside the policy."""

    nameservers: tuple[str, ...] = ()
    options: tuple[PodDNSConfigOption, ...] = ()
    searches: tuple[str, ...] = ()


class HostAlias(Wire, frozen=True, kw_only=True):
    """A line of the pod's hosts file."""

    ip: str
    hostnames: tuple[str, ...] = ()


class PodOS(Wire, frozen=True, kw_only=True):
    """The operating system of the containers."""

    name: str


class PodReadinessGate(Wire, frozen=True, kw_only=True):
    """A condition that must be true for the pod to be ready."""

    condition_type: str


class PodResourceClaim(Wire, frozen=True, kw_only=True):
    """A dynamic resource claim of the pod."""

    name: str
    resource_claim_name: str = ""
    resource_claim_template_name: str = ""


class PodSchedulingGate(Wire, frozen=True, kw_only=True):
    """A gate that holds the pod back from scheduling."""

    name: str


class PodSchedulingGroup(Wire, frozen=True, kw_only=True):
    """The group that the pod is scheduled with."""

    pod_group_name: str = ""


class EvictionResponder(Wire, frozen=True, kw_only=True):
    """Who answers a request to evict the pod."""

    name: str
    priority: Int32


class PodSpec(Wire, frozen=True, kw_only=True):
    """What should run, and how."""

    containers: Annotated[
        tuple[Container, ...],
        Doc("What runs; at least one.", map_keys=("name",), merge_key="name", min_items=1),
    ]
    active_deadline_seconds: Annotated[
        Int64 | None, Doc("Seconds after which the pod is failed and killed.", minimum=1)
    ] = None
    affinity: Annotated[Affinity | None, Doc("Constraints about nodes and other pods.")] = None
    automount_service_account_token: Annotated[
        bool | None, Doc("Whether a service account token is mounted.")
    ] = None
    dns_config: Annotated[PodDNSConfig | None, Doc("Resolver settings beside the policy.")] = None
    dns_policy: Annotated[
        str,
        Doc(
            "How names are resolved.",
            enum=("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
        ),
    ] = defaulted("ClusterFirst")
    enable_service_links: Annotated[
        bool | None, Doc("Whether services appear as environment variables.")
    ] = None
    ephemeral_containers: Annotated[
        tuple[EphemeralContainer, ...],
        Doc(
            "Containers added for debugging while the pod runs.",
            map_keys=("name",),
            merge_key="name",
        ),
    ] = ()
    eviction_responders: Annotated[
        tuple[EvictionResponder, ...],
        Doc("Who answers a request to evict the pod.", map_keys=("name",), merge_key="name"),
    ] = ()
    host_aliases: Annotated[
        tuple[HostAlias, ...],
        Doc("Extra lines of the hosts file.", map_keys=("ip",), merge_key="ip"),
    ] = ()
    host_ipc: Annotated[bool | None, Doc("Share the node's IPC namespace.")] = None
    host_network: Annotated[bool | None, Doc("Share the node's network.")] = None
    host_pid: Annotated[bool | None, Doc("Share the node's process namespace.")] = None
    host_users: Annotated[bool | None, Doc("Share the node's user namespace.")] = None
    hostname: Annotated[str, Doc("Hostname of the pod; its name by default.")] = ""
    hostname_override: Annotated[str, Doc("Hostname as the containers see it.")] = ""
    image_pull_secrets: Annotated[
        tuple[LocalObjectReference, ...],
        Doc("Secrets for pulling images.", map_keys=("name",), merge_key="name"),
    ] = ()
    init_containers: Annotated[
        tuple[Container, ...],
        Doc(
            "Containers that run one after the other before the others start.",
            map_keys=("name",),
            merge_key="name",
        ),
    ] = ()
    node_name: Annotated[str, Doc("The node the pod is bound to; empty until placed.")] = ""
    node_selector: Annotated[Labels, Doc("Labels that the node must have.")] = mapping()
    os: Annotated[PodOS | None, Doc("Operating system of the containers.")] = None
    overhead: Annotated[
        dict[str, CoreQuantity], Doc("Resources that running the pod costs besides its containers.")
    ] = mapping()
    preemption_policy: Annotated[
        str,
        Doc(
            "Whether the pod may evict pods of lower priority.",
            enum=("PreemptLowerPriority", "Never"),
        ),
    ] = ""
    priority: Annotated[Int32 | None, Doc("Priority as a number; set from the class.")] = None
    priority_class_name: Annotated[str, Doc("Name of the priority class.")] = ""
    readiness_gates: Annotated[
        tuple[PodReadinessGate, ...], Doc("Extra conditions for the pod to be ready.")
    ] = ()
    resource_claims: Annotated[
        tuple[PodResourceClaim, ...],
        Doc(
            "Dynamic resource claims that containers may use.", map_keys=("name",), merge_key="name"
        ),
    ] = ()
    resources: Annotated[ResourceRequirements | None, Doc("Resources of the pod as a whole.")] = (
        None
    )
    restart_policy: Annotated[
        str, Doc("What happens when a container ends.", enum=("Always", "OnFailure", "Never"))
    ] = defaulted("Always")
    runtime_class_name: Annotated[str, Doc("Runtime class to run with.")] = ""
    scheduler_name: Annotated[str, Doc("Who places the pod.")] = defaulted("default-scheduler")
    scheduling_gates: Annotated[
        tuple[PodSchedulingGate, ...],
        Doc("Gates that hold the pod back from scheduling.", map_keys=("name",), merge_key="name"),
    ] = ()
    scheduling_group: Annotated[
        PodSchedulingGroup | None, Doc("The group that the pod is scheduled with.")
    ] = None
    security_context: Annotated[
        PodSecurityContext | None, Doc("Security settings of all containers.")
    ] = None
    service_account: Annotated[str, Doc("Former name of serviceAccountName.")] = ""
    service_account_name: Annotated[str, Doc("Service account to run as.")] = ""
    set_hostname_as_fqdn: Annotated[bool | None, Doc("Use the full domain name as hostname.")] = (
        None
    )
    share_process_namespace: Annotated[
        bool | None, Doc("Containers see each other's processes.")
    ] = None
    subdomain: Annotated[str, Doc("Subdomain of the hostname.")] = ""
    termination_grace_period_seconds: Annotated[
        Int64, Doc("Seconds between asking the containers to stop and killing them.", minimum=0)
    ] = defaulted(30)
    tolerations: Annotated[tuple[Toleration, ...], Doc("Taints that the pod puts up with.")] = ()
    topology_spread_constraints: Annotated[
        tuple[TopologySpreadConstraint, ...],
        Doc(
            "How evenly matching pods spread.",
            map_keys=(
                "topologyKey",
                "whenUnsatisfiable",
            ),
            merge_key="topologyKey",
        ),
    ] = ()
    volumes: Annotated[
        tuple[Volume, ...],
        Doc("Volumes that containers may mount.", map_keys=("name",), merge_key="name"),
    ] = ()


class Pod(Wire, frozen=True, kw_only=True):
    """Containers that run together on one node."""

    api_version: str = defaulted("v1")
    kind: str = defaulted("Pod")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[PodSpec | None, Doc("What should run, and how.")] = None
    status: Annotated[PodStatus | None, Doc("What is observed.")] = None


class PodTemplateSpec(Wire, frozen=True, kw_only=True):
    """Metadata and spec of pods to create."""

    metadata: Annotated[ObjectMeta | None, Doc("Labels and annotations of the pods.")] = None
    spec: Annotated[PodSpec | None, Doc("What the pods run.")] = None
