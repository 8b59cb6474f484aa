"""Placement benchmark: cost of a decision and its reservation against fleet size.

    .venv/bin/python tests/bench/placement.py [--sizes 3000,60000] [--policy NAME,NAME]
        [--parts] [--json] [--plot FILE]

A fleet of nodes with six GPUs each is filled with seeded requests until the requests hold 80 % of
the VRAM. Then pods are placed one by one; what is timed for each is the whole way from the
request to the ledger (decide, reserve, digest), not the making of the request. After each
placement random pods are released, outside the timing, until the fleet is back at 80 %, so
that it stays equally full. The mix has 256 distinct requests, 5 % of them for two to four GPUs of
one node, with model, vendor and node-selector constraints on some.

*Warm* is every placement of a shape the engine has seen, *cold* the first one of each shape by an
engine that has never placed anything on the full fleet. Pods that find no room count in both.

``--parts`` places as many pods once more with a clock around each part of the engine, and prints
which share of the time each takes by itself.
"""

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorfusion.model.candidates import ShapeKeys, Suitability, Tables
from tensorfusion.model.decision_log import LogEncoder
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion_plugins.policies import tensorfusion_placement_policies

GIB = 2**30
MODELS = (
    ("NVIDIA", "T4", 65_000, 16),
    ("NVIDIA", "L4", 121_000, 24),
    ("NVIDIA", "A100", 312_000, 80),
    ("NVIDIA", "H100", 989_000, 80),
)
FILL = 0.8
POLICIES = {policy.name: policy for policy in tensorfusion_placement_policies()}
PARTS = (
    (Suitability, "catch_up", "hardware, labels, taints"),
    (Tables, "catch_up", "room of changed nodes"),
    (ShapeKeys, "catch_up", "keys of changed nodes"),
    (ShapeKeys, "_maybe", "which of them have room"),
    (ShapeKeys, "_count_fitting", "whose cards fit"),
    (Engine, "_pick", "best node"),
    (Engine, "_placement", "cards of that node"),
    (Engine, "place", "the rest of the decision"),
    (Engine, "reserve", "ledger, digest, columns"),
)
"""Methods that ``--parts`` puts a clock around, and what they do; the policy's scores come too."""


