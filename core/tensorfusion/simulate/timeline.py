"""A run by the clock: tasks arrive, wait until they fit, hold their cards for a while, and leave.

Who waits is tried again, oldest first, whenever somebody leaves; a younger task that fits does not
wait behind an older one that does not. What a task holds, and for how long, is the trace's; when
it starts is the run's, so a fuller cluster moves its end.
"""

import hashlib
import heapq
import random
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np

from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.rows import Scorer
from tensorfusion.model.ties import Ties
from tensorfusion.model.typical import MILLI_CARD, count_shapes, most_typical
from tensorfusion.simulate.arrivals import in_random_order
from tensorfusion.simulate.replay import build_engine
from tensorfusion.simulate.trace import TraceNode, Visit

SAMPLES: Final = 500
"""Points of a run's curve, at equal distances of time."""


class Waits(msgspec.Struct, frozen=True):
    """How long tasks waited for their cards, seconds.

    Attributes:
        tasks: All that arrived.
        waited: Those that did not start at once.
        never: Those that had not started when the last one arrived and nobody left any more.
        mean: Over all that started, as are the percentiles.
    """

    tasks: int
    waited: int
    never: int
    mean: float
    p50: float
    p95: float
    p99: float
    longest: float


class Sample(msgspec.Struct, frozen=True):
    """The cluster at one moment: percent of its GPU allocated, and how many tasks wait."""

    time: float
    allocated_pct: float
    waiting: int


class TimedRun(msgspec.Struct, frozen=True):
    """Result of one policy, rule for ties and seed.

    Attributes:
        event_log_hash: SHA-256 of the log: a line per start with its time, task, node and cards.
        utilization_pct: Allocated GPU, mean over time from the first to the last arrival.
        peak_pct: The most that was allocated.
        span_seconds: From the first to the last arrival.
    """

    policy: str
    ties: str
    seed: int
    event_log_hash: str
    waits: Waits
    utilization_pct: float
    peak_pct: float
    span_seconds: float
    samples: tuple[Sample, ...]


def story_of(visits: Sequence[Visit], seed: int, load: float, *, resample: bool) -> list[Visit]:
    """Make the arrivals of one seed.

    Args:
        visits: The trace, in order of arrival.
        seed: Same seed, same story.
        load: 2 brings the same tasks in half the time.
        resample: Draw the task of every arrival anew from the list, with replacement; the times
            of arrival stay.
    """
    rng = random.Random(f"story {seed}")  # noqa: S311 - a simulation must repeat
    first = visits[0].arrives if visits else 0
    story = []
    for visit in visits:
        what = visits[rng.randrange(len(visits))] if resample else visit
        arrives = round((visit.arrives - first) / load)
        story.append(Visit(what.task, arrives, what.runs_seconds))
    return story


def replay_times(
    nodes: Sequence[TraceNode], story: Sequence[Visit], policy: Scorer, ties: str, seed: int
) -> TimedRun:
    """Let a story happen on a cluster.

    Args:
        nodes: The cluster; the seed decides the order of its names.
        story: Arrivals, see `story_of`.
        policy: Scores.
        ties: Rule for ties.
        seed: Of names and ties.
    """
    rng = random.Random(f"nodes {seed}")  # noqa: S311 - a simulation must repeat
    return _Clockwork(in_random_order(nodes, rng), story, policy, Ties(ties, seed)).run()


