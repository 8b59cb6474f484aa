"""The placement engine: one request in, one node and its devices out.

A decision costs what changed since the shape was last seen, plus one search for the best of one
number per node. Nothing walks the devices of the fleet for a shape the engine knows.

Order of the rules: pool, phase, owner, vendor, model, isolation, index, node name, selector,
affinity, cordon, taints, worker cap, whole-card and isolation locks, amounts, limits, same node.
Ties go to the node with the smallest name, then to the card with the smallest index.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from tensorfusion.model.candidates import (
    NOT_FITTING,
    SCORE_SCALE,
    ShapeKeys,
    StaticMasks,
    Suitability,
    Tables,
    gate_bit,
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

CACHED_SHAPES: Final = 1024
"""Shapes whose keys are kept; eight bytes per node each."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes.

    Attributes:
        node: Node name.
        devices: Uuids in order of index.
        containers: Container name and its devices, when the pod deals them out itself.
        score: Score of the node by the policy.
        policy: Name of the policy.
    """

    node: str
    devices: tuple[str, ...]
    score: float
    policy: str
    containers: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Engine:
    """Fleet, ledger and caches as one thing that can decide.

    Concurrency: not safe for threads; the owner serialises calls.
    """

    def __init__(self, policy: Scorer, ledger: Ledger | None = None) -> None:
        """Start with an empty fleet.

        Args:
            policy: Scores for pools without a policy of their own.
            ledger: Accounts to place against; its listener is taken over.
        """
        self.fleet = Fleet()
        self.ledger = ledger or Ledger()
        self.ledger.listener = self.fleet.usage_changed
        self._policy = policy
        self._pool_policies: dict[str, Scorer] = {}
        self._masks = StaticMasks(self.fleet)
        self._suitabilities: dict[tuple[object, ...], Suitability] = {}
        self._tables: dict[tuple[object, ...], Tables] = {}
        self._shapes: dict[tuple[str, Shape], ShapeKeys] = {}
        self._refusals: dict[tuple[str, Shape], tuple[int, NoFit]] = {}
        self._static_exclusions: dict[tuple[object, ...], StaticExclusions] = {}
        self._layout = self.fleet.layout

    def set_policy(self, pool: str, policy: Scorer) -> None:
        """Choose the policy of a pool."""
        if self._pool_policies.get(pool) is not policy:
            self._pool_policies[pool] = policy
            self._forget()

    def upsert_node(self, node: NodeInfo) -> None:
        """Add a node or replace what is known about it."""
        self.fleet.put_node(node, self.ledger.workers_on(node.name))

    def remove_node(self, name: str) -> None:
        """Remove a node and its devices; workers there keep their record until released."""
        for uuid in self.fleet.remove_node(name):
            self.ledger.remove_device(uuid)

    def upsert_device(self, device: Device) -> None:
        """Add a device or replace what is known about it; usage stays."""
        known = self.ledger.devices.get(device.uuid)
        if known is not None and known.device == device:
            return
        usage = self.ledger.set_device(device)
        self.fleet.put_device(usage, self.ledger.workers_on(device.node))

    def remove_device(self, uuid: str) -> None:
        """Remove a device; workers on it keep their record until released."""
        self.fleet.remove_device(uuid)
        self.ledger.remove_device(uuid)

    def place(self, demand: Demand) -> Placement | NoFit:
        """Decide where a request goes; changes nothing.

        Returns:
            A placement, or the reasons why there is none.
        """
        shape = demand.shape
        policy = self._pool_policies.get(shape.pool, self._policy)
        key = (policy.name, shape)
        if self._layout != self.fleet.layout:
            self._forget()
        entry = self._shapes.get(key)
        if entry is None:
            entry = self._new_entry(key, policy)
        if self.ledger.quotas.governs(demand.namespace):
            refusal = self._precheck(demand, entry)
            if refusal is not None:
                return refusal
        tables = entry.catch_up(lambda: self._own_tables(entry, policy))
        found = self._pick(entry, tables)
        if found is None:
            return self._refuse(key)
        slot, positions = found
        block = self.fleet.blocks[slot]
        devices = tuple([block[position].uuid for position in positions])
        node = self.fleet.nodes[slot]
        return Placement(
            node=node.name if node is not None else "",
            devices=devices,
            score=int(entry.keys[slot]) / SCORE_SCALE,
            policy=policy.name,
            containers=shape.deal(devices) if shape.containers else (),
        )

    def reserve(self, demand: Demand, placement: Placement) -> Change:
        """Take the devices of a placement for the request.

        Raises:
            AllocationRefused: The fleet changed since, or a quota would break.
        """
        return self.ledger.allocate(demand, placement.devices)

    def resize(self, key: str, request: Amount, limit: Amount) -> Change:
        """Change a worker's amounts in place; see `Ledger.resize`."""
        return self.ledger.resize(key, request, limit)

    def explain(self, shape: Shape) -> tuple[int, int, tuple[Exclusion, ...]]:
        """Count what each constraint removes, whether or not the request fits.

        Returns:
            GPUs in the fleet, GPUs that remain, and the exclusions in order.
        """
        if self._layout != self.fleet.layout:
            self._forget()
        return explain(self.fleet, shape, self._static(shape))

    def _precheck(self, demand: Demand, entry: ShapeKeys) -> NoFit | None:
        """Refuse what no choice of devices could bring below the quota."""
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

    def _pick(self, entry: ShapeKeys, tables: Tables) -> tuple[int, list[int]] | None:
        """Return the best node slot and the device slots to take, in order of index."""
        if not self.fleet.size:
            return None
        keys = entry.keys
        slot = int(keys.argmax())
        best = keys[slot]
        if best == NOT_FITTING:
            return None
        if not self.fleet.ordered:
            slot = self.fleet.first_by_name(np.flatnonzero(keys == best).tolist())
        fitting = entry.fitting(slot)
        count = entry.shape.gpu_count
        if len(fitting) > count:
            scores = tables.device_scores(slot)
            # The sort is stable, so equal scores stay in order of index.
            fitting.sort(key=scores.__getitem__, reverse=True)
            fitting = sorted(fitting[:count]) if count > 1 else fitting[:1]
        return slot, fitting

    def _refuse(self, key: tuple[str, Shape]) -> NoFit:
        version = self.fleet.journal.version
        known = self._refusals.get(key)
        if known is not None and known[0] == version:
            return known[1]
        shape = key[1]
        total, _, exclusions = explain(self.fleet, shape, self._static(shape))
        lasting = sum(item.removed for item in exclusions if item.constraint in STATIC_CONSTRAINTS)
        refusal = NoFit(total=total, exclusions=exclusions, resolvable=0 < total > lasting)
        if len(self._refusals) >= CACHED_SHAPES:
            self._refusals.clear()
            self._static_exclusions.clear()
        self._refusals[key] = (version, refusal)
        return refusal

    def _static(self, shape: Shape) -> StaticExclusions:
        kind = _kind(shape)
        found = self._static_exclusions.get(kind)
        if found is None or found.version != self.fleet.static_journal.version:
            found = StaticExclusions(self.fleet, shape, self._masks)
            self._static_exclusions[kind] = found
        return found

    def _new_entry(self, key: tuple[str, Shape], policy: Scorer) -> ShapeKeys:
        shape = key[1]
        if max(len(self._shapes), len(self._suitabilities), len(self._tables)) >= CACHED_SHAPES:
            self._forget()
        kind = _kind(shape)
        suitability = self._suitabilities.get(kind)
        if suitability is None:
            suitability = Suitability(self.fleet, self._masks, shape)
            self._suitabilities[kind] = suitability
        shared = None
        if not policy.reads_demand:
            common = (policy.name, gate_bit(shape))
            shared = self._tables.get(common)
            if shared is None:
                shared = self._tables[common] = Tables(self.fleet, policy, shape, None)
        entry = self._shapes[key] = ShapeKeys(self.fleet, shape, suitability, shared)
        return entry

    def _own_tables(self, entry: ShapeKeys, policy: Scorer) -> Tables:
        shape = entry.shape
        kind = (policy.name, shape) if policy.reads_demand else (policy.name, *_kind(shape))
        tables = self._tables.get(kind)
        if tables is None:
            tables = Tables(self.fleet, policy, shape, entry.suitability)
            self._tables[kind] = tables
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
    return (profile_key(shape), node_key(shape), shape.indices, shape.exclusive)


def build_engine(
    policy: Scorer, nodes: Mapping[str, NodeInfo], devices: Mapping[str, Device]
) -> Engine:
    """Make an engine for a whole fleet at once, nodes in order of name."""
    engine = Engine(policy)
    for name in sorted(nodes):
        engine.upsert_node(nodes[name])
    for uuid in sorted(devices):
        engine.upsert_device(devices[uuid])
    return engine
