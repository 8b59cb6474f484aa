"""Topology: tiers, the best set against brute force, the filter, the preference, the words."""

from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo, Peer
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.relax.answer import failures_of, relax
from tensorfusion.model.topology import (
    NodeTopology,
    TopologyWish,
    _grown_sets,
    best_set,
    topology_of,
)
from tensorfusion_plugins.policies import load

GIB = 2**30


def card(node, index, numa=-1, peers=(), **fields):
    values = {
        "uuid": f"{node}-g{index}",
        "node": node,
        "pool": "p",
        "index": index,
        "capacity_gflops": 100_000,
        "capacity_vram_bytes": 80 * GIB,
        "numa_node": numa,
        "peers": tuple(Peer(f"{node}-g{other}", tier, speed) for other, tier, speed in peers),
    }
    return Device(**{**values, **fields})


def pod(uid="a", count=2, topology=None, **shape):
    shape.setdefault("request", Amount(10_000, GIB))
    made = Shape(pool="p", gpu_count=count, topology=topology, **shape)
    return Demand(namespace="ns", name=uid, uid=uid, shape=made)


def wish(**fields):
    return TopologyWish(**fields)


def engine_with(numas, policy=None, **fields):
    """Nodes by name with the NUMA node of each card."""
    engine = Engine(policy or load.compact_first())
    for node, layout in numas.items():
        engine.upsert_node(NodeInfo(name=node, pool="p"))
        for index, numa in enumerate(layout):
            engine.upsert_device(card(node, index, numa, **fields))
    return engine


def occupy(engine, *uuids):
    for uuid in uuids:
        engine.ledger.allocate(pod(f"x-{uuid}", 1, isolation="shared"), [uuid])


def positions(placement):
    return [int(uuid.partition("-g")[2]) for uuid in placement.devices]


TIERS = [
    # own peers, their peers, NUMA nodes, source, tier of the pair
    ([(1, 0, 300)], [], (0, 1), "auto", 0),
    ([], [(0, 0, 300)], (0, 1), "auto", 0),
    ([(1, 2, 10)], [(0, 0, 300)], (0, 0), "vendor", 0),
    ([(1, 9, 300)], [], (0, 0), "auto", 1),
    ([(1, -1, 300)], [], (0, 1), "auto", 2),
    ([(1, 9, 300)], [], (-1, 1), "auto", 3),
    ([(1, 0, 300)], [], (0, 1), "numa", 2),
    ([(1, 0, 300)], [], (-1, -1), "numa", 3),
    ([], [], (0, 0), "vendor", 1),
    ([], [], (0, 1), "auto", 2),
    ([], [], (0, -1), "auto", 3),
    ([], [], (-1, -1), "auto", 3),
]


@pytest.mark.parametrize(("own", "theirs", "numa", "source", "tier"), TIERS)
def test_tier_of_a_pair(own, theirs, numa, source, tier):
    devices = [card("n", 0, numa[0], own), card("n", 1, numa[1], theirs)]
    found = topology_of(devices, source)
    assert found.tiers[0][1] == found.tiers[1][0] == tier


def test_better_word_of_two_ends_and_the_larger_bandwidth_count():
    devices = [card("n", 0, 0, [(1, 1, 500)]), card("n", 1, 0, [(0, 0, 200)])]
    found = topology_of(devices, "auto")
    assert (found.tiers[0][1], found.bandwidths[1][0], found.source) == (0, 500, "vendor")


@st.composite
def topologies(draw):
    size = draw(st.integers(1, 8))
    tiers = [[0] * size for _ in range(size)]
    speeds = [[0] * size for _ in range(size)]
    for a, b in combinations(range(size), 2):
        tiers[a][b] = tiers[b][a] = draw(st.integers(0, 3))
        speeds[a][b] = speeds[b][a] = draw(st.sampled_from([0, 100, 300]))
    return NodeTopology(
        tiers=tuple(map(tuple, tiers)),
        bandwidths=tuple(map(tuple, speeds)),
        numa=(-1,) * size,
        source="vendor",
    )


