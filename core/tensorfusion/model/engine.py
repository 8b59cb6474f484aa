"""The placement engine: one request in, one node and its devices out.

A decision costs what changed since the shape was last seen, plus one search for the best of one
number per node. Nothing walks the devices of the fleet for a shape the engine knows.

Order of the rules: pool, phase, owner, vendor, model, isolation, index, node name, selector,
affinity, cordon, taints, worker cap, whole-card and isolation locks, amounts, limits, same node,
CPU and memory of the node. Which of equals is taken is `tensorfusion.model.ties`.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from tensorfusion.model.allocation import Allocation, DeviceUsage, cuts_held
from tensorfusion.model.candidates import (
    NOT_FITTING,
    SCORE_SCALE,
    ShapeKeys,
    StaticMasks,
    Suitability,
    Tables,
    scaled,
)
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.explain import (
    STATIC_CONSTRAINTS,
    Exclusion,
    NoFit,
    StaticExclusions,
    explain,
)
from tensorfusion.model.filters import node_key, profile_key
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.ledger import Change, Ledger
from tensorfusion.model.rows import Scorer
from tensorfusion.model.surroundings import Surroundings, concerned
from tensorfusion.model.ties import Ties
from tensorfusion.model.topology import Connection
from tensorfusion.model.typical import count_shapes, most_typical
from tensorfusion.model.wishes import wishes_of

CACHED_SHAPES: Final = 1024
"""Shapes whose keys are kept; eight bytes per node each."""

_TRIES: Final = 4
"""Nodes looked at one by one before all of them are looked at in one go."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes.

    Attributes:
        node: Node name.
        devices: Uuids in order of index.
        containers: Container name and its devices, when the pod deals them out itself.
        connection: How several devices are connected; None when nothing is known or wished.
        score: Score of the node by the policy.
        policy: Name of the policy.
    """

    node: str
    devices: tuple[str, ...]
    score: float
    policy: str
    containers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    connection: Connection | None = None


class Engine:
    """Fleet, ledger and caches as one thing that can decide.

    Concurrency: not safe for threads; the owner serialises calls.
    """

    def __init__(
        self, policy: Scorer, ledger: Ledger | None = None, ties: Ties | None = None
    ) -> None:
        """Start with an empty fleet.

        Args:
            policy: Scores for pools without a policy of their own.
            ledger: Accounts to place against; its listener is taken over.
            ties: Rule for pools without a rule of their own; by name when not given.
        """
        self.fleet = Fleet()
        self.ledger = ledger or Ledger()
        self.ledger.listener = self.fleet.usage_changed
        self._policy = policy
        self._ties = ties or Ties()
        self._pool_policies: dict[str, Scorer] = {}
        self._pool_ties: dict[str, Ties] = {}
        self._masks = StaticMasks(self.fleet)
        self._suitabilities: dict[tuple[object, ...], Suitability] = {}
        self._tables: dict[tuple[object, ...], Tables] = {}
        self._shapes: dict[tuple[str, Shape], ShapeKeys] = {}
        self._refusals: dict[Shape, tuple[int, NoFit]] = {}
        self._static_exclusions: dict[tuple[object, ...], StaticExclusions] = {}
        self._layout = self.fleet.layout
        self._learns = True
        self._learnt_from = 0

    def set_policy(self, pool: str, policy: Scorer, ties: Ties | None = None) -> None:
        """Choose the policy of a pool, and its rule for ties when it has one of its own."""
        if ties is None:
            self._pool_ties.pop(pool, None)
        else:
            self._pool_ties[pool] = ties
        if self._pool_policies.get(pool) is not policy:
            self._pool_policies[pool] = policy
            self._forget()

    def upsert_node(self, node: NodeInfo) -> None:
        """Add a node or replace what is known about it."""
        self.ledger.set_node(node)
        self.fleet.put_node(node, self.ledger.node_usage(node.name))

    def remove_node(self, name: str) -> None:
        """Remove a node and its devices; workers there keep their record until released."""
        for uuid in self.fleet.remove_node(name):
            self.ledger.remove_device(uuid)
        self.ledger.remove_node(name)

    def upsert_device(self, device: Device) -> None:
        """Add a device or replace what is known about it; usage stays."""
        known = self.ledger.devices.get(device.uuid)
        if known is not None and known.device == device:
            return
        usage = self.ledger.set_device(device)
        self.fleet.put_device(usage, self.ledger.node_usage(device.node))

    def upsert_devices(self, devices: Iterable[Device]) -> None:
        """Add devices or replace what is known about them; those of a node are one change."""
        by_node: dict[str, list[DeviceUsage]] = {}
        for device in devices:
            known = self.ledger.devices.get(device.uuid)
            if known is None or known.device != device:
                usage = self.ledger.set_device(device)
                by_node.setdefault(device.node, []).append(usage)
        for node, usages in by_node.items():
            self.fleet.put_devices(node, usages, self.ledger.node_usage(node))

    def remove_device(self, uuid: str) -> None:
        """Remove a device; workers on it keep their record until released."""
        self.fleet.remove_device(uuid)
        self.ledger.remove_device(uuid)

    def place(self, demand: Demand) -> Placement | NoFit:
        """Decide where a request goes; changes nothing.

        Returns:
            A placement, or the reasons why there is none.
        """
        refusal = self.precheck(demand)
        if refusal is not None:
            return refusal
        if self._pool_policies.get(demand.shape.pool, self._policy).reads_demand:
            self._learn()
        return self.find(demand) or self._refuse(demand)

    def find(self, demand: Demand) -> Placement | None:
        """Decide as `place` does, without a look at quotas and without reasons."""
        shape = demand.shape
        policy = self._pool_policies.get(shape.pool, self._policy)
        entry = self._entry(policy, shape)
        tables = entry.catch_up(lambda: self._own_tables(entry, policy))
        ties = self._pool_ties.get(shape.pool, self._ties)
        if policy.random_ties:
            ties = ties.drawn
        picked = self._pick(entry, ties, demand.uid, self.surroundings(demand))
        return None if picked is None else self._placement(demand, entry, tables, ties, picked)

    def find_on(self, demand: Demand, node: str) -> Placement | None:
        """Decide as `find` does, on one node only; None when the request does not fit there."""
        shape = demand.shape
        policy = self._pool_policies.get(shape.pool, self._policy)
        entry = self._entry(policy, shape)
        tables = entry.catch_up(lambda: self._own_tables(entry, policy))
        slot = self.fleet.slot_of(node)
        if slot is None or entry.keys[slot] == NOT_FITTING:
            return None
        fitting = entry.fitting(slot)
        around = self.surroundings(demand)
        if around is not None:
            if around.keys(entry.keys, NOT_FITTING, SCORE_SCALE)[slot] == NOT_FITTING:
                return None
            fitting = around.allowed(slot, fitting)
        if not entry.will_do(slot, fitting):
            return None
        ties = self._pool_ties.get(shape.pool, self._ties)
        return self._placement(demand, entry, tables, ties, (slot, fitting, around))

    def surroundings(self, demand: Demand) -> Surroundings | None:
        """Return what other pods mean for a demand; None when nothing of them concerns it."""
        ledger = self.ledger
        taken = ledger.claims.taken(demand.claims) if demand.claims else ()
        if not taken and not concerned(ledger.peers, demand):
            return None
        suitability = self.suitability(demand.shape)
        suited = (suitability.nodes, suitability.cards)
        return Surroundings(self.fleet, ledger.peers, demand, suited, taken)

    def alternatives(
        self, shape: Shape, chosen: str, count: int = 2
    ) -> tuple[int, list[tuple[str, float]]]:
        """Tell what else was considered for a request that was just decided.

        Args:
            shape: The request.
            chosen: Name of the node that was taken.
            count: How many of the others to name.

        Returns:
            How many nodes may fit, by their largest free amounts; names and scores of the best
            ones besides the one chosen.
        """
        entry = self._entry(self._pool_policies.get(shape.pool, self._policy), shape)
        keys = entry.keys
        possible = (keys != NOT_FITTING).nonzero()[0]
        scores = keys[possible]
        if len(possible) > count + 1:
            best = scores.argpartition(len(scores) - count - 1)[-count - 1 :]
        else:
            best = np.arange(len(possible))
        nodes = self.fleet.nodes
        found = []
        for position in best[scores[best].argsort(kind="stable")[::-1]].tolist():
            node = nodes[possible[position]]
            if node is not None and node.name != chosen:
                found.append((node.name, int(scores[position]) / SCORE_SCALE))
        return len(possible), found[:count]

    @property
    def masks(self) -> StaticMasks:
        """Answers of the unchanging rules, kept over calls; for explanations."""
        if self._layout != self.fleet.layout:
            self._forget()
        return self._masks

    def suitability(self, shape: Shape) -> Suitability:
        """Return what a request may use, load aside, as of now; not to be changed."""
        entry = self._entry(self._pool_policies.get(shape.pool, self._policy), shape)
        entry.suitability.catch_up()
        return entry.suitability

    def _placement(
        self,
        demand: Demand,
        entry: ShapeKeys,
        tables: Tables,
        ties: Ties,
        picked: tuple[int, list[int], Surroundings | None],
    ) -> Placement:
        """Choose the cards on a node that fits."""
        shape = demand.shape
        policy = self._pool_policies.get(shape.pool, self._policy)
        slot, positions, around = picked
        if len(positions) > shape.gpu_count:
            rows = tables.rows(slice(slot, slot + 1))
            scores = scaled(policy.score_devices(shape, rows, self.fleet.statistics)[0])
            positions = ties.cards(self.fleet, slot, positions, scores.tolist(), demand.uid)
            if around is not None:
                positions = around.order(slot, positions)
            if entry.wishes is not None:
                positions = entry.wishes.choose(slot, positions)
            positions = sorted(positions[: shape.gpu_count])
        block = self.fleet.blocks[slot]
        devices = tuple([block[position].uuid for position in positions])
        node = self.fleet.nodes[slot]
        return Placement(
            node=node.name if node is not None else "",
            devices=devices,
            score=int(entry.keys[slot]) / SCORE_SCALE,
            policy=policy.name,
            containers=shape.deal(devices) if shape.containers else (),
            connection=entry.wishes.connection(slot, positions) if entry.wishes else None,
        )

    def reserve(self, demand: Demand, placement: Placement) -> Change:
        """Take the devices of a placement for the request.

        Raises:
            AllocationRefused: The fleet changed since, or a quota would break.
        """
        return self.ledger.allocate(demand, placement.devices, placement.node)

    def resize(self, key: str, request: Amount, limit: Amount) -> Change:
        """Change a worker's amounts in place; see `Ledger.resize`."""
        return self.ledger.resize(key, request, limit)

    def explain(
        self, shape: Shape, around: Surroundings | None = None
    ) -> tuple[int, int, tuple[Exclusion, ...]]:
        """Count what each constraint removes, whether or not the request fits.

        Args:
            shape: The request.
            around: What other pods mean for it.

        Returns:
            GPUs in the fleet, GPUs that remain, and the exclusions in order.
        """
        if self._layout != self.fleet.layout:
            self._forget()
        rules = around.rules if around is not None else ()
        return explain(self.fleet, shape, self._static(shape), rules)

    def set_typical(self, counts: Mapping[Shape, int]) -> None:
        """Say what requests usually look like, instead of learning it from the workers."""
        self._learns = False
        self.fleet.set_typical(counts)

    def _learn(self) -> None:
        """Take the present workers as typical, anew when a tenth of them came or went.

        The requests that failed are not among them, nor is what a pool allowed of models.
        """
        count = len(self.ledger.allocations)
        if not self._learns or 10 * abs(count - self._learnt_from) <= self._learnt_from:
            return
        self._learnt_from = count
        shapes = (_shape_of(one) for one in self.ledger.allocations.values())
        self.fleet.set_typical(most_typical(count_shapes(shapes)))

    def precheck(self, demand: Demand) -> NoFit | None:
        """Refuse what no choice of devices could bring below the quota."""
        shape = demand.shape
        if not shape.gpu_count or not self.ledger.quotas.governs(demand.namespace):
            return None
        entry = self._entry(self._pool_policies.get(shape.pool, self._policy), shape)
        entry.suitability.catch_up()
        lowest = entry.suitability.lowest_capacity_gflops()
        violations = self.ledger.quotas.precheck(demand, lowest)
        if not violations:
            return None
        return NoFit(
            total=self.fleet.statistics.devices,
            violations=tuple(violations),
            resolvable=all(violation.resolvable for violation in violations),
        )

    def _pick(
        self, entry: ShapeKeys, ties: Ties, uid: str, around: Surroundings | None
    ) -> tuple[int, list[int], Surroundings | None] | None:
        """Return the slot of the best node whose cards fit, and those; None when there is none."""
        if not self.fleet.size:
            return None
        if around is not None:
            return self._pick_around(entry, ties, uid, around)
        keys = entry.keys
        attempt = 0
        while True:
            slot = ties.node(self.fleet, keys, uid, attempt)
            if keys[slot] == NOT_FITTING:
                return None
            fitting = entry.fitting(slot)
            if len(fitting) >= entry.shape.gpu_count:
                return slot, fitting, None
            entry.drop(slot)
            attempt += 1
            if attempt == _TRIES:
                entry.prune()

    def _pick_around(
        self, entry: ShapeKeys, ties: Ties, uid: str, around: Surroundings
    ) -> tuple[int, list[int], Surroundings | None] | None:
        """Pick as `_pick` does, of what rules about other pods leave."""
        keys = around.keys(entry.keys, NOT_FITTING, SCORE_SCALE)
        attempt = 0
        while True:
            slot = ties.node(self.fleet, keys, uid, attempt)
            if keys[slot] == NOT_FITTING:
                return None
            fitting = around.allowed(slot, entry.fitting(slot))
            if entry.will_do(slot, fitting):
                return slot, fitting, around
            keys[slot] = NOT_FITTING
            attempt += 1

    def _refuse(self, demand: Demand) -> NoFit:
        shape = demand.shape
        version = self.fleet.journal.version
        around = self.surroundings(demand)
        known = self._refusals.get(shape)
        if known is not None and known[0] == version and around is None:
            return known[1]
        rules = around.rules if around is not None else ()
        total, _, exclusions = explain(self.fleet, shape, self._static(shape), rules)
        lasting = sum(item.removed for item in exclusions if item.constraint in STATIC_CONSTRAINTS)
        refusal = NoFit(total=total, exclusions=exclusions, resolvable=0 < total > lasting)
        if len(self._refusals) >= CACHED_SHAPES:
            self._refusals.clear()
            self._static_exclusions.clear()
        if around is None:
            self._refusals[shape] = (version, refusal)
        return refusal

    def _static(self, shape: Shape) -> StaticExclusions:
        kind = _kind(shape)
        found = self._static_exclusions.get(kind)
        if found is None or found.version != self.fleet.static_journal.version:
            found = StaticExclusions(self.fleet, shape, self._masks)
            self._static_exclusions[kind] = found
        return found

    def _entry(self, policy: Scorer, shape: Shape) -> ShapeKeys:
        if self._layout != self.fleet.layout:
            self._forget()
        key = (policy.name, shape)
        entry = self._shapes.get(key)
        if entry is not None:
            return entry
        if max(len(self._shapes), len(self._suitabilities), len(self._tables)) >= CACHED_SHAPES:
            self._forget()
        kind = _kind(shape)
        suitability = self._suitabilities.get(kind)
        if suitability is None:
            suitability = Suitability(self.fleet, self._masks, shape)
            self._suitabilities[kind] = suitability
        reads = policy.reads_demand
        shared = self._table(
            (_table_name(policy), self.fleet.gate_asked(shape)), policy, shape, None
        )
        wishes = wishes_of(self.fleet, shape)
        own = policy if reads else None
        entry = ShapeKeys(self.fleet, shape, suitability, shared, own, wishes)
        self._shapes[key] = entry
        return entry

    def _own_tables(self, entry: ShapeKeys, policy: Scorer) -> Tables:
        kind = (_table_name(policy), *_kind(entry.shape))
        return self._table(kind, policy, entry.shape, entry.suitability)

    def _table(
        self,
        key: tuple[object, ...],
        policy: Scorer,
        shape: Shape,
        suitability: Suitability | None,
    ) -> Tables:
        tables = self._tables.get(key)
        if tables is None:
            scores = None if policy.reads_demand else policy
            tables = self._tables[key] = Tables(self.fleet, scores, shape, suitability)
        return tables

    def _forget(self) -> None:
        self._suitabilities.clear()
        self._tables.clear()
        self._shapes.clear()
        self._refusals.clear()
        self._static_exclusions.clear()
        self._masks.clear()
        self._layout = self.fleet.layout


