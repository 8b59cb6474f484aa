"""What admission reads of the ProviderConfigs: native resource names, partitions, images."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tensorfusion.api.provider_config import ProviderConfig

MIG_PREFIX = "nvidia.com/mig-"
FALLBACK_RESOURCES = {"nvidia.com/gpu": "NVIDIA", "amd.com/gpu": "AMD"}
"""Native resources when no ProviderConfig is installed."""
_SLICE = re.compile(r"[0-9]+g\.[0-9]+gb([.+]me)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """Facts of all vendors.

    Attributes:
        whole: Native resource names that stand for whole cards, to their vendor.
        partitions: Partition template ids and names, to the id.
        images: Vendor to the image with its limiter.
    """

    whole: Mapping[str, str] = field(default_factory=lambda: dict(FALLBACK_RESOURCES))
    partitions: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)

    @property
    def vendors(self) -> tuple[str, ...]:
        """Vendors with a ProviderConfig."""
        return tuple(self.images)

    def is_native(self, resource: str) -> bool:
        """Whether a resource stands for whole cards or partitions of them."""
        return resource in self.whole or self.slice_of(resource) is not None

    def slice_of(self, resource: str) -> str | None:
        """The partition template a native resource name stands for; None for any other name."""
        if not resource.startswith(MIG_PREFIX):
            return None
        name = resource.removeprefix(MIG_PREFIX)
        # The device plugin writes 1g.10gb.me where the driver says 1g.10gb+me.
        return name.replace(".me", "+me") if _SLICE.fullmatch(name) else None


def providers_of(configs: Iterable[ProviderConfig]) -> Providers:
    """Collect the facts of ProviderConfigs; without any, the best-known resource names."""
    whole: dict[str, str] = {}
    partitions: dict[str, str] = {}
    images: dict[str, str] = {}
    for config in configs:
        spec = config.spec
        if spec is None:
            continue
        images[spec.vendor] = spec.images.middleware
        for resource in spec.in_use_resource_names:
            if not resource.startswith(MIG_PREFIX):
                whole[resource] = spec.vendor
        for template in spec.virtualization_templates:
            partitions[template.id] = template.id
            partitions.setdefault(template.name, template.id)
    return Providers(whole=whole or dict(FALLBACK_RESOURCES), partitions=partitions, images=images)