def slow_best(topology, order, count):
    """The best set by looking at each one: worst tier, nearness, left over, bandwidth, order."""

    def neighbourhood(first, tier):
        found, todo = {first}, [first]
        while todo:
            here = todo.pop()
            for other in order:
                if other not in found and topology.tiers[here][other] <= tier:
                    found.add(other)
                    todo.append(other)
        return found

    def key(chosen):
        pairs = list(combinations(chosen, 2))
        tier = max((topology.tiers[a][b] for a, b in pairs), default=0)
        near = sum((10, 6, 2, 0)[topology.tiers[a][b]] for a, b in pairs)
        speed = sum(topology.bandwidths[a][b] for a, b in pairs)
        if count == 1:
            left = tuple(len(neighbourhood(chosen[0], t)) for t in (0, 1))
        else:
            left = (len(neighbourhood(chosen[0], tier)) - count,)
        ranks = [order.index(position) for position in chosen]
        return (tier, -near, left, -speed, sum(ranks), ranks)

    best = min(combinations(order, count), key=key)
    return tuple(sorted(best)), key(best)[0]


@settings(max_examples=300, deadline=None)
@given(topology=topologies(), data=st.data())
def test_best_set_agrees_with_brute_force(topology, data):
    size = len(topology.tiers)
    order = data.draw(st.permutations(range(size)))
    order = tuple(order[: data.draw(st.integers(1, size))])
    count = data.draw(st.integers(1, len(order)))
    found = best_set(topology, order, count)
    assert (found.positions, found.tier) == slow_best(topology, order, count)


def test_greedy_choice_would_be_wrong_and_is_not_made():
    # The fastest pair 0-1 leads nowhere; 2, 3 and 4 are all linked.
    peers = {0: [(1, 0, 900)], 2: [(3, 0, 1), (4, 0, 1)], 3: [(4, 0, 1)]}
    devices = [card("n", index, 0, peers.get(index, [])) for index in range(5)]
    found = best_set(topology_of(devices, "auto"), (0, 1, 2, 3, 4), 3)
    assert (found.positions, found.tier) == ((2, 3, 4), 0)


@settings(max_examples=50, deadline=None)
@given(topology=topologies(), data=st.data())
def test_sets_of_large_nodes_are_grown_whole(topology, data):
    import numpy as np

    size = len(topology.tiers)
    count = data.draw(st.integers(1, size))
    sets = _grown_sets(topology, np.arange(size), count)
    assert len(sets) == size
    assert all(len(set(chosen)) == count for chosen in sets.tolist())


def test_largest_nodes_keep_whole_neighbourhoods_together():
    devices = [card("n", index, index % 4) for index in range(32)]
    found = best_set(topology_of(devices, "auto"), tuple(range(32)), 8)
    assert found.tier == 1
    assert len({position % 4 for position in found.positions}) == 1


def test_several_gpus_come_from_one_numa_node_without_asking():
    engine = engine_with({"n1": (0, 1, 0, 1)})
    placement = engine.place(pod())
    assert positions(placement) == [0, 2]
    assert placement.connection.tier == 1
    assert placement.connection.reason == "all on NUMA node 0"


def test_smaller_neighbourhood_that_is_enough_is_used_up_first():
    engine = engine_with({"n1": (0, 0, 0, 1, 1)})
    assert positions(engine.place(pod())) == [3, 4]


def test_requirement_excludes_nodes_and_says_so():
    engine = engine_with({"n1": (0, 1), "n2": (0, 0)})
    required = wish(required=True)
    assert engine.place(pod(topology=required)).node == "n2"
    occupy(engine, "n2-g0")
    refusal = engine.place(pod(topology=required))
    assert refusal.message == (
        "0/4 GPUs fit: 2 on nodes without 2 GPUs connected at tier 1 or better, "
        "1 held exclusively or in conflict, 1 on nodes with fewer than 2 GPUs that fit"
    )
    assert engine.place(pod(topology=wish(required=True, max_tier=2))).node == "n1"
    engine.ledger.release("x-n2-g0")
    assert engine.place(pod(topology=required)).node == "n2"


def test_unknown_connections_count_as_the_worst():
    engine = engine_with({"n1": (-1, -1)})
    assert isinstance(engine.place(pod(topology=wish(required=True, max_tier=2))), NoFit)
    found = engine.place(pod(topology=wish(required=True, max_tier=3)))
    assert found.connection.reason == "how the GPUs are connected is not known"


