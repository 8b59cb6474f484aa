"""Defragmentation: which little-used nodes can be emptied, and where their workers go.

Pure: everything is tried on the ledger itself and undone. A node is emptied as a whole or not at
all, since half an empty node frees nothing that a large request could use. Targets are nodes that
already run workers; moving onto an empty node would only trade one empty node for another.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tensorfusion.model.allocation import Allocation
from tensorfusion.model.demand import Demand
from tensorfusion.model.device import RUNNING
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit

DEFAULT_THRESHOLD_PERCENT: Final = 40
"""Share of a node's GPUs in use up to which it is worth emptying: the CRD's own default."""


class Mover(msgspec.Struct, frozen=True, kw_only=True):
    """A running worker as a move sees it.

    Attributes:
        demand: What it asks for; its uid is the key of the worker.
        obstacle: Why it must stay; empty when it may be moved.
        budgets: Disruption budgets that cover it.
        lost_gpu_seconds: GPU-time used since it started, which a restart throws away.
    """

    demand: Demand
    obstacle: str = ""
    budgets: tuple[str, ...] = ()
    lost_gpu_seconds: int = 0


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that changes its node.

    Attributes:
        worker: Key of its allocation.
        name: ``namespace/name`` of its pod.
        source: Node it leaves.
        target: Node it goes to.
        devices: Uuids there.
        budgets: Disruption budgets it draws on.
        lost_gpu_seconds: See `Mover`.
    """

    worker: str
    name: str
    source: str
    target: str
    devices: tuple[str, ...]
    budgets: tuple[str, ...] = ()
    lost_gpu_seconds: int = 0


