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
from tensorfusion.app.snapshot import Lists, engine_from, read_objects
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
        engine = engine_from(read_objects(self._store), self._policies)
        pods = [decode(Pod, o) for o in self._store.list(registry.PODS).items]
        budgets = [decode(PodDisruptionBudget, o) for o in self._store.list(registry.PDBS).items]
        disruptable = disruptable_of(engine.ledger, pods, budgets, lambda _pod: 0, now)
        rules = defrag_rules(self._pool(pool), self._gpu_nodes(), self._nodes())
        if threshold_percent is not None:
            rules = msgspec.structs.replace(rules, threshold_percent=threshold_percent)
        return plan_defrag(engine, pool, movers_of(engine.ledger, pods, disruptable), rules)

    def compaction(self, pool: str, now: float) -> CompactionPlan:
        """Plan which empty nodes to give back."""
        engine = engine_from(read_objects(self._store), self._policies)
        sizes = node_sizes(pool, self._gpu_nodes(), self._nodes(), engine.ledger, now)
        return plan_compaction(sizes, floor_of(self._pool(pool)))

    def _pool(self, name: str) -> GPUPool:
        found = [
            obj
            for obj in self._store.list(registry.GPU_POOLS).items
            if obj["metadata"]["name"] == name
        ]
        return decode(GPUPool, found[0])

    def _gpu_nodes(self) -> list[GPUNode]:
        return [decode(GPUNode, o) for o in self._store.list(registry.GPU_NODES).items]

    def _nodes(self) -> dict[str, Node]:
        nodes = [decode(Node, o) for o in self._store.list(registry.NODES).items]
        return {node.metadata.name: node for node in nodes}
