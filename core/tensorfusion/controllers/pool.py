"""Pools and clusters: sums over their nodes, readiness, and the pools that a cluster declares."""

from collections.abc import Mapping

from tensorfusion import names
from tensorfusion.api.cluster import TensorFusionCluster
from tensorfusion.api.decode import to_json
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import CLUSTERS, GPU_POOLS, SCHEDULING_CONFIGS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock
from tensorfusion.controllers import capacity
from tensorfusion.controllers.owned import owner_reference
from tensorfusion.controllers.status import MANAGER, ready, stalled, write_status
from tensorfusion.errors import AlreadyExists, NotFound, Terminal
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store

SETTLE_SECONDS = 2.0
"""Pause before sums are written again: changes of many nodes become one write."""
TEMPLATE_SECONDS = 30.0
"""Pause before a pool whose placement policy is unknown is looked at again."""


class PoolController:
    """Keeps a pool's status; holds a deleted pool back while it has nodes."""

    def __init__(
        self,
        store: Store,
        pools: Informer[GPUPool],
        gpu_nodes: Informer[GPUNode],
        *,
        policies: Mapping[str, object],
        clock: Clock,
    ) -> None:
        self._store = store
        self._pools = pools
        self._gpu_nodes = gpu_nodes
        self._policies = policies
        self._clock = clock
        self.controller = Controller(
            "pools", self.reconcile, clock=clock, on_terminal=self._terminal
        )
        pools.subscribe(self.controller.enqueue)
        gpu_nodes.subscribe(self._node_changed)

    def _node_changed(self, change: Change[GPUNode]) -> None:
        for node in (change.old, change.new):
            pool = node.metadata.labels.get(names.MANAGED_BY, "") if node is not None else ""
            if pool:
                self.controller.queue.add_after(pool, SETTLE_SECONDS)

    def _terminal(self, key: str, error: Terminal) -> None:
        pool = self._pools.get(key)
        if pool is not None:
            conditions = stalled(error.reason, str(error), pool.metadata.generation)
            write_status(self._store, GPU_POOLS, pool, {}, conditions, self._clock)
            # The template that names the policy may change without the pool being told.
            self.controller.queue.add_after(key, TEMPLATE_SECONDS)

    def reconcile(self, key: str) -> Result:
        """Sum up one pool."""
        pool = self._pools.get(key)
        if pool is None:
            return DONE
        nodes = [
            n for n in self._gpu_nodes.values() if n.metadata.labels.get(names.MANAGED_BY) == key
        ]
        if pool.metadata.deletion_timestamp:
            return self._finish(pool, nodes)
        if names.FINALIZER not in pool.metadata.finalizers:
            finalizers = [*pool.metadata.finalizers, names.FINALIZER]
            patch = {"metadata": {"finalizers": finalizers}}
            self._store.patch(GPU_POOLS, key, patch, field_manager=MANAGER)
            return DONE
        self._check_policy(pool)
        running = [n for n in nodes if n.status is not None and n.status.phase == "Running"]
        status = pool_status(nodes, len(running))
        is_ready = bool(nodes) and len(running) == len(nodes)
        reason = "AllNodesReady" if is_ready else ("NodesNotReady" if nodes else "NoNodes")
        status["phase"] = "Running" if is_ready else ("Updating" if nodes else "Pending")
        owners = [o.name for o in pool.metadata.owner_references if o.kind == "TensorFusionCluster"]
        if owners:
            status["cluster"] = owners[0]
        message = f"{len(running)} of {len(nodes)} nodes are ready"
        conditions = ready(is_ready, reason, message, pool.metadata.generation)
        write_status(self._store, GPU_POOLS, pool, status, conditions, self._clock)
        return DONE

    def _check_policy(self, pool: GPUPool) -> None:
        """Refuse a placement policy that no plugin offers.

        Raises:
            Terminal: There is none of that name; names those there are.
        """
        name = pool.spec.scheduling_config_template if pool.spec else ""
        try:
            template = self._store.get(SCHEDULING_CONFIGS, name) if name else {}
        except NotFound:
            return  # placement falls back to the default policy until there is one
        placement = template.get("spec", {}).get("placement", {})
        wanted = placement.get("policy") or placement.get("mode") or ""
        known = set(self._policies)
        known.update(a for p in self._policies.values() for a in getattr(p, "aliases", ()))
        if wanted and wanted not in known:
            raise Terminal(
                "UnknownPolicy",
                f"SchedulingConfigTemplate {name!r}: placement policy {wanted!r} is not installed;"
                f" installed: {', '.join(sorted(self._policies)) or 'none'}",
            )

    def _finish(self, pool: GPUPool, nodes: list[GPUNode]) -> Result:
        """Let a deleted pool go once no worker holds a share of its GPUs."""
        busy = [n for n in nodes if n.status is not None and n.status.total_gpu_pods]
        if busy:
            message = f"{len(busy)} nodes still have GPU pods"
            conditions = ready(False, "Draining", message, pool.metadata.generation)
            status = {"phase": "Destroying"}
            write_status(self._store, GPU_POOLS, pool, status, conditions, self._clock)
            return Result(requeue_seconds=SETTLE_SECONDS)
        finalizers = [f for f in pool.metadata.finalizers if f != names.FINALIZER]
        if len(finalizers) != len(pool.metadata.finalizers):
            patch = {"metadata": {"finalizers": finalizers or None}}
            self._store.patch(GPU_POOLS, pool.metadata.name, patch, field_manager=MANAGER)
        return DONE


