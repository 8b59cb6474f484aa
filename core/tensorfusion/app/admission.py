"""Admission inside the embedded store: the pure decisions of `tensorfusion.admission`, applied.

The store asks before each write of the kinds named here and commits what admission adds in the
same transaction. Nothing is remembered of a dry run, and what a refused or rolled-back write
left in memory is found out by looking at the store.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from tensorfusion import names
from tensorfusion.admission import (
    AdmissionContext,
    Claims,
    Migration,
    Refused,
    RefusedValue,
    admit_pod,
    check_profile,
    check_quota_object,
)
from tensorfusion.admission.annotations import SYSTEM_KEYS, USER_KEY_SET
from tensorfusion.admission.owners import label_safe
from tensorfusion.admission.raw import controller_of, mapping, metadata_of, spec_of
from tensorfusion.admission.refusal import annotation_field, label_field
from tensorfusion.api import registry
from tensorfusion.api.decode import decode
from tensorfusion.api.fields import Wire
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.workload_profile import WorkloadProfileSpec
from tensorfusion.app.admission_context import ContextBuilder, PlacerAccounts, offers_of
from tensorfusion.errors import BadRequest, NotFound
from tensorfusion.host import PluginHost
from tensorfusion.scheduling.placer import Placer
from tensorfusion.store.admission import (
    AdmissionRequest,
    AdmissionResult,
    FurtherWrite,
    Operation,
)
from tensorfusion.store.interface import Store

T = TypeVar("T", bound=Wire)
PASS = AdmissionResult()
TEMPLATED = (registry.DEPLOYMENTS, registry.REPLICA_SETS)
KEPT = (registry.GPU_POOLS, registry.PROVIDER_CONFIGS, registry.QUOTAS)
SPECS = (registry.PROFILES, registry.WORKLOADS)

FREE_KEYS: Final = frozenset(
    {names.SIMULATED_LOAD, names.EVICTION_PROTECTION, names.ENABLED_REPLICAS}
)
"""Annotations of a worker that may change at any time."""
FIXED_KEYS: Final = (USER_KEY_SET | SYSTEM_KEYS) - FREE_KEYS
FIXED_LABELS: Final = (names.COMPONENT, names.WORKLOAD, names.GPU_POOL)
OUR_MANAGERS: Final = names.FIELD_MANAGER
"""Our writers' field managers begin with this."""


