"""Every string with our domain in it: labels, annotations, finalizers, managers, metric prefix.

A literal with the domain prefix anywhere else fails a test. The domain itself can be renamed by
a setting, which is applied where objects enter and leave (never read here, never at import).
"""

from typing import Final

DOMAIN: Final = "tensor-fusion.ai"
GROUP: Final = DOMAIN
VERSION: Final = "v1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
PREFIX: Final = f"{DOMAIN}/"
SYSTEM: Final = "tensor-fusion"
METRIC_PREFIX: Final = "tensorfusion_"
FIELD_MANAGER: Final = "tensorfusion"
SCHEDULER: Final = "tensor-fusion-scheduler"
FINALIZER: Final = PREFIX + "finalizer"
USED_BY_TAINT: Final = PREFIX + "used-by"
INDEX_RESOURCE_PREFIX: Final = PREFIX + "index_"

# Labels.
ENABLED: Final = PREFIX + "enabled"
COMPONENT: Final = PREFIX + "component"
WORKLOAD: Final = PREFIX + "workload"  # label on workers; annotation as user input
GPU_POOL: Final = PREFIX + "gpupool"  # label on workers, workloads, GPUs; annotation as user input
MANAGED_BY: Final = PREFIX + "managed-by"
POOL_LABEL_PREFIX: Final = PREFIX + "pool-"
HARDWARE_VENDOR: Final = PREFIX + "hardware-vendor"
NODE_SELECTOR_HASH: Final = PREFIX + "node-selector-hash"
POD_TEMPLATE_HASH: Final = PREFIX + "pod-template-hash"
HOST_PORT: Final = PREFIX + "host-port"
PORT_NAME: Final = PREFIX + "port-name"
DO_NOT_DISRUPT: Final = PREFIX + "do-not-disrupt"

# Annotations a user writes.
WORKLOAD_PROFILE: Final = PREFIX + "workload-profile"
TFLOPS_REQUEST: Final = PREFIX + "tflops-request"
TFLOPS_LIMIT: Final = PREFIX + "tflops-limit"
VRAM_REQUEST: Final = PREFIX + "vram-request"
VRAM_LIMIT: Final = PREFIX + "vram-limit"
COMPUTE_PERCENT_REQUEST: Final = PREFIX + "compute-percent-request"
COMPUTE_PERCENT_LIMIT: Final = PREFIX + "compute-percent-limit"
GPU_COUNT: Final = PREFIX + "gpu-count"
GPU_INDICES: Final = PREFIX + "gpu-indices"
GPU_MODEL: Final = PREFIX + "gpu-model"
VENDOR: Final = PREFIX + "vendor"
QOS: Final = PREFIX + "qos"
ISOLATION: Final = PREFIX + "isolation"
IS_LOCAL_GPU: Final = PREFIX + "is-local-gpu"
SIDECAR_WORKER: Final = PREFIX + "sidecar-worker"
STANDALONE_WORKER_MODE: Final = PREFIX + "standalone-worker-mode"
INJECT_CONTAINER: Final = PREFIX + "inject-container"
CONTAINER_GPU_COUNT: Final = PREFIX + "container-gpu-count"
DEDICATED_GPU: Final = PREFIX + "dedicated-gpu"
PARTITION_ID: Final = PREFIX + "partition-id"
WORKER_POD_TEMPLATE: Final = PREFIX + "worker-pod-template"
ENABLED_REPLICAS: Final = PREFIX + "enabled-replicas"
AUTOSCALE: Final = PREFIX + "autoscale"
AUTOSCALE_TARGET: Final = PREFIX + "autoscale-target"
AUTO_RESOURCES: Final = PREFIX + "auto-resources"
AUTO_SCALE_TARGET_RESOURCE: Final = PREFIX + "auto-scale-target-resource"
AUTO_REPLICAS: Final = PREFIX + "auto-replicas"
DISABLE_FEATURES: Final = PREFIX + "disable-features"
EVICTION_PROTECTION: Final = PREFIX + "eviction-protection"
GANG_ENABLED: Final = PREFIX + "gang-enabled"
GANG_MIN_MEMBERS: Final = PREFIX + "gang-min-members"
GANG_TIMEOUT: Final = PREFIX + "gang-timeout"
REQUIRE_GPU_TOPOLOGY: Final = PREFIX + "require-gpu-topology"
GPU_TOPOLOGY_MAX_TIER: Final = PREFIX + "gpu-topology-max-tier"
GPU_TOPOLOGY_SOURCE: Final = PREFIX + "gpu-topology-source"
SIMULATED_LOAD: Final = PREFIX + "simulated-load"

# Annotations the system writes.
GPU_IDS: Final = PREFIX + "gpu-ids"
CONTAINER_GPUS: Final = PREFIX + "container-gpus"
INDEX: Final = PREFIX + "index"
PORT_NUMBER: Final = PREFIX + "port-number"
SELECTED_WORKLOAD: Final = PREFIX + "selected-workload"
EMBEDDED_WORKER: Final = PREFIX + "embedded-worker"
POD_COUNTER_KEY: Final = PREFIX + "pod-counter-key"
COUNTER_PREFIX: Final = PREFIX + "tf-counter-"
WORKLOAD_MODE: Final = PREFIX + "workload-mode"
IS_DEFAULT_POOL: Final = PREFIX + "is-default-pool"
GPU_MISSING_SINCE: Final = PREFIX + "gpu-missing-since"
VIRTUALIZATION_CAPABILITIES: Final = PREFIX + "virtualization-capabilities"
ENFORCEMENT: Final = PREFIX + "enforcement"
EFFECTIVE_PREFIX: Final = PREFIX + "effective-"

# Native GPU resources other schedulers know.
NVIDIA_GPU: Final = "nvidia.com/gpu"
WORKER: Final = PREFIX + "worker"
"""On pods that share a worker: ``<uid>/<name>`` of the pod the worker was made for."""
