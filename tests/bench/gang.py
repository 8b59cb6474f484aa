"""Gang and preemption benchmark: a whole gang, and a plan for its victims, on a fleet 80 % full.

    .venv/bin/python tests/bench/gang.py [--sizes 3000,12000] [--members 64] [--rounds 20]

The fleet is that of the placement benchmark. For each kind of gang the table has the median time
to place it on one checkpoint, beside the time its members take when they are placed one by one
with nothing else; a gang is released before the next one is tried. The last columns are for a
gang that does not fit, which must leave the ledger as it was, and for the plan of a preemption.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable

from placement import GIB, Run, percentile

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.engine import Placement
from tensorfusion.model.gang import GangNoFit, GangPlan, GangRequest, place_gang
from tensorfusion.model.preemption import plan_preemption
from tensorfusion.model.victims import Disruptable, Victim

SHAPE = Shape(pool="main", request=Amount(20_000, 4 * GIB), limit=Amount(30_000, 5 * GIB))
TOO_LARGE = Shape(pool="main", request=Amount(60_000, 90 * GIB))
"""More than any card of the fleet has."""
CARD = Shape(pool="main", request=Amount(0, 14 * GIB), dedicated=True)


def gang(shape: Shape, members: int, closeness: str = "any") -> GangRequest:
    """Make a gang of equal members."""
    demands = tuple(
        Demand(namespace="bench", name=f"m{n}", uid=f"member-{n}", shape=shape)
        for n in range(members)
    )
    return GangRequest(key="bench/gang", members=demands, required=members, closeness=closeness)


def timed(rounds: int, act: Callable[[], None], undo: Callable[[], None]) -> float:
    """Return the median of some rounds, milliseconds; the first one fills caches."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        act()
        found.append((time.perf_counter() - start) * 1e3)
        undo()
    return percentile(found[1:], 0.5)


def measure(run: Run, members: int, rounds: int) -> dict[str, float]:
    """Measure one fleet."""
    engine = run.engine
    ledger = engine.ledger

    def release() -> None:
        for n in range(members):
            ledger.release(f"member-{n}")

    def single() -> None:
        for demand in gang(SHAPE, members).members:
            found = engine.place(demand)
            assert isinstance(found, Placement)
            engine.reserve(demand, found)

    def whole(closeness: str) -> Callable[[], None]:
        def act() -> None:
            assert isinstance(place_gang(engine, gang(SHAPE, members, closeness)), GangPlan)

        return act

    def refused() -> None:
        others = gang(SHAPE, members - 1).members
        last = Demand(namespace="bench", name="last", uid="last", shape=TOO_LARGE)
        request = GangRequest(key="bench/gang", members=(*others, last), required=members)
        assert isinstance(place_gang(engine, request), GangNoFit)

    row = {
        "gpus": engine.fleet.statistics.devices,
        "members": members,
        "one_by_one_ms": timed(rounds, single, release),
        "gang_ms": timed(rounds, whole("any"), release),
        "close_ms": timed(rounds, whole("prefer"), release),
    }
    digest = ledger.digest
    row["refused_ms"] = timed(rounds, refused, lambda: None)
    assert ledger.digest == digest
    row["ratio"] = row["gang_ms"] / row["one_by_one_ms"]
    row["plan_ms"] = preemption(run, rounds)
    assert ledger.digest == digest
    return row


def preemption(run: Run, rounds: int) -> float:
    """Median time of a plan that empties a card, milliseconds."""
    rng = random.Random(7)
    victims = {
        key: Victim(key=key, priority=rng.randrange(4), lost_gpu_seconds=rng.randrange(10_000))
        for key in run.engine.ledger.allocations
    }
    demand = Demand(namespace="bench", name="new", uid="new", shape=CARD)
    may = Disruptable(victims=victims)
    return timed(rounds, lambda: void(plan_preemption(run.engine, demand, 9, may)), lambda: None)


def void(_: object) -> None:
    """Drop a result."""


def main(arguments: list[str]) -> int:
    """Run the benchmark for each fleet size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="3000,12000")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--policy", default="node-compact-gpu-low-load")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = []
    for size in options.sizes.split(","):
        run = Run(int(size), options.policy, 256, options.seed, log=False)
        run.fill()
        rows.append(measure(run, options.members, options.rounds))
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
