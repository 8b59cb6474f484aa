"""`why`: proof of minimal changes on random clusters, and the time of an answer on a large fleet.

``python tests/bench/why.py [--requests N] [--jobs N] [--gpus N] [--answers N] [--json]``

First it draws small random clusters with requests that do not fit, asks for the smallest change of
each kind, and proves every answer by trying all smaller ones. Then it fills a fleet of eight-GPU
nodes and times answers to requests of many kinds that do not fit it, without rules about other pods
and with one.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
from oracles.relax_check import check
from oracles.relax_world import POLICY, random_world

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.neighbours import (
    LabelCondition,
    Neighbours,
    PeerSelector,
    PeerTerm,
    SpreadRule,
)
from tensorfusion.model.relax.answer import Relaxer
from tensorfusion.runtime import garbage

GIB = 1 << 30
CARDS = (("A100", 312_000, 80), ("L40S", 362_000, 48), ("H100", 989_000, 80))


def prove(seed: int) -> tuple[str, list[str]] | None:
    """Check one random request; None when it fits."""
    world = random_world(seed)
    if world is None:
        return None
    try:
        answer = check(world)
    except AssertionError as error:
        return f"seed {seed}: {str(error)[:300]}", []
    kinds = [step.kind for step in answer.alone] or (["a pair"] if answer.pairs else ["nothing"])
    return "", kinds


def proofs(requests: int, jobs: int) -> tuple[int, Counter[str], list[str]]:
    """Check so many requests that do not fit."""
    kinds: Counter[str] = Counter()
    findings: list[str] = []
    done = 0
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(prove, range(requests * 2), chunksize=50):
            if result is None:
                continue
            done += 1
            kinds.update(result[1])
            if result[0]:
                findings.append(result[0])
            if done % 500 == 0:
                sys.stderr.write(f"{done} of {requests} requests proven\n")
            if done == requests:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return done, kinds, findings


def filled(gpus: int, draw: random.Random) -> Engine:
    """Build a fleet and place workers until they no longer fit."""
    engine = Engine(POLICY)
    for number in range(gpus // 8):
        model, compute, vram = CARDS[number % len(CARDS)]
        name = f"node-{number:05d}"
        engine.upsert_node(
            NodeInfo(name=name, labels={"zone": f"z{number % 4}"}, schedulable=number % 50 != 0)
        )
        for index in range(8):
            engine.upsert_device(
                Device(
                    uuid=f"{name}-{index}",
                    node=name,
                    index=index,
                    vendor="NVIDIA",
                    model=model,
                    capacity_gflops=compute,
                    capacity_vram_bytes=vram * GIB,
                )
            )
    refused = number = 0
    while refused < 50:
        number += 1
        request = Amount(1000 * draw.choice((40, 80, 150)), GIB * draw.choice((8, 16, 30)))
        shape = Shape(request=request, gpu_count=draw.choice((1,) * 9 + (2,)))
        labels = (("app", draw.choice("pqrs")),)
        demand = Demand(
            namespace="n", name=f"w{number}", uid=f"w{number}", shape=shape, labels=labels
        )
        found = engine.place(demand)
        if isinstance(found, Placement):
            engine.reserve(demand, found)
        else:
            refused += 1
    return engine


def shapes(draw: random.Random, count: int) -> list[Shape]:
    """Draw requests that a full fleet cannot take."""
    return [
        Shape(
            request=Amount(1000 * draw.randint(100, 400), GIB * draw.randint(20, 100)),
            gpu_count=draw.choice((1, 1, 2, 4, 8)),
            models=draw.choice(((), ("A100",), ("H200",))),
            node_selector=draw.choice(((), (("zone", "z1"),), (("zone", "z9"),))),
            dedicated=draw.random() < 0.1,
        )
        for _ in range(count)
    ]


def rules(draw: random.Random) -> Neighbours:
    """Draw a rule about other pods."""
    term = PeerSelector(("*",), (LabelCondition("app", "In", (draw.choice("pqrs"),)),))
    key = draw.choice(("zone", "kubernetes.io/hostname"))
    kind = draw.choice(("near", "apart", "spread"))
    if kind == "spread":
        return Neighbours(spread=(SpreadRule(term, key, 1),))
    return Neighbours(**{kind: (PeerTerm(term, key),)})


def latency(engine: Engine, answers: int, *, with_rules: bool) -> dict[str, float]:
    """Time answers on a large fleet, in milliseconds."""
    draw = random.Random(1)
    relaxer = Relaxer(engine)
    spent = []
    for number, shape in enumerate(shapes(draw, answers)):
        if with_rules:
            shape = msgspec.structs.replace(shape, neighbours=rules(draw))
        demand = Demand(
            namespace="n", name="new", uid=f"new{number}", shape=shape, labels=(("app", "p"),)
        )
        if isinstance(engine.place(demand), Placement):
            continue
        started = time.perf_counter()
        relaxer.answer(demand)
        spent.append((time.perf_counter() - started) * 1000)
    first = spent[0]
    spent.sort()
    return {
        "gpus": engine.fleet.statistics.devices,
        "workers": len(engine.ledger.allocations),
        "answers": len(spent),
        "first_ms": first,
        "median_ms": statistics.median(spent),
        "p99_ms": spent[int(len(spent) * 0.99)],
        "max_ms": spent[-1],
    }


def main() -> int:
    """Run the command line; 1 when an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    garbage.configure()  # as in a control plane, which is where answers hold others up
    engine = filled(arguments.gpus, random.Random(1))
    times = latency(engine, arguments.answers, with_rules=False)
    ruled = latency(engine, arguments.answers, with_rules=True)
    done, kinds, findings = proofs(arguments.requests, arguments.jobs)
    if arguments.json:
        body = {
            "latency": times,
            "latency_with_rules": ruled,
            "proven": done,
            "kinds": kinds,
            "findings": findings,
        }
        print(json.dumps(body, indent=2))
        return int(bool(findings))
    print(f"{times['gpus']:.0f} GPUs, {times['workers']:.0f} workers: an answer takes", end=" ")
    print(
        f"{times['median_ms']:.1f} ms median, {times['p99_ms']:.1f} ms p99 of {times['answers']},",
        end=" ",
    )
    print(f"the first {times['first_ms']:.1f} ms")
    print("  the same with a rule about other pods:", end=" ")
    print(f"{ruled['median_ms']:.1f} ms median, {ruled['p99_ms']:.1f} ms p99 of {ruled['answers']}")
    print(f"{done} requests that do not fit: {len(findings)} wrong answers")
    for kind, count in kinds.most_common():
        print(f"  {count:6} {kind}")
    for line in findings[:20]:
        print(line)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