class _Clockwork:
    """State of one run."""

    def __init__(
        self,
        nodes: dict[str, TraceNode],
        story: Sequence[Visit],
        policy: Scorer,
        ties: Ties,
    ) -> None:
        self._nodes = nodes
        self._story = story
        self._policy = policy
        self._ties = ties
        self._engine = build_engine(nodes, policy, ties)
        shapes = count_shapes(visit.task.shape for visit in story)
        self._engine.set_typical(most_typical(shapes))
        self._capacity = max(1, sum(node.gpus for node in nodes.values()) * MILLI_CARD)
        self._log = hashlib.sha256()
        self._ends: list[tuple[int, int, str, int]] = []
        self._queue: list[int] = []
        self._refused: set[Shape] = set()
        """Requests that fitted nowhere since somebody left."""
        self._started: list[int | None] = [None] * len(story)
        self._allocated = 0
        self._curve: list[tuple[int, int, int]] = []

    def run(self) -> TimedRun:
        arrivals = iter(enumerate(self._story))
        coming = next(arrivals, None)
        while coming is not None or self._ends:
            now = self._next_time(coming)
            if self._leave(now):
                self._retry(now)
            while coming is not None and coming[1].arrives == now:
                if not self._start(coming[0], now):
                    self._queue.append(coming[0])
                coming = next(arrivals, None)
            self._curve.append((now, self._allocated, len(self._queue)))
        return self._result()

    def _next_time(self, coming: tuple[int, Visit] | None) -> int:
        times = [coming[1].arrives] if coming is not None else []
        if self._ends:
            times.append(self._ends[0][0])
        return min(times)

    def _leave(self, now: int) -> bool:
        """Let everybody go whose time is over; whether there was anybody."""
        before = len(self._ends)
        while self._ends and self._ends[0][0] <= now:
            _, _, uid, milli = heapq.heappop(self._ends)
            self._engine.ledger.release(uid)
            self._allocated -= milli
        return len(self._ends) < before

    def _retry(self, now: int) -> None:
        self._refused.clear()
        self._queue = [number for number in self._queue if not self._start(number, now)]

    def _start(self, number: int, now: int) -> bool:
        """Start a task if it fits."""
        visit = self._story[number]
        shape = visit.task.shape
        if shape in self._refused:
            return False
        uid = str(number)
        demand = Demand(namespace="", name=visit.task.name, uid=uid, shape=shape)
        placement = self._engine.find(demand)
        if placement is None:
            self._refused.add(shape)
            return False
        self._engine.reserve(demand, placement)
        self._started[number] = now
        self._allocated += visit.task.gpu_milli
        if visit.runs_seconds is not None:
            end = now + max(visit.runs_seconds, 1)
            heapq.heappush(self._ends, (end, number, uid, visit.task.gpu_milli))
        cards = " ".join(uuid.rpartition("/")[2] for uuid in placement.devices)
        node = self._nodes[placement.node].name
        self._log.update(f"{now} {number} {visit.task.name} {node} {cards}\n".encode())
        return True

    def _result(self) -> TimedRun:
        last = self._story[-1].arrives if self._story else 0
        curve = np.array(self._curve or [(0, 0, 0)], dtype=np.float64)
        times, allocated = curve[:, 0], 100 * curve[:, 1] / self._capacity
        until = np.append(np.minimum(times[1:], last), last)
        held = np.maximum(until - np.minimum(times, last), 0.0)
        span = float(held.sum())
        marks = np.linspace(0, last, min(SAMPLES, last + 1))
        at = np.searchsorted(times, marks, side="right") - 1
        return TimedRun(
            policy=self._policy.name,
            ties=self._ties.rule,
            seed=self._ties.seed,
            event_log_hash=self._log.hexdigest(),
            waits=_waits(self._story, self._started),
            utilization_pct=float(allocated @ held / span) if span else 0.0,
            peak_pct=float(allocated.max()),
            span_seconds=span,
            samples=tuple(
                Sample(float(mark), float(allocated[i]), int(curve[i, 2]))
                for mark, i in zip(marks.tolist(), at.tolist(), strict=True)
            ),
        )


def _waits(story: Sequence[Visit], started: Iterable[int | None]) -> Waits:
    waits = [
        moment - visit.arrives
        for visit, moment in zip(story, started, strict=True)
        if moment is not None
    ]
    never = len(story) - len(waits)
    values = np.array(waits or [0], dtype=np.float64)
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return Waits(
        tasks=len(story),
        waited=int((values > 0).sum()) + never,
        never=never,
        mean=float(values.mean()),
        p50=p50,
        p95=p95,
        p99=p99,
        longest=float(values.max()),
    )
