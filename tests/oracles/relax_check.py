"""Checks an answer about a small cluster by trying everything else."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import msgspec
from oracles.relax_world import ISOLATIONS, World, apply, subsets

from tensorfusion.model.demand import Toleration
from tensorfusion.model.device import RUNNING
from tensorfusion.model.relax.answer import relax
from tensorfusion.model.relax.step import Answer, Step

_put = msgspec.structs.replace
AMOUNTS = {
    "compute": ("request", ("gflops", "milli_percent")),
    "vram": ("request", ("vram_bytes",)),
    "compute-limit": ("limit", ("gflops", "milli_percent")),
    "vram-limit": ("limit", ("vram_bytes",)),
}


def check(world: World) -> Answer:
    """Answer for a world, and prove the answer right or raise AssertionError."""
    answer = relax(world.engine(), world.demand)
    assert answer == relax(world.engine(), world.demand), "not deterministic"
    named = {step.kind for step in answer.alone}
    for step in answer.alone:
        assert apply(world, step).fits(), ("does not help", step)
        for smaller in smaller_than(world, step):
            assert not smaller.fits(), ("a smaller change helps", step)
    for futile in answer.futile:
        assert futile.kind not in named
        assert futile.reason
        for other in fully(world, futile.kind):
            assert not other.fits(), ("the kind does help", futile)
    stated = named | {futile.kind for futile in answer.futile}
    for kind in fully_known(world):
        if kind not in stated:
            assert not any(other.fits() for other in fully(world, kind)), ("left out", kind)
    if not answer.alone:
        check_pairs(world, answer)
    return answer


def check_pairs(world: World, answer: Answer) -> None:
    """A pair helps, neither half can be smaller, and there is none only when none exists."""
    for first, second in answer.pairs:
        after = apply(world, first)
        assert apply(after, second).fits(), ("pair does not help", first, second)
        for smaller in smaller_than(after, second):
            assert not smaller.fits(), ("second half too large", first, second)
        for smaller in smaller_than(world, first):
            for other in fully(smaller, second.kind):
                assert not other.fits(), ("first half too large", first, second)
    if answer.pairs:
        return
    kinds = list(fully_known(world))
    for a, b in itertools.combinations(kinds, 2):
        for once in fully(world, a):
            for twice in fully(once, b):
                assert not twice.fits(), ("a pair was overlooked", a, b)


def fully_known(world: World) -> list[str]:
    """Kinds that `fully` knows for this request."""
    return [
        "compute", "compute-limit", "vram", "vram-limit", "cpu", "memory", "model", "index",
        "node-selector", "node-affinity", "taint", "node-name", "vendor", "dedicated",
        "isolation", "gpu-count", "pool", "topology", "neighbours", "worker-cap", "cordoned",
        "phase", "owner", "evict", "add-node",
    ] + (["quota"] if world.quotas else [])  # fmt: skip


def fully(world: World, kind: str) -> Iterator[World]:
    """Yield the world with a kind relaxed all the way, in every way that there is."""
    shape = world.demand.shape
    if kind in AMOUNTS:
        yield from _least(world, kind)
    elif kind in ("cpu", "memory"):
        yield world.asking(_put(shape, **{{"cpu": "cpu_milli", "memory": "memory_bytes"}[kind]: 0}))
    elif kind == "isolation":
        yield from (world.asking(_put(shape, isolation=m)) for m in ISOLATIONS)
    elif kind == "gpu-count":
        if not shape.containers:
            yield from (world.asking(_put(shape, gpu_count=n)) for n in range(1, shape.gpu_count))
    elif kind == "taint":
        yield world.asking(_put(shape, tolerations=(Toleration("", "Exists"),)))
    elif kind in DROPPED:
        yield world.asking(_put(shape, **DROPPED[kind]))
    elif kind == "worker-cap":
        yield replace(world, nodes=tuple(_put(n, max_workers=99) for n in world.nodes))
    elif kind == "cordoned":
        yield replace(world, nodes=tuple(_put(n, schedulable=True) for n in world.nodes))
    elif kind == "phase":
        yield world.with_devices({d.uuid for d in world.devices}, phase=RUNNING)
    elif kind == "owner":
        yield world.with_devices({d.uuid for d in world.devices}, used_by="")
    elif kind == "evict":
        yield world.without(demand.uid for demand, _, _ in world.held)
    elif kind == "add-node":
        yield from (added for _, added in additions(world))
    elif kind == "quota":
        yield replace(world, quotas=())


DROPPED = {
    "model": {"models": ()},
    "index": {"indices": ()},
    "node-selector": {"node_selector": ()},
    "node-affinity": {"affinity": ()},
    "node-name": {"node_name": ""},
    "vendor": {"vendor": ""},
    "dedicated": {"dedicated": False},
    "pool": {"pool": ""},
    "topology": {"topology": None},
    "neighbours": {"neighbours": None},
}


def _least(world: World, kind: str) -> Iterator[World]:
    shape = world.demand.shape
    part, fields = AMOUNTS[kind]
    for field in fields:
        if getattr(getattr(shape, part), field):
            yield from with_amount(world, kind, field, 1)


def with_amount(world: World, kind: str, field: str, value: int) -> Iterator[World]:
    """Ask for another amount; a limit that is not above the request follows it."""
    shape = world.demand.shape
    request, limit = shape.request, shape.limit
    asked, ceiling = getattr(request, field), getattr(limit, field)
    if kind.endswith("-limit"):
        if ceiling > asked:
            yield world.asking(_put(shape, limit=_put(limit, **{field: max(value, asked, 1)})))
        return
    if ceiling <= asked:
        limit = _put(limit, **{field: min(ceiling, value)})
    yield world.asking(_put(shape, request=_put(request, **{field: value}), limit=limit))


def smaller_than(world: World, step: Step) -> Iterator[World]:
    """Yield the next smaller changes of the same kind."""
    old, new = world.demand.shape, step.shape
    kind = step.kind
    if kind in AMOUNTS:
        part, fields = AMOUNTS[kind]
        for field in fields:
            now = getattr(getattr(new, part), field)
            if now != getattr(getattr(old, part), field):
                yield from with_amount(world, kind, field, now + 1)
    elif kind == "cpu":
        yield world.asking(_put(old, cpu_milli=new.cpu_milli + 1))
    elif kind == "memory":
        yield world.asking(_put(old, memory_bytes=new.memory_bytes + 1))
    elif kind == "topology":
        tiers = range(old.topology.max_tier + 1, new.topology.max_tier)
        for tier in tiers:
            yield world.asking(_put(old, topology=_put(old.topology, max_tier=tier)))
    elif kind == "gpu-count":
        yield from (
            world.asking(_put(old, gpu_count=n)) for n in range(new.gpu_count + 1, old.gpu_count)
        )
    elif kind == "evict":
        keys = [demand.uid for demand, _, _ in world.held if demand.uid not in world.gone]
        yield from (world.without(s) for s in subsets(keys) if len(s) < len(step.evict))
    elif kind in ("phase", "owner"):
        field, value = ("phase", RUNNING) if kind == "phase" else ("used_by", "")
        wrong = [d.uuid for d in world.devices if getattr(d, field) != value]
        for some in subsets(wrong):
            if len(some) < len(step.devices):
                yield world.with_devices(some, **{field: value})
    elif kind == "worker-cap":
        before = {node.name: node.max_workers for node in world.nodes}
        added = step.max_workers - before[step.node]
        yield from (
            world.with_node(name, max_workers=cap + added - 1) for name, cap in before.items()
        )
    elif kind == "quota":
        for item in step.raises:
            less = msgspec.structs.replace(item, needed=item.needed - 1)
            raises = tuple(less if other == item else other for other in step.raises)
            yield apply(world, msgspec.structs.replace(step, raises=raises))
    elif kind == "add-node":
        size = _size(step.addition.devices)
        yield from (added for cost, added in additions(world) if cost < size)
    else:
        yield from _smaller_rules(world, step)


def _smaller_rules(world: World, step: Step) -> Iterator[World]:
    old, new = world.demand.shape, step.shape
    if step.kind == "model":
        models = {d.model for d in world.devices}
        for some in subsets(models):
            if len(some) < len(new.models) - len(old.models):
                yield world.asking(_put(old, models=(*old.models, *some)))
    elif step.kind == "node-selector":
        dropped = len(old.node_selector) - len(new.node_selector)
        for kept in subsets(old.node_selector):
            if len(old.node_selector) - len(kept) < dropped:
                yield world.asking(_put(old, node_selector=kept))
    elif step.kind == "taint":
        taints = {t for node in world.nodes for t in node.taints}
        added = len(new.tolerations) - len(old.tolerations)
        for some in subsets(sorted(taints, key=repr)):
            if len(some) < added:
                extra = tuple(Toleration(t.key, "Equal", t.value, t.effect) for t in some)
                yield world.asking(_put(old, tolerations=(*old.tolerations, *extra)))


def additions(world: World) -> Iterator[tuple[tuple[int, int], World]]:
    """Yield every world with one more node like one that is there, and the node's size."""
    for node in world.nodes:
        name = f"{node.name}-extra"
        labels = {**node.labels, "kubernetes.io/hostname": name}
        devices = [
            _put(d, uuid=f"{name}-{d.index}", node=name, phase=RUNNING, used_by="")
            for d in world.devices
            if d.node == node.name
        ]
        new = _put(node, name=name, labels=labels, schedulable=True)
        yield (
            _size(devices),
            replace(world, nodes=(*world.nodes, new), devices=(*world.devices, *devices)),
        )


def _size(devices) -> tuple[int, int]:
    return len(devices), sum(d.capacity_gflops for d in devices)
