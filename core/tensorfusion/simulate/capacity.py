"""Capacity: which nodes to add so that tasks do not wait longer than wanted, and for how much.

Every seed is another story drawn from the same list of tasks. For each kind of node and seed, the
fewest nodes that keep the wait below its target are searched by doubling and halving; what is
recommended is enough for nine stories of ten, and the spread over the stories is the uncertainty.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

import msgspec

from tensorfusion.errors import ConfigError
from tensorfusion.model.rows import Scorer
from tensorfusion.simulate.timeline import TimedRun, replay_times, story_of
from tensorfusion.simulate.trace import TraceNode, Visit

CONFIDENCE: Final = 0.9
MOST_NODES: Final = 256
"""More of one kind are not tried."""


class Offer(msgspec.Struct, frozen=True):
    """A kind of node that could be added.

    Attributes:
        model: Of its cards.
        gpus: Cards of a node.
        gpu_hour_price: Price of one card for an hour; 0 when it is not known.
    """

    model: str
    gpus: int
    gpu_hour_price: float = 0.0

    @property
    def hour_price(self) -> float:
        """Price of a node for an hour."""
        return self.gpus * self.gpu_hour_price


class Addition(msgspec.Struct, frozen=True):
    """What one kind of node would take.

    Attributes:
        offer: The kind.
        nodes: Nodes that are enough for `CONFIDENCE` of the stories; None when none is.
        fewest: Fewest nodes of any story that can be helped.
        most: Most nodes of any story; None when some story cannot be helped.
        hour_price: Of the recommended nodes.
        wait_seconds: Mean over the stories of the wait that is kept low, with them.
        reason: Why nothing helps; empty when something does.
    """

    offer: Offer
    nodes: int | None
    fewest: int | None
    most: int | None
    hour_price: float
    wait_seconds: float
    reason: str = ""


class CapacityPlan(msgspec.Struct, frozen=True):
    """What to add, the cheapest first.

    Attributes:
        wait_seconds: The wait now, mean over the stories.
        met: How many of the stories keep the target now.
        stories: How many there are.
        additions: One per offer.
    """

    wait_seconds: float
    met: int
    stories: int
    additions: tuple[Addition, ...]

    @property
    def best(self) -> Addition | None:
        """The cheapest addition that helps; None when none is needed or none helps."""
        if self.met >= math.ceil(CONFIDENCE * self.stories):
            return None
        helping = [one for one in self.additions if one.nodes is not None]
        return helping[0] if helping else None


class CapacitySearch:
    """Searches additions for one cluster and list of tasks.

    Args:
        nodes: The cluster.
        visits: Tasks with times.
        policy: Scores.
        ties: Rule for ties.
        percentile: The wait that is kept low: ``mean``, ``p50``, ``p95``, ``p99``, ``longest``.
        target_seconds: How long it may be.
        load: 2 brings the same tasks in half the time.
        seeds: One story each.
        on_run: Told what was tried, and the run.
    """

    def __init__(
        self,
        nodes: Sequence[TraceNode],
        visits: Sequence[Visit],
        policy: Scorer,
        *,
        ties: str,
        percentile: str,
        target_seconds: float,
        load: float,
        seeds: Sequence[int],
        on_run: Callable[[str, TimedRun], None] = lambda _what, _run: None,
    ) -> None:
        self._nodes = list(nodes)
        self._policy = policy
        self._ties = ties
        self._percentile = percentile
        self._target = target_seconds
        self._stories = {
            seed: story_of(visits, seed, load, resample=len(seeds) > 1) for seed in seeds
        }
        self._on_run = on_run
        self._waits: dict[tuple[Offer | None, int, int], float] = {}

    def plan(self, offers: Sequence[Offer]) -> CapacityPlan:
        """Search every offer."""
        now = [self._wait(None, 0, seed) for seed in self._stories]
        met = sum(wait <= self._target for wait in now)
        additions = [self._addition(offer) for offer in offers]
        additions.sort(key=lambda a: (a.nodes is None, a.hour_price, (a.nodes or 0) * a.offer.gpus))
        return CapacityPlan(_mean(now), met, len(now), tuple(additions))

    def _addition(self, offer: Offer) -> Addition:
        found = [self._fewest(offer, seed) for seed in self._stories]
        helped = sorted(n for n in found if n is not None)
        needed = math.ceil(CONFIDENCE * len(found))
        if len(helped) < needed:
            reason = (
                f"{len(found) - len(helped)} of {len(found)} stories wait longer even with"
                f" {MOST_NODES} nodes"
            )
            fewest = helped[0] if helped else None
            return Addition(offer, None, fewest, None, 0.0, 0.0, reason)
        nodes = helped[needed - 1]
        return Addition(
            offer=offer,
            nodes=nodes,
            fewest=helped[0],
            most=helped[-1] if len(helped) == len(found) else None,
            hour_price=nodes * offer.hour_price,
            wait_seconds=_mean([self._wait(offer, nodes, seed) for seed in self._stories]),
        )

    def _fewest(self, offer: Offer, seed: int) -> int | None:
        """Fewest nodes that help one story; None when even the most do not."""
        if self._wait(None, 0, seed) <= self._target:
            return 0
        low, high = 0, 1
        while self._wait(offer, high, seed) > self._target:
            if high >= MOST_NODES:
                return None
            low, high = high, min(2 * high, MOST_NODES)
        while high - low > 1:
            middle = (low + high) // 2
            if self._wait(offer, middle, seed) <= self._target:
                high = middle
            else:
                low = middle
        return high

    def _wait(self, offer: Offer | None, count: int, seed: int) -> float:
        """The wait of one story with so many nodes more; tasks that never start wait for ever."""
        key = (offer if count else None, count, seed)
        if key not in self._waits:
            nodes = self._nodes + (new_nodes(offer, count, self._nodes) if offer else [])
            run = replay_times(nodes, self._stories[seed], self._policy, self._ties, seed)
            what = f"{count} x {offer.gpus} {offer.model}" if offer and count else "as it is"
            self._on_run(what, run)
            wait = getattr(run.waits, self._percentile)
            tasks, never = run.waits.tasks, run.waits.never
            tolerated = {"p50": 0.5, "p95": 0.05, "p99": 0.01}.get(self._percentile, 0.0)
            self._waits[key] = math.inf if never > tolerated * tasks else wait
        return self._waits[key]


def new_nodes(offer: Offer, count: int, like: Sequence[TraceNode]) -> list[TraceNode]:
    """Make nodes of an offer; CPU and memory per card are the median of the nodes that have cards."""
    with_cards = [node for node in like if node.gpus]
    cpu = median(node.cpu_milli / node.gpus for node in with_cards)
    memory = median(node.memory_mib / node.gpus for node in with_cards)
    return [
        TraceNode(
            name=f"added-{number:04d}",
            cpu_milli=round(cpu * offer.gpus),
            memory_mib=round(memory * offer.gpus),
            gpus=offer.gpus,
            model=offer.model,
        )
        for number in range(count)
    ]


def parse_offer(text: str) -> Offer:
    """Read ``MODEL:GPUS`` or ``MODEL:GPUS@PRICE``, the price of one card for an hour.

    Raises:
        ConfigError: Names the part and what is allowed.
    """
    form = "MODEL:GPUS or MODEL:GPUS@PRICE, such as L40S:4@1.1"
    what, at, price_text = text.partition("@")
    model, colon, gpus_text = what.partition(":")
    try:
        gpus = int(gpus_text)
        price = float(price_text) if at else 0.0
    except ValueError:
        raise ConfigError(f"--offer {text!r}: allowed is {form}") from None
    if not model or not colon or not 1 <= gpus <= 16 or not 0 <= price < math.inf:
        raise ConfigError(f"--offer {text!r}: allowed is {form}, with 1 to 16 GPUs per node")
    return Offer(model.strip(), gpus, price)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
