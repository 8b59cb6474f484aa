"""What admission knows about the world: values and lookups, handed in, never fetched here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tensorfusion.admission.migration import Migration
from tensorfusion.admission.providers import Providers
from tensorfusion.admission.vendors import WITHOUT_SOFT_LIMITER
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.model.quota import Quota, Usage

FIRST_PORT, END_PORT = 42_000, 62_000
"""Host ports that are given out, the last one excluded; the reference's cluster range."""
INDEX_COUNT = 128

HARD_REASON = (
    "hard isolation runs workers in a process of their own, which this release does not have;"
    " use soft or shared"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Numbers that pods own exclusively.

    Attributes:
        next_index: The device-plugin index to try first; they go around from 0 to 127.
        indices: Indices in use.
        port_taken: Whether a host port is in use.
        ports: First port, and the one after the last.
    """

    next_index: int = 0
    indices: frozenset[int] = frozenset()
    port_taken: Callable[[int], bool] = lambda _port: False
    ports: tuple[int, int] = (FIRST_PORT, END_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """Which isolation modes the installed backends can keep.

    Attributes:
        by_vendor: Vendor to the modes a backend of that vendor claims.
        everywhere: Modes that are claimed for every vendor.
        without_limiter: Vendors for which no soft limiter exists.
    """

    by_vendor: Mapping[str, frozenset[str]] = field(default_factory=dict)
    everywhere: frozenset[str] = frozenset({"shared", "soft"})
    without_limiter: frozenset[str] = WITHOUT_SOFT_LIMITER

    def refusal(self, mode: str, vendor: str) -> str:
        """Why a mode cannot be had for a vendor; empty when it can. ``shared`` always can."""
        claimed = self.by_vendor.get(vendor, frozenset())
        if mode == "hard":
            return HARD_REASON
        if mode == "soft" and vendor in self.without_limiter and mode not in claimed:
            return f"there is no soft limiter for {vendor}; use shared or partitioned"
        if mode == "partitioned" and mode not in self.everywhere | claimed:
            whose = f"the {vendor} backend" if vendor else "any installed backend"
            return f"hardware partitions are not offered by {whose}; use soft or shared"
        return ""


def _nothing(*_args: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionContext:
    """Everything a decision about one pod may depend on.

    Attributes:
        namespace: The Namespace object of the pod.
        pools: GPUPools by name.
        default_pool: Pool of pods that name none; empty when there is none.
        profile: WorkloadProfile of the namespace by name.
        quota_objects: GPUResourceQuotas of the namespace, in order of name.
        quotas: The same ones as the model reads them.
        usage: What the namespace uses now.
        freed: What of it goes away with the write, such as the pods an update replaces.
        replicas: How many pods of this kind are asked for at once.
        smallest_gflops: Pool to its smallest card, GFLOP/s; 0 when unknown. Prices shares of
            cards for the quota.
        providers: What the ProviderConfigs say.
        template: SchedulingConfigTemplate by name.
        workload: TensorFusionWorkload of the namespace by name.
        has_workers: Whether workers of a workload run already, which its pods then share.
        owner: Object of the namespace by kind and name, for the chain of owners.
        enabled_pods: How many other living pods of this pod's controller are enabled.
        claims: Numbers in use.
        offers: Isolation modes that can be kept.
        migration: Which pods with native GPU requests are taken over.
        inject: Add containers, volumes and environment; only where containers run.
    """

    namespace: JsonObject = field(default_factory=dict)
    pools: Mapping[str, GPUPool] = field(default_factory=dict)
    default_pool: str = ""
    profile: Callable[[str], WorkloadProfile | None] = _nothing
    quota_objects: tuple[GPUResourceQuota, ...] = ()
    quotas: tuple[Quota, ...] = ()
    usage: Usage = field(default_factory=Usage)
    freed: Usage = field(default_factory=Usage)
    replicas: int = 1
    smallest_gflops: Callable[[str], int] = lambda _pool: 0
    providers: Providers = field(default_factory=Providers)
    template: Callable[[str], SchedulingConfigTemplate | None] = _nothing
    workload: Callable[[str], JsonObject | None] = _nothing
    has_workers: Callable[[str], bool] = lambda _workload: False
    owner: Callable[[str, str], JsonObject | None] = _nothing
    enabled_pods: Callable[[], int] = lambda: 0
    claims: Claims = field(default_factory=Claims)
    offers: Offers = field(default_factory=Offers)
    migration: Migration = field(default_factory=Migration)
    inject: bool = False
