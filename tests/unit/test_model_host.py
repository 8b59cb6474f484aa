"""CPU and memory of nodes, and requests without GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.model.typical import (
    MILLI_CARD,
    CardKind,
    TypicalTasks,
    count_shapes,
    most_typical,
    wanted_milli,
)
from tensorfusion_plugins.policies import load

GIB = 1 << 30


def engine_of(**nodes):
    """Make an engine; a node is (CPU, memory), each with one card."""
    engine = Engine(load.compact_first())
    for name, (cpu, memory) in nodes.items():
        engine.upsert_node(NodeInfo(name=name, pool="p", cpu_milli=cpu, memory_bytes=memory))
        engine.upsert_device(
            Device(uuid=f"{name}/0", node=name, pool="p", capacity_gflops=1000, model="T4")
        )
    return engine


def demand(uid, cpu=0, memory=0, count=1):
    shape = Shape(
        pool="p",
        gpu_count=count,
        request=Amount(gflops=10 if count else 0),
        cpu_milli=cpu,
        memory_bytes=memory,
    )
    return Demand(namespace="d", name=uid, uid=uid, shape=shape)


def put(engine, one):
    found = engine.place(one)
    assert isinstance(found, Placement), found
    engine.reserve(one, found)
    return found


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize(("cpu", "memory"), [(3000, 0), (0, 3 * GIB)])
def test_node_gives_no_more_cpu_and_memory_than_it_has(count, cpu, memory):
    engine = engine_of(a=(4000, 4 * GIB), b=(4000, 4 * GIB))
    assert put(engine, demand("1", cpu, memory, count)).node == "a"
    assert put(engine, demand("2", cpu, memory, count)).node == "b"
    refusal = engine.place(demand("3", cpu, memory, count))
    assert isinstance(refusal, NoFit)
    assert f"2 on nodes without enough free {'CPU' if cpu else 'memory'}" in refusal.message
    assert refusal.resolvable
    engine.ledger.release("1")
    assert put(engine, demand("3", cpu, memory, count)).node == "a"
    assert engine.ledger.check_invariants() == []


def test_node_that_does_not_say_what_it_has_is_not_limited():
    engine = engine_of(a=(0, 0))
    for uid in "1234":
        assert put(engine, demand(uid, 100_000, 100 * GIB)).node == "a"


def test_ledger_refuses_too_much_for_the_node_by_name_and_amount():
    engine = engine_of(a=(4000, 0))
    with pytest.raises(AllocationRefused, match="node a: CPU 5000 asked, 4000 of 4000 free"):
        engine.ledger.allocate(demand("1", 5000), ("a/0",))
    with pytest.raises(AllocationRefused, match="node 'x' is not in the fleet"):
        engine.ledger.allocate(demand("1", 5000, count=0), (), "x")


def test_request_without_gpus_holds_no_device_and_counts_no_worker():
    engine = engine_of(a=(4000, 0))
    found = put(engine, demand("1", 1000, count=0))
    assert found.devices == ()
    allocation = engine.ledger.get("1")
    assert allocation is not None
    assert (allocation.takes, allocation.node, allocation.pool) == ((), "a", "p")
    assert engine.ledger.workers_on("a") == 0
    assert engine.ledger.node_usage("a").cpu_milli == 1000


def test_request_without_gpus_stays_in_its_pool():
    engine = engine_of(a=(4000, 0))
    engine.upsert_node(NodeInfo(name="0", pool="q", cpu_milli=9000))
    assert put(engine, demand("1", 1000, count=0)).node == "a"
    assert isinstance(engine.place(demand("2", 5000, count=0)), NoFit)


def test_rollback_restores_cpu_exactly():
    engine = engine_of(a=(4000, 4 * GIB))
    put(engine, demand("1", 1000, GIB))
    before = engine.fleet.host.copy()
    mark = engine.ledger.checkpoint()
    put(engine, demand("2", 3000, GIB))
    engine.ledger.rollback(mark)
    assert (engine.fleet.host == before).all()


KIND = CardKind(
    Device(uuid="x", node="n", model="T4").profile,
    capacity_gflops=1000,
    capacity_vram_bytes=16 * GIB,
)


@pytest.mark.parametrize(
    ("shape", "milli"),
    [
        (Shape(gpu_count=0), 0),
        (Shape(request=Amount(milli_percent=33_350)), 334),
        (Shape(request=Amount(gflops=500)), 500),
        (Shape(request=Amount(gflops=500, vram_bytes=12 * GIB)), 750),
        (Shape(request=Amount(vram_bytes=32 * GIB)), 2000),
        (Shape(dedicated=True), 1000),
        (Shape(isolation="shared"), 1000),
    ],
)
def test_share_of_a_card_is_the_larger_of_compute_and_memory(shape, milli):
    assert wanted_milli(shape, KIND) == milli


def test_typical_requests_are_the_most_frequent_until_they_cover_enough():
    shapes = [Shape(cpu_milli=cpu, memory_bytes=cpu % 3) for cpu in (1, 1, 1, 1, 1, 2, 2, 3, 3, 4)]
    counts = most_typical(count_shapes(shapes), 0.8)
    assert {shape.cpu_milli: count for shape, count in counts.items()} == {1: 5, 2: 2, 3: 2}
    assert sum(most_typical(count_shapes(shapes), 1.0).values()) == 10


@given(
    free=st.lists(st.integers(0, MILLI_CARD), min_size=1, max_size=8),
    shares=st.lists(st.sampled_from([0, 200, 500, 999, 1000, 3000]), min_size=1),
    cpu=st.integers(0, 3),
)
def test_fragmentation_is_idle_gpu_that_typical_requests_cannot_use(free, shares, cpu):
    import numpy as np

    shapes = [
        Shape(
            gpu_count=(share > 0) * max(1, share // 1000),
            request=Amount(milli_percent=min(share, 1000) * 100),
            cpu_milli=position % 4,
        )
        for position, share in enumerate(shares)
    ]
    tasks = TypicalTasks(count_shapes(shapes), (KIND,))
    expected = 0
    for share, shape in zip(shares, shapes, strict=True):
        needed = min(share, 1000)
        fits = sum(left >= needed for left in free) >= shape.gpu_count > 0
        usable = fits and cpu >= shape.cpu_milli
        expected += sum(left for left in free if left < needed) if usable else sum(free)
    usable = tasks.usable(np.array([0]), np.array([cpu]), np.array([free]))
    assert [sum(free) * tasks.total - one for one in usable.tolist()] == [expected]
