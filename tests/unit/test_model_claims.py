"""Ports and indices: never twice, released with the pod, back after a replay."""

import msgspec
import pytest

from tensorfusion.model.claims import INDEX, Claim
from tensorfusion.model.decision_log import LogEncoder, replay
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.relax.answer import relax
from tensorfusion.model.takes import AllocationRefused
from tensorfusion_plugins.policies import load

GIB = 2**30
PORT = Claim("TCP port", 8080)
FLEET_PORT = Claim("host port", 42_000, fleet_wide=True)
FIRST_INDEX = Claim(INDEX, 0)


def engine_with(*names):
    engine = Engine(load.compact_first())
    for name in names:
        engine.upsert_node(NodeInfo(name=name, pool="p"))
        engine.upsert_device(
            Device(
                uuid=f"{name}-g0",
                node=name,
                pool="p",
                capacity_gflops=100_000,
                capacity_vram_bytes=80 * GIB,
            )
        )
    return engine


def pod(uid, *claims, **shape):
    return Demand(
        namespace="ns",
        name=uid,
        uid=uid,
        claims=claims,
        shape=Shape(pool="p", request=Amount(1_000, GIB), **shape),
    )


def put(engine, demand):
    found = engine.place(demand)
    assert isinstance(found, Placement), found.message
    return engine.reserve(demand, found)


@pytest.mark.parametrize("claim", [PORT, FIRST_INDEX])
def test_number_of_a_node_is_given_once_per_node(claim):
    engine = engine_with("n1", "n2")
    nodes = [put(engine, pod(uid, claim)).after.node for uid in ("a", "b")]
    assert sorted(nodes) == ["n1", "n2"]
    refusal = engine.place(pod("c", claim))
    assert refusal.message == f"0/2 GPUs fit: 2 where {claim} is taken"
    assert refusal.resolvable
    assert isinstance(engine.place(pod("c", Claim(claim.resource, 9))), Placement)
    engine.ledger.release("b")
    assert put(engine, pod("c", claim)).after.node == nodes[1]


def test_number_of_the_fleet_is_given_once():
    engine = engine_with("n1", "n2")
    put(engine, pod("a", FLEET_PORT))
    refusal = engine.place(pod("b", FLEET_PORT))
    assert refusal.message == "0/2 GPUs fit: 2 where host port 42000 of the fleet is taken"


@pytest.mark.parametrize("claim", [PORT, FLEET_PORT])
def test_ledger_refuses_a_number_that_is_taken_and_says_by_whom(claim):
    engine = engine_with("n1")
    put(engine, pod("a", claim))
    with pytest.raises(AllocationRefused, match=r"is held by ns/a") as caught:
        engine.ledger.allocate(pod("b", claim), ["n1-g0"])
    assert caught.value.reason == "ClaimTaken"
    assert list(engine.ledger.allocations) == ["a"]


def test_index_is_free_again_once_the_pod_runs_but_a_port_is_not():
    engine = engine_with("n1")
    put(engine, pod("a", PORT, FIRST_INDEX))
    change = engine.ledger.settle("a")
    assert change.after.claims == (PORT,)
    assert engine.ledger.settle("a") is None
    assert engine.ledger.settle("nobody") is None
    put(engine, pod("b", FIRST_INDEX))
    assert isinstance(engine.place(pod("c", PORT)), NoFit)
    assert engine.ledger.settle("b").after.claims is msgspec.UNSET


def test_pods_without_gpus_hold_numbers_too():
    engine = engine_with("n1", "n2")
    nodes = {put(engine, pod(uid, PORT, gpu_count=0)).after.node for uid in ("a", "b")}
    assert nodes == {"n1", "n2"}
    assert isinstance(engine.place(pod("c", PORT, gpu_count=0)), NoFit)


def test_numbers_come_back_from_the_log_and_roll_back():
    engine = engine_with("n1")
    encoder = LogEncoder()
    lines = [encoder.encode(put(engine, pod("a", PORT, FIRST_INDEX)), 1.0)]
    lines.append(encoder.encode(engine.ledger.settle("a"), 2.0, "the pod runs"))
    mark = engine.ledger.checkpoint()
    engine.ledger.release("a")
    assert engine.ledger.claims.holder(PORT, "n1") is None
    engine.ledger.rollback(mark)
    again = replay(lines).ledger
    assert again.claims.state() == engine.ledger.claims.state()
    assert again.claims.holder(PORT, "n1") == "a"
    assert again.claims.holder(FIRST_INDEX, "n1") is None
    lines.append(encoder.encode(engine.ledger.release("a"), 3.0))
    assert not replay(lines).ledger.claims.state()


def test_facts_that_contradict_each_other_are_named():
    engine = engine_with("n1")
    held = put(engine, pod("a", PORT)).after
    engine.ledger.restore(msgspec.structs.replace(held, key="b", holders=("b",)))
    assert engine.ledger.check_invariants() == ["TCP port 8080 of the node n1 is held by a, b"]
    engine.ledger.release("a")
    assert engine.ledger.check_invariants() == []
    assert engine.ledger.claims.holder(PORT, "n1") == "b"


def test_why_names_who_has_the_number():
    engine = engine_with("n1")
    put(engine, pod("a", PORT))
    answer = relax(engine, pod("b", PORT))
    steps = [(step.kind, step.evict) for step in answer.alone]
    assert steps == [("evict", ("a",)), ("add-node", ())]
