"""The search for victims: everything is tried on the ledger itself and undone.

See `tensorfusion.model.preemption` for what a good set of victims is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Final, NamedTuple

import msgspec

from tensorfusion.model.allocation import Allocation
from tensorfusion.model.demand import Demand
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.gang import GangPlan, GangRequest, place_gang
from tensorfusion.model.takes import AllocationRefused

STEPS: Final = 4000
"""Evictions tried per plan; each costs some tens of microseconds."""
SPARED_TRIED: Final = 16
"""Sets of members of one size that are tried in order to spare the rest of a gang."""


class Victim(msgspec.Struct, frozen=True, kw_only=True):
    """A running worker as preemption sees it.

    Attributes:
        key: Key of its allocation.
        priority: The highest of the pods that use it.
        pods: How many pods use it.
        protected: Whether a pod of it is protected against eviction now.
        gang: Gang it is a member of; empty for none.
        lost_gpu_seconds: GPU-time used since it started, which an eviction throws away.
        budgets: Disruption budgets that cover it.
    """

    key: str
    priority: int
    pods: int = 1
    protected: bool = False
    gang: str = ""
    lost_gpu_seconds: int = 0
    budgets: tuple[str, ...] = ()


class Disruptable(msgspec.Struct, frozen=True, kw_only=True):
    """What may be disturbed, and how far.

    Attributes:
        victims: Every running worker by key, whatever its priority.
        spare: Members that a gang can lose before it falls below its quorum; gangs that are not
            named can lose none.
        allowed: Evictions that each disruption budget still allows.
        ending: Keys of workers that are about to leave anyway.
    """

    victims: Mapping[str, Victim] = {}
    spare: Mapping[str, int] = {}
    allowed: Mapping[str, int] = {}
    ending: tuple[str, ...] = ()


class Cost(NamedTuple):
    """What a plan costs, the most important first."""

    violations: int
    top_priority: int
    pods: int
    lost_gpu_seconds: int


class PreemptionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Workers to evict, and what that makes room for.

    Attributes:
        victims: Keys of their allocations, sorted.
        nodes: Nodes where the request goes then.
        cost: What it costs.
    """

    victims: tuple[str, ...]
    nodes: tuple[str, ...]
    cost: Cost


