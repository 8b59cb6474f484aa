"""What a fresh control plane starts with: priority classes, a cluster with one pool, catalogue."""

from tensorfusion import names
from tensorfusion.api import registry
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.errors import AlreadyExists
from tensorfusion.model.hardware import Card, cards
from tensorfusion.model.partitions import PartitionTemplate
from tensorfusion.store.interface import Store
from tensorfusion.units import format_tflops

MANAGER = "tensorfusion-defaults"
CLUSTER = "tensor-fusion"
POOL = "shared"
TEMPLATE = "default"
GIB = 1 << 30
PRIORITIES = {"critical": 100_000, "high": 10_000, "medium": 0, "low": -1000}


def ensure_defaults(store: Store) -> None:
    """Create what is missing; what is there is its user's and stays."""
    for resource, obj in default_objects():
        try:
            store.create(resource, obj, field_manager=MANAGER)
        except AlreadyExists:
            continue


def default_objects() -> list[tuple[Resource, JsonObject]]:
    """Build the objects, in an order in which none refers to a later one."""
    found: list[tuple[Resource, JsonObject]] = [
        (registry.PRIORITY_CLASSES, _priority_class(qos, value))
        for qos, value in PRIORITIES.items()
    ]
    found += [(registry.PROVIDER_CONFIGS, p) for p in provider_configs()]
    found.append((registry.SCHEDULING_CONFIGS, _scheduling_template()))
    found.append((registry.CLUSTERS, _cluster()))
    return found


def _priority_class(qos: str, value: int) -> JsonObject:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": f"{names.SYSTEM}-{qos}"},
        "value": value,
        "globalDefault": False,
        "description": f"GPU workers of quality of service {qos}.",
    }


def _scheduling_template() -> JsonObject:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "SchedulingConfigTemplate",
        "metadata": {"name": TEMPLATE},
        "spec": {"placement": {"mode": "NodeCompactGPULowLoad", "ties": "name"}},
    }


def default_pool_spec() -> JsonObject:
    """The spec of the default pool: every node that says it has GPUs."""
    term = {"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}
    return {
        "nodeManagerConfig": {
            "provisioningMode": "AutoSelect",
            "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [term]}]},
        },
        "capacityConfig": {
            "oversubscription": {
                "tflopsOversellRatio": 500,
                "vramExpandToHostMem": 50,
                "vramExpandToHostDisk": 70,
            }
        },
        "qosConfig": {"defaultQoS": "medium"},
        "schedulingConfigTemplate": TEMPLATE,
    }


def _cluster() -> JsonObject:
    pool = {"name": POOL, "isDefault": True, "specTemplate": default_pool_spec()}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TensorFusionCluster",
        "metadata": {"name": CLUSTER},
        "spec": {"gpuPools": [pool]},
    }


def provider_configs() -> list[JsonObject]:
    """Generate one ProviderConfig per vendor from the hardware catalogue."""
    vendors: dict[str, list[Card]] = {}
    for card in cards().values():
        vendors.setdefault(card.vendor, []).append(card)
    return [provider_config(vendor, found) for vendor, found in sorted(vendors.items())]


IN_USE = {
    "NVIDIA": ["nvidia.com/gpu"],
    "AMD": ["amd.com/gpu"],
    "Ascend": ["huawei.com/Ascend310P", "huawei.com/npu"],
    "PPU": ["aliyun.com/ppu"],
}
"""Extended resources by which other device plugins hand out a vendor's cards."""


def provider_config(vendor: str, found: list[Card]) -> JsonObject:
    """Build one vendor's ProviderConfig."""
    templates: dict[str, tuple[PartitionTemplate, Card]] = {}
    for card in found:
        for template in card.templates:
            templates.setdefault(template.id, (template, card))
    in_use = [
        *IN_USE.get(vendor, []),
        *(f"nvidia.com/mig-{t.replace('+', '.')}" for t in templates if vendor == "NVIDIA"),
    ]
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ProviderConfig",
        "metadata": {"name": f"{vendor.lower()}-provider"},
        "spec": {
            "vendor": vendor,
            "images": {"middleware": f"tensorfusion/provider-{vendor.lower()}"},
            "inUseResourceNames": in_use,
            "hardwareMetadata": [_hardware(card) for card in found],
            "virtualizationTemplates": [_template(t) for t, _ in templates.values()],
        },
    }


def _hardware(card: Card) -> JsonObject:
    result: JsonObject = {
        "model": card.model,
        "fullModelName": card.full_model,
        "fp16TFlops": format_tflops(card.compute_gflops),
        "costPerHour": f"{card.hourly_price:.2f}",
    }
    geometry = card.geometry
    if geometry is not None:
        result["partitionTemplateRefs"] = [t.id for t in geometry.templates]
        result["maxPartitions"] = geometry.max_partitions
        slots = "maxPlacementSlots" if geometry.divides_memory else "maxIsolationGroups"
        result[slots] = geometry.slots
        if geometry.engines:
            result["totalExtendedResources"] = dict(geometry.engines)
    return result


def _template(template: PartitionTemplate) -> JsonObject:
    result: JsonObject = {
        "id": template.id,
        "name": template.id,
        "memoryGigabytes": template.vram_bytes // GIB,
        "computePercent": f"{100 * template.slices / template.total_slices:.4f}",
        "maxInstances": template.max_instances,
        "placementLimit": list(template.starts),
        "placementOffset": template.width,
    }
    if template.profile is not None:
        result["nvmlProfileId"] = template.profile
    if template.per_slot > 1:
        result["isolationGroupSharing"] = "shared"
        result["maxPartitionsPerIsolationGroup"] = template.per_slot
    if template.engines:
        result["extendedResources"] = dict(template.engines)
    return result