def _kind(shape: Shape) -> tuple[object, ...]:
    """Return everything in a shape but its amounts, count and containers."""
    return (
        profile_key(shape),
        node_key(shape),
        shape.indices,
        shape.exclusive,
        not shape.gpu_count,
    )


def _shape_of(allocation: Allocation) -> Shape:
    """Return what an allocation tells of the request it came from."""
    host = allocation.host
    cuts = list(cuts_held(allocation).values())
    return Shape(
        pool=allocation.pool,
        request=allocation.request,
        gpu_count=len(allocation.takes),
        isolation=allocation.isolation,
        partition=cuts[0].template if cuts else "",
        dedicated=allocation.exclusive,
        cpu_milli=0 if host is msgspec.UNSET else host.cpu_milli,
    )


def _table_name(policy: Scorer) -> str:
    """Policies that read the demand share tables, which then have no scores."""
    return "" if policy.reads_demand else policy.name


def build_engine(
    policy: Scorer,
    nodes: Mapping[str, NodeInfo],
    devices: Mapping[str, Device],
    ties: Ties | None = None,
) -> Engine:
    """Make an engine for a whole fleet at once, nodes in order of name."""
    engine = Engine(policy, ties=ties)
    for name in sorted(nodes):
        engine.upsert_node(nodes[name])
    engine.upsert_devices(devices[uuid] for uuid in sorted(devices))
    return engine