class Search:
    """One search for victims; the ledger is as before after every method but `release`."""

    def __init__(self, engine: Engine, priority: int, disruptable: Disruptable) -> None:
        self.engine = engine
        self.disruptable = disruptable
        ending = set(disruptable.ending)
        self.lower = {
            key: victim
            for key, victim in disruptable.victims.items()
            if victim.priority < priority and key not in ending and key in engine.ledger.allocations
        }
        self.eligible = {k: v for k, v in self.lower.items() if not v.protected}
        self._held: dict[str, Allocation] = {}
        self._members: dict[str, list[str]] = {}
        for key, victim in disruptable.victims.items():
            if victim.gang and key not in ending:
                self._members.setdefault(victim.gang, []).append(key)
        self._steps = STEPS

    def release(self, keys: Iterable[str]) -> None:
        """Take workers out of the ledger."""
        ledger = self.engine.ledger
        for key in keys:
            allocation = ledger.allocations.get(key)
            if allocation is None:
                continue
            self._held[key] = allocation
            for holder in allocation.holders:
                ledger.release(holder)

    def put_back(self, keys: Iterable[str]) -> None:
        """Return released workers to the ledger."""
        for key in keys:
            self.engine.ledger.restore(self._held[key])

    def fits(self, demand: Demand, node: str) -> Placement | None:
        """Place a request on a node, or anywhere, with every quota."""
        engine = self.engine
        if engine.precheck(demand) is not None:
            return None
        found = engine.find_on(demand, node) if node else engine.find(demand)
        if found is None or not engine.ledger.quotas.governs(demand.namespace):
            return found
        mark = engine.ledger.checkpoint()
        try:
            engine.reserve(demand, found)
        except AllocationRefused:
            return None
        finally:
            engine.ledger.rollback(mark)
        return found

    def gang_nodes(self, request: GangRequest, evicted: Iterable[str]) -> tuple[str, ...] | None:
        """Place a gang without some workers; None when it does not fit."""
        ledger = self.engine.ledger
        mark = ledger.checkpoint()
        self.release(evicted)
        found = place_gang(self.engine, request)
        ledger.rollback(mark)
        if not isinstance(found, GangPlan):
            return None
        return tuple(sorted({member.placement.node for member in found.members}))

    def cost(self, evicted: Iterable[str]) -> Cost:
        """Price a set of victims."""
        victims = [self.disruptable.victims[key] for key in evicted]
        used: dict[str, int] = {}
        for victim in victims:
            for budget in victim.budgets:
                used[budget] = used.get(budget, 0) + victim.pods
        allowed = self.disruptable.allowed
        return Cost(
            sum(max(0, count - allowed.get(budget, 0)) for budget, count in used.items()),
            max(victim.priority for victim in victims),
            sum(victim.pods for victim in victims),
            sum(victim.lost_gpu_seconds for victim in victims),
        )

    def groups_with(self, key: str, evicted: Sequence[str]) -> Iterator[list[str]]:
        """Yield sets of victims that can be spared together, one of them given; large ones first.

        Of a gang that would be gone, all members are spared, or so many that those who still go
        leave it its quorum.
        """
        if key not in evicted:
            return
        gang = self.disruptable.victims[key].gang
        members = [k for k in evicted if gang and self.disruptable.victims[k].gang == gang]
        spare = self.disruptable.spare.get(gang, 0)
        if len(members) <= spare or key not in members:
            yield [key]
            return
        yield members
        others = [other for other in members if other != key]
        for going in range(1, min(spare, len(others)) + 1):
            for gone in islice(combinations(others, going), SPARED_TRIED):
                yield [other for other in members if other not in gone]

    def breaks_gang(self, evicted: Sequence[str]) -> bool:
        """Tell whether a gang would be left below its quorum but not gone."""
        gangs = Counter(self.disruptable.victims[key].gang for key in evicted)
        del gangs[""]
        spare = self.disruptable.spare
        return any(
            spare.get(gang, 0) < gone < len(self._members[gang]) for gang, gone in gangs.items()
        )

    def best(
        self, demand: Demand, max_nodes: int, evicted: Sequence[str] = ()
    ) -> PreemptionPlan | None:
        """Find the cheapest plan for one request.

        Args:
            demand: The request.
            max_nodes: Nodes that are searched.
            evicted: Workers that are out of the ledger already; they count as evicted.
        """
        best: PreemptionPlan | None = None
        for lowest, node, domain in self._domains(demand, max_nodes, evicted):
            if best is not None and (0, lowest) > best.cost[:2]:
                break
            run = _NodeSearch(self, demand, node, domain, list(evicted), best)
            best = run.search()
        return best

    def spend(self) -> bool:
        """Count one try; False when there are none left."""
        self._steps -= 1
        return self._steps >= 0

    def with_gang(self, victim: Victim, evicted: Sequence[str]) -> list[str] | None:
        """Return who goes when a worker is evicted: itself, or its gang; None when that must stay.

        Args:
            victim: The worker.
            evicted: Who goes already.
        """
        gang = victim.gang
        if not gang:
            return [victim.key]
        gone = sum(1 for key in evicted if self.disruptable.victims[key].gang == gang)
        if gone < self.disruptable.spare.get(gang, 0):
            return [victim.key]
        group = [key for key in self._members[gang] if key not in evicted]
        return group if all(key in self.eligible for key in group) else None

    def _domains(
        self, demand: Demand, max_nodes: int, evicted: Sequence[str]
    ) -> list[tuple[int, str, list[Victim]]]:
        """Return where the request may go, and whose eviction could matter there.

        Returns:
            Lowest priority of a worker there, node (empty for any), its workers; in order.
        """
        allocations = self.engine.ledger.allocations
        out = set(evicted)
        by_node: dict[str, list[Victim]] = {}
        own: list[Victim] = []
        refusal = self.engine.precheck(demand)
        for key, victim in self.eligible.items():
            if key in out:
                continue
            allocation = allocations[key]
            by_node.setdefault(allocation.node, []).append(victim)
            if refusal is not None and allocation.namespace == demand.namespace:
                own.append(victim)
        if refusal is not None and not (refusal.resolvable and own):
            return []
        nodes = self.engine.suitability(demand.shape).nodes
        slots = {node: self.engine.fleet.slot_of(node) for node in by_node}
        found = [("", own)] if own else []
        for node, victims in by_node.items():
            slot = slots[node]
            if slot is not None and nodes[slot]:
                here = {victim.key for victim in victims}
                found.append((node, victims + [v for v in own if v.key not in here]))
        domains = [(min(v.priority for v in victims), node, victims) for node, victims in found]
        domains.sort(key=lambda item: (item[0], -len(item[2]), item[1]))
        return domains[:max_nodes]


