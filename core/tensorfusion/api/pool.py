"""GPUPool: GPU nodes that are used, shared and paid for in one way."""

from typing import Annotated

from tensorfusion.api.amounts import ClassReference, Isolation, Qos
from tensorfusion.api.core.scheduling import NodeSelector
from tensorfusion.api.fields import (
    Amount,
    Doc,
    Duration,
    Int32,
    Quantity,
    Raw,
    Time,
    Wire,
    defaulted,
    mapping,
)
from tensorfusion.api.meta import Conditions, LabelSelector, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION, PREFIX

POOL_PHASES = ("Pending", "Running", "Updating", "Destroying", "Unknown")
PROVISIONING_PHASES = ("None", "Initializing", "Provisioning", "Completed")
VRAM_FULL_POLICIES = ("deny", "wait", "spill", "evict")
PROVISIONING_MODES = ("Provisioned", "AutoSelect", "Karpenter")
REQUIREMENT_KEYS = (
    "node.kubernetes.io/instance-type",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "karpenter.sh/capacity-type",
    PREFIX + "gpu-vendor",
    PREFIX + "gpu-instance-family",
    PREFIX + "gpu-instance-size",
)


class PoolResources(Wire, frozen=True, kw_only=True):
    """An amount of everything a pool has."""

    tflops: Annotated[Amount | None, Doc("TFLOPS in total.")] = None
    vram: Annotated[Amount | None, Doc("VRAM in total.")] = None
    cpu: Annotated[Amount | None, Doc("CPU cores in total.")] = None
    memory: Annotated[Amount | None, Doc("Memory in total.")] = None


class VramFull(Wire, frozen=True, kw_only=True):
    """What workers of one quality of service do when a card is full within their limits."""

    qos: Annotated[Qos, Doc("Quality of service that this is about.", added=True)]
    policy: Annotated[
        str,
        Doc(
            "deny refuses the allocation at once; wait holds it until there is room or the timeout"
            " has passed; spill puts it into host memory, which is slower; evict is wait while an"
            " idle neighbour of no higher quality of service is frozen.",
            enum=VRAM_FULL_POLICIES,
            added=True,
        ),
    ]
    timeout: Annotated[
        Duration,
        Doc("How long wait and evict hold an allocation; 10s if absent.", added=True),
    ] = ""
    host_memory: Annotated[
        Amount | None,
        Doc(
            "Most host memory that spill may take per worker and card; as much as the worker's VRAM"
            " limit if absent.",
            added=True,
        ),
    ] = None


class Oversubscription(Wire, frozen=True, kw_only=True):
    """How much more than there is may be promised."""

    tflops_oversell_ratio: Annotated[
        Int32,
        Doc(
            "TFLOPS limits may add up to this percentage of the TFLOPS.",
            minimum=100,
            maximum=100000,
        ),
    ] = defaulted(500)
    vram_expand_to_host_mem: Annotated[
        Int32, Doc("Percent of the node's memory that extends VRAM.", minimum=0, maximum=100)
    ] = defaulted(50)
    vram_expand_to_host_disk: Annotated[
        Int32, Doc("Percent of the node's disk that extends VRAM.", minimum=0, maximum=100)
    ] = defaulted(70)
    vram_full: Annotated[
        tuple[VramFull, ...],
        Doc(
            "What happens when a card is full although a worker is within its limit. What is not"
            " named: low spills, medium waits 10s, high evicts with 10s, critical with 30s.",
            map_keys=("qos",),
            added=True,
        ),
    ] = ()


class CapacityConfig(Wire, frozen=True, kw_only=True):
    """How large the pool is and may get."""

    min_resources: Annotated[PoolResources | None, Doc("Never shrink below this.")] = None
    max_resources: Annotated[PoolResources | None, Doc("Never grow beyond this.")] = None
    warm_resources: Annotated[PoolResources | None, Doc("Keep this much free.")] = None
    oversubscription: Annotated[
        Oversubscription | None, Doc("How much more than there is may be promised.")
    ] = None


