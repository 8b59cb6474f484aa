"""All resource kinds, and how to find one by the words that people and URLs use."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tensorfusion.api.cluster import TensorFusionCluster
from tensorfusion.api.connection import TensorFusionConnection
from tensorfusion.api.core.apps import Deployment, ReplicaSet
from tensorfusion.api.core.cluster import (
    ConfigMap,
    Event,
    Lease,
    Namespace,
    PodDisruptionBudget,
    PriorityClass,
    Secret,
)
from tensorfusion.api.core.columns import (
    CONFIG_MAP_COLUMNS,
    DEPLOYMENT_COLUMNS,
    EVENT_COLUMNS,
    LEASE_COLUMNS,
    NAMESPACE_COLUMNS,
    NODE_COLUMNS,
    PDB_COLUMNS,
    POD_COLUMNS,
    PRIORITY_CLASS_COLUMNS,
    REPLICA_SET_COLUMNS,
    SECRET_COLUMNS,
)
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.fields import Wire
from tensorfusion.api.gpu import GPU
from tensorfusion.api.node import GPUNode
from tensorfusion.api.node_claim import GPUNodeClaim
from tensorfusion.api.node_class import GPUNodeClass
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.printing import (
    CLUSTER_COLUMNS,
    CONNECTION_COLUMNS,
    GPU_COLUMNS,
    GPU_NODE_COLUMNS,
    NODE_CLAIM_COLUMNS,
    NODE_CLASS_COLUMNS,
    POOL_COLUMNS,
    PROFILE_COLUMNS,
    PROVIDER_CONFIG_COLUMNS,
    QUOTA_COLUMNS,
    SCHEDULING_CONFIG_COLUMNS,
    WORKLOAD_COLUMNS,
)
from tensorfusion.api.provider_config import ProviderConfig
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.resource import PrinterColumn, Resource
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate
from tensorfusion.api.workload import TensorFusionWorkload
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.errors import NotFound
from tensorfusion.names import GROUP, VERSION

CATEGORY: Final = "tensorfusion"


def _custom(
    struct: type[Wire],
    short_names: tuple[str, ...],
    columns: tuple[PrinterColumn, ...],
    *,
    namespaced: bool = False,
    has_status: bool = True,
) -> Resource:
    kind = struct.__name__
    return Resource(
        group=GROUP,
        version=VERSION,
        kind=kind,
        plural=kind.lower() + ("es" if kind.endswith("s") else "s"),
        namespaced=namespaced,
        struct=struct,
        short_names=short_names,
        categories=(CATEGORY,),
        columns=columns,
        has_status=has_status,
        is_custom=True,
        description=_first_line(struct),
    )


def _core(
    struct: type[Wire],
    plural: str,
    short_names: tuple[str, ...],
    columns: tuple[PrinterColumn, ...],
    *,
    group: str = "",
    namespaced: bool = True,
    has_status: bool = False,
    has_scale: bool = False,
    in_all: bool = False,
) -> Resource:
    return Resource(
        group=group,
        version="v1",
        kind=struct.__name__,
        plural=plural,
        namespaced=namespaced,
        struct=struct,
        short_names=short_names,
        categories=("all",) if in_all else (),
        columns=columns,
        has_status=has_status,
        has_scale=has_scale,
        description=_first_line(struct),
    )


def _first_line(struct: type[Wire]) -> str:
    return (struct.__doc__ or "").strip().split("\n")[0]


CLUSTERS: Final = _custom(TensorFusionCluster, ("tfc",), CLUSTER_COLUMNS)
GPU_POOLS: Final = _custom(GPUPool, ("gp",), POOL_COLUMNS)
GPU_NODES: Final = _custom(GPUNode, ("gpn",), GPU_NODE_COLUMNS)
NODE_CLAIMS: Final = _custom(GPUNodeClaim, ("gpnc",), NODE_CLAIM_COLUMNS)
NODE_CLASSES: Final = _custom(GPUNodeClass, ("gpncl",), NODE_CLASS_COLUMNS)
GPUS: Final = _custom(GPU, (), GPU_COLUMNS)
PROVIDER_CONFIGS: Final = _custom(
    ProviderConfig, ("tfprovider",), PROVIDER_CONFIG_COLUMNS, has_status=False
)
SCHEDULING_CONFIGS: Final = _custom(SchedulingConfigTemplate, ("sct",), SCHEDULING_CONFIG_COLUMNS)
WORKLOADS: Final = _custom(
    TensorFusionWorkload, ("tfw", "tfworkload"), WORKLOAD_COLUMNS, namespaced=True
)
PROFILES: Final = _custom(WorkloadProfile, ("wp",), PROFILE_COLUMNS, namespaced=True)
CONNECTIONS: Final = _custom(
    TensorFusionConnection, ("tfconn",), CONNECTION_COLUMNS, namespaced=True
)
QUOTAS: Final = _custom(GPUResourceQuota, ("grq",), QUOTA_COLUMNS, namespaced=True)

NAMESPACES: Final = _core(
    Namespace, "namespaces", ("ns",), NAMESPACE_COLUMNS, namespaced=False, has_status=True
)
NODES: Final = _core(Node, "nodes", ("no",), NODE_COLUMNS, namespaced=False, has_status=True)
PODS: Final = _core(Pod, "pods", ("po",), POD_COLUMNS, has_status=True, in_all=True)
EVENTS: Final = _core(Event, "events", ("ev",), EVENT_COLUMNS)
SECRETS: Final = _core(Secret, "secrets", (), SECRET_COLUMNS)
CONFIG_MAPS: Final = _core(ConfigMap, "configmaps", ("cm",), CONFIG_MAP_COLUMNS)
DEPLOYMENTS: Final = _core(
    Deployment,
    "deployments",
    ("deploy",),
    DEPLOYMENT_COLUMNS,
    group="apps",
    has_status=True,
    has_scale=True,
    in_all=True,
)
REPLICA_SETS: Final = _core(
    ReplicaSet,
    "replicasets",
    ("rs",),
    REPLICA_SET_COLUMNS,
    group="apps",
    has_status=True,
    has_scale=True,
    in_all=True,
)
LEASES: Final = _core(Lease, "leases", (), LEASE_COLUMNS, group="coordination.k8s.io")
PRIORITY_CLASSES: Final = _core(
    PriorityClass,
    "priorityclasses",
    ("pc",),
    PRIORITY_CLASS_COLUMNS,
    group="scheduling.k8s.io",
    namespaced=False,
)
PDBS: Final = _core(
    PodDisruptionBudget,
    "poddisruptionbudgets",
    ("pdb",),
    PDB_COLUMNS,
    group="policy",
    has_status=True,
)

CUSTOM_RESOURCES: Final[tuple[Resource, ...]] = (
    CLUSTERS,
    GPU_POOLS,
    GPU_NODES,
    NODE_CLAIMS,
    NODE_CLASSES,
    GPUS,
    PROVIDER_CONFIGS,
    SCHEDULING_CONFIGS,
    WORKLOADS,
    PROFILES,
    CONNECTIONS,
    QUOTAS,
)
CORE_RESOURCES: Final[tuple[Resource, ...]] = (
    NAMESPACES,
    NODES,
    PODS,
    EVENTS,
    SECRETS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    REPLICA_SETS,
    LEASES,
    PRIORITY_CLASSES,
    PDBS,
)
RESOURCES: Final[tuple[Resource, ...]] = CORE_RESOURCES + CUSTOM_RESOURCES

_BY_KIND: Final = {(item.api_version, item.kind): item for item in RESOURCES}
_BY_PLURAL: Final = {(item.group, item.version, item.plural): item for item in RESOURCES}


def _index_words() -> Mapping[str, Resource]:
    words: dict[str, Resource] = {}
    for resource in RESOURCES:
        names = (resource.plural, resource.singular, *resource.short_names)
        for name in names:
            words.setdefault(name, resource)
            words.setdefault(f"{name}.{resource.group or 'core'}", resource)
            words.setdefault(f"{name}.{resource.version}.{resource.group}".rstrip("."), resource)
    return MappingProxyType(words)


_WORDS: Final = _index_words()


def by_kind(api_version: str, kind: str) -> Resource:
    """Find the resource of an object's ``apiVersion`` and ``kind``.

    Raises:
        NotFound: There is no such kind.
    """
    resource = _BY_KIND.get((api_version, kind))
    if resource is None:
        known = sorted({item.kind for item in RESOURCES})
        versions = [item.api_version for item in RESOURCES if item.kind == kind]
        hint = f"{kind} is served as {versions[0]}" if versions else _suggest(kind, known)
        raise NotFound(f'no matches for kind "{kind}" in version "{api_version}"; {hint}')
    return resource


def by_plural(group: str, version: str, plural: str) -> Resource:
    """Find the resource of a URL path.

    Raises:
        NotFound: There is no such resource.
    """
    resource = _BY_PLURAL.get((group, version, plural))
    if resource is None:
        raise NotFound("the server could not find the requested resource")
    return resource


def lookup(word: str) -> Resource:
    """Find a resource by plural, singular, short name or kind, with ``.group`` if wanted.

    Raises:
        NotFound: Nothing has that name; the message suggests the nearest one.
    """
    resource = _WORDS.get(word.lower())
    if resource is None:
        plurals = sorted(name for name in _WORDS if "." not in name)
        raise NotFound(f'there is no resource type "{word}"; {_suggest(word.lower(), plurals)}')
    return resource


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return "known are " + ", ".join(sorted(item.plural for item in RESOURCES))
