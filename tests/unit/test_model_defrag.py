"""Emptying and giving back nodes: rules in tables, and what must hold for every fleet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.model.compaction import Amounts, NodeSize, PoolFloor, plan_compaction
from tensorfusion.model.defrag import DefragRules, Mover, plan_defrag
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine
from tensorfusion_plugins.policies import load

GIB = 2**30
CARD = 100_000


class Fleet:
    """Nodes of one pool with workers on chosen cards."""

    def __init__(self, nodes, cards=2):
        self.engine = Engine(load.compact_first())
        self.movers = {}
        for name in nodes:
            self.engine.upsert_node(NodeInfo(name=name, pool="p"))
            for index in range(cards):
                self.engine.upsert_device(
                    Device(
                        uuid=f"{name}-{index}",
                        node=name,
                        pool="p",
                        index=index,
                        capacity_gflops=CARD,
                        capacity_vram_bytes=80 * GIB,
                        isolation_policy="dynamic",
                    )
                )

    def run(self, uid, node, gflops=30_000, cards=(0,), obstacle=""):
        shape = Shape(pool="p", request=Amount(gflops, 8 * GIB), gpu_count=len(cards))
        demand = Demand(namespace="ns", name=uid, uid=uid, shape=shape)
        self.engine.ledger.allocate(demand, [f"{node}-{i}" for i in cards], node)
        self.movers[uid] = Mover(demand=demand, obstacle=obstacle, lost_gpu_seconds=60)

    def plan(self, threshold=50, **rules):
        rules = DefragRules(threshold_percent=threshold, **rules)
        return plan_defrag(self.engine, "p", self.movers, rules)


def test_little_used_node_is_emptied_onto_one_in_use():
    fleet = Fleet(["a", "b", "c"])
    fleet.run("small", "a")
    fleet.run("big", "b", gflops=60_000)
    fleet.run("other", "b", gflops=60_000, cards=(1,))
    plan = fleet.plan()
    (node,) = plan.emptied
    assert (node.node, node.gpus, node.gflops, node.used_percent) == ("a", 2, 2 * CARD, 50)
    (move,) = plan.moves
    assert (move.name, move.source, move.target) == ("ns/small", "a", "b")
    assert move.lost_gpu_seconds == 60
    assert plan.idle == 1, "c was empty all along and is no target"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"obstacle": "it is protected from eviction"}, "worker ns/small: it is protected"),
        ({"threshold": 49}, "50 % of its GPUs are in use, more than 49 %"),
        ({"held": {"a": "the node must not be disturbed"}}, "the node must not be disturbed"),
        ({"gflops": 50_000}, "worker ns/small fits on no other node in use"),
        ({"unknown": True}, "worker ns/small is starting or ending"),
    ],
)
def test_node_that_stays_says_why(change, reason):
    fleet = Fleet(["a", "b"])
    fleet.run(
        "small", "a", gflops=change.get("gflops", 30_000), obstacle=change.get("obstacle", "")
    )
    for index in range(2):
        fleet.run(f"big{index}", "b", gflops=60_000, cards=(index,))
    if change.get("unknown"):
        del fleet.movers["small"]
    plan = fleet.plan(change.get("threshold", 50), held=change.get("held", {}))
    assert plan.emptied == ()
    assert reason in {kept.node: kept.reason for kept in plan.kept}["a"]


def test_a_node_that_receives_workers_is_not_emptied_itself():
    fleet = Fleet(["a", "b", "c"])
    for name in "abc":
        fleet.run(f"w{name}", name)
    plan = fleet.plan()
    assert [node.node for node in plan.emptied] == ["a", "c"]
    assert {move.target for move in plan.moves} == {"b"}
    assert [kept.reason for kept in plan.kept] == ["workers of another node move here"]


def test_worker_with_two_cards_needs_two_on_one_node():
    fleet = Fleet(["a", "b", "c"], cards=4)
    fleet.run("pair", "a", cards=(0, 1), gflops=90_000)
    fleet.run("x", "b", gflops=90_000)
    fleet.run("y", "b", gflops=90_000, cards=(1,))
    fleet.run("z", "b", gflops=90_000, cards=(2,))
    (kept,) = [k for k in fleet.plan().kept if k.node == "a"]
    assert "ns/pair fits on no other node in use" in kept.reason


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.integers(0, 1), st.integers(1, 9), st.booleans(), st.booleans()
        ),
        max_size=14,
    ),
    st.sampled_from([0, 40, 50, 100]),
)
@settings(deadline=None)
def test_every_plan_can_be_carried_out_and_planning_leaves_no_trace(workers, threshold):
    fleet = Fleet([f"n{i}" for i in range(5)])
    ledger = fleet.engine.ledger
    for number, (node, card, tenths, both, stays) in enumerate(workers):
        cards = (0, 1) if both else (card,)
        gflops = tenths * 10_000
        free = [ledger.devices[f"n{node}-{i}"].free_gflops for i in cards]
        if min(free) >= gflops:
            obstacle = "it stays" if stays else ""
            fleet.run(f"w{number}", f"n{node}", gflops=gflops, cards=cards, obstacle=obstacle)
    before = (ledger.digest, [n for n in fleet.engine.fleet.nodes if n is not None])
    had_workers = {a.node for a in ledger.allocations.values()}
    plan = fleet.plan(threshold)
    assert (ledger.digest, [n for n in fleet.engine.fleet.nodes if n is not None]) == before
    assert plan == fleet.plan(threshold), "the same fleet, the same plan"
    accounted = {n.node for n in plan.emptied} | {k.node for k in plan.kept}
    assert accounted == had_workers
    for move in plan.moves:
        mover = fleet.movers[move.worker]
        assert not mover.obstacle
        assert move.target in had_workers
        ledger.release(move.worker)
        ledger.allocate(mover.demand, move.devices, move.target)
    assert ledger.check_invariants() == []
    left = {a.node for a in ledger.allocations.values()}
    assert left == had_workers - {node.node for node in plan.emptied}
    assert len(plan.moves) == sum(
        allocation.node != f"n{workers[int(key[1:])][0]}"
        for key, allocation in ledger.allocations.items()
    )


def size(name, cards=2, workers=0, age=3600.0, obstacle=""):
    total = Amounts(cards * CARD, cards * 80 * GIB)
    free = total if not workers else Amounts(0, 0)
    return NodeSize(
        name=name,
        gpus=cards,
        total=total,
        free=free,
        workers=workers,
        age_seconds=age,
        obstacle=obstacle,
    )


def floor(least=0, warm=0):
    return PoolFloor(
        least=Amounts(least * CARD, least * 80 * GIB), warm=Amounts(warm * CARD, warm * 80 * GIB)
    )


@pytest.mark.parametrize(
    ("nodes", "keeps", "goes", "reasons"),
    [
        ([size("a"), size("b", workers=1)], floor(), ("a",), []),
        ([size("a"), size("b", 4)], floor(), ("b", "a"), []),
        ([size("a"), size("b")], floor(warm=2), ("a",), ["warm resources"]),
        ([size("a"), size("b")], floor(least=3), (), ["least resources"] * 2),
        ([size("a", age=299)], floor(), (), ["less than 5 minutes"]),
        ([size("a", obstacle="it must not be disturbed")], floor(), (), ["not be disturbed"]),
        ([size("a", 8), size("b", 2)], floor(warm=4), ("b",), ["warm resources"]),
        ([size("a", workers=1)], floor(), (), []),
    ],
)
def test_empty_nodes_go_while_the_pool_stays_large_and_warm(nodes, keeps, goes, reasons):
    plan = plan_compaction(nodes, keeps)
    assert plan.goes == goes
    stays = [v.reason for v in plan.verdicts if not v.goes]
    assert len(stays) == len(reasons)
    assert all(text in reason for text, reason in zip(reasons, stays, strict=True))
    gone = sum(v.total.gflops for v in plan.verdicts if v.goes)
    assert plan.before.gflops - plan.after.gflops == gone
