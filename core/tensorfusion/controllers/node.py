"""GPU nodes: which pool a Node belongs to, its GPUs, and what they add up to."""

from collections.abc import Callable, Mapping

from tensorfusion import names
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.scheduling import NodeSelector
from tensorfusion.api.decode import to_json
from tensorfusion.api.gpu import GPU
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import GPU_NODES, GPUS, NODES
from tensorfusion.clock import Clock
from tensorfusion.controllers import capacity
from tensorfusion.controllers.owned import owner_reference
from tensorfusion.controllers.status import MANAGER, ready, write_status
from tensorfusion.controllers.taints import set_taint
from tensorfusion.errors import AlreadyExists
from tensorfusion.model.demand import Requirement, SelectorTerm
from tensorfusion.model.device import Device
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store

SETTLE_SECONDS = 1.0
"""Pause before sums are written again: many placements on a node become one write."""


class NodeController:
    """Makes GPUNode objects and keeps them true; ``gpus`` is indexed by ``node``.

    Args:
        devices: The fleet's devices by uuid, for their virtual capacity.
        marks: Nodes with workers get a taint that native GPU pods would rather avoid, as
            progressive migration has it; otherwise a taint that was left is removed.
    """

    def __init__(
        self,
        store: Store,
        nodes: Informer[Node],
        gpu_nodes: Informer[GPUNode],
        gpus: Informer[GPU],
        pools: Informer[GPUPool],
        *,
        devices: Callable[[], Mapping[str, Device]],
        clock: Clock,
        marks: bool = False,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._gpu_nodes = gpu_nodes
        self._gpus = gpus
        self._pools = pools
        self._devices = devices
        self._clock = clock
        self._marks = marks
        self.controller = Controller("nodes", self.reconcile, clock=clock)
        nodes.subscribe(self._node_changed)
        gpu_nodes.subscribe(self.controller.enqueue)
        gpus.subscribe(self._gpu_changed)
        pools.subscribe(self._pool_changed)

    def _node_changed(self, change: Change[Node]) -> None:
        self.controller.queue.add(change.key)

    def _gpu_changed(self, change: Change[GPU]) -> None:
        gpu = change.new or change.old
        node = gpu.metadata.labels.get(names.MANAGED_BY, "") if gpu is not None else ""
        if not node:
            return
        if change.old is None:
            self.controller.queue.add(node)
        else:
            self.controller.queue.add_after(node, SETTLE_SECONDS)

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        before = change.old.spec if change.old is not None else None
        after = change.new.spec if change.new is not None else None
        if before != after:
            for key in self._nodes.all_keys():
                self.controller.queue.add(key)

    def reconcile(self, key: str) -> Result:
        """Bring one GPUNode in line with its Node, its pool and its GPUs."""
        node = self._nodes.get(key)
        gpu_node = self._gpu_nodes.get(key)
        pool = self._pool_for(node, gpu_node) if node is not None else None
        if node is not None and pool is None:
            self._mark(node, used=False)
        if node is None or pool is None:
            self._release(self._gpus.by_index("node", key))
            if gpu_node is not None:
                self._store.delete(GPU_NODES, key)
            return DONE
        if gpu_node is None:
            self._create(node, pool)
            return DONE
        if gpu_node.metadata.labels.get(names.MANAGED_BY) != pool.metadata.name:
            self._move(gpu_node, pool)
            return DONE
        gpus = self._gpus.by_index("node", key)
        self._label(gpus, pool)
        self._write_status(node, gpu_node, gpus)
        self._mark(node, used=bool(_pods_on(gpus)))
        return DONE

    def _pool_for(self, node: Node, gpu_node: GPUNode | None) -> GPUPool | None:
        """The first pool, by name, whose selector matches the node.

        A pool that is being deleted takes no new nodes but keeps those it has until its workers
        are gone, unless another pool wants them.
        """
        for pool in sorted(self._pools.values(), key=lambda p: p.metadata.name):
            if not pool.metadata.deletion_timestamp and selects(pool, node):
                return pool
        held = gpu_node.metadata.labels.get(names.MANAGED_BY, "") if gpu_node is not None else ""
        last = self._pools.get(held)
        return last if last is not None and last.metadata.deletion_timestamp else None

    def _release(self, gpus: list[GPU]) -> None:
        """Take GPUs out of a pool; the objects stay, since their devices do."""
        for gpu in gpus:
            if names.GPU_POOL in gpu.metadata.labels:
                patch = {"metadata": {"labels": {names.GPU_POOL: None}}}
                self._store.patch(GPUS, gpu.metadata.name, patch, field_manager=MANAGER)

    def _create(self, node: Node, pool: GPUPool) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "GPUNode",
            "metadata": {
                "name": node.metadata.name,
                "labels": pool_labels(pool),
                "ownerReferences": [owner_reference(to_json(pool))],
            },
            "spec": {"manageMode": "AutoSelect"},
        }
        try:
            self._store.create(GPU_NODES, body, field_manager=MANAGER)
        except AlreadyExists:
            return

    def _move(self, gpu_node: GPUNode, pool: GPUPool) -> None:
        stale = {k: None for k in gpu_node.metadata.labels if k.startswith(names.POOL_LABEL_PREFIX)}
        patch = {
            "metadata": {
                "labels": {**stale, **pool_labels(pool)},
                "ownerReferences": [owner_reference(to_json(pool))],
            }
        }
        self._store.patch(GPU_NODES, gpu_node.metadata.name, patch, field_manager=MANAGER)

    def _label(self, gpus: list[GPU], pool: GPUPool) -> None:
        for gpu in gpus:
            if gpu.metadata.labels.get(names.GPU_POOL) == pool.metadata.name:
                continue
            # Not owned by the GPUNode: a GPU object lives as long as its device, not its pool.
            patch = {"metadata": {"labels": {names.GPU_POOL: pool.metadata.name}}}
            self._store.patch(GPUS, gpu.metadata.name, patch, field_manager=MANAGER)

    def _mark(self, node: Node, *, used: bool) -> None:
        """Put the taint on a node with workers, take it off one without."""
        wanted = self._marks and used
        taints = node.spec.taints if node.spec is not None else ()
        if wanted == any(taint.key == names.USED_BY_TAINT for taint in taints):
            return
        taint = {"value": names.SYSTEM, "effect": "PreferNoSchedule"} if wanted else None
        found = self._store.get(NODES, node.metadata.name)
        set_taint(self._store, found, names.USED_BY_TAINT, taint)

    def _write_status(self, node: Node, gpu_node: GPUNode, gpus: list[GPU]) -> None:
        devices = self._devices()
        present = [g for g in gpus if names.GPU_MISSING_SINCE not in g.metadata.annotations]
        sums = capacity.total(capacity.of_gpu(g, devices.get(g.metadata.name)) for g in present)
        node_ready = any(
            c.type == "Ready" and c.status == "True"
            for c in (node.status.conditions if node.status else ())
        )
        healthy = [g for g in present if g.status is not None and g.status.phase == "Running"]
        is_ready = node_ready and bool(healthy)
        reason = (
            "HypervisorReady" if is_ready else ("NoHealthyGPU" if node_ready else "NodeNotReady")
        )
        message = f"{len(healthy)} of {len(gpus)} GPUs are healthy"
        status = {
            "phase": "Running" if is_ready else "Pending",
            **capacity.to_status(sums),
            "totalGPUs": len(gpus),
            "managedGPUs": len(present),
            "managedGPUDeviceIDs": sorted(g.metadata.name for g in present),
            "totalGPUPods": len(_pods_on(present)),
        }
        conditions = ready(is_ready, reason, message, gpu_node.metadata.generation)
        write_status(self._store, GPU_NODES, gpu_node, status, conditions, self._clock)


