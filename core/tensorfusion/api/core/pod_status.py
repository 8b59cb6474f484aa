"""What is observed of a pod and its containers."""

from typing import Annotated

from tensorfusion.api.core.container import ResourceRequirements
from tensorfusion.api.fields import CoreQuantity, Doc, Int32, Int64, Time, Wire, mapping


class PodCondition(Wire, frozen=True, kw_only=True):
    """One observed fact about a pod."""

    status: str
    type: str
    last_probe_time: Time | None = None
    last_transition_time: Time | None = None
    message: str = ""
    observed_generation: Int64 | None = None
    reason: str = ""


class ResourceHealth(Wire, frozen=True, kw_only=True):
    """Health of one device of a container."""

    resource_id: str
    health: str = ""
    message: str = ""


class ResourceStatus(Wire, frozen=True, kw_only=True):
    """Health of the devices behind a resource."""

    name: str
    resources: Annotated[tuple[ResourceHealth, ...], Doc(map_keys=("resourceID",))] = ()


class ContainerStateRunning(Wire, frozen=True, kw_only=True):
    """The container runs since then."""

    started_at: Time | None = None


class ContainerStateTerminated(Wire, frozen=True, kw_only=True):
    """How and when the container ended."""

    exit_code: Int32 | None = None
    container_id: str = ""
    finished_at: Time | None = None
    message: str = ""
    reason: str = ""
    signal: Int32 | None = None
    started_at: Time | None = None


class ContainerStateWaiting(Wire, frozen=True, kw_only=True):
    """Why the container does not run yet."""

    message: str = ""
    reason: str = ""


class ContainerState(Wire, frozen=True, kw_only=True):
    """Exactly one of waiting, running, terminated."""

    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None
    waiting: ContainerStateWaiting | None = None


class LinuxContainerUser(Wire, frozen=True, kw_only=True):
    """User and groups of the first process."""

    gid: Int64
    uid: Int64
    supplemental_groups: tuple[Int64, ...] = ()


class ContainerUser(Wire, frozen=True, kw_only=True):
    """Identity of the first process."""

    linux: LinuxContainerUser | None = None


class ImageVolumeStatus(Wire, frozen=True, kw_only=True):
    """The image behind a volume."""

    image_ref: str


class VolumeStatus(Wire, frozen=True, kw_only=True):
    """Details of a mounted volume."""

    image: ImageVolumeStatus | None = None


class VolumeMountStatus(Wire, frozen=True, kw_only=True):
    """How a volume is mounted."""

    mount_path: str
    name: str
    read_only: bool | None = None
    recursive_read_only: str = ""
    volume_status: VolumeStatus | None = None


class ContainerStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a container."""

    image: str = ""
    image_id: str = ""
    name: str
    ready: bool | None = None
    restart_count: Int32 | None = None
    allocated_resources: dict[str, CoreQuantity] = mapping()
    allocated_resources_status: Annotated[
        tuple[ResourceStatus, ...], Doc(map_keys=("name",), merge_key="name")
    ] = ()
    container_id: str = ""
    last_state: ContainerState | None = None
    resources: ResourceRequirements | None = None
    started: bool | None = None
    state: ContainerState | None = None
    stop_signal: str = ""
    user: ContainerUser | None = None
    volume_mounts: Annotated[
        tuple[VolumeMountStatus, ...], Doc(map_keys=("mountPath",), merge_key="mountPath")
    ] = ()


class HostIP(Wire, frozen=True, kw_only=True):
    """An address of the node."""

    ip: str


class PodIP(Wire, frozen=True, kw_only=True):
    """An address of the pod."""

    ip: str


class PodResourceClaimStatus(Wire, frozen=True, kw_only=True):
    """The claim made for an entry of the pod."""

    name: str
    resource_claim_name: str = ""


class ContainerExtendedResourceRequest(Wire, frozen=True, kw_only=True):
    """A container's extended resource and the request that serves it."""

    container_name: str = ""
    request_name: str = ""
    resource_name: str = ""


class PodExtendedResourceClaimStatus(Wire, frozen=True, kw_only=True):
    """The claim that serves extended resources."""

    request_mappings: tuple[ContainerExtendedResourceRequest, ...] = ()
    resource_claim_name: str = ""


class NodeAllocatableMappedResources(Wire, frozen=True, kw_only=True):
    """Node resources that a claim stands for."""

    name: str
    quantity: CoreQuantity


class NodeAllocatableOverheadResources(Wire, frozen=True, kw_only=True):
    """Node resources that a claim costs on top."""

    name: str
    per_container: CoreQuantity | None = None
    per_pod: CoreQuantity | None = None


class NodeAllocatableResourceClaimStatus(Wire, frozen=True, kw_only=True):
    """Node resources that a claim accounts for."""

    resource_claim_name: str = ""
    containers: Annotated[tuple[str, ...], Doc(is_set=True)] = ()
    mapping: Annotated[
        tuple[NodeAllocatableMappedResources, ...], Doc(map_keys=("name",), merge_key="name")
    ] = ()
    overhead: Annotated[
        tuple[NodeAllocatableOverheadResources, ...], Doc(map_keys=("name",), merge_key="name")
    ] = ()


class VolumeHealthCondition(Wire, frozen=True, kw_only=True):
    """One observed fact about a volume's health."""

    reason: str
    status: str
    message: str = ""


class PodVolumeHealth(Wire, frozen=True, kw_only=True):
    """Health of a volume of the pod."""

    name: str
    health_conditions: Annotated[
        tuple[VolumeHealthCondition, ...],
        Doc(
            map_keys=(
                "status",
                "reason",
            ),
            merge_key="status",
        ),
    ] = ()
    last_transition_time: Time | None = None


class PodStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a pod."""

    allocated_resources: dict[str, CoreQuantity] = mapping()
    conditions: Annotated[tuple[PodCondition, ...], Doc(map_keys=("type",), merge_key="type")] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    ephemeral_container_statuses: tuple[ContainerStatus, ...] = ()
    extended_resource_claim_status: PodExtendedResourceClaimStatus | None = None
    host_ip: str = ""
    host_ips: Annotated[tuple[HostIP, ...], Doc(merge_key="ip")] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    message: str = ""
    node_allocatable_resource_claim_statuses: Annotated[
        tuple[NodeAllocatableResourceClaimStatus, ...],
        Doc(map_keys=("resourceClaimName",), merge_key="resourceClaimName"),
    ] = ()
    nominated_node_name: str = ""
    observed_generation: Int64 | None = None
    phase: str = ""
    pod_ip: str = ""
    pod_ips: Annotated[tuple[PodIP, ...], Doc(map_keys=("ip",), merge_key="ip")] = ()
    qos_class: str = ""
    reason: str = ""
    resize: str = ""
    resource_claim_statuses: Annotated[
        tuple[PodResourceClaimStatus, ...], Doc(map_keys=("name",), merge_key="name")
    ] = ()
    resources: ResourceRequirements | None = None
    start_time: Time | None = None
    volume_health: Annotated[tuple[PodVolumeHealth, ...], Doc(map_keys=("name",))] = ()