def test_single_gpu_satisfies_any_requirement():
    engine = engine_with({"n1": (-1,)})
    assert isinstance(engine.place(pod(count=1, topology=wish(required=True))), Placement)


def test_single_gpu_that_states_a_wish_does_the_least_damage():
    engine = engine_with({"n1": (0, 0, 1)})
    assert positions(engine.place(pod(count=1))) == [0]
    assert positions(engine.place(pod(count=1, topology=wish()))) == [2]


def test_preference_ranks_nodes_and_never_refuses():
    engine = engine_with({"n1": (0, 1), "n2": (0, 0)})
    assert engine.place(pod()).node == "n1", "without a wish ties go by name"
    assert engine.place(pod(topology=wish())).node == "n2"
    occupy(engine, "n2-g0")
    found = engine.place(pod(topology=wish()))
    assert found.node == "n1"
    assert found.connection.reason == (
        "across NUMA nodes 0 and 1; tier 1 was preferred and no better set was free there"
    )


def test_topology_that_changes_is_noticed_by_warm_caches():
    engine = engine_with({"n1": (0, 1)})
    demand = pod(topology=wish(required=True))
    assert isinstance(engine.place(demand), NoFit)
    engine.upsert_device(card("n1", 1, 0))
    assert engine.place(demand).connection.tier == 1
    engine.upsert_device(card("n1", 1, 1, [(0, 0, 300)]))
    assert engine.place(demand).connection.tier == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tier": 4}, "max_tier is 4, allowed are 0 to 3"),
        ({"source": "x"}, "source is 'x', allowed are auto, numa, vendor"),
    ],
)
def test_wish_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TopologyWish(**fields)


def test_why_offers_the_next_tier_and_the_workers_in_the_way():
    engine = engine_with({"n1": (0, 1, 1), "n2": (0, 1)})
    occupy(engine, "n1-g2")
    demand = pod(topology=wish(required=True))
    steps = {step.kind: step for step in relax(engine, demand).alone}
    assert steps["topology"].text == "accept GPUs connected at tier 2, not only 1"
    assert steps["gpu-count"].shape.gpu_count == 1
    for kind in ("topology", "gpu-count"):
        changed = msgspec.structs.replace(demand, shape=steps[kind].shape)
        assert isinstance(engine.place(changed), Placement), kind
    assert steps["evict"].evict == ("x-n1-g2",)
    engine.ledger.release("x-n1-g2")
    assert isinstance(engine.place(demand), Placement)


numa_layouts = st.lists(st.integers(-1, 2), min_size=1, max_size=6).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    layouts=st.lists(numa_layouts, min_size=1, max_size=4),
    busy=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=8),
    count=st.integers(2, 4),
    tier=st.integers(0, 3),
    required=st.booleans(),
)
def test_engine_finds_the_best_connected_node_there_is(layouts, busy, count, tier, required):
    engine = engine_with({f"n{n}": layout for n, layout in enumerate(layouts)})
    occupy(engine, *(f"n{n}-g{g}" for n, g in busy if n < len(layouts) and g < len(layouts[n])))
    demand = pod("last", count, wish(required=required, max_tier=tier), isolation="shared")
    reached = {}
    for number, layout in enumerate(layouts):
        free = [g for g in range(len(layout)) if (number, g) not in busy]
        topology = engine.fleet.topology(engine.fleet.slot_of(f"n{number}"), "auto")
        if len(free) >= count:
            reached[f"n{number}"] = min(
                max(topology.tiers[a][b] for a, b in combinations(chosen, 2))
                for chosen in combinations(free, count)
            )
    good = {node: t for node, t in reached.items() if not required or t <= tier}
    found = engine.place(demand)
    if not good:
        assert isinstance(found, NoFit)
        assert engine.explain(demand.shape)[1] == 0
        return
    assert found.connection.tier == good[found.node]
    if required:
        assert found.connection.tier <= tier


def test_why_shows_which_nodes_lack_the_connection():
    engine = engine_with({"n1": (0, 1, 2), "n2": (0,)})
    demand = pod(topology=wish(required=True))
    rows = {row[0]: row[1:] for row in failures_of(engine, demand.shape).by_node()}
    assert rows == {"n1": (3, 0, {"topology": 3}), "n2": (1, 1, {})}