def _pods_on(gpus: list[GPU]) -> set[str]:
    """Return the uids of the pods that hold shares of cards."""
    return {
        pod.uid
        for gpu in gpus
        if gpu.status is not None
        for app in gpu.status.running_apps
        for pod in app.pods
    }


def pool_labels(pool: GPUPool) -> dict[str, str]:
    """Labels that say which pool a node belongs to."""
    name = pool.metadata.name
    return {names.MANAGED_BY: name, f"{names.POOL_LABEL_PREFIX}{name}": "true"}


def selects(pool: GPUPool, node: Node) -> bool:
    """Whether a pool claims a node: any of its selectors matches; without one, none does."""
    config = pool.spec.node_manager_config if pool.spec else None
    if config is None:
        return False
    selectors = [config.node_selector, *config.multi_vendor_node_selector.values()]
    return any(s is not None and matches(s, node) for s in selectors)


def matches(selector: NodeSelector, node: Node) -> bool:
    """Whether one of a selector's terms matches a node."""
    return any(
        SelectorTerm(
            tuple(Requirement(e.key, e.operator, e.values) for e in term.match_expressions),
            tuple(Requirement(e.key, e.operator, e.values) for e in term.match_fields),
        ).matches(node.metadata.name, node.metadata.labels)
        for term in selector.node_selector_terms
    )