class Emptied(msgspec.Struct, frozen=True, kw_only=True):
    """A node that the plan empties, with what becomes free in one piece.

    Attributes:
        used_percent: Share of its GPUs in use before.
        gflops: Compute of its GPUs, GFLOP/s.
        vram_bytes: Their memory.
    """

    node: str
    used_percent: int
    gpus: int
    gflops: int
    vram_bytes: int
    moves: tuple[Move, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A node that stays as it is, and why."""

    node: str
    used_percent: int
    reason: str


class DefragPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes to empty, in order, and the others in use with the reason why not.

    Attributes:
        idle: How many nodes of the pool are empty already.
    """

    emptied: tuple[Emptied, ...]
    kept: tuple[Kept, ...]
    idle: int

    @property
    def moves(self) -> tuple[Move, ...]:
        """All moves, in order."""
        return tuple(move for node in self.emptied for move in node.moves)


class DefragRules(msgspec.Struct, frozen=True, kw_only=True):
    """What may be emptied.

    Attributes:
        threshold_percent: Nodes with more of their GPUs in use stay.
        held: Nodes that must not be disturbed, and why.
        begun: Nodes that are being emptied already; they come first, cordoned as they are.
    """

    threshold_percent: int = DEFAULT_THRESHOLD_PERCENT
    held: Mapping[str, str] = {}
    begun: frozenset[str] = frozenset()


def plan_defrag(
    engine: Engine, pool: str, movers: Mapping[str, Mover], rules: DefragRules
) -> DefragPlan:
    """Choose nodes to empty, the least used first; the engine is as before afterwards.

    Args:
        engine: Fleet and ledger.
        pool: Name of the pool; its nodes alone are sources and targets.
        movers: Every running worker by key.
        rules: What may be emptied.
    """
    return _Planning(engine, pool, movers, rules).run()


class _Planning:
    """One search; cordons nodes of the engine meanwhile."""

    def __init__(
        self, engine: Engine, pool: str, movers: Mapping[str, Mover], rules: DefragRules
    ) -> None:
        self._engine = engine
        self._movers = movers
        self._rules = rules
        self._nodes = {n.name: n for n in engine.fleet.nodes if n is not None and n.pool == pool}
        self._workers: dict[str, list[Allocation]] = {}
        for allocation in engine.ledger.allocations.values():
            self._workers.setdefault(allocation.node, []).append(allocation)
        self._used: dict[str, list[int]] = {name: [0, 0] for name in self._nodes}
        self._size: dict[str, list[int]] = {name: [0, 0] for name in self._nodes}
        for usage in engine.ledger.devices.values():
            device = usage.device
            if device is None or device.node not in self._nodes or device.phase != RUNNING:
                continue
            count = self._used[device.node]
            count[0] += bool(usage.members)
            count[1] += 1
            size = self._size[device.node]
            size[0] += device.capacity_gflops
            size[1] += device.capacity_vram_bytes
        self._received: set[str] = set()

    def run(self) -> DefragPlan:
        ledger = self._engine.ledger
        mark = ledger.checkpoint()
        busy = sorted(
            (name for name in self._nodes if self._workers.get(name)),
            key=lambda name: (
                name not in self._rules.begun,
                self._percent(name),
                len(self._workers[name]),
                name,
            ),
        )
        idle = self._nodes.keys() - set(busy)
        emptied: list[Emptied] = []
        kept: list[Kept] = []
        try:
            for name in idle:
                self._cordon(name)
            for name in busy:
                reason = self._obstacle(name)
                found = None if reason else self._try(name)
                if isinstance(found, Emptied):
                    emptied.append(found)
                else:
                    percent = self._percent(name)
                    kept.append(Kept(node=name, used_percent=percent, reason=reason or str(found)))
        finally:
            ledger.rollback(mark)
            for node in self._nodes.values():
                self._engine.upsert_node(node)
        return DefragPlan(emptied=tuple(emptied), kept=tuple(kept), idle=len(idle))

    def _percent(self, node: str) -> int:
        used, total = self._used[node]
        return 100 * used // total if total else 100

    def _cordon(self, node: str) -> None:
        self._engine.upsert_node(msgspec.structs.replace(self._nodes[node], schedulable=False))

    def _obstacle(self, node: str) -> str:
        """Say why a node is not even tried; empty when it is."""
        if node in self._rules.held:
            return self._rules.held[node]
        if not self._nodes[node].schedulable and node not in self._rules.begun:
            return "the node is cordoned"
        if node in self._received:
            return "workers of another node move here"
        percent, limit = self._percent(node), self._rules.threshold_percent
        if percent > limit:
            return f"{percent} % of its GPUs are in use, more than {limit} %"
        for allocation in self._workers[node]:
            mover = self._movers.get(allocation.key)
            name = f"{allocation.namespace}/{allocation.name}"
            if mover is None:
                return f"worker {name} is starting or ending"
            if mover.obstacle:
                return f"worker {name}: {mover.obstacle}"
        return ""

    def _try(self, node: str) -> Emptied | str:
        """Move everything off a node, or change nothing and say what does not fit."""
        ledger = self._engine.ledger
        workers = sorted(self._workers[node], key=_largest_first)
        mark = ledger.checkpoint()
        self._cordon(node)
        for worker in workers:
            ledger.release(worker.key)
        moves: list[Move] = []
        for worker in workers:
            mover = self._movers[worker.key]
            found = self._engine.place(mover.demand)
            if isinstance(found, NoFit):
                ledger.rollback(mark)
                self._engine.upsert_node(self._nodes[node])
                name = f"{worker.namespace}/{worker.name}"
                return f"worker {name} fits on no other node in use"
            self._engine.reserve(mover.demand, found)
            moves.append(_move(worker, mover, found))
        ledger.commit(mark)
        self._received.update(move.target for move in moves)
        gflops, vram = self._size[node]
        return Emptied(
            node=node,
            used_percent=self._percent(node),
            gpus=self._used[node][1],
            gflops=gflops,
            vram_bytes=vram,
            moves=tuple(moves),
        )


def _largest_first(worker: Allocation) -> tuple[int, int, int, str]:
    """Large workers have the fewest places to go."""
    usage = worker.usage
    return (-len(worker.takes), -usage.request_vram_bytes, -usage.request_gflops, worker.key)


def _move(worker: Allocation, mover: Mover, found: Placement) -> Move:
    return Move(
        worker=worker.key,
        name=f"{worker.namespace}/{worker.name}",
        source=worker.node,
        target=found.node,
        devices=found.devices,
        budgets=mover.budgets,
        lost_gpu_seconds=mover.lost_gpu_seconds,
    )
