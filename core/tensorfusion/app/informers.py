"""The informers of a control plane: one per kind, shared by every feature."""

from collections.abc import Iterable
from typing import Any

from tensorfusion import names
from tensorfusion.api import pod_view, registry
from tensorfusion.api.cluster import TensorFusionCluster
from tensorfusion.api.connection import TensorFusionConnection
from tensorfusion.api.core.apps import Deployment, ReplicaSet
from tensorfusion.api.core.cluster import PodDisruptionBudget, PriorityClass
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.gpu import GPU
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate
from tensorfusion.api.workload import TensorFusionWorkload
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.clock import Clock
from tensorfusion.scheduling.gang_pods import gang_key
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store


class Informers:
    """Every informer, with the indexes that features ask for."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.pods = Informer(
            store,
            registry.PODS,
            Pod,
            clock=clock,
            indexers={
                "node": _pod_node,
                "workload": _pod_workload,
                "owner": _owner,
                "gang": _pod_gang,
            },
        )
        self.budgets = Informer(store, registry.PDBS, PodDisruptionBudget, clock=clock)
        self.priority_classes = Informer(
            store, registry.PRIORITY_CLASSES, PriorityClass, clock=clock
        )
        self.nodes = Informer(store, registry.NODES, Node, clock=clock)
        self.gpus = Informer(store, registry.GPUS, GPU, clock=clock, indexers={"node": _gpu_node})
        self.gpu_nodes = Informer(store, registry.GPU_NODES, GPUNode, clock=clock)
        self.pools = Informer(store, registry.GPU_POOLS, GPUPool, clock=clock)
        self.clusters = Informer(store, registry.CLUSTERS, TensorFusionCluster, clock=clock)
        self.templates = Informer(
            store, registry.SCHEDULING_CONFIGS, SchedulingConfigTemplate, clock=clock
        )
        self.quotas = Informer(store, registry.QUOTAS, GPUResourceQuota, clock=clock)
        self.workloads = Informer(store, registry.WORKLOADS, TensorFusionWorkload, clock=clock)
        self.profiles = Informer(store, registry.PROFILES, WorkloadProfile, clock=clock)
        self.connections = Informer(
            store, registry.CONNECTIONS, TensorFusionConnection, clock=clock
        )
        self.deployments = Informer(store, registry.DEPLOYMENTS, Deployment, clock=clock)
        self.replica_sets = Informer(
            store, registry.REPLICA_SETS, ReplicaSet, clock=clock, indexers={"owner": _owner}
        )

    def all(self) -> list[Informer[Any]]:
        """Every informer."""
        return [value for value in vars(self).values() if isinstance(value, Informer)]


def _pod_node(pod: Pod) -> Iterable[str]:
    node = pod_view.node_name(pod)
    return (node,) if node else ()


def _pod_workload(pod: Pod) -> Iterable[str]:
    workload = pod.metadata.labels.get(names.WORKLOAD, "")
    return (f"{pod.metadata.namespace}/{workload}",) if workload else ()


def _pod_gang(pod: Pod) -> Iterable[str]:
    gang = gang_key(pod)
    return (gang,) if gang else ()


def _owner(obj: Pod | ReplicaSet) -> Iterable[str]:
    return [o.uid for o in obj.metadata.owner_references if o.controller]


def _gpu_node(gpu: GPU) -> Iterable[str]:
    node = gpu.metadata.labels.get(names.MANAGED_BY, "")
    return (node,) if node else ()