class HypervisorConfig(Wire, frozen=True, kw_only=True):
    """The hypervisor of each node."""

    image: Annotated[str, Doc("Image of the hypervisor.")] = ""
    vector_image: Annotated[str, Doc("Image of the log and metrics shipper.")] = ""
    port_number: Annotated[
        Int32, Doc("Port of the hypervisor's API.", minimum=0, maximum=65535)
    ] = defaulted(8000)
    enable_vector: Annotated[bool | None, Doc("Whether the shipper runs.")] = None
    pod_template: Annotated[Raw, Doc("Template of the hypervisor pods.")] = mapping()


class WorkerConfig(Wire, frozen=True, kw_only=True):
    """Remote workers."""

    image: Annotated[str, Doc("Image of the workers.")] = ""
    pod_template: Annotated[Raw, Doc("Template of the worker pods.")] = mapping()


class NodeDiscoveryConfig(Wire, frozen=True, kw_only=True):
    """Node discovery jobs; kept for older manifests and ignored."""

    image: Annotated[str, Doc("Ignored.")] = ""
    pod_template: Annotated[Raw, Doc("Ignored.")] = mapping()


class ClientConfig(Wire, frozen=True, kw_only=True):
    """What is put into the pods that use GPUs."""

    image: Annotated[str, Doc("Image with the client library.")] = ""
    operator_endpoint: Annotated[str, Doc("Where clients ask for their connection.")] = ""
    patch_to_pod: Annotated[Raw, Doc("Strategic merge patch of the pod.")] = mapping()
    patch_to_container: Annotated[Raw, Doc("Strategic merge patch of GPU containers.")] = mapping()
    remote_mode_image: Annotated[str, Doc("Ignored; kept for older manifests.")] = ""
    embedded_mode_image: Annotated[str, Doc("Ignored; kept for older manifests.")] = ""
    patch_embedded_worker_to_pod: Annotated[Raw, Doc("Ignored; kept for older manifests.")] = (
        mapping()
    )
    patch_to_embedded_worker_container: Annotated[
        Raw, Doc("Ignored; kept for older manifests.")
    ] = mapping()


class ComponentConfig(Wire, frozen=True, kw_only=True):
    """The pool's components."""

    hypervisor: Annotated[HypervisorConfig | None, Doc("The hypervisor of each node.")] = None
    worker: Annotated[WorkerConfig | None, Doc("Remote workers.")] = None
    client: Annotated[ClientConfig | None, Doc("What pods get.")] = None
    node_discovery: Annotated[NodeDiscoveryConfig | None, Doc("Ignored.")] = None


class IsolationModeRule(Wire, frozen=True, kw_only=True):
    """The isolation mode of some nodes."""

    selector: Annotated[LabelSelector, Doc("Nodes that the rule is about.")]
    mode: Annotated[Isolation, Doc("Their isolation mode.")]


class Defrag(Wire, frozen=True, kw_only=True):
    """Emptying nodes that are used little."""

    enabled: Annotated[bool, Doc("Whether nodes are emptied.")] = defaulted(False)
    schedule: Annotated[
        str,
        Doc(
            "Cron expression of the start.",
            pattern="^[^=]+$",
            form="a cron expression without a time zone inside",
        ),
    ] = defaulted("0 3 * * *")
    timezone: Annotated[str, Doc("IANA time zone of the schedule.", min_length=1)]
    max_duration: Annotated[str, Doc("Longest run.")] = defaulted("2h")
    utilization_threshold_percent: Annotated[
        Int32, Doc("Nodes used less than this are emptied.", minimum=0, maximum=100)
    ] = defaulted(40)
    source_node_marker_ttl: Annotated[str, Doc("How long an emptied node stays marked.")] = (
        defaulted("30m")
    )
    evicted_pod_marker_ttl: Annotated[
        str, Doc("How long a moved pod stays marked, or never for always.")
    ] = defaulted("never")


