"""What admission knows, gathered from a reader of objects and from the accounts of the ledger.

Objects that every pod needs are decoded once and kept until one of their kind is written, so
that the rows read for one pod do not depend on how many pods, pools or quotas there are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from tensorfusion import names
from tensorfusion.admission import AdmissionContext, Claims, Migration, Offers, Providers
from tensorfusion.admission.providers import providers_of
from tensorfusion.admission.vendors import canonical_vendor
from tensorfusion.api import registry
from tensorfusion.api.decode import decode
from tensorfusion.api.fields import Wire
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.provider_config import ProviderConfig
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.errors import NotFound
from tensorfusion.host import PluginHost
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.quota import Quota, Usage
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.translate import quota_of
from tensorfusion.store.interface import ObjectList

T = TypeVar("T", bound=Wire)
KEPT_OBJECTS = 2048
OWNERS = {"ReplicaSet": registry.REPLICA_SETS, "Deployment": registry.DEPLOYMENTS}


class Reader(Protocol):
    """The part of a store that admission reads."""

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object; raise ``NotFound`` when there is none."""
        ...

    def list(self, resource: Resource, namespace: str = "") -> ObjectList:
        """Return all objects of a namespace, or of all when it is empty."""
        ...


class Accounts(Protocol):
    """What is in use."""

    def usage(self, namespace: str) -> Usage:
        """What a namespace uses."""
        ...

    def workload_usage(self, namespace: str, workload: str) -> Usage:
        """What the workers of one workload use."""
        ...

    def has_workers(self, namespace: str, workload: str) -> bool:
        """Whether a workload has workers."""
        ...

    def smallest_gflops(self, pool: str) -> int:
        """The smallest card of a pool, GFLOP/s; 0 when it has none."""
        ...


