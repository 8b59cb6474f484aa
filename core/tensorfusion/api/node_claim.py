"""GPUNodeClaim: a request for one machine from a provider."""

from typing import Annotated

from tensorfusion.api.amounts import ClassReference
from tensorfusion.api.fields import Amount, Doc, Int32, Wire, defaulted, mapping
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION


class GPUNodeClaimSpec(Wire, frozen=True, kw_only=True):
    """The machine asked for."""

    node_name: Annotated[str, Doc("Name the node will have.")] = ""
    instance_type: Annotated[str, Doc("The provider's instance type.")] = ""
    region: Annotated[str, Doc("The provider's region.")] = ""
    zone: Annotated[str, Doc("The provider's zone.")] = ""
    capacity_type: Annotated[str, Doc("On-demand, spot or reserved, in the provider's words.")] = ""
    node_class_ref: Annotated[ClassReference | None, Doc("Launch parameters.")] = None
    gpu_device_offered: Annotated[Int32, Doc("GPUs of the instance type.", minimum=0)]
    tflops_offered: Annotated[Amount, Doc("TFLOPS of the instance type.")]
    vram_offered: Annotated[Amount, Doc("VRAM of the instance type.")]
    extra_params: Annotated[dict[str, str], Doc("What the provider needs besides.")] = mapping()


class GPUNodeClaimStatus(Wire, frozen=True, kw_only=True):
    """The machine that was made."""

    phase: Annotated[str, Doc("Pending, Creating or Bound.")] = defaulted("Pending")
    instance_id: Annotated[str, Doc("The provider's id of the machine.")] = ""
    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None


class GPUNodeClaim(Wire, frozen=True, kw_only=True):
    """A request for one machine with GPUs."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("GPUNodeClaim")
    metadata: Metadata
    spec: Annotated[GPUNodeClaimSpec | None, Doc("The machine asked for.")] = None
    status: Annotated[GPUNodeClaimStatus | None, Doc("The machine that was made.")] = None
