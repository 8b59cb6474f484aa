"""One run: tasks arrive one by one at the engine, none leaves."""

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from tensorfusion.model.demand import Demand
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine
from tensorfusion.model.rows import FREE_GPU_COLUMN, USABLE_COLUMN, Scorer
from tensorfusion.model.ties import Ties
from tensorfusion.model.typical import MILLI_CARD, count_shapes, most_typical
from tensorfusion.simulate.arrivals import Arrivals
from tensorfusion.simulate.trace import MIB, Task, TraceNode

_NO_CAP: Final = 1 << 40


class Point(msgspec.Struct, frozen=True):
    """State when the arrived tasks ask for ``demand_pct`` percent of the cluster's GPU.

    Attributes:
        demand_pct: Requested GPU of all arrived tasks, placed or not.
        allocated_pct: Allocated GPU.
        frag_pct: GPU that is idle and that typical tasks cannot use, in expectation.
        frag_ratio_pct: The same as a share of idle GPU; 100 when none is idle.
    """

    demand_pct: int
    allocated_pct: float
    frag_pct: float
    frag_ratio_pct: float


class Run(msgspec.Struct, frozen=True):
    """Result of one policy, rule for ties and seed.

    Attributes:
        event_log_hash: SHA-256 of the log: a line per task with its node and cards.
        points: In order of demand, from 0.
    """

    policy: str
    ties: str
    seed: int
    event_log_hash: str
    points: tuple[Point, ...]


def replay(tasks: Iterable[Task], arrivals: Arrivals, policy: Scorer, ties: str) -> Run:
    """Place all arrivals.

    Args:
        tasks: The list they were drawn from; its most frequent requests measure fragmentation.
        arrivals: Order of tasks and nodes.
        policy: Scores.
        ties: Rule for ties; its seed is that of the arrivals.
    """
    engine = build_engine(arrivals.nodes, policy, Ties(ties, arrivals.seed))
    engine.set_typical(most_typical(count_shapes(task.shape for task in tasks)))
    meter = _Meter(engine)
    log = hashlib.sha256()
    for number, task in enumerate(arrivals.tasks):
        meter.arrive(task.gpu_milli)
        demand = Demand(namespace="", name=task.name, uid=f"{number}", shape=task.shape)
        placement = engine.find(demand)
        if placement is None:
            log.update(f"{number} {task.name} -\n".encode())
            continue
        engine.reserve(demand, placement)
        meter.allocated_milli += task.gpu_milli
        cards = " ".join(uuid.rpartition("/")[2] for uuid in placement.devices)
        node = arrivals.nodes[placement.node].name
        log.update(f"{number} {task.name} {node} {cards}\n".encode())
    return Run(policy.name, ties, arrivals.seed, log.hexdigest(), meter.finish())


def build_engine(nodes: dict[str, TraceNode], policy: Scorer, ties: Ties) -> Engine:
    """Make an engine with an empty fleet; a card has 1000 units of compute and no memory."""
    engine = Engine(policy, ties=ties)
    for name, node in nodes.items():
        engine.upsert_node(
            NodeInfo(
                name=name,
                cpu_milli=node.cpu_milli,
                memory_bytes=node.memory_mib * MIB,
                max_workers=_NO_CAP,
            )
        )
        engine.upsert_devices(
            Device(
                uuid=f"{name}/{index}",
                node=name,
                index=index,
                model=node.model,
                capacity_gflops=MILLI_CARD,
            )
            for index in range(node.gpus)
        )
    return engine


class _Meter:
    """Takes a point each time the arrived demand passes a whole percentage."""

    def __init__(self, engine: Engine) -> None:
        self._fleet = engine.fleet
        self._capacity = engine.fleet.statistics.devices * MILLI_CARD
        self._arrived = 0
        self.allocated_milli = 0
        self._points: list[Point] = []

    def arrive(self, gpu_milli: int) -> None:
        """Count a task; what it passes is the state before it."""
        self._arrived += gpu_milli
        self._take(upto=-(-100 * self._arrived // self._capacity) - 1)

    def finish(self) -> tuple[Point, ...]:
        """Return all points; the last one is the end."""
        self._take(upto=-(-100 * self._arrived // self._capacity))
        return tuple(self._points)

    def _take(self, upto: int) -> None:
        if len(self._points) > upto:
            return
        point = self._measure()
        while len(self._points) <= upto:
            point = msgspec.structs.replace(point, demand_pct=len(self._points))
            self._points.append(point)

    def _measure(self) -> Point:
        fleet = self._fleet
        typical = fleet.statistics.typical
        assert typical is not None
        sums = fleet.host[: fleet.size].sum(axis=0)
        idle = int(sums[FREE_GPU_COLUMN])
        fragments = (idle * typical.total - int(sums[USABLE_COLUMN])) / typical.total
        return Point(
            demand_pct=0,
            allocated_pct=100 * self.allocated_milli / self._capacity,
            frag_pct=100 * fragments / self._capacity,
            frag_ratio_pct=100 * fragments / idle if idle else 100.0,
        )