class LedgerAccounts:
    """Accounts of a ledger that nobody changes meanwhile."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger

    def usage(self, namespace: str) -> Usage:
        """What a namespace uses."""
        return self._ledger().quotas.usage(namespace)

    def workload_usage(self, namespace: str, workload: str) -> Usage:
        """What the workers of one workload use."""
        total = Usage()
        for worker in self._ledger().workers_of(namespace, workload):
            total = total.plus(worker.usage)
        return total

    def has_workers(self, namespace: str, workload: str) -> bool:
        """Whether a workload has workers."""
        return bool(self._ledger().workers_of(namespace, workload))

    def smallest_gflops(self, pool: str) -> int:
        """The smallest card of a pool, GFLOP/s; 0 when it has none."""
        devices = (usage.device for usage in self._ledger().devices.values())
        return min(
            (d.capacity_gflops for d in devices if d is not None and d.pool == pool), default=0
        )


class PlacerAccounts(LedgerAccounts):
    """Accounts of the running placer, read under its lock."""

    def __init__(self, placer: Placer) -> None:
        super().__init__(lambda: placer.ledger)
        self._placer = placer
        self._hardware_version = -1
        self._smallest: dict[str, int] = {}

    def usage(self, namespace: str) -> Usage:
        """What a namespace uses."""
        with self._placer.lock:
            return super().usage(namespace)

    def workload_usage(self, namespace: str, workload: str) -> Usage:
        """What the workers of one workload use."""
        with self._placer.lock:
            return super().workload_usage(namespace, workload)

    def has_workers(self, namespace: str, workload: str) -> bool:
        """Whether a workload has workers."""
        with self._placer.lock:
            return super().has_workers(namespace, workload)

    def smallest_gflops(self, pool: str) -> int:
        """The smallest card of a pool; found anew only when hardware changed."""
        with self._placer.lock:
            version = self._placer.engine.fleet.static_journal.version
            if version != self._hardware_version:
                self._hardware_version = version
                self._smallest.clear()
            if pool not in self._smallest:
                self._smallest[pool] = super().smallest_gflops(pool)
            return self._smallest[pool]


def offers_of(host: PluginHost) -> Offers:
    """Collect which isolation modes the loaded backends claim; shared and soft always count."""
    by_vendor: dict[str, frozenset[str]] = {}
    everywhere = frozenset({"shared", "soft"})
    for backend in host.backends().values():
        modes = frozenset(backend.capabilities().isolation)
        vendor = canonical_vendor(backend.vendor) or backend.vendor
        if vendor:
            by_vendor[vendor] = by_vendor.get(vendor, frozenset()) | modes
        else:
            everywhere |= modes
    return Offers(by_vendor=by_vendor, everywhere=everywhere)


@dataclass(frozen=True, slots=True)
class NamespaceQuotas:
    """The quotas of one namespace, as objects and as the model reads them."""

    objects: tuple[GPUResourceQuota, ...] = ()
    quotas: tuple[Quota, ...] = ()


class ContextBuilder:
    """Builds an `AdmissionContext` per request.

    Concurrency: not safe for threads; the store calls admission one at a time.
    """

    def __init__(
        self,
        reader: Reader,
        accounts: Accounts,
        offers: Offers,
        migration: Migration,
        *,
        inject: bool = False,
    ) -> None:
        self._reader = reader
        self._accounts = accounts
        self._offers = offers
        self._migration = migration
        self._inject = inject
        self._decoded: dict[tuple[str, str, str], tuple[str, Any]] = {}
        self._pools: dict[str, GPUPool] | None = None
        self._providers: Providers | None = None
        self._quotas: dict[str, NamespaceQuotas] | None = None

    def forget(self, resource: Resource) -> None:
        """Drop what is kept of a kind: one of its objects is about to change."""
        if resource is registry.GPU_POOLS:
            self._pools = None
        elif resource is registry.PROVIDER_CONFIGS:
            self._providers = None
        elif resource is registry.QUOTAS:
            self._quotas = None

    def build(
        self,
        namespace: str,
        *,
        replicas: int = 1,
        freed_workload: str = "",
        enabled_pods: Callable[[], int] = lambda: 0,
        claims: Claims | None = None,
        owner: JsonObject | None = None,
    ) -> AdmissionContext:
        """Build the context of one decision.

        Args:
            namespace: Of the pod.
            replicas: Pods asked for at once.
            freed_workload: Its workers go away with the write and do not count as used.
            enabled_pods: See `AdmissionContext`.
            claims: Numbers in use.
            owner: An object that is being written and so cannot be read yet.
        """
        pools = self.pools()
        found = self._namespace_quotas(namespace)
        usage = freed = Usage()
        if found.quotas:
            usage = self._accounts.usage(namespace)
            if freed_workload:
                freed = self._accounts.workload_usage(namespace, freed_workload)
        return AdmissionContext(
            namespace=self._get(registry.NAMESPACES, namespace)
            or {"metadata": {"name": namespace}},
            pools=pools,
            default_pool=default_pool(pools),
            profile=lambda name: self._typed(registry.PROFILES, WorkloadProfile, name, namespace),
            quota_objects=found.objects,
            quotas=found.quotas,
            usage=usage,
            freed=freed,
            replicas=replicas,
            smallest_gflops=self._accounts.smallest_gflops,
            providers=self.providers(),
            template=lambda name: self._typed(
                registry.SCHEDULING_CONFIGS, SchedulingConfigTemplate, name, ""
            ),
            workload=lambda name: self._get(registry.WORKLOADS, name, namespace),
            has_workers=partial(self._accounts.has_workers, namespace),
            owner=partial(self._owner, namespace, owner),
            enabled_pods=enabled_pods,
            claims=claims or Claims(),
            offers=self._offers,
            migration=self._migration,
            inject=self._inject,
        )

    def providers(self) -> Providers:
        """What the ProviderConfigs say."""
        if self._providers is None:
            items = self._reader.list(registry.PROVIDER_CONFIGS).items
            self._providers = providers_of(decode(ProviderConfig, item) for item in items)
        return self._providers

    def pools(self) -> dict[str, GPUPool]:
        """All pools by name."""
        if self._pools is None:
            items = self._reader.list(registry.GPU_POOLS).items
            self._pools = {item["metadata"]["name"]: decode(GPUPool, item) for item in items}
        return self._pools

    def pool_exists(self, name: str) -> bool:
        """Whether a pool is still there; collection removes pools without asking admission."""
        if self._get(registry.GPU_POOLS, name) is not None:
            return True
        self._pools = None
        return False

    def _namespace_quotas(self, namespace: str) -> NamespaceQuotas:
        if self._quotas is None:
            by_namespace: dict[str, list[GPUResourceQuota]] = {}
            for item in self._reader.list(registry.QUOTAS).items:
                quota = decode(GPUResourceQuota, item)
                by_namespace.setdefault(quota.metadata.namespace, []).append(quota)
            self._quotas = {name: _quotas(found) for name, found in by_namespace.items()}
        return self._quotas.get(namespace, NamespaceQuotas())

    def _owner(
        self, namespace: str, written: JsonObject | None, kind: str, name: str
    ) -> JsonObject | None:
        if written is not None and (written.get("kind"), written["metadata"].get("name")) == (
            kind,
            name,
        ):
            return written
        resource = OWNERS.get(kind)
        return None if resource is None else self._get(resource, name, namespace)

    def _get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject | None:
        try:
            return self._reader.get(resource, name, namespace)
        except NotFound:
            return None

    def _typed(self, resource: Resource, struct: type[T], name: str, namespace: str) -> T | None:
        obj = self._get(resource, name, namespace) if name else None
        if obj is None:
            return None
        key = (resource.qualified, namespace, name)
        version = f"{obj['metadata'].get('uid')}/{obj['metadata'].get('resourceVersion')}"
        known = self._decoded.get(key)
        if known is not None and known[0] == version and "None" not in version:
            typed: T = known[1]
            return typed
        if len(self._decoded) >= KEPT_OBJECTS:
            self._decoded.clear()
        value = decode(struct, obj)
        self._decoded[key] = (version, value)
        return value


def default_pool(pools: dict[str, GPUPool]) -> str:
    """The pool of pods that name none: the marked one, else the only one."""
    marked = [
        name
        for name, pool in sorted(pools.items())
        if pool.metadata.annotations.get(names.IS_DEFAULT_POOL) == "true"
    ]
    if marked:
        return marked[0]
    return next(iter(pools)) if len(pools) == 1 else ""


def _quotas(found: Iterable[GPUResourceQuota]) -> NamespaceQuotas:
    objects = tuple(sorted(found, key=lambda quota: quota.metadata.name))
    return NamespaceQuotas(objects, tuple(quota_of(quota) for quota in objects))
