"""What a wish costs: partitions, topology and rules about other pods beside a plain request.

    .venv/bin/python tests/bench/wishes.py [--gpus 10000,60000] [--pods 300]

Each kind of request is placed and reserved on an empty fleet of its own, one pod after the other;
times are CPU time of this process, and the last column is the ratio to the plain request of the
same run.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from tensorfusion import names
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.hardware import find_card
from tensorfusion.model.neighbours import (
    HOSTNAME,
    LabelCondition,
    Neighbours,
    PeerSelector,
    PeerTerm,
    SpreadRule,
)
from tensorfusion.model.topology import TopologyWish
from tensorfusion_plugins.policies import load

PER_NODE = 8
ZONE = "topology.kubernetes.io/zone"
CARD = find_card("A100_SXM_80G")
WEB = PeerSelector(("ns",), (LabelCondition("app", "In", ("web",)),))
WARM_UP = 5
"""Placements left out at the start, in which the engine sees the shape for the first time."""


def fleet(nodes: int) -> Engine:
    """Build a fleet of nodes with eight cards on two NUMA nodes, in eight zones."""
    engine = Engine(load.compact_first())
    for number in range(nodes):
        name = f"n{number:05d}"
        labels = {HOSTNAME: name, ZONE: str(number % 8)}
        engine.upsert_node(NodeInfo(name=name, pool="p", labels=labels))
        for index in range(PER_NODE):
            engine.upsert_device(
                Device(
                    uuid=f"{name}-g{index}",
                    node=name,
                    pool="p",
                    index=index,
                    capacity_gflops=CARD.compute_gflops,
                    capacity_vram_bytes=CARD.vram_bytes,
                    numa_node=2 * index // PER_NODE,
                    geometry=CARD.geometry,
                )
            )
    return engine


def kinds() -> dict[str, Callable[[int], dict[str, Any]]]:
    """Return for each kind of request the fields of its n-th shape."""
    templates = [template.id for template in CARD.templates[:5]]
    apart = Neighbours(apart=(PeerTerm(WEB, HOSTNAME),))
    cards = Neighbours(apart=(PeerTerm(WEB, names.GPU_DOMAIN),))
    spread = Neighbours(spread=(SpreadRule(WEB, ZONE, 1),))
    required = TopologyWish(required=True)
    return {
        "plain": lambda _n: {},
        "two GPUs": lambda _n: {"gpu_count": 2},
        "two GPUs, tier required": lambda _n: {"gpu_count": 2, "topology": required},
        "partition": lambda n: {
            "isolation": "partitioned",
            "partition": templates[n % len(templates)],
            "request": Amount(),
        },
        "anti-affinity over nodes": lambda _n: {"neighbours": apart},
        "anti-affinity over GPUs": lambda _n: {"neighbours": cards},
        "spread over zones": lambda _n: {"neighbours": spread},
    }


def median_us(engine: Engine, fields: Callable[[int], dict[str, Any]], pods: int) -> float:
    """Place and reserve pods; return the median CPU time of one in microseconds."""
    times = []
    for number in range(pods):
        shape = Shape(**{"pool": "p", "request": Amount(10_000, 1 << 32), **fields(number)})
        uid = str(number)
        demand = Demand(namespace="ns", name=uid, uid=uid, shape=shape, labels=(("app", "web"),))
        started = time.process_time_ns()
        found = engine.place(demand)
        if isinstance(found, Placement):
            engine.reserve(demand, found)
        times.append(time.process_time_ns() - started)
    times = sorted(times[WARM_UP:])
    return times[len(times) // 2] / 1000


def main() -> None:
    """Print a table per fleet size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", default="10000,60000")
    parser.add_argument("--pods", type=int, default=300)
    options = parser.parse_args()
    for gpus in (int(text) for text in options.gpus.split(",")):
        plain = 0.0
        print(f"{gpus} GPUs{'median us':>32}  x plain")
        for name, fields in kinds().items():
            median = median_us(fleet(gpus // PER_NODE), fields, options.pods)
            plain = plain or median
            print(f"  {name:28}{median:10.1f}{median / plain:9.2f}", flush=True)


if __name__ == "__main__":
    main()
