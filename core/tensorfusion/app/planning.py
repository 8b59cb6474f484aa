"""Plans for a pool from objects: of a running store, or of a snapshot file."""

from collections.abc import Mapping

import msgspec

from tensorfusion.api import registry
from tensorfusion.api.core.cluster import PodDisruptionBudget
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool
from tensorfusion.app.snapshot import Lists, Snapshot, engine_from, read_objects
from tensorfusion.model.compaction import CompactionPlan, plan_compaction
from tensorfusion.model.defrag import DefragPlan, plan_defrag
from tensorfusion.scheduling.disruption import disruptable_of
from tensorfusion.scheduling.moves import defrag_rules, floor_of, movers_of, node_sizes
from tensorfusion.spi.policy import PlacementPolicy


class PoolPlanner:
    """Makes plans for the pools of a store; every plan reads everything anew.

    Args:
        store: Where the objects are.
        policies: Installed placement policies by name.
    """

    def __init__(self, store: Lists, policies: Mapping[str, PlacementPolicy]) -> None:
        self._store = store
        self._policies = policies

    def pools(self) -> list[str]:
        """Names of all pools, sorted."""
        items = self._store.list(registry.GPU_POOLS).items
        return sorted(obj["metadata"]["name"] for obj in items)

    def defrag(self, pool: str, now: float, threshold_percent: int | None = None) -> DefragPlan:
        """Plan which nodes to empty.

        Args:
            pool: Name of a pool.
            now: Epoch seconds; decides what is protected.
            threshold_percent: Instead of what the pool says.
        """
        objects = self._read()
        engine = engine_from(objects.all(), self._policies)
        pods = [decode(Pod, o) for o in objects.list(registry.PODS).items]
        budgets = [decode(PodDisruptionBudget, o) for o in objects.list(registry.PDBS).items]
        disruptable = disruptable_of(engine.ledger, pods, budgets, lambda _pod: 0, now)
        rules = defrag_rules(_pool(objects, pool), _gpu_nodes(objects), _nodes(objects))
        if threshold_percent is not None:
            rules = msgspec.structs.replace(rules, threshold_percent=threshold_percent)
        return plan_defrag(engine, pool, movers_of(engine.ledger, pods, disruptable), rules)

    def compaction(self, pool: str, now: float) -> CompactionPlan:
        """Plan which empty nodes to give back."""
        objects = self._read()
        engine = engine_from(objects.all(), self._policies)
        sizes = node_sizes(pool, _gpu_nodes(objects), _nodes(objects), engine.ledger, now)
        return plan_compaction(sizes, floor_of(_pool(objects, pool)))

    def _read(self) -> Snapshot:
        """Read everything once, so that all parts of a plan are about the same objects."""
        return Snapshot(read_objects(self._store), "the store")


def _pool(objects: Snapshot, name: str) -> GPUPool:
    return decode(GPUPool, objects.get(registry.GPU_POOLS, name))


def _gpu_nodes(objects: Snapshot) -> list[GPUNode]:
    return [decode(GPUNode, o) for o in objects.list(registry.GPU_NODES).items]


def _nodes(objects: Snapshot) -> dict[str, Node]:
    nodes = [decode(Node, o) for o in objects.list(registry.NODES).items]
    return {node.metadata.name: node for node in nodes}
