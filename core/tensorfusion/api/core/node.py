"""The node: a machine that runs pods."""

from typing import Annotated

from tensorfusion.api.core.scheduling import Taint
from tensorfusion.api.fields import (
    CoreQuantity,
    Doc,
    Int32,
    Int64,
    Time,
    Wire,
    defaulted,
    mapping,
    named,
)
from tensorfusion.api.meta import ObjectMeta


class ConfigMapNodeConfigSource(Wire, frozen=True, kw_only=True):
    """A kubelet configuration in a config map (retired)."""

    kubelet_config_key: str
    name: str
    namespace: str
    resource_version: str = ""
    uid: str = ""


class NodeConfigSource(Wire, frozen=True, kw_only=True):
    """Where the kubelet configuration comes from (retired)."""

    config_map: ConfigMapNodeConfigSource | None = None


class NodePodPreemptionPolicy(Wire, frozen=True, kw_only=True):
    """Which preemption the node refuses."""

    disable_resize_preemption: Annotated[tuple[str, ...], Doc(is_set=True)] = ()


class NodeSpec(Wire, frozen=True, kw_only=True):
    """What an administrator decides about a node."""

    config_source: Annotated[NodeConfigSource | None, Doc("Retired.")] = None
    external_id: Annotated[str, Doc("Retired.")] = ""
    pod_cidr: Annotated[str, Doc("Address range of the node's pods.")] = ""
    pod_cidrs: Annotated[
        tuple[str, ...], Doc("Address ranges of the node's pods.", is_set=True)
    ] = ()
    pod_preemption_policy: Annotated[
        NodePodPreemptionPolicy | None, Doc("Which preemption the node refuses.")
    ] = None
    provider_id: Annotated[str, Doc("Id of the machine at its provider.")] = ""
    taints: Annotated[tuple[Taint, ...], Doc("Marks that repel pods.")] = ()
    unschedulable: Annotated[bool | None, Doc("No new pods are placed here.")] = None


class NodeAddress(Wire, frozen=True, kw_only=True):
    """An address of the node."""

    address: str = ""
    type: str


class NodeCondition(Wire, frozen=True, kw_only=True):
    """One observed fact about a node."""

    status: str
    type: str
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    message: str = ""
    reason: str = ""


class NodeConfigStatus(Wire, frozen=True, kw_only=True):
    """The kubelet configuration in use (retired)."""

    active: NodeConfigSource | None = None
    assigned: NodeConfigSource | None = None
    error: str = ""
    last_known_good: NodeConfigSource | None = None


class DaemonEndpoint(Wire, frozen=True, kw_only=True):
    """A port that a daemon listens on."""

    port: Int32 | None = named("Port")


class NodeDaemonEndpoints(Wire, frozen=True, kw_only=True):
    """Ports of the node's daemons."""

    kubelet_endpoint: DaemonEndpoint | None = None


class NodeFeatures(Wire, frozen=True, kw_only=True):
    """What the container runtime supports."""

    supplemental_groups_policy: bool | None = None


class ContainerImage(Wire, frozen=True, kw_only=True):
    """An image on the node."""

    names: tuple[str, ...] = ()
    size_bytes: Int64 | None = None


class NodeSwapStatus(Wire, frozen=True, kw_only=True):
    """Swap memory of the node."""

    capacity: Int64 | None = None


class NodeSystemInfo(Wire, frozen=True, kw_only=True):
    """Versions and identities of the node."""

    architecture: str = ""
    boot_id: str = ""
    container_runtime_version: str = ""
    kernel_version: str = ""
    kube_proxy_version: str = ""
    kubelet_version: str = ""
    machine_id: str = ""
    operating_system: str = ""
    os_image: str = ""
    system_uuid: str = ""
    running_in_user_namespace: bool | None = None
    swap: NodeSwapStatus | None = None


class NodeRuntimeHandlerFeatures(Wire, frozen=True, kw_only=True):
    """What a runtime handler supports."""

    recursive_read_only_mounts: bool | None = None
    user_namespaces: bool | None = None


class NodeRuntimeHandler(Wire, frozen=True, kw_only=True):
    """A runtime handler of the node."""

    features: NodeRuntimeHandlerFeatures | None = None
    name: str = ""


class AttachedVolume(Wire, frozen=True, kw_only=True):
    """A volume attached to the node."""

    device_path: str = ""
    name: str


class NodeStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a node."""

    addresses: Annotated[tuple[NodeAddress, ...], Doc(map_keys=("type",), merge_key="type")] = ()
    allocatable: dict[str, CoreQuantity] = mapping()
    capacity: dict[str, CoreQuantity] = mapping()
    conditions: Annotated[tuple[NodeCondition, ...], Doc(map_keys=("type",), merge_key="type")] = ()
    config: NodeConfigStatus | None = None
    daemon_endpoints: NodeDaemonEndpoints | None = None
    declared_features: tuple[str, ...] = ()
    features: NodeFeatures | None = None
    images: tuple[ContainerImage, ...] = ()
    node_info: NodeSystemInfo | None = None
    phase: str = ""
    runtime_handlers: tuple[NodeRuntimeHandler, ...] = ()
    volumes_attached: tuple[AttachedVolume, ...] = ()
    volumes_in_use: tuple[str, ...] = ()


class Node(Wire, frozen=True, kw_only=True):
    """A machine that runs pods."""

    api_version: str = defaulted("v1")
    kind: str = defaulted("Node")
    metadata: Annotated[ObjectMeta, Doc("Name, labels, owners and bookkeeping.")] = ObjectMeta()
    spec: Annotated[NodeSpec | None, Doc("What an administrator decides.")] = None
    status: Annotated[NodeStatus | None, Doc("What is observed.")] = None