class NodeCompaction(Wire, frozen=True, kw_only=True):
    """Giving back nodes that are not needed."""

    period: Annotated[str, Doc("Time between two looks.")] = defaulted("5m")
    defrag: Annotated[Defrag | None, Doc("Emptying nodes that are used little.")] = None


class MaintenanceWindow(Wire, frozen=True, kw_only=True):
    """When updates may happen."""

    includes: Annotated[tuple[str, ...], Doc("Cron expressions of minutes that are inside.")] = ()


class RollingUpdatePolicy(Wire, frozen=True, kw_only=True):
    """How components are updated."""

    auto_update_hypervisor: Annotated[bool | None, Doc("Update hypervisors by itself.")] = None
    auto_update_worker: Annotated[bool | None, Doc("Update workers by itself.")] = None
    auto_update_client: Annotated[bool | None, Doc("Update clients by itself.")] = None
    batch_percentage: Annotated[Int32, Doc("Percent updated at once.", minimum=0, maximum=100)] = (
        defaulted(100)
    )
    batch_interval: Annotated[str, Doc("Rest between batches.")] = defaulted("1s")
    max_duration: Annotated[str, Doc("Longest update.")] = defaulted("10m")
    maintenance_window: Annotated[MaintenanceWindow | None, Doc("When updates may happen.")] = None


class Requirement(Wire, frozen=True, kw_only=True):
    """A property that a provisioned node must have."""

    key: Annotated[str, Doc("Label key.", enum=REQUIREMENT_KEYS)] = ""
    operator: Annotated[
        str, Doc("How it is compared.", enum=("In", "Exists", "DoesNotExist", "Gt", "Lt"))
    ] = defaulted("In")
    values: Annotated[tuple[str, ...], Doc("Values to compare with.")] = ()


class ProvisionedTaint(Wire, frozen=True, kw_only=True):
    """A taint that provisioned nodes get."""

    effect: Annotated[
        str,
        Doc("What it does to pods.", enum=("NoSchedule", "NoExecute", "PreferNoSchedule")),
    ] = defaulted("NoSchedule")
    key: Annotated[str, Doc("Key of the taint.")] = ""
    value: Annotated[str, Doc("Value of the taint.")] = ""


class ProvisionerBudget(Wire, frozen=True, kw_only=True):
    """How much provisioned nodes may cost."""

    budget_per_day: Annotated[str, Doc("Most per day.")] = defaulted("100")
    budget_per_month: Annotated[str, Doc("Most per month.")] = defaulted("1000")
    budget_per_quarter: Annotated[str, Doc("Most per quarter.")] = defaulted("3000")
    budget_exceed_strategy: Annotated[
        str, Doc("What happens beyond it.", enum=("AlertOnly", "AlertAndTerminateVM"))
    ] = defaulted("AlertOnly")


class NodeProvisioner(Wire, frozen=True, kw_only=True):
    """How nodes are made."""

    node_class: Annotated[str, Doc("GPUNodeClass with the launch parameters.")] = ""
    karpenter_node_class_ref: Annotated[ClassReference | None, Doc("Karpenter's node class.")] = (
        None
    )
    gpu_requirements: Annotated[tuple[Requirement, ...], Doc("What GPU nodes must be.")] = ()
    gpu_taints: Annotated[tuple[ProvisionedTaint, ...], Doc("Taints of GPU nodes.")] = ()
    gpu_node_labels: Annotated[dict[str, str], Doc("Labels of GPU nodes.")] = mapping()
    gpu_node_annotations: Annotated[dict[str, str], Doc("Annotations of GPU nodes.")] = mapping()
    cpu_requirements: Annotated[tuple[Requirement, ...], Doc("What CPU nodes must be.")] = ()
    cpu_taints: Annotated[tuple[ProvisionedTaint, ...], Doc("Taints of CPU nodes.")] = ()
    cpu_node_labels: Annotated[dict[str, str], Doc("Labels of CPU nodes.")] = mapping()
    budget: Annotated[ProvisionerBudget | None, Doc("How much nodes may cost.")] = None


