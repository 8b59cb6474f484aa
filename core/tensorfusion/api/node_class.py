"""GPUNodeClass: launch parameters of machines at a provider."""

from typing import Annotated

from tensorfusion.api.fields import Doc, Wire, defaulted, mapping
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION


class SelectorTerm(Wire, frozen=True, kw_only=True):
    """A thing at the provider, found by id, name or tags."""

    id: Annotated[str, Doc("The provider's id.")] = ""
    name: Annotated[str, Doc("The provider's name.")] = ""
    tags: Annotated[dict[str, str], Doc("Tags that must match.")] = mapping()


class BlockDevice(Wire, frozen=True, kw_only=True):
    """A disk's settings."""

    volume_size: Annotated[str, Doc("Size, in the provider's form.")] = ""
    volume_type: Annotated[str, Doc("The provider's volume type.")] = ""
    encrypted: Annotated[bool, Doc("Whether the disk is encrypted.")] = defaulted(True)
    delete_on_termination: Annotated[bool, Doc("Whether the disk goes away with the machine.")] = (
        defaulted(True)
    )


class BlockDeviceMapping(Wire, frozen=True, kw_only=True):
    """A disk and where it appears."""

    device_name: Annotated[str, Doc("Device of the disk on the machine.")] = ""
    ebs: Annotated[BlockDevice | None, Doc("Settings of the disk.")] = None


class MetadataOptions(Wire, frozen=True, kw_only=True):
    """The machine's metadata service."""

    http_endpoint: Annotated[bool, Doc("Whether it is reachable.")] = defaulted(True)
    http_protocol_ipv6: Annotated[bool, Doc("Whether it is reachable by IPv6.")] = defaulted(
        False, name="httpProtocolIPv6"
    )
    http_put_response_hop_limit: Annotated[int, Doc("Most network hops of its answers.")] = (
        defaulted(1)
    )
    http_tokens: Annotated[str, Doc("Whether requests need a token.")] = defaulted("required")


class GPUNodeClassSpec(Wire, frozen=True, kw_only=True):
    """Launch parameters."""

    launch_template: Annotated[SelectorTerm | None, Doc("The provider's launch template.")] = None
    os_image_type: Annotated[
        str, Doc("Where images come from.", enum=("Private", "Public", "System"))
    ] = defaulted("Private")
    os_image_selector_terms: Annotated[
        tuple[SelectorTerm, ...], Doc("Image of the machine; the first term is used.")
    ] = ()
    security_group_selector_terms: Annotated[
        tuple[SelectorTerm, ...], Doc("Security groups of the machine.")
    ] = ()
    subnet_selector_terms: Annotated[tuple[SelectorTerm, ...], Doc("Subnet of the machine.")] = ()
    block_device_mappings: Annotated[
        tuple[BlockDeviceMapping, ...], Doc("Disks of the machine.")
    ] = ()
    metadata_options: Annotated[MetadataOptions | None, Doc("The machine's metadata service.")] = (
        None
    )
    instance_profile: Annotated[str, Doc("Identity that the machine runs under.")] = ""
    tags: Annotated[dict[str, str], Doc("Tags of the machine.")] = mapping()
    user_data: Annotated[str, Doc("Start script of the machine.")] = ""


class GPUNodeClassStatus(Wire, frozen=True, kw_only=True):
    """What is observed of a class."""

    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None


class GPUNodeClass(Wire, frozen=True, kw_only=True):
    """Launch parameters of machines at a provider."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("GPUNodeClass")
    metadata: Metadata
    spec: Annotated[GPUNodeClassSpec | None, Doc("Launch parameters.")] = None
    status: Annotated[GPUNodeClassStatus | None, Doc("What is observed.")] = None
