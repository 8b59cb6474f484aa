"""What is kept over answers, and what spares tries, changes no answer."""

import random
from itertools import combinations

import msgspec
import pytest
from oracles.relax_world import random_world

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Placement
from tensorfusion.model.neighbours import LabelCondition, Neighbours, PeerSelector, PeerTerm
from tensorfusion.model.relax.answer import Relaxer, relax
from tensorfusion.model.relax.residents import Residents
from tensorfusion.model.relax.room import Room

SEEDS = range(60)
_put = msgspec.structs.replace


def worlds(*, held=0):
    found = [(seed, random_world(seed)) for seed in SEEDS]
    return [(s, w) for s, w in found if w is not None and len(w.held) >= held]


def meant_by_looking(ledger, selector, namespace, labels):
    """Keys of the workers that a selector means, or that keep a new pod away: one by one."""
    found = set()
    for key, one in ledger.allocations.items():
        identity = one.identity
        if identity is not msgspec.UNSET and (
            selector.matches(one.namespace, dict(identity.labels))
            or any(term.selector.matches(namespace, labels) for term in identity.apart)
        ):
            found.add(key)
    return found


def change(draw, engine, number):
    """Let something happen to the fleet or its workers."""
    kind = draw.choice(
        ("leave", "join", "card", "no card", "cordon", "node", "wide node", "nothing")
    )
    devices = [usage.device for usage in engine.ledger.devices.values() if usage.device]
    nodes = [node for node in engine.fleet.nodes if node is not None]
    if kind == "leave" and engine.ledger.allocations:
        engine.ledger.release(draw.choice(sorted(engine.ledger.allocations)))
    elif kind == "join":
        uid = f"late{number}"
        demand = Demand(namespace="team", name=uid, uid=uid, shape=Shape(request=Amount(5, 4)))
        found = engine.place(demand)
        if isinstance(found, Placement):
            engine.reserve(demand, found)
    elif kind == "card" and devices:
        engine.upsert_device(_put(draw.choice(devices), capacity_gflops=draw.choice((30, 300))))
    elif kind == "no card" and devices:
        engine.remove_device(draw.choice(devices).uuid)
    elif kind == "cordon":
        engine.upsert_node(_put(draw.choice(nodes), schedulable=False, cpu_milli=4000))
    elif kind in ("node", "wide node"):
        name, count = f"late{number}", 2 if kind == "node" else 9
        engine.upsert_node(NodeInfo(name=name, pool="a"))
        for index in range(count):
            uuid = f"{name}-{index}"
            engine.upsert_device(
                Device(
                    uuid=uuid,
                    node=name,
                    pool="a",
                    index=index,
                    vendor="NVIDIA",
                    model="A100",
                    capacity_gflops=100,
                    capacity_vram_bytes=80,
                )
            )
    return kind


@pytest.mark.parametrize("start", range(0, len(SEEDS), 20))
def test_answers_are_the_same_after_any_change_whoever_gave_the_last_one(start):
    kinds = set()
    for seed, world in worlds()[start : start + 20]:
        draw = random.Random(seed)
        engine = world.engine()
        relaxer = Relaxer(engine)
        for number in range(5):
            before = engine.ledger.state_hash()
            assert relaxer.answer(world.demand) == relax(engine, world.demand), (seed, number)
            assert engine.ledger.state_hash() == before
            kinds.add(change(draw, engine, number))
    assert len(kinds) > 5


def test_no_set_of_workers_is_ruled_out_by_amounts_that_would_make_room():
    seen = {True: 0, False: 0}
    for _, world in worlds(held=2):
        # Numbers and other pods are judged by the engine.
        demand = _put(world.demand, shape=_put(world.demand.shape, neighbours=None))
        engine = world.engine()
        ledger = engine.ledger
        keys = sorted(ledger.allocations)
        sets = [some for size in (1, 2) for some in combinations(keys, size)]
        for node in world.nodes:
            room = Room(engine, demand.shape, engine.fleet.slot_of(node.name))
            for gone in sets:
                mark = ledger.checkpoint()
                expected = room.without(gone)
                for key in gone:
                    ledger.release(key)
                fits = engine.find_on(demand, node.name) is not None
                ledger.rollback(mark)
                assert expected or not fits, (node.name, gone)
                seen[expected] += 1
    assert min(seen.values()) > 50


def test_residents_are_those_that_a_walk_over_all_workers_finds():
    selector = PeerSelector(("*",), (LabelCondition("app", "In", ("p",)),))
    apart = Neighbours(apart=(PeerTerm(selector, "kubernetes.io/hostname"),))
    labels = (("app", "p"),)
    found = 0
    for seed, world in worlds(held=1):
        draw = random.Random(seed)
        engine = world.engine()
        ledger = engine.ledger
        residents = Residents(ledger)
        for number in range(6):
            shape = Shape(request=Amount(1, 1), neighbours=draw.choice((None, apart)))
            own = draw.choice((labels, (("app", "q"),), ()))
            uid = f"pod{number}"
            demand = Demand(namespace="team", name=uid, uid=uid, shape=shape, labels=own)
            placed = engine.place(demand)
            if isinstance(placed, Placement):
                engine.reserve(demand, placed)
            change(draw, engine, number)
            residents.catch_up()
            meant = residents.meant([selector], _put(demand, labels=labels))
            assert meant == meant_by_looking(ledger, selector, "team", dict(labels))
            assert residents.of_namespace("team") == {
                key for key, one in ledger.allocations.items() if one.namespace == "team"
            }
            found += len(meant)
    assert found > 50