class StoreAdmission:
    """`tensorfusion.store.admission.Admission` of the embedded control plane.

    Args:
        store: Read during decisions, by the thread that holds its writer lock.
        placer: Says what namespaces use.
        host: Its backends say which isolation modes can be had.
        migration: Which pods with native GPU requests are taken over.

    Concurrency: called by the store, one call at a time.
    """

    def __init__(
        self,
        store: Store,
        placer: Placer,
        host: PluginHost,
        *,
        migration: Migration | None = None,
    ) -> None:
        self._store = store
        accounts = PlacerAccounts(placer)
        self._contexts = ContextBuilder(store, accounts, offers_of(host), migration or Migration())
        self._enabled = LivingPods(store)
        self._ports = PortBook(store)
        self._handlers: dict[
            tuple[str, Operation], Callable[[AdmissionRequest], AdmissionResult]
        ] = {
            (registry.PODS.qualified, "CREATE"): self._create_pod,
            (registry.PODS.qualified, "UPDATE"): _update_pod,
        }
        operations: tuple[Operation, ...] = ("CREATE", "UPDATE")
        for operation in operations:
            for resource in TEMPLATED:
                self._handlers[resource.qualified, operation] = self._template
            for resource in SPECS:
                self._handlers[resource.qualified, operation] = self._spec
            for resource in KEPT:
                self._handlers[resource.qualified, operation] = self._kept
        for resource in KEPT:
            self._handlers[resource.qualified, "DELETE"] = self._kept

    def handles(self, resource: Resource, operation: Operation) -> bool:
        """Whether `admit` wants to see such writes."""
        return (resource.qualified, operation) in self._handlers

    def is_native(self, resource: str) -> bool:
        """Whether a resource name stands for GPUs that another system gives out."""
        return self._contexts.providers().is_native(resource)

    def admit(self, request: AdmissionRequest) -> AdmissionResult:
        """Allow a write, perhaps with changes.

        Raises:
            ApiError: The write is refused.
        """
        try:
            return self._handlers[request.resource.qualified, request.operation](request)
        except Refused as refusal:
            if refusal.kind:
                raise
            resource = request.resource
            raise refusal.about(resource.kind, request.name, group=resource.group) from None

    def _create_pod(self, request: AdmissionRequest) -> AdmissionResult:
        pod, namespace = request.obj, request.namespace
        owner = controller_of(pod)
        # Per ReplicaSet: counted over a Deployment, a rollout would end with none enabled.
        canary = f"{namespace}/{owner.get('uid')}" if owner is not None else ""
        context = self._contexts.build(
            namespace,
            enabled_pods=lambda: self._enabled.count(canary, namespace),
            claims=Claims(port_taken=self._ports.taken),
        )
        admitted = admit_pod(pod, context)
        if admitted.resolved is not None and not self._contexts.pool_exists(admitted.resolved.pool):
            return self._create_pod(request)
        if admitted.enabled and not request.dry_run:
            annotations = admitted.pod["metadata"]["annotations"]
            if canary and names.ENABLED_REPLICAS in annotations:
                self._enabled.add(canary, request.name)
            if names.PORT_NUMBER in annotations:
                port = int(annotations[names.PORT_NUMBER])
                self._ports.add(port, namespace, request.name)
        also: tuple[FurtherWrite, ...] = ()
        if admitted.workload is not None:
            also = (FurtherWrite("upsert", registry.WORKLOADS, admitted.workload),)
        return AdmissionResult(
            obj=None if admitted.pod is pod else admitted.pod,
            also=also,
            warnings=admitted.warnings,
        )

    def _template(self, request: AdmissionRequest) -> AdmissionResult:
        """Decide about the pods that an object will create, so that its author hears of it."""
        obj, old = request.obj, request.old
        spec = spec_of(obj)
        template = spec.get("template")
        if not isinstance(template, dict):
            return PASS
        if request.resource is registry.REPLICA_SETS and controller_of(obj) is not None:
            return PASS  # its Deployment was asked
        replicas = _replicas(spec)
        before = spec_of(old) if old is not None else {}
        if before.get("template") == template and replicas <= _replicas(before):
            return PASS
        metadata = metadata_of(template)
        owner = {
            "apiVersion": request.resource.api_version,
            "kind": request.resource.kind,
            "name": request.name,
            "uid": metadata_of(obj).get("uid", ""),
            "controller": True,
        }
        pod: JsonObject = {
            "metadata": {**metadata, "namespace": request.namespace, "ownerReferences": [owner]},
            "spec": template.get("spec"),
        }
        canary = mapping(metadata.get("annotations")).get(names.ENABLED_REPLICAS)
        if isinstance(canary, str) and canary.isascii() and canary.isdigit():
            replicas = min(replicas, int(canary))
        context = self._contexts.build(
            request.namespace,
            replicas=replicas,
            freed_workload=label_safe(request.name),
            claims=Claims(port_taken=self._ports.taken),
            owner=obj,
        )
        try:
            admitted = admit_pod(pod, context)
        except Refused as refusal:
            raise refusal.about(
                request.resource.kind,
                request.name,
                group=request.resource.group,
                prefix="spec.template.",
            ) from None
        return AdmissionResult(warnings=admitted.warnings)

    def _spec(self, request: AdmissionRequest) -> AdmissionResult:
        spec = _decoded(WorkloadProfileSpec, request.obj.get("spec"))
        if spec is not None:
            check_profile(spec, AdmissionContext(providers=self._contexts.providers()))
        return PASS

    def _kept(self, request: AdmissionRequest) -> AdmissionResult:
        if request.resource is registry.QUOTAS and request.operation != "DELETE":
            quota = _decoded(GPUResourceQuota, request.obj)
            if quota is not None and quota.spec is not None:
                check_quota_object(quota.spec)
        self._contexts.forget(request.resource)
        return PASS