class NodeManagerConfig(Wire, frozen=True, kw_only=True):
    """Which nodes belong to the pool and how they are kept."""

    provisioning_mode: Annotated[str, Doc("Where nodes come from.", enum=PROVISIONING_MODES)] = (
        defaulted("AutoSelect")
    )
    node_selector: Annotated[NodeSelector | None, Doc("Nodes that belong to the pool.")] = None
    multi_vendor_node_selector: Annotated[
        dict[str, NodeSelector], Doc("Nodes that belong to the pool, by vendor.")
    ] = mapping()
    default_vendor: Annotated[str, Doc("Vendor of nodes that do not say.")] = defaulted("NVIDIA")
    default_isolation_mode: Annotated[Isolation, Doc("Isolation mode of nodes without a rule.")] = (
        defaulted("soft")
    )
    isolation_mode_rules: Annotated[
        tuple[IsolationModeRule, ...], Doc("Isolation modes by node labels; first match counts.")
    ] = ()
    node_provisioner: Annotated[NodeProvisioner | None, Doc("How nodes are made.")] = None
    node_compaction: Annotated[NodeCompaction | None, Doc("How nodes are given back.")] = None
    node_pool_rolling_update_policy: Annotated[
        RollingUpdatePolicy | None, Doc("How components are updated.")
    ] = None


class QosDefinition(Wire, frozen=True, kw_only=True):
    """A quality of service."""

    name: Annotated[Qos, Doc("Which one.")] = ""
    description: Annotated[str, Doc("What it promises.")] = ""
    priority: Annotated[int | None, Doc("Its priority; higher wins.")] = None


class RequestPrice(Wire, frozen=True, kw_only=True):
    """Prices of requested amounts."""

    per_tflops_hour: Annotated[str, Doc("Price of one TFLOPS for an hour.")] = defaulted(
        "$0.0069228", name="perFP16TFlopsPerHour"
    )
    per_gigabyte_hour: Annotated[str, Doc("Price of one GiB of VRAM for an hour.")] = defaulted(
        "$0.01548", name="perGBOfVRAMPerHour"
    )


class QosPricing(Wire, frozen=True, kw_only=True):
    """Prices of a quality of service."""

    qos: Annotated[Qos, Doc("Which one.")] = ""
    requests: Annotated[RequestPrice | None, Doc("Prices of requested amounts.")] = None
    limits_over_requests: Annotated[
        str, Doc("Share of the price for what limits exceed requests.")
    ] = defaulted("1")


class QosConfig(Wire, frozen=True, kw_only=True):
    """Qualities of service and what they cost."""

    default_qos: Annotated[Qos, Doc("For workloads that name none.")] = ""
    definitions: Annotated[tuple[QosDefinition, ...], Doc("What each one means.")] = ()
    pricing: Annotated[tuple[QosPricing, ...], Doc("What each one costs.")] = ()
    eviction_protection_price_ratio: Annotated[
        str, Doc("Price factor of protection against eviction.")
    ] = defaulted("1.2")


class GPUPoolSpec(Wire, frozen=True, kw_only=True):
    """Nodes, capacity, components and prices of a pool."""

    node_manager_config: Annotated[
        NodeManagerConfig, Doc("Which nodes belong to the pool and how they are kept.")
    ]
    capacity_config: Annotated[CapacityConfig | None, Doc("How large the pool may get.")] = None
    component_config: Annotated[ComponentConfig | None, Doc("The pool's components.")] = None
    qos_config: Annotated[QosConfig | None, Doc("Qualities of service and prices.")] = None
    scheduling_config_template: Annotated[
        str, Doc("SchedulingConfigTemplate that the pool uses.")
    ] = ""
    default_using_local_gpu: Annotated[
        bool | None, Doc("Whether pods run on the node of their GPU by default; true if absent.")
    ] = None