class ClusterController:
    """Makes the pools that a cluster declares, and sums them up."""

    def __init__(
        self,
        store: Store,
        clusters: Informer[TensorFusionCluster],
        pools: Informer[GPUPool],
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._clusters = clusters
        self._pools = pools
        self._clock = clock
        self.controller = Controller("clusters", self.reconcile, clock=clock)
        clusters.subscribe(self.controller.enqueue)
        pools.subscribe(self._pool_changed)

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        pool = change.new or change.old
        for owner in pool.metadata.owner_references if pool is not None else ():
            if owner.kind == "TensorFusionCluster":
                self.controller.queue.add_after(owner.name, SETTLE_SECONDS)

    def reconcile(self, key: str) -> Result:
        """Bring the pools of one cluster in line with its spec."""
        cluster = self._clusters.get(key)
        if cluster is None or cluster.metadata.deletion_timestamp:
            return DONE
        owned = {
            p.metadata.name: p
            for p in self._pools.values()
            if any(o.uid == cluster.metadata.uid for o in p.metadata.owner_references)
        }
        wanted = self._wanted(cluster)
        for name, body in wanted.items():
            self._ensure(name, body, owned.get(name) or self._pools.get(name))
        for name in owned.keys() - wanted.keys():
            self._store.delete(GPU_POOLS, name)
        running = {
            n for n, p in owned.items() if p.status is not None and p.status.phase == "Running"
        }
        status = cluster_status(list(owned.values()), running)
        is_ready = bool(wanted) and wanted.keys() <= running
        status["phase"] = "Running" if is_ready else "Updating"
        reason = "AllPoolsReady" if is_ready else "PoolsNotReady"
        message = f"{len(running)} of {len(wanted)} pools are ready"
        conditions = ready(is_ready, reason, message, cluster.metadata.generation)
        write_status(self._store, CLUSTERS, cluster, status, conditions, self._clock)
        return DONE

    def _wanted(self, cluster: TensorFusionCluster) -> dict[str, JsonObject]:
        wanted: dict[str, JsonObject] = {}
        for definition in cluster.spec.gpu_pools if cluster.spec else ():
            name = f"{cluster.metadata.name}-{definition.name}"
            wanted[name] = {
                "apiVersion": names.API_VERSION,
                "kind": "GPUPool",
                "metadata": {
                    "name": name,
                    "labels": {names.MANAGED_BY: cluster.metadata.name},
                    "annotations": {
                        names.IS_DEFAULT_POOL: str(bool(definition.is_default)).lower()
                    },
                    "ownerReferences": [owner_reference(to_json(cluster))],
                },
                "spec": to_json(definition.spec_template),
            }
        return wanted

    def _ensure(self, name: str, body: JsonObject, present: GPUPool | None) -> None:
        if present is None:
            try:
                self._store.create(GPU_POOLS, body, field_manager=MANAGER)
            except AlreadyExists:
                return
            return
        same_spec = present.spec is not None and to_json(present.spec) == body["spec"]
        marks = body["metadata"]["annotations"]
        same_marks = marks.items() <= present.metadata.annotations.items()
        if not (same_spec and same_marks):
            patch = {"metadata": {"annotations": marks}, "spec": body["spec"]}
            self._store.patch(GPU_POOLS, name, patch, field_manager=MANAGER)


def pool_status(nodes: list[GPUNode], running: int) -> JsonObject:
    """Add the nodes of a pool up."""
    statuses = [n.status for n in nodes if n.status is not None]
    sums = capacity.total(capacity.of_status(s) for s in statuses)
    return {
        **capacity.to_status(sums),
        "totalNodes": len(nodes),
        "readyNodes": running,
        "notReadyNodes": len(nodes) - running,
        "totalGPUs": sum(s.total_gpus or 0 for s in statuses),
        "runningAppsCnt": sum(s.total_gpu_pods or 0 for s in statuses),
    }


def cluster_status(pools: list[GPUPool], running: set[str]) -> JsonObject:
    """Add the pools of a cluster up."""
    statuses = [p.status for p in pools if p.status is not None]
    sums = capacity.total(capacity.of_status(s) for s in statuses)
    names_of = {p.metadata.name for p in pools}
    return {
        **capacity.to_status(sums),
        "totalPools": len(pools),
        "totalNodes": sum(s.total_nodes or 0 for s in statuses),
        "totalGPUs": sum(s.total_gpus or 0 for s in statuses),
        "readyGPUPools": sorted(running),
        "notReadyGPUPools": sorted(names_of - running),
        "allocatedTFlopsPercent": _percent(sums.gflops - sums.available_gflops, sums.gflops),
        "allocatedVRAMPercent": _percent(
            sums.vram_bytes - sums.available_vram_bytes, sums.vram_bytes
        ),
    }


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else "0.00"
