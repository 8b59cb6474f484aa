"""ProviderConfig: what a vendor's devices are and how containers get them."""

from typing import Annotated

from tensorfusion.api.fields import Amount, Doc, Int32, Int64, Wire, defaulted, mapping, named
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION


class ProviderImages(Wire, frozen=True, kw_only=True):
    """Images of the vendor's components."""

    middleware: Annotated[str, Doc("Image with limiter and accelerator library.")]
    remote_worker: Annotated[str, Doc("Image of remote workers.")] = ""
    remote_client: Annotated[str, Doc("Image of the client library.")] = ""


class DeviceMount(Wire, frozen=True, kw_only=True):
    """How device files get into containers."""

    device_mount_rule: Annotated[str, Doc("Template of the device path of a whole device.")] = ""
    partitioned_device_mount_rule: Annotated[
        str, Doc("Template of the device path of a partition.")
    ] = ""
    shared_devices: Annotated[tuple[str, ...], Doc("Device files that every container gets.")] = ()


class HostPathMount(Wire, frozen=True, kw_only=True):
    """A folder of the node in the hypervisor."""

    name: Annotated[str, Doc("Name of the mount.")]
    host_path: Annotated[str, Doc("Folder of the node.")]
    mount_path: Annotated[str, Doc("Where it appears.")]
    read_only: Annotated[bool | None, Doc("Whether it is read-only.")] = None


class ExtraEnv(Wire, frozen=True, kw_only=True):
    """An environment variable of the hypervisor."""

    name: Annotated[str, Doc("Name of the variable.")]
    value: Annotated[str, Doc("Its value.")] = ""


class ProviderHypervisor(Wire, frozen=True, kw_only=True):
    """What the hypervisor needs for this vendor."""

    device_mount: Annotated[DeviceMount | None, Doc("Device files it needs.")] = None
    extra_env: Annotated[tuple[ExtraEnv, ...], Doc("Environment it needs.")] = ()
    host_path_mounts: Annotated[tuple[HostPathMount, ...], Doc("Folders it needs.")] = ()
    ld_library_path: Annotated[str, Doc("Where it finds the vendor's libraries.")] = ""
    privileged_hypervisor: Annotated[bool | None, Doc("Whether it runs privileged.")] = None


class DevicePluginDetection(Wire, frozen=True, kw_only=True):
    """How devices given out by another device plugin are recognised."""

    resource_name_prefixes: Annotated[
        tuple[str, ...], Doc("Prefixes of that plugin's resource names.")
    ] = ()
    used_by_system_name: Annotated[str, Doc("Value of usedBy for its devices.")] = ""


class HardwareMetadata(Wire, frozen=True, kw_only=True):
    """A device model."""

    model: Annotated[str, Doc("Short model name.")]
    full_model_name: Annotated[str, Doc("Model name as the driver tells it.")]
    fp16_tflops: Annotated[Amount, Doc("Dense FP16 TFLOPS.")]
    vram: Annotated[Amount | None, Doc("Video memory of the model.", added=True)] = None
    cost_per_hour: Annotated[str, Doc("Price of the device per hour.")] = ""
    device_mount: Annotated[DeviceMount | None, Doc("Device files, if the model differs.")] = None
    max_partitions: Annotated[Int32 | None, Doc("Most partitions.", minimum=0)] = None
    max_placement_slots: Annotated[Int32 | None, Doc("Placement slots.", minimum=0)] = None
    max_isolation_groups: Annotated[Int32 | None, Doc("Most isolation groups.", minimum=0)] = None
    partition_template_refs: Annotated[
        tuple[str, ...], Doc("Ids of the partition templates it supports.")
    ] = ()
    total_extended_resources: Annotated[
        dict[str, Int32], Doc("Extra resources of the device, such as copy engines.")
    ] = mapping()


class VirtualizationTemplate(Wire, frozen=True, kw_only=True):
    """A shape of hardware partition."""

    id: Annotated[str, Doc("Id that models refer to.")]
    name: Annotated[str, Doc("The vendor's name, such as 1g.10gb.")]
    description: Annotated[str, Doc("What it is good for.")] = ""
    memory_gigabytes: Annotated[Int64, Doc("Video memory in GiB.", minimum=0)]
    compute_percent: Annotated[str, Doc("Percent of the device's compute.")]
    max_instances: Annotated[Int32 | None, Doc("Most partitions of this shape.", minimum=0)] = None
    nvml_profile_id: Annotated[Int32 | None, Doc("NVML profile id, for MIG.")] = named(
        "nvmlProfileId"
    )
    placement_limit: Annotated[tuple[Int32, ...], Doc("Slots at which a partition may start.")] = ()
    placement_offset: Annotated[Int32 | None, Doc("Slots that a partition takes.")] = None
    isolation_group_sharing: Annotated[
        str,
        Doc("Whether partitions share an isolation group.", enum=("exclusive", "shared")),
    ] = defaulted("exclusive")
    isolation_group_slots: Annotated[Int32 | None, Doc("Isolation groups it takes.")] = None
    max_partitions_per_isolation_group: Annotated[
        Int32 | None, Doc("Most partitions in one isolation group.", minimum=0)
    ] = None
    extended_resources: Annotated[dict[str, Int32], Doc("Extra resources a partition takes.")] = (
        mapping()
    )


class ProviderConfigSpec(Wire, frozen=True, kw_only=True):
    """A vendor's devices, images and partition shapes."""

    vendor: Annotated[str, Doc("Vendor that this is about, such as NVIDIA.")]
    images: Annotated[ProviderImages, Doc("Images of the vendor's components.")]
    hypervisor: Annotated[ProviderHypervisor | None, Doc("What the hypervisor needs.")] = None
    hardware_metadata: Annotated[tuple[HardwareMetadata, ...], Doc("Device models.")] = ()
    virtualization_templates: Annotated[
        tuple[VirtualizationTemplate, ...], Doc("Partition shapes.")
    ] = ()
    device_plugin_detection: Annotated[
        DevicePluginDetection | None, Doc("How foreign allocations are recognised.")
    ] = None
    in_use_resource_names: Annotated[
        tuple[str, ...], Doc("Native resource names that pods ask for, such as nvidia.com/gpu.")
    ] = ()


class ProviderConfigStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a vendor's configuration."""

    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None


class ProviderConfig(Wire, frozen=True, kw_only=True):
    """What a vendor's devices are and how containers get them."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("ProviderConfig")
    metadata: Metadata
    spec: Annotated[ProviderConfigSpec | None, Doc("The vendor's devices and images.")] = None
    status: Annotated[ProviderConfigStatus | None, Doc("What is observed.")] = None
