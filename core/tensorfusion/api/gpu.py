"""GPU: one device, as discovered and as shared."""

from typing import Annotated

from tensorfusion.api.amounts import (
    GpuUsageSummary,
    Isolation,
    ObservedResource,
)
from tensorfusion.api.fields import Doc, Int32, Int64, Raw, Time, Wire, defaulted, mapping, named
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION, SYSTEM

GPU_PHASES = ("Pending", "Provisioning", "Running", "Unknown", "Destroying", "Migrating")
USED_BY = (SYSTEM, "nvidia-device-plugin")


class AllocatedPartition(Wire, frozen=True, kw_only=True):
    """A hardware partition that a pod holds."""

    template_id: Annotated[str, Doc("Partition template it was made from.")] = named("templateId")
    pod_uid: Annotated[str, Doc("Unique id of the pod.")]
    pod_name: Annotated[str, Doc("Name of the pod.")]
    namespace: Annotated[str, Doc("Namespace of the pod.")]
    allocated_at: Annotated[Time, Doc("When it was allocated.")]
    allocated_slot_start: Annotated[Int32 | None, Doc("First placement slot.")] = None
    allocated_slot_end: Annotated[Int32 | None, Doc("Slot after the last one.")] = None
    isolation_group_id: Annotated[Int32 | None, Doc("Isolation group on the device.")] = named(
        "isolationGroupId"
    )


class NvLinkPeer(Wire, frozen=True, kw_only=True):
    """A device reached by NVLink."""

    peer_uuid: Annotated[str, Doc("UUID of the other device.")]
    link_count: Annotated[Int32 | None, Doc("Active links to it.")] = None
    link_version: Annotated[Int32 | None, Doc("NVLink generation.")] = None
    bandwidth_mbps: Annotated[Int64 | None, Doc("Bandwidth to it in MB/s.")] = named(
        "bandwidthMBps"
    )


class NvLink(Wire, frozen=True, kw_only=True):
    """NVLink of a device."""

    peers: Annotated[tuple[NvLinkPeer, ...], Doc("Devices reached.")] = ()
    peer_count: Annotated[Int32 | None, Doc("Number of devices reached.")] = None
    total_link_count: Annotated[Int32 | None, Doc("Active links.")] = None
    total_bandwidth_mbps: Annotated[Int64 | None, Doc("Sum of bandwidths in MB/s.")] = named(
        "totalBandwidthMBps"
    )


class TopologyPeer(Wire, frozen=True, kw_only=True):
    """How near another device is."""

    peer_gpu_uuid: Annotated[str, Doc("UUID of the other device.")]
    tier: Annotated[Int32, Doc("Distance class; 0 is nearest.", minimum=0)]
    link_type: Annotated[str, Doc("Kind of the path, such as NV4, PIX or SYS.")] = ""
    bandwidth: Annotated[Int64 | None, Doc("Bandwidth of the path in MB/s.")] = None


class GpuTopology(Wire, frozen=True, kw_only=True):
    """Distances to the other devices of the node."""

    peers: Annotated[tuple[TopologyPeer, ...], Doc("The other devices.")] = ()


class GPUStatus(Wire, frozen=True, kw_only=True):
    """What is known of a device and who shares it."""

    phase: Annotated[str, Doc("State of the device.", enum=GPU_PHASES)] = defaulted("Pending")
    uuid: Annotated[str, Doc("The driver's UUID of the device.")] = ""
    vendor: Annotated[str, Doc("Vendor of the device.")] = defaulted("NVIDIA")
    gpu_model: Annotated[str, Doc("Full model name as the driver tells it.")] = ""
    model: Annotated[str, Doc("Short model name of the hardware catalogue.")] = ""
    index: Annotated[Int32 | None, Doc("Index of the device on its node.", minimum=0)] = None
    numa_node: Annotated[Int32 | None, Doc("NUMA node the device is attached to.")] = None
    capacity: Annotated[ObservedResource | None, Doc("What the device has.")] = None
    available: Annotated[
        ObservedResource | None, Doc("What is left after all requests; may be negative.")
    ] = None
    node_selector: Annotated[dict[str, str], Doc("Labels that find the node of the device.")] = (
        mapping()
    )
    used_by: Annotated[str, Doc("Which system gives out the device.", enum=USED_BY)] = ""
    isolation_mode: Annotated[Isolation, Doc("How workers are kept apart here.")] = defaulted(
        "soft"
    )
    isolation_policy: Annotated[
        str,
        Doc("Whether the mode is fixed or set by the first pod.", enum=("Static", "Dynamic")),
    ] = ""
    active_isolation_mode: Annotated[
        str, Doc("Mode set by the pods that run here now; empty when idle.")
    ] = ""
    dynamic_isolation_conflict: Annotated[
        bool | None, Doc("Pods of different modes were found together.")
    ] = None
    running_apps: Annotated[tuple[GpuUsageSummary, ...], Doc("Workloads on the device.")] = ()
    allocated_partitions: Annotated[
        dict[str, AllocatedPartition], Doc("Partitions in use, by partition id.")
    ] = mapping()
    nv_link: Annotated[NvLink | None, Doc("NVLink of the device.")] = None
    topology: Annotated[GpuTopology | None, Doc("Distances to the other devices.")] = None
    message: Annotated[str, Doc("What happened last, for people.")] = ""
    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None
    node_name: Annotated[str, Doc("Node of the device.", added=True)] = ""
    capabilities: Annotated[
        Raw, Doc("What the vendor's backend can do with the device.", added=True)
    ] = mapping()


class GPU(Wire, frozen=True, kw_only=True):
    """One GPU device; it has a status only, written by its node's hypervisor and by placement."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("GPU")
    metadata: Metadata
    spec: Annotated[Raw, Doc("Unused: a device has nothing to ask for.")] = mapping()
    status: Annotated[GPUStatus | None, Doc("What is known of the device.")] = None
