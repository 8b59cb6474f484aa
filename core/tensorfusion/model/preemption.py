"""Preemption: which workers make room for a request of higher priority, if any.

A plan is proven before it is made: victims are released on a checkpoint of the ledger, the engine
decides as it always does, and the ledger is rolled back. So nobody is evicted in vain, and every
rule of placement (isolation, limits, CPU, quotas, ...) holds for preemption as well.

Of all sets of victims that make room, the best one has, in this order: the fewest evictions beyond
a disruption budget, the lowest highest priority, the fewest pods, the least lost GPU-time. The
search is exact up to `tensorfusion.model.victims.STEPS` tries on `MAX_NODES` nodes; beyond that the
plan still makes room and holds nobody who could be spared, but a better one may exist.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tensorfusion.model.demand import Demand
from tensorfusion.model.engine import Engine
from tensorfusion.model.gang import GangRequest
from tensorfusion.model.victims import Disruptable, PreemptionPlan, Search

MAX_NODES: Final = 128
"""Nodes searched per plan: those with the workers of lowest priority first."""
GANG_NODES: Final = 16
"""The same for each member of a gang."""


class NoPreemption(msgspec.Struct, frozen=True):
    """Nobody is evicted.

    Attributes:
        message: Why, for people.
        wait: Whether there will be room once the workers that are ending have left.
    """

    message: str
    wait: bool = False


_IN_TIME: Final = NoPreemption("it fits once the pods that are ending have left", wait=True)


def plan_preemption(
    engine: Engine, demand: Demand, priority: int, disruptable: Disruptable
) -> PreemptionPlan | NoPreemption:
    """Find the cheapest set of workers whose eviction lets a request fit; changes nothing.

    Args:
        engine: Fleet and ledger.
        demand: The request.
        priority: Its priority; only workers of lower priority are considered.
        disruptable: What may be disturbed.
    """
    search = Search(engine, priority, disruptable)
    refusal = _nobody(search)
    if refusal is not None:
        return refusal
    ledger = engine.ledger
    mark = ledger.checkpoint()
    try:
        search.release(disruptable.ending)
        if search.fits(demand, "") is not None:
            return _IN_TIME
        return search.best(demand, MAX_NODES) or _in_vain(search)
    finally:
        ledger.rollback(mark)


def plan_gang_preemption(
    engine: Engine, request: GangRequest, priority: int, disruptable: Disruptable
) -> PreemptionPlan | NoPreemption:
    """Find workers whose eviction lets the quorum of a gang fit; changes nothing.

    The members are served one after the other, each with the cheapest plan for itself; then
    every victim that turns out not to be needed for the gang as a whole is spared.
    """
    search = Search(engine, priority, disruptable)
    refusal = _nobody(search)
    if refusal is not None:
        return refusal
    ledger = engine.ledger
    mark = ledger.checkpoint()
    try:
        search.release(disruptable.ending)
        if search.gang_nodes(request, ()) is not None:
            return _IN_TIME
        evicted = _member_by_member(search, request)
        if evicted is None:
            return _in_vain(search)
        evicted = _spare(search, request, evicted)
        nodes = search.gang_nodes(request, evicted)
        if nodes is None:
            return _in_vain(search)
        return PreemptionPlan(
            victims=tuple(sorted(evicted)), nodes=nodes, cost=search.cost(evicted)
        )
    finally:
        ledger.rollback(mark)


def _nobody(search: Search) -> NoPreemption | None:
    """Say why there is nobody to evict; None when there is."""
    if search.eligible:
        return None
    if not search.lower:
        return NoPreemption("no worker has a lower priority")
    return NoPreemption(
        f"all {len(search.lower)} workers of lower priority are protected against eviction"
    )


def _in_vain(search: Search) -> NoPreemption:
    """Say that no eviction helps."""
    protected = len(search.lower) - len(search.eligible)
    also = f" ({protected} more are protected)" if protected else ""
    return NoPreemption(
        f"it would not fit even without the {len(search.eligible)} workers of lower priority"
        f" that may be evicted{also}"
    )


def _member_by_member(search: Search, request: GangRequest) -> list[str] | None:
    """Evict for one member after the other until the quorum has room; None when it never has."""
    engine = search.engine
    mark = engine.ledger.checkpoint()
    order = sorted(request.members, key=lambda m: (m.shape.gpu_count, m.shape.request.vram_bytes))
    evicted: list[str] = []
    placed = 0
    for demand in order:
        found = search.fits(demand, "")
        if found is None:
            plan = search.best(demand, GANG_NODES, evicted)
            if plan is None:
                continue
            search.release(plan.victims)
            evicted += plan.victims
            found = search.fits(demand, "")
        if found is not None:
            engine.reserve(demand, found)
            placed += 1
        if placed == request.needed:
            break
    engine.ledger.rollback(mark)
    return evicted if placed == request.needed else None


def _spare(search: Search, request: GangRequest, evicted: Sequence[str]) -> list[str]:
    """Keep only the victims without whom the gang would not fit, dearest ones spared first."""
    needed = list(evicted)
    victims = search.disruptable.victims
    order = sorted(evicted, key=lambda key: (-victims[key].priority, key))
    for key in order:
        for group in search.groups_with(key, needed):
            fewer = [other for other in needed if other not in group]
            if search.gang_nodes(request, fewer) is not None:
                needed = fewer
                break
    return needed