def build_fleet(engine: Engine, gpus: int, per_node: int, rng: random.Random) -> int:
    """Add nodes and devices; return the fleet's VRAM in bytes."""
    total = 0
    for number in range(gpus // per_node):
        name = f"node-{number:05d}"
        vendor, model, gflops, gib = MODELS[rng.randrange(len(MODELS))]
        engine.upsert_node(
            NodeInfo(
                name=name,
                pool="main",
                labels={"zone": f"z{number % 3}", "kubernetes.io/hostname": name},
            )
        )
        for index in range(per_node):
            total += gib * GIB
            engine.upsert_device(
                Device(
                    uuid=f"gpu-{number:05d}-{index}",
                    node=name,
                    pool="main",
                    index=index,
                    vendor=vendor,
                    model=model,
                    full_model=f"{vendor} {model}",
                    capacity_gflops=gflops,
                    capacity_vram_bytes=gib * GIB,
                    virtual_gflops=gflops * 5,
                    virtual_vram_bytes=gib * GIB * 3 // 2,
                )
            )
    return total


def make_shapes(count: int, rng: random.Random) -> list[Shape]:
    """Draw distinct requests, 5 % of them for several GPUs."""
    shapes: dict[Shape, None] = {}
    while len(shapes) < count:
        several = len(shapes) % 20 == 0
        tflops = rng.randrange(2, 60)
        gib = rng.randrange(1, 14)
        constraint = rng.random()
        by_percent = rng.random() < 0.1
        request = Amount(
            0 if by_percent else tflops * 1000,
            gib * GIB,
            rng.randrange(5, 60) * 1000 if by_percent else 0,
        )
        limit = Amount(request.gflops * 2, request.vram_bytes * 5 // 4, request.milli_percent * 2)
        shapes[
            Shape(
                pool="main",
                request=request,
                limit=limit,
                gpu_count=rng.randrange(2, 5) if several else 1,
                vendor="NVIDIA" if constraint < 0.2 else "",
                models=(MODELS[rng.randrange(1, 4)][1],) if 0.2 <= constraint < 0.4 else (),
                node_selector=(("zone", f"z{rng.randrange(3)}"),) if constraint > 0.9 else (),
            )
        ] = None
    return list(shapes)


def percentile(values: list[float], share: float) -> float:
    """Return a percentile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Run:
    """One fleet with its pods."""

    def __init__(self, gpus: int, policy_name: str, shapes: int, seed: int, log: bool) -> None:
        self.rng = random.Random(seed)
        self.policy = POLICIES[policy_name]
        self.engine = Engine(self.policy)
        self.total_vram = build_fleet(self.engine, gpus, 6, self.rng)
        self.shapes = make_shapes(shapes, self.rng)
        self.pods: list[str] = []
        self.used_vram = 0
        self.number = 0
        self.refused = 0
        self.encoder = LogEncoder() if log else None

    def demand(self, shape: Shape) -> Demand:
        """Make a pod; its shape is a new object, as one read from a manifest would be."""
        self.number += 1
        values = {name: getattr(shape, name) for name in shape.__struct_fields__}
        return Demand(
            namespace="bench",
            name=f"pod-{self.number}",
            uid=f"uid-{self.number}",
            shape=Shape(**values),
        )

    def step(self, shape: Shape) -> float:
        """Place one pod; return seconds from request to ledger."""
        demand = self.demand(shape)
        engine = self.engine
        start = time.perf_counter()
        placement = engine.place(demand)
        if isinstance(placement, Placement):
            change = engine.reserve(demand, placement)
            if self.encoder is not None:
                self.encoder.encode(change, 0.0, "bench")
        seconds = time.perf_counter() - start
        if isinstance(placement, Placement):
            self.pods.append(demand.uid)
            self.used_vram += shape.request.vram_bytes * shape.gpu_count
        else:
            self.refused += 1
        return seconds

    def fill(self) -> None:
        """Place pods until the fleet is as full as it shall be."""
        while self.used_vram < FILL * self.total_vram:
            refused = self.refused
            self.step(self.rng.choice(self.shapes))
            if self.refused > refused + 1000:
                raise SystemExit("the mix does not reach the fill level")
        self.refused = 0

    def make_room(self) -> None:
        """Release random pods until the fleet is back at its fill level."""
        while self.used_vram > FILL * self.total_vram:
            position = self.rng.randrange(len(self.pods))
            self.pods[position], self.pods[-1] = self.pods[-1], self.pods[position]
            change = self.engine.ledger.release(self.pods.pop())
            assert change is not None
            assert change.before is not None
            self.used_vram -= change.before.usage.request_vram_bytes

    def measure(self, pods: int) -> dict[str, float]:
        """Place pods on the full fleet, first with empty caches."""
        fresh = Engine(self.policy, self.engine.ledger)
        for slot, node in enumerate(self.engine.fleet.nodes):
            assert node is not None
            fresh.upsert_node(node)
            for usage in self.engine.fleet.blocks[slot]:
                fresh.fleet.put_device(usage, fresh.ledger.node_usage(node.name))
        self.engine = fresh
        seen: set[Shape] = set()
        cold: list[float] = []
        warm: list[float] = []
        gc.collect()
        gc.freeze()
        for _ in range(pods):
            shape = self.rng.choice(self.shapes)
            seconds = self.step(shape)
            (warm if shape in seen else cold).append(seconds * 1e6)
            seen.add(shape)
            self.make_room()
        gc.unfreeze()
        both = cold + warm
        return {
            "gpus": self.engine.fleet.statistics.devices,
            "pods": pods,
            "refused": self.refused,
            "decisions_per_second": 1e6 * len(both) / sum(both),
            "median_us": percentile(both, 0.5),
            "p99_us": percentile(both, 0.99),
            "warm_median_us": percentile(warm, 0.5),
            "warm_p99_us": percentile(warm, 0.99),
            "cold_median_us": percentile(cold, 0.5),
            "cold_p99_us": percentile(cold, 0.99),
        }


class Clocks:
    """Times methods, each without what the other ones take inside of it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner = [0.0]

    def wrap(self, owner: type, method: str, title: str) -> Callable[[], None]:
        """Put a clock around a method; return what takes it away."""
        plain = getattr(owner, method)

        def timed(*arguments: object) -> object:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return plain(*arguments)
            finally:
                seconds = time.perf_counter() - start
                self.spent[title] = self.spent.get(title, 0.0) + seconds - self._inner.pop()
                self._inner[-1] += seconds

        setattr(owner, method, timed)
        return lambda: setattr(owner, method, plain)

    def measure(self, run: Run, pods: int) -> dict[str, float]:
        """Return the share of each part, percent, largest first."""
        parts = [*PARTS, (type(run.policy), "score_nodes", "scores of nodes by the policy")]
        undo = [self.wrap(*part) for part in parts]
        for _ in range(pods):
            run.step(run.rng.choice(run.shapes))
            run.make_room()
        for one in undo:
            one()
        total = sum(self.spent.values())
        shares = {title: 100 * seconds / total for title, seconds in self.spent.items()}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


Result = dict[str, Any]
COLUMNS = (
    ("policy", "policy", "{}"),
    ("gpus", "GPUs", "{:.0f}"),
    ("decisions_per_second", "decisions/s", "{:.0f}"),
    ("median_us", "median us", "{:.1f}"),
    ("p99_us", "p99 us", "{:.1f}"),
    ("warm_median_us", "warm median", "{:.1f}"),
    ("warm_p99_us", "warm p99", "{:.1f}"),
    ("cold_median_us", "cold median", "{:.1f}"),
    ("cold_p99_us", "cold p99", "{:.1f}"),
    ("refused", "refused", "{:.0f}"),
    ("ratio", "x first", "{:.2f}"),
)


def print_table(results: list[Result]) -> None:
    """Print one line per policy and fleet size, then the parts if they were measured."""
    lines = [[title for _, title, _ in COLUMNS]]
    lines += [[form.format(row[key]) for key, _, form in COLUMNS] for row in results]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for row in results:
        if "parts" in row:
            print(f"\n{row['policy']}, {row['gpus']:.0f} GPUs, share of the time by part")
            for title, share in row["parts"].items():
                print(f"{share:6.1f} %  {title}")


def plot(results: list[Result], path: Path) -> None:
    """Draw the median cost of a pod against fleet size, a line per policy, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Without these two, each run would write another file.
    matplotlib.rcParams.update({"svg.hashsalt": "placement", "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for policy in dict.fromkeys(row["policy"] for row in results):
        rows = [row for row in results if row["policy"] == policy]
        gpus = [row["gpus"] for row in rows]
        for key, style in (("warm_median_us", "-"), ("cold_median_us", ":")):
            title = f"{policy}, {'seen' if style == '-' else 'new'} request"
            axes.plot(gpus, [row[key] for row in rows], style, marker="o", label=title)
    axes.set(xlabel="GPUs", ylabel="median us per pod", xscale="log", yscale="log", ylim=(10, None))
    axes.grid(which="both", color="#dddddd")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


def main(arguments: list[str]) -> int:
    """Run the benchmark for each fleet size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="3000,6000,15000,30000,60000")
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--shapes", type=int, default=256)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--policy", default="node-compact-gpu-low-load,fgd")
    parser.add_argument("--log", action="store_true", help="encode the decision log record too")
    parser.add_argument("--parts", action="store_true", help="measure the parts as well")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    results: list[Result] = []
    for policy in options.policy.split(","):
        if policy not in POLICIES:
            parser.error(f"--policy: {policy!r} is none of {', '.join(sorted(POLICIES))}")
        first: Result | None = None
        for size in options.sizes.split(","):
            run = Run(int(size), policy, options.shapes, options.seed, options.log)
            run.fill()
            row: Result = {"policy": policy, **run.measure(options.pods)}
            first = first or row
            row["ratio"] = row["median_us"] / first["median_us"]
            if options.parts:
                row["parts"] = Clocks().measure(run, options.pods)
            results.append(row)
            print(f"{policy}, {row['gpus']:.0f} GPUs done", file=sys.stderr)
    if options.json:
        print(json.dumps({"results": results}, indent=2))
    else:
        print_table(results)
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