class _NodeSearch:
    """The search on one node: a cheap plan first, then every set that would be cheaper."""

    def __init__(
        self,
        search: Search,
        demand: Demand,
        node: str,
        domain: list[Victim],
        evicted: list[str],
        best: PreemptionPlan | None,
    ) -> None:
        self._search = search
        self._demand = demand
        self._node = node
        self._before = evicted
        self._best = best
        self._held_back = False
        """Whether a gang that must stay kept someone; the order of evictions matters then."""
        # Those without a budget first: a budget is broken only when nothing else helps.
        self._domain = sorted(
            domain, key=lambda v: (bool(v.budgets), v.priority, v.lost_gpu_seconds, v.key)
        )

    def search(self) -> PreemptionPlan | None:
        """Return the best plan known, of this node or an earlier one."""
        if self._greedy() or self._held_back:
            self._improve(0, list(self._before))
        return self._best

    def _greedy(self) -> bool:
        """Evict until the request fits, then spare who was not needed; False if it never does."""
        ledger = self._search.engine.ledger
        mark = ledger.checkpoint()
        evicted = list(self._before)
        groups: list[list[str]] = []
        fits = False
        for victim in self._domain:
            group = None
            if victim.key not in evicted:
                group = self._search.with_gang(victim, evicted)
                self._held_back = self._held_back or group is None
            if group is None:
                continue
            self._search.release(group)
            evicted += group
            groups.append(group)
            fits = self._fits() is not None
            if fits:
                break
        if fits:
            self._keep(self._spared(groups, evicted))
        ledger.rollback(mark)
        return fits

    def _spared(self, groups: list[list[str]], evicted: list[str]) -> list[str]:
        """Drop the groups without which the request fits as well, the dearest first."""
        ledger = self._search.engine.ledger
        needed = list(evicted)
        for group in reversed(groups[:-1]):
            fewer = [key for key in needed if key not in group]
            if self._search.breaks_gang(fewer):
                continue
            mark = ledger.checkpoint()
            self._search.put_back(group)
            if self._fits() is not None:
                needed = fewer
                ledger.commit(mark)
            else:
                ledger.rollback(mark)
        return needed

    def _improve(self, start: int, evicted: list[str]) -> None:
        """Try every larger set that is still cheaper than the best."""
        search = self._search
        ledger = search.engine.ledger
        for position in range(start, len(self._domain)):
            victim = self._domain[position]
            if victim.key in evicted:
                continue
            group = search.with_gang(victim, evicted)
            if group is None:
                continue
            more = evicted + group
            if self._best is not None and search.cost(more) >= self._best.cost:
                continue
            if not search.spend():
                return
            mark = ledger.checkpoint()
            search.release(group)
            if self._fits() is not None:
                self._keep(more)
            else:
                self._improve(position + 1, more)
            ledger.rollback(mark)

    def _fits(self) -> Placement | None:
        return self._search.fits(self._demand, self._node)

    def _keep(self, evicted: list[str]) -> None:
        """Remember a set that makes room, if it is cheaper."""
        cost = self._search.cost(evicted)
        if self._best is not None and cost >= self._best.cost:
            return
        found = self._fits()
        node = found.node if found is not None else self._node
        victims = tuple(sorted(set(evicted) - set(self._before)))
        self._best = PreemptionPlan(victims=victims, nodes=(node,), cost=cost)
