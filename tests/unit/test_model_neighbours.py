"""Affinity, anti-affinity and spread over zones, nodes and GPUs, against the plain rules."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion import names
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.gang import GangPlan, GangRequest, place_gang
from tensorfusion.model.neighbours import (
    HOSTNAME,
    LabelCondition,
    Neighbours,
    PeerSelector,
    PeerTerm,
    SpreadRule,
)
from tensorfusion.model.relax.answer import failures_of, relax
from tensorfusion_plugins.policies import load

GIB = 2**30
ZONE = "topology.kubernetes.io/zone"
GPU = names.GPU_DOMAIN


def engine_with(zones=("a", "a", "b"), cards=2):
    engine = Engine(load.compact_first())
    for number, zone in enumerate(zones):
        name = f"n{number}"
        labels = {HOSTNAME: name, **({ZONE: zone} if zone else {})}
        engine.upsert_node(NodeInfo(name=name, pool="p", labels=labels))
        for index in range(cards):
            engine.upsert_device(
                Device(
                    uuid=f"{name}-g{index}",
                    node=name,
                    pool="p",
                    index=index,
                    capacity_gflops=100_000,
                    capacity_vram_bytes=80 * GIB,
                )
            )
    return engine


def app(value, namespace="ns"):
    return PeerSelector((namespace,), (LabelCondition("app", "In", (value,)),))


def pod(uid, own="web", namespace="ns", *, near=(), apart=(), spread=(), **shape):
    rules = Neighbours(near=near, apart=apart, spread=spread) if near or apart or spread else None
    shape.setdefault("request", Amount(1_000, GIB))
    return Demand(
        namespace=namespace,
        name=uid,
        uid=uid,
        labels=(("app", own),),
        shape=Shape(pool="p", neighbours=rules, **shape),
    )


def put(engine, demand):
    found = engine.place(demand)
    assert isinstance(found, Placement), found.message
    engine.reserve(demand, found)
    return found


def apart(key, weight=0, value="web"):
    return (PeerTerm(app(value), key, weight),)


def even(key, skew=1, required=True, **more):
    return (SpreadRule(app("web"), key, skew, required, **more),)


@pytest.mark.parametrize(
    ("key", "places", "phrase"),
    [
        (HOSTNAME, 3, "6 too near to pods that must be apart"),
        (ZONE, 2, "6 too near to pods that must be apart"),
        (GPU, 6, "6 too near to pods that must be apart"),
    ],
)
def test_pods_that_must_be_apart_fill_each_domain_once(key, places, phrase):
    engine = engine_with()
    found = [put(engine, pod(f"u{n}", apart=apart(key))) for n in range(places)]
    domains = {
        HOSTNAME: [f.node for f in found],
        ZONE: [{"n0": "a", "n1": "a", "n2": "b"}[f.node] for f in found],
        GPU: [f.devices[0] for f in found],
    }[key]
    assert len(set(domains)) == places
    refusal = engine.place(pod("late", apart=apart(key)))
    assert refusal.message == f"0/6 GPUs fit: {phrase}"
    assert refusal.resolvable
    engine.ledger.release("u0")
    assert put(engine, pod("late", apart=apart(key))).node == found[0].node


def test_pod_that_is_there_keeps_others_away_that_state_nothing():
    engine = engine_with(zones=("a",))
    put(engine, pod("db", own="db", apart=apart(HOSTNAME)))
    assert isinstance(engine.place(pod("web")), NoFit)
    assert isinstance(engine.place(pod("api", own="api")), Placement)
    assert isinstance(engine.place(pod("web", namespace="other")), Placement)
    engine.ledger.release("db")
    assert isinstance(engine.place(pod("web")), Placement)


def test_preferred_distance_gives_way():
    engine = engine_with(zones=("a", "b"), cards=1)
    nodes = [put(engine, pod(f"u{n}", apart=apart(HOSTNAME, 100))).node for n in range(4)]
    assert sorted(nodes[:2]) == ["n0", "n1"]
    assert len(nodes) == 4


def test_preferred_distance_of_gpus_chooses_cards_and_nodes():
    engine = engine_with(zones=("a", "b"))
    cards = [put(engine, pod(f"u{n}", apart=apart(GPU, 50))).devices[0] for n in range(4)]
    assert len(set(cards)) == 4


def test_near_follows_the_pods_and_the_first_of_them_goes_anywhere():
    engine = engine_with()
    cache = PeerTerm(app("cache"), HOSTNAME)
    refusal = engine.place(pod("w", near=(cache,)))
    assert refusal.message == "0/6 GPUs fit: 6 away from the pods they must be near"
    put(engine, pod("c", own="cache", node_name="n2"))
    assert put(engine, pod("w", near=(cache,))).node == "n2"
    own = PeerTerm(app("solo"), ZONE)
    first = put(engine, pod("s0", own="solo", near=(own,)))
    rest = [put(engine, pod(f"s{n}", own="solo", near=(own,))) for n in range(1, 5)]
    zones = {"n0": "a", "n1": "a", "n2": "b"}
    assert {zones[f.node] for f in rest} == {zones[first.node]}


def test_near_on_one_gpu_shares_the_card():
    engine = engine_with()
    put(engine, pod("c", own="cache", node_name="n1", indices=(1,)))
    found = put(engine, pod("w", near=(PeerTerm(app("cache"), GPU),)))
    assert found.devices == ("n1-g1",)


def test_nodes_without_the_label_are_in_no_domain():
    engine = engine_with(zones=("a", ""))
    put(engine, pod("u0", apart=apart(ZONE)))
    assert put(engine, pod("u1", apart=apart(ZONE))).node == "n1"
    assert put(engine, pod("u2", apart=apart(ZONE))).node == "n1"
    refusal = engine.place(pod("u3", spread=even(ZONE), node_name="n1"))
    assert "too uneven a spread" in refusal.message


def test_several_gpus_of_one_pod_avoid_every_taken_card():
    engine = engine_with(zones=("a", "b"), cards=3)
    put(engine, pod("u0", apart=apart(GPU), node_name="n0"))
    found = put(engine, pod("u1", apart=apart(GPU), gpu_count=3))
    assert found.node == "n1"
    assert isinstance(engine.place(pod("u2", apart=apart(GPU), gpu_count=3)), NoFit)


@pytest.mark.parametrize("key", [HOSTNAME, ZONE, GPU])
def test_spread_never_exceeds_its_skew(key):
    engine = engine_with()
    domains = Counter()
    zones = {"n0": "a", "n1": "a", "n2": "b"}
    for number in range(18):
        found = put(engine, pod(f"u{number}", spread=even(key)))
        place = {HOSTNAME: found.node, ZONE: zones[found.node], GPU: found.devices[0]}[key]
        domains[place] += 1
        total = {HOSTNAME: 3, ZONE: 2, GPU: 6}[key]
        lowest = 0 if len(domains) < total else min(domains.values())
        assert max(domains.values()) - lowest <= 1


def test_spread_refuses_what_would_be_uneven_and_prefers_when_it_may_not():
    engine = engine_with(zones=("a", "b"), cards=1)
    put(engine, pod("u0"))
    full = pod("big", own="x", dedicated=True, node_name="n1")
    put(engine, full)
    refusal = engine.place(pod("u1", spread=even(HOSTNAME)))
    assert refusal.message == (
        "0/2 GPUs fit: 1 held exclusively or in conflict, "
        "1 where more pods would be too uneven a spread"
    )
    assert put(engine, pod("u1", spread=even(HOSTNAME, required=False))).node == "n0"
    engine.ledger.release("big")
    assert put(engine, pod("u2", spread=even(HOSTNAME, required=False))).node == "n1"


def test_domains_that_cannot_take_the_pod_do_not_count_as_empty():
    engine = engine_with(zones=("a", "b"))
    engine.upsert_node(NodeInfo(name="cpu-only", pool="p", labels={HOSTNAME: "cpu-only"}))
    engine.upsert_node(NodeInfo(name="n1", pool="p", labels={HOSTNAME: "n1"}, schedulable=False))
    for number in range(4):
        assert put(engine, pod(f"u{number}", spread=even(HOSTNAME))).node == "n0"


def test_fewer_domains_than_asked_for_count_as_one_that_is_empty():
    engine = engine_with(zones=("a",))
    put(engine, pod("u0", spread=even(ZONE, min_domains=2)))
    assert isinstance(engine.place(pod("u1", spread=even(ZONE, min_domains=2))), NoFit)
    assert isinstance(engine.place(pod("u1", spread=even(ZONE))), Placement)


def test_members_of_a_gang_keep_apart_from_each_other():
    engine = engine_with()
    members = tuple(pod(f"m{n}", apart=apart(HOSTNAME)) for n in range(3))
    plan = place_gang(engine, GangRequest(key="ns/g", members=members, required=3))
    assert isinstance(plan, GangPlan)
    assert len({member.placement.node for member in plan.members}) == 3
    four = tuple(pod(f"x{n}", own="x", apart=apart(HOSTNAME, value="x")) for n in range(4))
    state = engine.ledger.state_hash()
    refused = place_gang(engine, GangRequest(key="ns/x", members=four, required=4))
    assert "too near to pods that must be apart" in refused.message
    assert engine.ledger.state_hash() == state


def test_counts_follow_rollback_and_release():
    engine = engine_with(zones=("a",), cards=1)
    demand = pod("u0", apart=apart(HOSTNAME))
    mark = engine.ledger.checkpoint()
    put(engine, demand)
    assert isinstance(engine.place(pod("u1", apart=apart(HOSTNAME))), NoFit)
    engine.ledger.rollback(mark)
    put(engine, pod("u1", apart=apart(HOSTNAME)))
    assert isinstance(engine.place(demand), NoFit)


def test_why_says_that_the_rule_or_the_neighbour_must_go():
    engine = engine_with(zones=("a",), cards=1)
    put(engine, pod("u0"))
    demand = pod("u1", apart=apart(HOSTNAME))
    answer = relax(engine, demand)
    steps = {step.kind: step for step in answer.alone}
    assert steps.keys() == {"neighbours", "evict", "add-node"}, "a new node is a domain of its own"
    assert steps["evict"].evict == ("u0",)
    assert steps["neighbours"].shape.neighbours is None
    assert relax(engine, pod("u2", own="other")).alone == ()


conditions = st.builds(
    LabelCondition,
    st.sampled_from(["app", "tier"]),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Bad"]),
    st.lists(st.sampled_from(["web", "db"]), max_size=2).map(tuple),
)


@given(condition=conditions, labels=st.dictionaries(st.sampled_from(["app"]), st.just("web")))
def test_condition_means_what_kubernetes_says(condition, labels):
    value = labels.get(condition.key)
    expected = {
        "In": value in condition.values,
        "NotIn": value not in condition.values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
        "Bad": False,
    }[condition.operator]
    assert condition.matches(labels) is expected


terms = st.builds(
    PeerTerm,
    st.sampled_from([app("web"), app("db"), PeerSelector(("*",))]),
    st.sampled_from([HOSTNAME, ZONE, GPU]),
    st.sampled_from([0, 0, 10]),
)
spreads = st.builds(
    SpreadRule,
    st.sampled_from([app("web"), app("db")]),
    st.sampled_from([HOSTNAME, ZONE, GPU]),
    st.integers(1, 2),
    st.booleans(),
)
requests = st.tuples(
    st.sampled_from(["web", "db"]),
    st.lists(terms, max_size=1).map(tuple),
    st.lists(terms, max_size=2).map(tuple),
    st.lists(spreads, max_size=1).map(tuple),
    st.integers(1, 2),
)


def domain(node, uuid, key, zones):
    if key == GPU:
        return uuid
    return node if key == HOSTNAME else zones[node] or None


def slow_cards(engine, demand, placed, zones):
    """Cards that every required rule allows, by looking at each pod in turn."""

    def matching(selector):
        return [p for p in placed.values() if selector.matches(p[0].namespace, dict(p[0].labels))]

    def count(selector, key, where):
        total = 0
        for _, node, devices in matching(selector):
            places = devices if key == GPU else (None,)
            total += sum(domain(node, uuid, key, zones) == where for uuid in places)
        return total

    rules = demand.shape.neighbours or Neighbours()
    own = dict(demand.labels)
    every = [
        (usage.device.node, uuid) for uuid, usage in engine.ledger.devices.items() if usage.device
    ]
    allowed = set()
    for node, uuid in every:
        good = True
        for term in rules.apart:
            where = domain(node, uuid, term.key, zones)
            if not term.weight and where is not None and count(term.selector, term.key, where):
                good = False
        for other, there, devices in placed.values():
            for term in other.shape.neighbours.apart if other.shape.neighbours else ():
                if term.weight or not term.selector.matches(demand.namespace, own):
                    continue
                theirs = {domain(there, d, term.key, zones) for d in devices} - {None}
                good &= domain(node, uuid, term.key, zones) not in theirs
        for term in rules.near:
            where = domain(node, uuid, term.key, zones)
            first = not matching(term.selector) and term.selector.matches(demand.namespace, own)
            if not term.weight:
                good &= where is not None and (first or count(term.selector, term.key, where) > 0)
        for rule in rules.spread:
            wheres = {domain(n, u, rule.key, zones) for n, u in every} - {None}
            lowest = min((count(rule.selector, rule.key, w) for w in wheres), default=0)
            where = domain(node, uuid, rule.key, zones)
            self_count = rule.selector.matches(demand.namespace, own)
            if rule.required:
                good &= where is not None and (
                    count(rule.selector, rule.key, where) + self_count - lowest <= rule.max_skew
                )
        if good:
            allowed.add((node, uuid))
    return allowed


@settings(max_examples=80, deadline=None)
@given(
    zones=st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4).map(tuple),
    story=st.lists(st.tuples(requests, st.integers(0, 3)), min_size=1, max_size=14),
)
def test_engine_agrees_with_looking_at_every_pod(zones, story):
    engine = engine_with(zones)
    by_name = {f"n{number}": zone for number, zone in enumerate(zones)}
    placed = {}
    for number, ((own, near, away, spread, count), leave) in enumerate(story):
        demand = pod(f"u{number}", own, near=near, apart=away, spread=spread, gpu_count=count)
        allowed = slow_cards(engine, demand, placed, by_name)
        per_node = Counter(node for node, _ in allowed)
        found = engine.place(demand)
        if isinstance(found, NoFit):
            assert max(per_node.values(), default=0) < count, (demand, found.message)
            assert sum(item.removed for item in found.exclusions) == found.total
        else:
            assert {(found.node, uuid) for uuid in found.devices} <= allowed
            assert engine.find_on(demand, found.node) is not None
            engine.reserve(demand, found)
            placed[demand.uid] = (demand, found.node, found.devices)
        if not leave and placed:
            gone = sorted(placed)[number % len(placed)]
            engine.ledger.release(gone)
            del placed[gone]
    for uid in list(placed):
        engine.ledger.release(uid)
    assert not engine.ledger.peers.repels


def test_why_lists_the_rules_of_each_node():
    engine = engine_with(zones=("a", "b"))
    put(engine, pod("u0", node_name="n0"))
    demand = pod("u1", apart=apart(HOSTNAME), node_name="n0")
    around = engine.surroundings(demand)
    total, left, exclusions = engine.explain(demand.shape, around)
    assert (total, left) == (4, 0)
    assert {item.constraint: item.removed for item in exclusions} == {
        "node-name": 2,
        "anti-affinity": 2,
    }
    rows = {row[0]: row[1:] for row in failures_of(engine, demand.shape).by_node(around.rules)}
    assert rows == {"n0": (2, 0, {"anti-affinity": 2}), "n1": (2, 0, {"node-name": 2})}
