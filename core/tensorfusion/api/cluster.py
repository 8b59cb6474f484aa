"""TensorFusionCluster: the pools of one installation and who provides their nodes."""

from typing import Annotated

from tensorfusion.api.fields import Amount, Doc, Int32, Int64, Quantity, Wire, defaulted, mapping
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.api.pool import POOL_PHASES, GPUPoolSpec
from tensorfusion.names import API_VERSION

COMPUTING_VENDORS = (
    "aws", "lambda-labs", "gcp", "azure", "oracle-oci", "ibm", "openshift", "vultr", "together-ai",
    "alibaba", "nvidia", "tencent", "runpod", "karpenter", "mock",
)  # fmt: skip


class ComputingVendorParams(Wire, frozen=True, kw_only=True):
    """Credentials and region."""

    default_region: Annotated[str, Doc("Region of new machines.")] = ""
    access_key_path: Annotated[str, Doc("File with the access key.")] = ""
    secret_key_path: Annotated[str, Doc("File with the secret key.")] = ""
    config_file: Annotated[str, Doc("The provider's configuration file.")] = ""
    iam_role: Annotated[str, Doc("Role to assume.")] = ""
    extra_params: Annotated[dict[str, str], Doc("What the provider needs besides.")] = mapping()


class ComputingVendor(Wire, frozen=True, kw_only=True):
    """Who provides machines."""

    name: Annotated[str, Doc("Name of the connection.")] = ""
    type: Annotated[str, Doc("The provider.", enum=COMPUTING_VENDORS)] = ""
    auth_type: Annotated[
        str, Doc("How we prove who we are.", enum=("accessKey", "serviceAccountRole"))
    ] = ""
    enable: Annotated[bool, Doc("Whether machines may be made.")] = defaulted(True)
    params: Annotated[ComputingVendorParams | None, Doc("Credentials and region.")] = None


class GPUPoolDefinition(Wire, frozen=True, kw_only=True):
    """A pool of the cluster."""

    name: Annotated[str, Doc("Name of the pool; the object is named CLUSTER-NAME.")] = ""
    is_default: Annotated[bool | None, Doc("Workloads that name no pool go here.")] = None
    spec_template: Annotated[GPUPoolSpec, Doc("Spec of the pool.")]


class TensorFusionClusterSpec(Wire, frozen=True, kw_only=True):
    """The pools and who provides their nodes."""

    gpu_pools: Annotated[tuple[GPUPoolDefinition, ...], Doc("The pools.")] = ()
    computing_vendor: Annotated[ComputingVendor | None, Doc("Who provides machines.")] = None


class TensorFusionClusterStatus(Wire, frozen=True, kw_only=True):
    """Sums over the pools."""

    phase: Annotated[str, Doc("State of the cluster.", enum=POOL_PHASES)] = defaulted("Pending")
    conditions: Conditions = ()
    total_pools: Annotated[Int32 | None, Doc("Pools of the cluster.", minimum=0)] = None
    total_nodes: Annotated[Int32 | None, Doc("Nodes of all pools.", minimum=0)] = None
    total_gpus: Annotated[Int32 | None, Doc("GPUs of all pools.", minimum=0)] = None
    total_tflops: Annotated[Amount | None, Doc("TFLOPS of all GPUs.")] = None
    total_vram: Annotated[Amount | None, Doc("VRAM of all GPUs.")] = None
    virtual_tflops: Annotated[Amount | None, Doc("TFLOPS with oversubscription.")] = None
    virtual_vram: Annotated[Amount | None, Doc("VRAM with expansion.")] = None
    available_tflops: Annotated[Quantity | None, Doc("TFLOPS not requested yet.")] = None
    available_vram: Annotated[Quantity | None, Doc("VRAM not requested yet.")] = None
    virtual_available_tflops: Annotated[Quantity | None, Doc("Virtual TFLOPS left.")] = None
    virtual_available_vram: Annotated[Quantity | None, Doc("Virtual VRAM left.")] = None
    ready_gpu_pools: Annotated[tuple[str, ...], Doc("Pools that are ready.")] = ()
    not_ready_gpu_pools: Annotated[tuple[str, ...], Doc("Pools that are not.")] = ()
    allocated_tflops_percent: Annotated[str, Doc("Percent of TFLOPS requested.")] = ""
    allocated_vram_percent: Annotated[str, Doc("Percent of VRAM requested.")] = ""
    utilized_tflops_percent: Annotated[str, Doc("Percent of TFLOPS in use.")] = ""
    utilized_vram_percent: Annotated[str, Doc("Percent of VRAM in use.")] = ""
    saved_costs_per_month: Annotated[str, Doc("What sharing saves per month.")] = ""
    potential_savings_per_month: Annotated[str, Doc("What sharing could save.")] = ""
    cloud_vendor_config_hash: Annotated[str, Doc("Hash of the provider settings tested last.")] = ""
    retry_count: Annotated[Int64, Doc("Failed tries in a row.", minimum=0)] = defaulted(0)
    observed_generation: ObservedGeneration = None


class TensorFusionCluster(Wire, frozen=True, kw_only=True):
    """The pools of one installation."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("TensorFusionCluster")
    metadata: Metadata
    spec: Annotated[TensorFusionClusterSpec | None, Doc("The pools.")] = None
    status: Annotated[TensorFusionClusterStatus | None, Doc("Sums over the pools.")] = None
