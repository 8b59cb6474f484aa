"""Nominations: room that evicted pods leave and that is kept for whom they were evicted.

The victims' allocations stay in the ledger until the last victim has left; then they are released
and the waiting pods reserved in one step. Nobody can slip in between, however small.
"""

from dataclasses import dataclass, field

from tensorfusion.model.demand import Demand
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.gang import GangPlan, GangRequest, place_gang
from tensorfusion.model.ledger import Change
from tensorfusion.model.takes import AllocationRefused

NOMINATION_SECONDS = 120.0
"""How long room is kept: pods may take 30 s to end, and a node may be slow to say so."""


@dataclass(slots=True)
class Nomination:
    """Room that is being made.

    Attributes:
        name: Who waits for it: ``pod ns/name`` or ``gang ns/name``.
        request: What they ask for.
        nodes: Where the room will be.
        victims: Uids of the pods that were evicted.
        deadline: When the promise ends, on the monotonic clock.
        gone: Victims that have left.
    """

    name: str
    request: Demand | GangRequest
    nodes: tuple[str, ...]
    victims: frozenset[str]
    deadline: float
    gone: set[str] = field(default_factory=set)

    @property
    def uids(self) -> frozenset[str]:
        """Uids of the pods that wait."""
        if isinstance(self.request, Demand):
            return frozenset((self.request.uid,))
        return frozenset(member.uid for member in self.request.members)

    @property
    def message(self) -> str:
        """One sentence for people."""
        left = len(self.victims) - len(self.gone)
        who = "1 evicted pod" if left == 1 else f"{left} evicted pods"
        return f"waits for {who} to leave node {', '.join(self.nodes)}"


def place_nominated(engine: Engine, nomination: Nomination) -> list[tuple[Placement, Change]]:
    """Reserve the room that has become free; nothing when a node or card has gone as well."""
    request = nomination.request
    if isinstance(request, GangRequest):
        plan = place_gang(engine, request)
        if not isinstance(plan, GangPlan):
            return []
        return [(member.placement, member.change) for member in plan.members]
    found = engine.find_on(request, nomination.nodes[0]) or engine.find(request)
    if found is None:
        return []
    try:
        return [(found, engine.reserve(request, found))]
    except AllocationRefused:
        return []