class ComponentStatus(Wire, frozen=True, kw_only=True):
    """How far an update of the components is."""

    hypervisor: Annotated[str, Doc("Version hash of the hypervisors.")] = ""
    hypervisor_config_synced: Annotated[bool | None, Doc("All have it.")] = None
    hypervisor_update_progress: Annotated[Int32 | None, Doc("Percent that have it.")] = None
    worker: Annotated[str, Doc("Version hash of the workers.")] = ""
    worker_config_synced: Annotated[bool | None, Doc("All have it.")] = None
    worker_update_progress: Annotated[Int32 | None, Doc("Percent that have it.")] = None
    client: Annotated[str, Doc("Version hash of the clients.")] = ""
    client_config_synced: Annotated[bool | None, Doc("All have it.")] = None
    client_update_progress: Annotated[Int32 | None, Doc("Percent that have it.")] = None


class GPUPoolStatus(Wire, frozen=True, kw_only=True):
    """Sums over the nodes of a pool."""

    phase: Annotated[str, Doc("State of the pool.", enum=POOL_PHASES)] = defaulted("Pending")
    cluster: Annotated[str, Doc("TensorFusionCluster of the pool.")] = ""
    conditions: Conditions = ()
    total_nodes: Annotated[Int32 | None, Doc("Nodes of the pool.", minimum=0)] = None
    ready_nodes: Annotated[Int32 | None, Doc("Nodes that are ready.", minimum=0)] = None
    not_ready_nodes: Annotated[Int32 | None, Doc("Nodes that are not.", minimum=0)] = None
    total_gpus: Annotated[Int32 | None, Doc("GPUs of the pool.", minimum=0)] = None
    total_tflops: Annotated[Amount | None, Doc("TFLOPS of all GPUs.")] = None
    total_vram: Annotated[Amount | None, Doc("VRAM of all GPUs.")] = None
    virtual_tflops: Annotated[Amount | None, Doc("TFLOPS with oversubscription.")] = None
    virtual_vram: Annotated[Amount | None, Doc("VRAM with expansion.")] = None
    available_tflops: Annotated[Quantity | None, Doc("TFLOPS not requested yet.")] = None
    available_vram: Annotated[Quantity | None, Doc("VRAM not requested yet.")] = None
    virtual_available_tflops: Annotated[Quantity | None, Doc("Virtual TFLOPS left.")] = None
    virtual_available_vram: Annotated[Quantity | None, Doc("Virtual VRAM left.")] = None
    running_apps_cnt: Annotated[Int32 | None, Doc("Workloads in the pool.", minimum=0)] = None
    component_status: Annotated[
        ComponentStatus | None, Doc("How far an update of the components is.")
    ] = None
    provisioning_phase: Annotated[
        str, Doc("How far provisioning is.", enum=PROVISIONING_PHASES)
    ] = defaulted("None")
    budget_exceeded: Annotated[str, Doc("Which budget is used up.")] = defaulted("")
    saved_costs_per_month: Annotated[str, Doc("What sharing saves per month.")] = ""
    potential_savings_per_month: Annotated[str, Doc("What sharing could save.")] = ""
    last_compaction_time: Annotated[Time | None, Doc("When nodes were last given back.")] = None
    last_defrag_time: Annotated[Time | None, Doc("When nodes were last emptied.")] = None
    observed_generation: ObservedGeneration = None


class GPUPool(Wire, frozen=True, kw_only=True):
    """GPU nodes that are used, shared and paid for in one way."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("GPUPool")
    metadata: Metadata
    spec: Annotated[GPUPoolSpec | None, Doc("Nodes, capacity, components, prices.")] = None
    status: Annotated[GPUPoolStatus | None, Doc("Sums over the nodes.")] = None
