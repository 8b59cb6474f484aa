"""Preemption: rules in tables, and a comparison with brute force over all sets of victims."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.gang import GangPlan, GangRequest, place_gang
from tensorfusion.model.preemption import NoPreemption, plan_gang_preemption, plan_preemption
from tensorfusion.model.quota import Quota
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.model.victims import Cost, Disruptable, PreemptionPlan, Victim
from tensorfusion_plugins.policies import load

GIB = 2**30


def fleet(cards, **node):
    engine = Engine(load.compact_first())
    for name, count in cards.items():
        engine.upsert_node(NodeInfo(name=name, pool="p", **node))
        for index in range(count):
            engine.upsert_device(
                Device(
                    uuid=f"{name}-{index}",
                    node=name,
                    pool="p",
                    index=index,
                    capacity_gflops=100_000,
                    capacity_vram_bytes=80 * GIB,
                    isolation_policy="dynamic",
                )
            )
    return engine


def pod(uid, gflops=60_000, gib=10, namespace="ns", **shape):
    shape.setdefault("request", Amount(gflops, gib * GIB))
    return Demand(namespace=namespace, name=uid, uid=uid, shape=Shape(pool="p", **shape))


def run(engine, demand, node, devices=None):
    """Put a worker on a node, on given cards or those the engine chooses."""
    if devices is not None:
        engine.ledger.allocate(demand, devices, node)
        return
    found = engine.find_on(demand, node)
    assert found is not None
    engine.reserve(demand, found)


def disruptable(*victims, **fields):
    return Disruptable(victims={v.key: v for v in victims}, **fields)


def victims_of(found):
    assert isinstance(found, PreemptionPlan), found
    return list(found.victims)


def two_nodes_with(*workers):
    """Workers of 60 TFLOPS on single-card nodes a, b, ..., one each."""
    engine = fleet({v.key: 1 for v in workers})
    for victim in workers:
        run(engine, pod(victim.key), victim.key)
    return engine, disruptable(*workers)


RULES = [
    pytest.param(
        [Victim(key="a", priority=5), Victim(key="b", priority=3)], ["b"], id="lowest-priority"
    ),
    pytest.param(
        [Victim(key="a", priority=3, pods=2), Victim(key="b", priority=3)], ["b"], id="fewest-pods"
    ),
    pytest.param(
        [
            Victim(key="a", priority=3, lost_gpu_seconds=9),
            Victim(key="b", priority=3, lost_gpu_seconds=2),
        ],
        ["b"],
        id="least-lost-gpu-time",
    ),
    pytest.param(
        [Victim(key="a", priority=1, protected=True), Victim(key="b", priority=9)],
        ["b"],
        id="protected-never",
    ),
    pytest.param(
        [Victim(key="a", priority=1, budgets=("q",)), Victim(key="b", priority=9)],
        ["b"],
        id="budget-violations-last",
    ),
    pytest.param(
        [Victim(key="a", priority=10), Victim(key="b", priority=11)], None, id="equal-or-higher"
    ),
    pytest.param(
        [Victim(key="a", priority=1, protected=True), Victim(key="b", priority=10)],
        None,
        id="nobody-left",
    ),
]


@pytest.mark.parametrize(("workers", "expected"), RULES)
def test_victim_rules(workers, expected):
    engine, may = two_nodes_with(*workers)
    before = engine.ledger.digest
    found = plan_preemption(engine, pod("new"), 10, may)
    assert engine.ledger.digest == before
    if expected is None:
        assert isinstance(found, NoPreemption)
    else:
        assert victims_of(found) == expected
        assert found.nodes == tuple(expected)


def test_budget_that_still_allows_an_eviction_costs_nothing():
    workers = [Victim(key="a", priority=1, budgets=("q",)), Victim(key="b", priority=9)]
    engine, _ = two_nodes_with(*workers)
    may = disruptable(*workers, allowed={"q": 1})
    assert victims_of(plan_preemption(engine, pod("new"), 10, may)) == ["a"]


def test_budget_is_broken_only_when_nothing_else_makes_room():
    engine, may = two_nodes_with(Victim(key="a", priority=1, budgets=("q",)))
    found = plan_preemption(engine, pod("new"), 10, may)
    assert victims_of(found) == ["a"]
    assert found.cost.violations == 1


def test_nobody_is_evicted_in_vain():
    engine, may = two_nodes_with(Victim(key="a", priority=1), Victim(key="b", priority=1))
    found = plan_preemption(engine, pod("new", gflops=101_000), 10, may)
    assert isinstance(found, NoPreemption)
    assert found.message == (
        "it would not fit even without the 2 workers of lower priority that may be evicted"
    )


def test_room_that_is_about_to_come_is_waited_for():
    workers = [Victim(key="a", priority=1), Victim(key="b", priority=1)]
    engine, _ = two_nodes_with(*workers)
    found = plan_preemption(engine, pod("new"), 10, disruptable(*workers, ending=("a",)))
    assert isinstance(found, NoPreemption)
    assert found.wait


def test_one_large_victim_is_preferred_to_two_small_ones():
    engine = fleet({"a": 1})
    for uid, gflops in (("s1", 20_000), ("s2", 20_000), ("big", 50_000)):
        run(engine, pod(uid, gflops), "a")
    may = disruptable(*(Victim(key=k, priority=1) for k in ("s1", "s2", "big")))
    assert victims_of(plan_preemption(engine, pod("new", 40_000), 10, may)) == ["big"]


def test_isolation_lock_is_lifted_by_evicting_everyone_who_holds_it():
    engine = fleet({"a": 1})
    for uid in ("x", "y"):
        run(engine, pod(uid, 10_000, isolation="hard"), "a")
    may = disruptable(*(Victim(key=k, priority=1) for k in ("x", "y")))
    assert victims_of(plan_preemption(engine, pod("new", 10_000), 10, may)) == ["x", "y"]


def test_whole_card_request_empties_one_card_only():
    engine = fleet({"a": 2})
    run(engine, pod("x", 10_000), "a", ["a-0"])
    run(engine, pod("y", 10_000), "a", ["a-1"])
    run(engine, pod("z", 10_000), "a", ["a-1"])
    may = disruptable(*(Victim(key=k, priority=1) for k in ("x", "y", "z")))
    assert victims_of(plan_preemption(engine, pod("new", dedicated=True), 10, may)) == ["x"]


def test_quota_is_freed_by_workers_of_the_same_namespace_only():
    engine = fleet({"a": 2, "b": 2})
    run(engine, pod("mine", 10_000), "a")
    run(engine, pod("other", 10_000, namespace="else"), "b")
    engine.ledger.quotas.put(Quota(namespace="ns", name="q", max_workers=1))
    workers = [Victim(key="mine", priority=5), Victim(key="other", priority=1)]
    found = plan_preemption(engine, pod("new"), 10, disruptable(*workers))
    assert victims_of(found) == ["mine"]
    alone = plan_preemption(engine, pod("new"), 10, disruptable(workers[1]))
    assert isinstance(alone, NoPreemption)


def test_single_cap_cannot_be_bought_with_evictions():
    engine, may = two_nodes_with(Victim(key="a", priority=1))
    engine.ledger.quotas.put(Quota(namespace="ns", name="q", max_gpu_count=0))
    assert isinstance(plan_preemption(engine, pod("new"), 10, may), NoPreemption)


GANG = [Victim(key=k, priority=1, gang="g") for k in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("spare", "extra", "expected"),
    [
        pytest.param({}, [], ["a", "b", "c"], id="all-or-nothing-goes-as-a-whole"),
        pytest.param({"g": 1}, [], ["a"], id="spare-member-goes-alone"),
        pytest.param({}, [Victim(key="d", priority=1)], ["d"], id="gang-counts-whole"),
        pytest.param({}, [Victim(key="d", priority=2)], ["a", "b", "c"], id="priority-first"),
    ],
)
def test_gang_of_victims(spare, extra, expected):
    engine, _ = two_nodes_with(*GANG, *extra)
    may = disruptable(*GANG, *extra, spare=spare)
    assert victims_of(plan_preemption(engine, pod("new"), 10, may)) == expected


@pytest.mark.parametrize(
    "kept",
    [Victim(key="c", priority=1, gang="g", protected=True), Victim(key="c", priority=10, gang="g")],
)
def test_gang_with_a_member_that_must_stay_is_left_alone(kept):
    engine, _ = two_nodes_with(*GANG[:2], kept)
    found = plan_preemption(engine, pod("new"), 10, disruptable(*GANG[:2], kept))
    assert isinstance(found, NoPreemption)


def request(size, required=None, **shape):
    members = tuple(pod(f"m{n}", **shape) for n in range(size))
    return GangRequest(key="new", members=members, required=required or size)


def test_gang_evicts_for_its_quorum_and_no_more():
    workers = [Victim(key=k, priority=p) for k, p in (("a", 3), ("b", 1), ("c", 2), ("d", 4))]
    engine, may = two_nodes_with(*workers)
    before = engine.ledger.digest
    found = plan_gang_preemption(engine, request(4, required=2), 10, may)
    assert victims_of(found) == ["b", "c"]
    assert found.nodes == ("b", "c")
    assert engine.ledger.digest == before


def test_gang_that_would_not_fit_anyway_evicts_nobody():
    workers = [Victim(key=k, priority=1) for k in ("a", "b")]
    engine, may = two_nodes_with(*workers)
    assert isinstance(plan_gang_preemption(engine, request(3), 10, may), NoPreemption)


@st.composite
def clusters(draw):
    """A small full cluster, who may be evicted, and a request."""
    cards = {f"n{i}": draw(st.integers(1, 2)) for i in range(draw(st.integers(1, 2)))}
    engine = fleet(cards, max_workers=draw(st.sampled_from([3, 256])))
    workers = []
    for number in range(draw(st.integers(1, 7))):
        fields = draw(
            st.sampled_from(
                [
                    {"gflops": 20_000, "gib": 30},
                    {"gflops": 50_000, "gib": 5},
                    {"gflops": 10_000, "isolation": "hard"},
                    {"gflops": 40_000, "gpu_count": 2},
                    {"dedicated": True},
                ]
            )
        )
        demand = pod(f"w{number}", namespace=draw(st.sampled_from(["ns", "else"])), **fields)
        found = engine.place(demand)
        if not isinstance(found, Placement):
            continue
        engine.reserve(demand, found)
        workers.append(
            Victim(
                key=demand.uid,
                priority=draw(st.integers(1, 4)),
                pods=draw(st.sampled_from([1, 1, 2])),
                protected=draw(st.sampled_from([False, False, False, True])),
                gang=draw(st.sampled_from(["", "", "g", "h"])),
                lost_gpu_seconds=draw(st.integers(0, 3)),
                budgets=draw(st.sampled_from([(), (), ("x",), ("x", "y")])),
            )
        )
    may = disruptable(
        *workers,
        spare=draw(st.dictionaries(st.sampled_from("gh"), st.integers(0, 2))),
        allowed=draw(st.dictionaries(st.sampled_from("xy"), st.integers(0, 2))),
    )
    if draw(st.booleans()):
        engine.ledger.quotas.put(
            Quota(namespace="ns", name="q", max_workers=draw(st.integers(1, 4)))
        )
    wanted = draw(
        st.sampled_from(
            [
                {"gflops": 60_000},
                {"gflops": 30_000, "gib": 60},
                {"gflops": 60_000, "gpu_count": 2},
                {"dedicated": True},
                {"request": Amount(0, GIB, 70_000)},
            ]
        )
    )
    return engine, may, wanted


def without(engine, victims, demands):
    """Whether all requests fit once the victims have left."""
    ledger = engine.ledger
    mark = ledger.checkpoint()
    for key in victims:
        ledger.release(key)
    try:
        for demand in demands:
            found = engine.place(demand)
            if not isinstance(found, Placement):
                return False
            engine.reserve(demand, found)
        return True
    except AllocationRefused:
        return False
    finally:
        ledger.rollback(mark)


def allowed_sets(may, priority):
    """Every set of victims that keeps the rules, with its cost, by brute force."""
    able = [v for v in may.victims.values() if v.priority < priority and not v.protected]
    sizes = {g: sum(v.gang == g for v in may.victims.values()) for g in "gh"}
    for size in range(1, len(able) + 1):
        for chosen in combinations(able, size):
            gone = {g: sum(v.gang == g for v in chosen) for g in "gh"}
            if any(may.spare.get(g, 0) < gone[g] < sizes[g] for g in "gh"):
                continue
            pods = {b: sum(v.pods for v in chosen if b in v.budgets) for b in "xy"}
            cost = Cost(
                sum(max(0, pods[b] - may.allowed.get(b, 0)) for b in "xy"),
                max(v.priority for v in chosen),
                sum(v.pods for v in chosen),
                sum(v.lost_gpu_seconds for v in chosen),
            )
            yield cost, [v.key for v in chosen]


@settings(deadline=None, max_examples=300)
@given(case=clusters(), priority=st.integers(1, 5))
def test_plan_is_the_best_of_all_sets_of_victims(case, priority):
    engine, may, wanted = case
    demand = pod("new", **wanted)
    before = engine.ledger.digest
    found = plan_preemption(engine, demand, priority, may)
    assert engine.ledger.digest == before
    fitting = [(c, v) for c, v in allowed_sets(may, priority) if without(engine, v, [demand])]
    if without(engine, (), [demand]):
        return
    if not fitting:
        assert isinstance(found, NoPreemption)
        return
    assert isinstance(found, PreemptionPlan)
    assert found.cost == min(fitting)[0]
    assert (found.cost, sorted(found.victims)) in [(c, sorted(v)) for c, v in fitting]


@settings(deadline=None, max_examples=150)
@given(case=clusters(), priority=st.integers(1, 5), size=st.integers(2, 3))
def test_gang_plan_makes_room_spares_the_protected_and_needs_every_victim(case, priority, size):
    engine, may, wanted = case
    gang = request(size, **wanted)
    if isinstance(place_gang_dry(engine, gang), GangPlan):
        return
    found = plan_gang_preemption(engine, gang, priority, may)
    if isinstance(found, NoPreemption):
        return
    legal = {tuple(sorted(v)): c for c, v in allowed_sets(may, priority)}
    assert legal[found.victims] == found.cost
    assert isinstance(place_gang_dry(engine, gang, found.victims), GangPlan)
    for fewer in legal:
        if set(fewer) < set(found.victims) and len(fewer) == len(found.victims) - 1:
            assert not isinstance(place_gang_dry(engine, gang, fewer), GangPlan)


def place_gang_dry(engine, gang, victims=()):
    mark = engine.ledger.checkpoint()
    for key in victims:
        engine.ledger.release(key)
    found = place_gang(engine, gang)
    engine.ledger.rollback(mark)
    return found