def _update_pod(request: AdmissionRequest) -> AdmissionResult:
    """Keep what was decided: only our own parts change a worker after admission."""
    old = metadata_of(request.old or {})
    new = metadata_of(request.obj)
    if request.user.startswith(OUR_MANAGERS):
        return PASS
    labels = mapping(old.get("labels"))
    is_worker = labels.get(names.COMPONENT) == "worker"
    fixed = FIXED_KEYS if is_worker else SYSTEM_KEYS
    key = _changed(mapping(old.get("annotations")), mapping(new.get("annotations")), fixed)
    field = annotation_field(key)
    side = "annotations"
    if not key:
        fixed_labels = FIXED_LABELS if is_worker else (names.COMPONENT,)
        key = _changed(labels, mapping(new.get("labels")), frozenset(fixed_labels))
        field, side = label_field(key), "labels"
    if key:
        value = mapping(new.get(side)).get(key, "")
        raise RefusedValue(
            field,
            str(value),
            f"was {mapping(old.get(side)).get(key, '')!r} at admission and cannot be changed on a"
            " pod: change the pod template, or the WorkloadProfile, and let pods be replaced",
        )
    return PASS


def _changed(old: Mapping[str, str], new: Mapping[str, str], keys: frozenset[str]) -> str:
    """The first of some keys whose value differs; empty when none does."""
    if old == new:
        return ""
    touched = {key for key in (*old, *new) if old.get(key) != new.get(key)}
    return min(touched & keys, default="")


def _replicas(spec: JsonObject) -> int:
    value = spec.get("replicas", 1)
    return value if type(value) is int and value > 0 else 0


def _decoded(struct: type[T], obj: object) -> T | None:
    """View an object that was not validated yet; None lets the validation speak for itself."""
    if not isinstance(obj, dict):
        return None
    try:
        return decode(struct, obj)
    except BadRequest:
        return None


class LivingPods:
    """Which pods of a controller were enabled, checked against the store when counted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names: dict[str, set[str]] = {}

    def add(self, controller: str, name: str) -> None:
        """Remember a pod of ``namespace/uid``."""
        self._names.setdefault(controller, set()).add(name)

    def count(self, controller: str, namespace: str) -> int:
        """Count the living enabled pods of ``namespace/uid``; the first time by a list."""
        if not controller:
            return 0
        known = self._names.get(controller)
        if known is None:
            uid = controller.partition("/")[2]
            pods = self._store.list(
                registry.PODS, namespace, label_selector=f"{names.COMPONENT}=worker"
            ).items
            known = self._names[controller] = {
                pod["metadata"]["name"]
                for pod in pods
                if (controller_of(pod) or {}).get("uid") == uid
            }
        dead = {name for name in known if not is_living(self._store, namespace, name)}
        known -= dead
        return len(known)


class PortBook:
    """Which pod has which host port, checked against the store when asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._holders: dict[int, tuple[str, str]] | None = None

    def taken(self, port: int) -> bool:
        """Whether a living pod has the port."""
        holders = self._load()
        holder = holders.get(port)
        if holder is None:
            return False
        if is_living(self._store, *holder):
            return True
        del holders[port]
        return False

    def add(self, port: int, namespace: str, name: str) -> None:
        """Remember who got a port."""
        self._load()[port] = namespace, name

    def _load(self) -> dict[int, tuple[str, str]]:
        if self._holders is None:
            pods = self._store.list(registry.PODS, label_selector=f"{names.HOST_PORT}=auto").items
            self._holders = {}
            for pod in pods:
                metadata = pod["metadata"]
                text = mapping(metadata.get("annotations")).get(names.PORT_NUMBER, "")
                if text.isascii() and text.isdigit():
                    self._holders[int(text)] = metadata["namespace"], metadata["name"]
        return self._holders


def is_living(store: Store, namespace: str, name: str) -> bool:
    """Whether a pod exists, has not finished, and is not on its way out."""
    try:
        pod = store.get(registry.PODS, name, namespace)
    except NotFound:
        return False
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return mapping(pod.get("status")).get("phase") not in ("Succeeded", "Failed")
