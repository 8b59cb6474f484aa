"""Giving empty nodes back: the mark that a cluster's autoscaler or an operator acts on.

A node that can go gets the label ``should-delete``; one that is needed again loses it. Nothing is
cordoned: a worker that comes to a marked node keeps it.
"""

from collections.abc import Callable

from tensorfusion import names
from tensorfusion.api.core.node import Node
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import GPU_POOLS, NODES
from tensorfusion.clock import Clock, format_timestamp, parse_timestamp
from tensorfusion.errors import ConfigError, NotFound
from tensorfusion.model.compaction import CompactionPlan
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder, subject
from tensorfusion.scheduling.moves import asks_anew
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store
from tensorfusion.units import parse_duration

MANAGER = "tensorfusion-scheduler"


class Compactor:
    """Marks nodes of pools that have a ``nodeCompaction`` block, or whose owner asks for it.

    Args:
        plan: Plans a pool: (name, epoch seconds) to plan.
    """

    def __init__(
        self,
        store: Store,
        pools: Informer[GPUPool],
        nodes: Informer[Node],
        *,
        plan: Callable[[str, float], CompactionPlan],
        clock: Clock,
        events: EventRecorder,
    ) -> None:
        self._store = store
        self._pools = pools
        self._nodes = nodes
        self._plan = plan
        self._clock = clock
        self._events = events
        self.controller = Controller("compaction", self.reconcile, clock=clock)
        pools.subscribe(self._pool_changed)

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        if asks_anew(change):
            self.controller.queue.add(change.key)

    def reconcile(self, key: str) -> Result:
        """Look at one pool if it is time."""
        pool = self._pools.get(key)
        if pool is None:
            return DONE
        try:
            due = self._due_in(pool)
        except ConfigError as error:
            self._event(pool, "CompactionConfigInvalid", str(error), warning=True)
            return DONE
        if due is None:
            return DONE
        if due > 0:
            return Result(requeue_seconds=due)
        now = self._clock.now()
        goes = set(self._plan(key, now).goes)
        for node in self._nodes.values():
            self._mark(pool, node, goes)
        done = {"status": {"lastCompactionTime": format_timestamp(now)}}
        self._store.patch(GPU_POOLS, key, done, subresource="status", field_manager=MANAGER)
        return Result(requeue_seconds=self._period(pool) or None)

    def _period(self, pool: GPUPool) -> float:
        """Seconds between two looks; 0 without a ``nodeCompaction`` block."""
        config = pool.spec.node_manager_config if pool.spec else None
        if config is None or config.node_compaction is None:
            return 0.0
        try:
            return parse_duration(config.node_compaction.period)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"nodeCompaction.period: {error}") from error

    def _due_in(self, pool: GPUPool) -> float | None:
        """Seconds until the next look, not above 0 when it is due; None for never."""
        last = pool.status.last_compaction_time if pool.status is not None else None
        done = parse_timestamp(last) if last else 0.0
        asked = pool.metadata.annotations.get(names.MANUAL_COMPACTION, "")
        if asked:
            try:
                if parse_timestamp(asked) > done:
                    return 0.0
            except ValueError as error:
                raise ConfigError(
                    f"annotation {names.MANUAL_COMPACTION} is {asked!r}, allowed is a time such as"
                    " 2026-01-31T12:00:00Z"
                ) from error
        period = self._period(pool)
        return done + period - self._clock.now() if period else None

    def _mark(self, pool: GPUPool, node: Node, goes: set[str]) -> None:
        """Set or take away the mark of one node; marks that others set stay."""
        name, marked = node.metadata.name, node.metadata.labels.get(names.SHOULD_DELETE)
        ours = node.metadata.annotations.get(names.SHOULD_DELETE_POOL) == pool.metadata.name
        if name in goes and not marked:
            self._patch(name, "true", pool.metadata.name)
            self._event(pool, "Compaction", f"node {name} is empty and not needed")
        elif name not in goes and marked and ours:
            self._patch(name, None, None)
            self._event(pool, "CompactionReverted", f"node {name} is needed again")

    def _patch(self, node: str, label: str | None, pool: str | None) -> None:
        patch = {
            "metadata": {
                "labels": {names.SHOULD_DELETE: label},
                "annotations": {names.SHOULD_DELETE_POOL: pool},
            }
        }
        try:
            self._store.patch(NODES, node, patch, field_manager=MANAGER)
        except NotFound:
            return

    def _event(self, pool: GPUPool, reason: str, message: str, *, warning: bool = False) -> None:
        about = subject(GPU_POOLS, pool.metadata)
        self._events.event(about, reason, message, warning=warning)
