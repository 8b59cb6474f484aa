"""Small random clusters as plain data, and a slow engine that answers by trying."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from tensorfusion.model.demand import Amount, Demand, Requirement, SelectorTerm, Shape, Toleration
from tensorfusion.model.device import DYNAMIC, STATIC, Device, NodeInfo, Taint
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.neighbours import (
    LabelCondition,
    Neighbours,
    PeerSelector,
    PeerTerm,
    SpreadRule,
)
from tensorfusion.model.quota import Quota, QuotaAmount
from tensorfusion.model.relax.step import Answer, Step
from tensorfusion.model.topology import TopologyWish
from tensorfusion_plugins.policies.load import LoadPolicy

POLICY = LoadPolicy(name="fill", aliases=(), fill_nodes=True, fill_devices=True)
ISOLATIONS = ("soft", "hard", "partitioned", "shared")
_put = msgspec.structs.replace


@dataclass(frozen=True)
class World:
    """Everything that decides about one request."""

    nodes: tuple[NodeInfo, ...]
    devices: tuple[Device, ...]
    held: tuple[tuple[Demand, tuple[str, ...], str], ...]
    quotas: tuple[Quota, ...]
    demand: Demand
    gone: frozenset[str] = field(default_factory=frozenset)

    def engine(self) -> Engine:
        engine = Engine(POLICY)
        for node in self.nodes:
            engine.upsert_node(_put(node, max_workers=99))
        for device in self.devices:
            engine.upsert_device(_put(device, phase="Running", used_by="", isolation_mode=""))
        for demand, devices, node in self.held:
            if demand.uid not in self.gone:
                engine.ledger.allocate(demand, devices, node)
        for device in self.devices:
            engine.upsert_device(device)
        for node in self.nodes:
            engine.upsert_node(node)
        for quota in self.quotas:
            engine.ledger.quotas.put(quota)
        return engine

    def fits(self) -> bool:
        return isinstance(self.engine().place(self.demand), Placement)

    def asking(self, shape: Shape) -> "World":
        return replace(self, demand=_put(self.demand, shape=shape))

    def without(self, keys) -> "World":
        return replace(self, gone=self.gone | frozenset(keys))

    def with_node(self, name: str, **fields) -> "World":
        nodes = tuple(_put(n, **fields) if n.name == name else n for n in self.nodes)
        return replace(self, nodes=nodes)

    def with_devices(self, uuids, **fields) -> "World":
        devices = tuple(_put(d, **fields) if d.uuid in uuids else d for d in self.devices)
        return replace(self, devices=devices)


def apply(world: World, step: Step) -> World:
    """Do what a step says."""
    if step.shape is not None:
        world = world.asking(step.shape)
    if step.evict:
        world = world.without(step.evict)
    if step.raises:
        world = replace(world, quotas=tuple(_raised(q, step.raises) for q in world.quotas))
    if step.kind == "phase":
        world = world.with_devices(step.devices, phase="Running")
    if step.kind == "owner":
        world = world.with_devices(step.devices, used_by="")
    if step.kind == "cordoned":
        world = world.with_node(step.node, schedulable=True)
    if step.kind == "worker-cap":
        world = world.with_node(step.node, max_workers=step.max_workers)
    if step.addition is not None:
        world = replace(
            world,
            nodes=(*world.nodes, step.addition.node),
            devices=(*world.devices, *step.addition.devices),
        )
    return world


def _raised(quota: Quota, raises) -> Quota:
    for item in raises:
        if item.quota == quota.name:
            quota = _set_figure(quota, item.resource, item.needed)
    return quota


FIGURES = {
    "total.max.tflops.request": ("total_requests", "gflops"),
    "total.max.vram.request": ("total_requests", "vram_bytes"),
    "total.max.tflops.limit": ("total_limits", "gflops"),
    "total.max.vram.limit": ("total_limits", "vram_bytes"),
    "single.max.tflops.request": ("single_max_requests", "gflops"),
    "single.max.vram.request": ("single_max_requests", "vram_bytes"),
    "single.max.tflops.limit": ("single_max_limits", "gflops"),
    "single.max.vram.limit": ("single_max_limits", "vram_bytes"),
    "total.max.workers.limit": ("max_workers", ""),
    "single.max.gpuCount.limit": ("max_gpu_count", ""),
}


def _set_figure(quota: Quota, resource: str, value: int) -> Quota:
    name, part = FIGURES[resource]
    if not part:
        return _put(quota, **{name: value})
    return _put(quota, **{name: _put(getattr(quota, name), **{part: value})})


def random_world(seed: int) -> World | None:
    """Draw a cluster and a request that does not fit it; None when it does fit."""
    draw = random.Random(seed)
    nodes, devices = [], []
    for number in range(draw.choice((1, 2, 2, 3))):
        node, cards = _node(draw, f"n{number}")
        nodes.append(node)
        devices += cards
    world = World(tuple(nodes), tuple(devices), (), (), _demand(draw, "new", False))
    world = replace(world, held=_load(draw, world))
    world = replace(world, quotas=_quotas(draw, world))
    world, dress = _wired(random.Random(f"wired {seed}"), world)
    for _ in range(6):
        world = replace(world, demand=dress(world.demand))
        if not world.fits():
            return world
        world = replace(world, demand=_demand(draw, "new", True))
    return None


def _wired(draw: random.Random, world: World) -> tuple[World, Callable[[Demand], Demand]]:
    """Connect the cards of some worlds, or give their pods labels, and requests that ask for it."""
    what = draw.choice(("", "", "topology", "neighbours"))
    if what == "topology":
        size = draw.choice((1, 2))
        cards = tuple(_put(d, numa_node=d.index // size) for d in world.devices)
        wish = TopologyWish(required=True, max_tier=draw.choice((0, 1, 1, 2)))

        def connected(demand: Demand) -> Demand:
            count = max(demand.shape.gpu_count, 2)
            return _put(demand, shape=_put(demand.shape, topology=wish, gpu_count=count))

        return replace(world, devices=cards), connected
    if what == "neighbours":
        held = tuple(
            (_put(demand, labels=(("app", draw.choice("pq")),)), devices, node)
            for demand, devices, node in world.held
        )
        rules = _neighbours(draw)
        return replace(world, held=held), lambda demand: _put(
            demand, labels=(("app", "p"),), shape=_put(demand.shape, neighbours=rules)
        )
    return world, lambda demand: demand


def _neighbours(draw: random.Random) -> Neighbours:
    def selector() -> PeerSelector:
        return PeerSelector(("*",), (LabelCondition("app", "In", (draw.choice("pq"),)),))

    key = draw.choice(("zone", "kubernetes.io/hostname"))
    kind = draw.choice(("near", "apart", "apart", "spread"))
    if kind == "spread":
        return Neighbours(spread=(SpreadRule(selector(), key, 1),))
    return Neighbours(**{kind: (PeerTerm(selector(), key),)})


def _node(draw: random.Random, name: str) -> tuple[NodeInfo, list[Device]]:
    pool = draw.choice(("a", "a", "b"))
    cpu = draw.choice((0, 0, 8000))
    node = NodeInfo(
        name=name,
        pool=pool,
        labels={"zone": draw.choice("xy"), "kubernetes.io/hostname": name},
        taints=tuple(Taint(key, "v", "NoSchedule") for key in ("t1", "t2") if draw.random() < 0.15),
        schedulable=draw.random() < 0.9,
        max_workers=draw.choice((1, 2, 3, 9, 9)),
        cpu_milli=cpu,
        memory_bytes=cpu * 1000,
    )
    mixed = draw.random() < 0.3
    model = draw.choice(
        (("NVIDIA", "A100", 100, 80), ("NVIDIA", "L4", 30, 24), ("AMD", "MI300", 200, 190))
    )
    cards = []
    for index in range(draw.choice((1, 2, 2, 3))):
        if mixed:
            model = draw.choice((("NVIDIA", "A100", 100, 80), ("NVIDIA", "L4", 30, 24)))
        vendor, name_, compute, vram = model
        cards.append(
            Device(
                uuid=f"{name}-{index}",
                node=name,
                pool=pool,
                index=index,
                vendor=vendor,
                model=name_,
                full_model=f"{vendor} {name_}",
                capacity_gflops=compute,
                capacity_vram_bytes=vram,
                virtual_gflops=compute * draw.choice((1, 2)),
                virtual_vram_bytes=vram * draw.choice((1, 2)),
                phase=draw.choice(("Running",) * 7 + ("Pending",)),
                used_by=draw.choice(("",) * 9 + ("other",)),
                isolation_policy=draw.choice((STATIC, DYNAMIC)),
                isolation_mode=draw.choice(("",) * 4 + ("soft", "hard")),
            )
        )
    return node, cards


def _load(draw: random.Random, world: World) -> tuple:
    """Fill the cluster with a few workers, as the engine places them when nothing is in the way."""
    free = replace(
        world,
        nodes=tuple(_put(n, taints=(), schedulable=True) for n in world.nodes),
        devices=tuple(
            _put(d, phase="Running", used_by="", isolation_mode="") for d in world.devices
        ),
    )
    engine = free.engine()
    held = []
    for number in range(draw.choice((0, 2, 3, 4, 6))):
        shape = Shape(
            request=Amount(draw.choice((10, 20, 40)), draw.choice((8, 16, 32))),
            gpu_count=draw.choice((1, 1, 1, 2)),
            isolation=draw.choice(("soft", "soft", "hard", "shared")),
            cpu_milli=draw.choice((0, 3000)),
        )
        demand = Demand(
            namespace=draw.choice(("team", "other")),
            name=f"w{number}",
            uid=f"w{number}",
            shape=shape,
        )
        found = engine.place(demand)
        if isinstance(found, Placement):
            engine.reserve(demand, found)
            held.append((demand, found.devices, found.node))
    return tuple(held)


def _quotas(draw: random.Random, world: World) -> tuple[Quota, ...]:
    """Draw a quota; of compute only where all cards are alike.

    What a share of a card counts is known exactly only once the card is chosen.
    """
    if draw.random() < 0.7:
        return ()
    alike = len({device.capacity_gflops for device in world.devices}) == 1
    amount = QuotaAmount(
        draw.choice((None, 50, 100)) if alike else None, draw.choice((None, 40, 100))
    )
    which = draw.choice(
        ("total_requests", "total_limits", "single_max_requests", "single_max_limits")
    )
    cap = draw.choice((None, None, 1, 2))
    return (Quota(namespace="team", name="q", max_workers=cap, **{which: amount}),)


def _demand(draw: random.Random, uid: str, demanding: bool) -> Demand:
    def maybe(chance, value, otherwise=()):
        return value if draw.random() < chance else otherwise

    percent = draw.random() < 0.2
    compute = draw.choice((10, 30, 60, 90, 120) if demanding else (0, 10, 30, 60))
    request = Amount(
        0 if percent else compute,
        draw.choice((8, 30, 60, 79, 150) if demanding else (0, 8, 40)),
        min(compute * 1000, 100_000) if percent else 0,
    )
    factor = draw.choice((0, 0, 1, 2))
    limit = Amount(request.gflops * factor, request.vram_bytes * draw.choice((0, 1, 2)), 0)
    if percent and factor:
        limit = Amount(0, limit.vram_bytes, request.milli_percent)
    shape = Shape(
        pool=maybe(0.25, draw.choice("ab"), ""),
        request=request,
        limit=limit,
        gpu_count=draw.choice((1, 1, 1, 2, 3)),
        vendor=maybe(0.1, draw.choice(("NVIDIA", "NVIDIA", "AMD", "None")), ""),
        models=maybe(0.2, (draw.choice(("A100", "L4", "H100")),)),
        indices=maybe(0.06, (draw.choice((0, 1, 5)),)),
        isolation=draw.choice(ISOLATIONS[:2] * 5 + ISOLATIONS[2:]),
        dedicated=draw.random() < 0.1,
        node_name=maybe(0.05, draw.choice(("n0", "n9")), ""),
        node_selector=maybe(0.1, (("zone", draw.choice("xyz")),)) + maybe(0.06, (("disk", "ssd"),)),
        affinity=maybe(0.1, (SelectorTerm((Requirement("zone", "In", (draw.choice("xz"),)),)),)),
        tolerations=maybe(0.2, (Toleration("t1", "Exists"),)),
        cpu_milli=maybe(0.2, draw.choice((1000, 7000, 9000)), 0),
    )
    return Demand(namespace=draw.choice(("team", "other")), name="new", uid=uid, shape=shape)


def subsets(items, start=0):
    """Yield subsets by size."""
    items = list(items)
    for size in range(start, len(items) + 1):
        yield from itertools.combinations(items, size)


__all__ = ["FIGURES", "ISOLATIONS", "Answer", "World", "apply", "random_world", "subsets"]
