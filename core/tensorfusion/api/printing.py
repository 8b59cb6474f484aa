"""What ``kubectl get`` prints of our own kinds.

At most six columns and the age are always shown; the rest needs ``-o wide``.
"""

from typing import Final

from tensorfusion.api.resource import PrinterColumn

AGE: Final = PrinterColumn("Age", ".metadata.creationTimestamp", "date", 0, "Time since creation.")
_READY: Final = PrinterColumn(
    "Ready",
    '.status.conditions[?(@.type=="Ready")].status',
    "string",
    0,
    "Whether the object is as wanted.",
)


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> PrinterColumn:
    return PrinterColumn(name, path, kind, int(wide))


PHASE: Final = _column("Phase", ".status.phase")

CLUSTER_COLUMNS: Final = (
    PHASE,
    _column("Pools", ".status.totalPools", "integer"),
    _column("Nodes", ".status.totalNodes", "integer"),
    _column("GPUs", ".status.totalGPUs", "integer"),
    _column("Available TFLOPS", ".status.availableTFlops"),
    _column("Available VRAM", ".status.availableVRAM"),
    _column("Total TFLOPS", ".status.totalTFlops", wide=True),
    _column("Total VRAM", ".status.totalVRAM", wide=True),
    AGE,
)
POOL_COLUMNS: Final = (
    PHASE,
    _READY,
    _column("Nodes", ".status.totalNodes", "integer"),
    _column("GPUs", ".status.totalGPUs", "integer"),
    _column("Available TFLOPS", ".status.availableTFlops"),
    _column("Available VRAM", ".status.availableVRAM"),
    _column("Total TFLOPS", ".status.totalTFlops", wide=True),
    _column("Total VRAM", ".status.totalVRAM", wide=True),
    _column(
        "Oversell",
        ".spec.capacityConfig.oversubscription.tflopsOversellRatio",
        "integer",
        wide=True,
    ),
    _column("Mode", ".spec.nodeManagerConfig.provisioningMode", wide=True),
    _column("Scheduling", ".spec.schedulingConfigTemplate", wide=True),
    _column("Apps", ".status.runningAppsCnt", "integer", wide=True),
    AGE,
)
GPU_NODE_COLUMNS: Final = (
    PHASE,
    _READY,
    _column("GPUs", ".status.totalGPUs", "integer"),
    _column("Available TFLOPS", ".status.availableTFlops"),
    _column("Available VRAM", ".status.availableVRAM"),
    _column("Total TFLOPS", ".status.totalTFlops", wide=True),
    _column("Total VRAM", ".status.totalVRAM", wide=True),
    _column("Virtual TFLOPS", ".status.virtualTFlops", wide=True),
    _column("Virtual VRAM", ".status.virtualVRAM", wide=True),
    AGE,
)
NODE_CLAIM_COLUMNS: Final = (
    PHASE,
    _column("Type", ".spec.instanceType"),
    _column("Zone", ".spec.zone"),
    _column("GPUs", ".spec.gpuDeviceOffered", "integer"),
    _column("Node", ".spec.nodeName"),
    _column("Instance", ".status.instanceID", wide=True),
    _column("Capacity", ".spec.capacityType", wide=True),
    AGE,
)
NODE_CLASS_COLUMNS: Final = (
    _column("Image Type", ".spec.osImageType"),
    _column("Image", ".spec.osImageSelectorTerms[0].id"),
    AGE,
)
GPU_COLUMNS: Final = (
    _column("Model", ".status.gpuModel"),
    PHASE,
    _column("Node", ".status.nodeName"),
    _column("Available TFLOPS", ".status.available.tflops"),
    _column("Available VRAM", ".status.available.vram"),
    _column("Used By", ".status.usedBy"),
    _column("Total TFLOPS", ".status.capacity.tflops", wide=True),
    _column("Total VRAM", ".status.capacity.vram", wide=True),
    _column("Isolation", ".status.isolationMode", wide=True),
    _column("Index", ".status.index", "integer", wide=True),
    _column("UUID", ".status.uuid", wide=True),
    AGE,
)
PROVIDER_CONFIG_COLUMNS: Final = (_column("Vendor", ".spec.vendor"), AGE)
SCHEDULING_CONFIG_COLUMNS: Final = (
    _column("Mode", ".spec.placement.mode"),
    _column("Policy", ".spec.placement.policy"),
    _column("Local GPU", ".spec.placement.allowUsingLocalGPU", "boolean"),
    _column("Freeze", ".spec.hypervisor.autoFreezeAndResume.autoFreeze[*].qos", wide=True),
    AGE,
)
WORKLOAD_COLUMNS: Final = (
    PHASE,
    _column("Ready", ".status.readyWorkers", "integer"),
    _column("Workers", ".status.workerCount", "integer"),
    _column("Pool", ".spec.poolName"),
    _column("QoS", ".spec.qos"),
    _column("GPUs", ".spec.gpuCount", "integer"),
    _column("Replicas", ".spec.replicas", "integer", wide=True),
    _column("TFLOPS", ".spec.resources.requests.tflops", wide=True),
    _column("VRAM", ".spec.resources.requests.vram", wide=True),
    _column("Local GPU", ".spec.isLocalGPU", "boolean", wide=True),
    _column("Gang", ".status.gang.phase", wide=True),
    _column("Template", ".status.podTemplateHash", wide=True),
    AGE,
)
PROFILE_COLUMNS: Final = (
    _column("Pool", ".spec.poolName"),
    _column("QoS", ".spec.qos"),
    _column("GPUs", ".spec.gpuCount", "integer"),
    _column("TFLOPS", ".spec.resources.requests.tflops"),
    _column("VRAM", ".spec.resources.requests.vram"),
    _column("Replicas", ".spec.replicas", "integer", wide=True),
    _column("Local GPU", ".spec.isLocalGPU", "boolean", wide=True),
    AGE,
)
CONNECTION_COLUMNS: Final = (
    PHASE,
    _column("Workload", ".spec.workloadName"),
    _column("Worker", ".status.workerName"),
    _column("Client", ".spec.clientPod"),
    _column("URL", ".status.connectionURL", wide=True),
    AGE,
)
QUOTA_COLUMNS: Final = (
    _column("TFLOPS Used", ".status.used.requests.tflops"),
    _column("TFLOPS", ".spec.total.requests.tflops"),
    _column("VRAM Used", ".status.used.requests.vram"),
    _column("VRAM", ".spec.total.requests.vram"),
    _column("Workers Used", ".status.used.workers", "integer"),
    _column("Workers", ".spec.total.maxWorkers", "integer"),
    _column("Alert At", ".spec.total.alertThresholdPercent", "integer", wide=True),
    AGE,
)
