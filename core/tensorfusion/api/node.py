"""GPUNode: a node with GPUs, as the pool sees it."""

from typing import Annotated

from tensorfusion.api.amounts import PodUsage
from tensorfusion.api.fields import (
    Amount,
    Doc,
    Int32,
    Int64,
    Quantity,
    Time,
    Wire,
    defaulted,
    mapping,
    named,
)
from tensorfusion.api.meta import Conditions, Metadata
from tensorfusion.names import API_VERSION

NODE_PHASES = (
    "Pending", "Provisioning", "Migrating", "Running", "Succeeded", "Failed", "Unknown", "Destroying",
)  # fmt: skip


class GPUNodeSpec(Wire, frozen=True, kw_only=True):
    """How the node came into the pool."""

    manage_mode: Annotated[
        str,
        Doc("How the node joined the pool.", enum=("Manual", "AutoSelect", "Provisioned")),
    ] = defaulted("AutoSelect")
    cost_per_hour: Annotated[str, Doc("Price of the node per hour.")] = ""
    cloud_vendor_param: Annotated[str, Doc("What its provider needs to know, as text.")] = ""
    gpu_card_indices: Annotated[
        tuple[int, ...], Doc("Only these devices of the node are used; all if empty.")
    ] = ()


class HypervisorStatus(Wire, frozen=True, kw_only=True):
    """State of the node's hypervisor."""

    hypervisor_version: Annotated[str, Doc("Version that runs.")] = ""
    hypervisor_state: Annotated[str, Doc("What it reports about itself.")] = ""
    last_heartbeat_time: Annotated[Time | None, Doc("When it last reported.")] = None


class GPUNodeInfo(Wire, frozen=True, kw_only=True):
    """The machine around the GPUs."""

    ram_size: Annotated[Amount | None, Doc("Memory of the node.")] = None
    data_disk_size: Annotated[Amount | None, Doc("Data disk of the node.")] = None


class GPUNodeStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a node and its GPUs."""

    phase: Annotated[str, Doc("State of the node.", enum=NODE_PHASES)] = defaulted("Pending")
    conditions: Conditions = ()
    total_tflops: Annotated[Amount | None, Doc("TFLOPS of all its GPUs.")] = None
    total_vram: Annotated[Amount | None, Doc("VRAM of all its GPUs.")] = None
    virtual_tflops: Annotated[Amount | None, Doc("TFLOPS with oversubscription.")] = None
    virtual_vram: Annotated[Amount | None, Doc("VRAM with expansion to memory and disk.")] = None
    available_tflops: Annotated[Quantity | None, Doc("TFLOPS not requested yet.")] = None
    available_vram: Annotated[Quantity | None, Doc("VRAM not requested yet.")] = None
    virtual_available_tflops: Annotated[
        Quantity | None, Doc("Virtual TFLOPS that limits leave.")
    ] = None
    virtual_available_vram: Annotated[Quantity | None, Doc("Virtual VRAM that limits leave.")] = (
        None
    )
    total_gpus: Annotated[Int32 | None, Doc("GPUs of the node.", minimum=0)] = None
    managed_gpus: Annotated[Int32 | None, Doc("GPUs that the pool uses.", minimum=0)] = None
    managed_gpu_device_ids: Annotated[
        tuple[str, ...], Doc("Names of the GPUs that the pool uses.")
    ] = named("managedGPUDeviceIDs", ())
    total_gpu_pods: Annotated[Int32 | None, Doc("Pods with a GPU share.", minimum=0)] = None
    allocated_pods: Annotated[
        dict[str, tuple[PodUsage, ...]], Doc("Pods with a GPU share, by GPU.")
    ] = mapping()
    loaded_models: Annotated[tuple[str, ...], Doc("AI models kept ready on the node.")] = ()
    hypervisor_status: Annotated[
        HypervisorStatus | None, Doc("State of the node's hypervisor.")
    ] = None
    node_info: Annotated[GPUNodeInfo | None, Doc("The machine around the GPUs.")] = None
    observed_generation: Annotated[
        Int64 | None, Doc("The generation that the status is about.")
    ] = None


class GPUNode(Wire, frozen=True, kw_only=True):
    """A node with GPUs; it has the name of its Node."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("GPUNode")
    metadata: Metadata
    spec: Annotated[GPUNodeSpec | None, Doc("How the node came into the pool.")] = None
    status: Annotated[GPUNodeStatus | None, Doc("What is observed.")] = None
