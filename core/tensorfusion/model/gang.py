"""Gangs: pods that are placed together, or not at all.

A gang is tried as a whole on a checkpoint of the ledger. Either as many members as must be there
are reserved, or the ledger is exactly as before: a gang holds nothing while it waits, so two
gangs cannot block each other with halves.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from tensorfusion.model.candidates import Suitability, needs_of
from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.ledger import Change
from tensorfusion.model.rows import Ints
from tensorfusion.model.takes import AllocationRefused

ZONE_LABEL: Final = "topology.kubernetes.io/zone"
"""Node label that names the zone; nodes without it form a zone of their own."""

Closeness = Literal["any", "prefer", "require"]
"""Whether members should be near each other: no matter, if possible, or in one zone at least."""


class GangRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a gang that wait for a place.

    Attributes:
        key: What the members have in common, ``namespace/workload``.
        members: Their requests; the first ones are preferred when not all fit.
        required: Members that must have a place for the gang to start.
        placed: Members that have one already.
        closeness: See `Closeness`.
    """

    key: str
    members: tuple[Demand, ...]
    required: int
    placed: int = 0
    closeness: Closeness = "any"

    @property
    def needed(self) -> int:
        """Waiting members that must be placed together; 0 once the gang has its quorum."""
        return max(0, self.required - self.placed)


class Member(msgspec.Struct, frozen=True):
    """A member with its place, and the change that reserved it."""

    demand: Demand
    placement: Placement
    change: Change


class GangPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Members that were reserved together.

    Attributes:
        members: In the order in which they were reserved.
        left: Members beyond the quorum that found no room, and why.
    """

    members: tuple[Member, ...]
    left: tuple[tuple[Demand, NoFit], ...] = ()

    @property
    def changes(self) -> list[Change]:
        """What changed in the ledger, in order."""
        return [member.change for member in self.members]


class GangNoFit(msgspec.Struct, frozen=True, kw_only=True):
    """A gang that does not fit; nothing is reserved for it.

    Attributes:
        key: The gang.
        exist: Members that exist, with or without a place.
        fit: Members that would have found room together, with those placed already.
        required: Members that must.
        why: What kept the first one out that did not fit; None when too few members exist.
    """

    key: str
    exist: int
    fit: int
    required: int
    why: NoFit | None = None

    @property
    def message(self) -> str:
        """One sentence for people."""
        if self.why is None:
            return f"gang {self.key}: {self.exist} of {self.required} required members exist"
        return (
            f"gang {self.key}: {self.fit} of {self.required} required members fit together;"
            f" the next one: {self.why.message}"
        )


_SINGLE_NODES: Final = 8
"""Nodes that are tried for a whole gang; more than one only matters for members of several kinds."""

_TOO_FAR: Final = NoFit(total=0, note="no zone has room for the whole gang")


def place_gang(engine: Engine, request: GangRequest) -> GangPlan | GangNoFit:
    """Reserve the whole gang, or nothing.

    As many members as possible are placed, at least `GangRequest.needed`. Without a wish for
    closeness the pool's policy chooses for each; with one, a single node that holds all is
    preferred, then the zone where the fewest nodes are needed, then the fewest nodes anywhere.

    Args:
        engine: Decides and keeps the ledger; on success the reservations are in it.
        request: The gang.
    """
    exist = request.placed + len(request.members)
    if len(request.members) < request.needed:
        return GangNoFit(
            key=request.key, exist=exist, fit=request.placed, required=request.required
        )
    if request.closeness == "any":
        found = _attempt(engine, request.members, request.needed, Engine.place)
    else:
        found = _close(engine, request)
    if isinstance(found, GangPlan):
        return found
    fit, why = found
    return GangNoFit(
        key=request.key,
        exist=exist,
        fit=request.placed + fit,
        required=request.required,
        why=why,
    )


class _Packed:
    """Fills one node after the other, in a given set of nodes."""

    def __init__(self, engine: Engine, nodes: Iterable[str], members: Sequence[Demand]) -> None:
        self._nodes = list(nodes)
        self._left = len(members)
        self._filling: list[str] = []
        self._rooms: dict[Shape, dict[str, int]] = {}
        self._engine = engine

    def __call__(self, engine: Engine, demand: Demand) -> Placement | NoFit:
        """Stay on the nodes that are used already; else open the one that suits best."""
        refusal = engine.precheck(demand)
        if refusal is not None:
            return refusal
        for node in (*self._filling, *self._unused(demand.shape)):
            found = engine.find_on(demand, node)
            if found is not None:
                if node not in self._filling:
                    self._filling.append(node)
                self._left -= 1
                return found
        return _TOO_FAR

    def _unused(self, shape: Shape) -> Iterator[str]:
        """Yield the smallest node that holds all members left, if any, then the roomiest ones."""
        rooms = self._rooms.get(shape)
        if rooms is None:
            found = room(self._engine, shape)
            rooms = self._rooms[shape] = {n: found[n] for n in self._nodes if n in found}
        free = [(members, n) for n, members in rooms.items() if n not in self._filling]
        enough = min((pair for pair in free if pair[0] >= self._left), default=None)
        if enough is not None:
            yield enough[1]
        yield from (n for _, n in sorted((-members, n) for members, n in free))


def _attempt(
    engine: Engine,
    members: Sequence[Demand],
    needed: int,
    choose: Callable[[Engine, Demand], Placement | NoFit],
) -> GangPlan | tuple[int, NoFit]:
    """Reserve members one by one; undo everything when fewer than needed fit."""
    ledger = engine.ledger
    mark = ledger.checkpoint()
    placed: list[Member] = []
    left: list[tuple[Demand, NoFit]] = []
    for position, demand in enumerate(members):
        found = choose(engine, demand)
        if isinstance(found, Placement):
            try:
                placed.append(Member(demand, found, engine.reserve(demand, found)))
                continue
            except AllocationRefused as refusal:
                found = NoFit(total=0, violations=refusal.violations, note=str(refusal))
        left.append((demand, found))
        if len(placed) + len(members) - position - 1 < needed:
            break
    if len(placed) < needed or not placed:
        ledger.rollback(mark)
        return len(placed), left[0][1]
    ledger.commit(mark)
    return GangPlan(members=tuple(placed), left=tuple(left))


def _close(engine: Engine, request: GangRequest) -> GangPlan | tuple[int, NoFit]:
    """Try ever larger neighbourhoods, first for all members, then for those that must be."""
    members = request.members
    counts = Counter(member.shape for member in members)
    rooms = {shape: room(engine, shape) for shape in counts}
    nodes = sorted({node for found in rooms.values() for node in found})
    zones: dict[str, list[str]] = {}
    for node in nodes:
        zones.setdefault(_zone(engine, node), []).append(node)
    wider = [[zones[zone] for zone in sorted(zones)]]
    if request.closeness == "prefer":
        wider.append([nodes])
    most: tuple[int, NoFit] = (0, _TOO_FAR)
    for wanted in sorted({len(members), max(1, request.needed)}, reverse=True):
        holds = {n: sum(min(rooms[s].get(n, 0), c) for s, c in counts.items()) for n in nodes}
        enough = sorted(
            (sum(r.get(n, 0) for r in rooms.values()), n) for n in nodes if holds[n] >= wanted
        )
        for neighbourhoods in ([[node] for _, node in enough[:_SINGLE_NODES]], *wider):
            found = _best_of(engine, members, wanted, neighbourhoods)
            if isinstance(found, GangPlan):
                return found
            most = max(most, found, key=lambda item: item[0])
    refusal = engine.place(members[0])
    return (most[0], refusal if isinstance(refusal, NoFit) else most[1])


def _best_of(
    engine: Engine, members: Sequence[Demand], wanted: int, neighbourhoods: list[list[str]]
) -> GangPlan | tuple[int, NoFit]:
    """Reserve in the neighbourhood that needs the fewest nodes; the first of equals."""
    best: tuple[int, list[str]] | None = None
    most: tuple[int, NoFit] = (0, _TOO_FAR)
    for nodes in neighbourhoods:
        mark = engine.ledger.checkpoint()
        found = _attempt(engine, members, wanted, _Packed(engine, nodes, members))
        engine.ledger.rollback(mark)
        if isinstance(found, GangPlan):
            used = len({member.placement.node for member in found.members})
            if best is None or used < best[0]:
                best = (used, nodes)
            if used == 1:
                break
        elif found[0] > most[0]:
            most = found
    if best is None:
        return most
    return _attempt(engine, members, wanted, _Packed(engine, best[1], members))


def _zone(engine: Engine, node: str) -> str:
    slot = engine.fleet.slot_of(node)
    info = engine.fleet.nodes[slot] if slot is not None else None
    return info.labels.get(ZONE_LABEL, "") if info is not None else ""


def room(engine: Engine, shape: Shape) -> dict[str, int]:
    """Count how many workers of one shape each node could take now.

    Cards are counted exactly for amounts; shares in percent are rounded down per worker, which
    can count one too few. Quotas are not looked at.

    Returns:
        Node name to workers, at least 1.
    """
    fleet = engine.fleet
    size = fleet.size
    per_node = _card_room(engine, shape, engine.suitability(shape), size)
    for column, amount in enumerate((shape.cpu_milli, shape.memory_bytes)):
        if amount:
            per_node = np.minimum(per_node, np.maximum(fleet.host[:size, column], 0) // amount)
    found = {}
    for slot in per_node.nonzero()[0].tolist():
        node = fleet.nodes[slot]
        if node is not None:
            count = int(per_node[slot])
            if shape.gpu_count:
                count = min(count, node.max_workers - engine.ledger.workers_on(node.name))
            if count > 0:
                found[node.name] = count
    return found


def _card_room(engine: Engine, shape: Shape, suitability: Suitability, size: int) -> Ints:
    """Workers per node slot, by the cards alone; (size,)."""
    fleet = engine.fleet
    if not shape.gpu_count:
        return suitability.nodes[:size].astype(np.int64) << 30
    allowed = suitability.cards[:size] & ((fleet.gate[:size] & fleet.gate_asked(shape)) != 0)
    single = shape.exclusive or shape.wish is not None
    workers = np.full(allowed.shape, 1 if single else 1 << 30, dtype=np.int64)
    for quantity, amount in needs_of(shape):
        headroom = fleet.headroom[quantity, :size]
        fitting = headroom // amount if amount else np.where(headroom >= 0, 1 << 30, 0)
        workers = np.minimum(workers, fitting)
    workers = np.where(allowed, np.maximum(workers, 0), 0)
    count = shape.gpu_count
    most: Ints = workers.sum(axis=1) // count
    if count == 1:
        return most
    # m workers of several cards each need that the cards, m at most on each, make m times count.
    while True:
        fewer: Ints = np.minimum(workers, most[:, None]).sum(axis=1) // count
        if (fewer == most).all():
            return most
        most = fewer
