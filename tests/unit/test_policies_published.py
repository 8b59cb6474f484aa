"""The published policies against plain, slow versions of their definitions, on small clusters."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine
from tensorfusion.model.ties import Ties
from tensorfusion.model.typical import MILLI_CARD, count_shapes, most_typical
from tensorfusion_plugins.policies import tensorfusion_placement_policies

POLICIES = {policy.name: policy for policy in tensorfusion_placement_policies()}
MODELS = ("T4", "G2")


class Slow:
    """A cluster as plain lists, with every policy written out as it is defined."""

    def __init__(self, nodes, typical):
        self.cpu = {name: node[0] for name, node in nodes.items()}
        self.free = {name: [1000] * node[1] for name, node in nodes.items()}
        self.model = {name: node[2] for name, node in nodes.items()}
        self.kinds = {name: {} for name in nodes}
        self.typical = typical

    def fits(self, name, task):
        cpu, count, milli, models = task
        if self.cpu[name] < cpu:
            return False
        if not count:
            return True
        if models and self.model[name] not in models:
            return False
        return sum(free >= milli for free in self.free[name]) >= count

    def fragments(self, name, cpu, free):
        """Expected idle GPU that a typical task cannot use, in thousandths of a card."""
        total = Fraction(0)
        for (cpu_wanted, count, milli, models), frequency in self.typical.items():
            lost = sum(free)
            usable = sum(left >= milli for left in free) >= count
            matches = not models or self.model[name] in models
            if count and matches and cpu >= cpu_wanted and usable:
                lost = sum(left for left in free if left < milli)
            total += frequency * lost
        return total / sum(self.typical.values())

    def after(self, name, task, card=None):
        cpu, _, milli, _ = task
        free = list(self.free[name])
        for position in [card] if card is not None else self.first(name, task):
            free[position] -= milli
        return self.cpu[name] - cpu, free

    def first(self, name, task):
        _, count, milli, _ = task
        return [i for i, left in enumerate(self.free[name]) if left >= milli][:count]

    def gradient(self, name, task, card=None):
        before = self.fragments(name, self.cpu[name], self.free[name])
        decrease = before - self.fragments(name, *self.after(name, task, card))
        return int(100 / (1 + math.exp(-float(decrease) / 1000)))

    def shared_cards(self, name, task):
        return [i for i, left in enumerate(self.free[name]) if left >= task[2]]

    def fgd(self, name, task):
        if task[1] == 1 and task[2] < 1000:
            return max(self.gradient(name, task, card) for card in self.shared_cards(name, task))
        return self.gradient(name, task)

    def bestfit(self, name, task):
        cpu = self.cpu[name] - task[0]
        gpu = sum(self.free[name]) - task[1] * task[2]
        return int(100 * (1 - (Fraction(cpu, 128000) + Fraction(gpu, 8000)) / 2))

    def dotprod(self, name, task):
        cpu = Fraction(self.cpu[name], 128000) * Fraction(task[0], 128000)
        gpu = Fraction(sum(self.free[name]), 8000) * Fraction(task[1] * task[2], 8000)
        return int(100 * (1 - (cpu + gpu) / 2))

    def gpuclustering(self, name, task):
        if not task[1]:
            return 0
        base = 25 * (8000 - sum(self.free[name])) // 8000
        present = self.kinds[name]
        if not present:
            return base + 25
        if kind(task) not in present:
            return base
        return base + (75 if len(present) == 1 else 50)

    def gpupacking(self, name, task):
        free = self.free[name]
        if not task[1]:
            return 0
        if all(left == 1000 for left in free):
            return max(33 - len(free), len(free))
        taken = sorted(left for left in free if left >= task[2])[: task[1]]
        idle = taken.count(1000)
        if idle:
            return max(50 - idle, 33)
        return max(100 - sum(left * 100 // 1000 for left in taken) // 10, 50)

    def place(self, policy, task):
        feasible = sorted(name for name in self.cpu if self.fits(name, task))
        if not feasible:
            return None
        score = getattr(self, policy)
        name = max(feasible, key=lambda node: (score(node, task), -feasible.index(node)))
        cards = self.first(name, task)
        if task[1] == 1 and task[2] < 1000:
            options = self.shared_cards(name, task)
            if policy == "fgd":
                cards = [max(options, key=lambda card: (self.gradient(name, task, card), -card))]
            else:
                cards = [min(options, key=lambda card: (self.free[name][card], card))]
        self.cpu[name] -= task[0]
        for card in cards:
            self.free[name][card] -= task[2]
        if task[1]:
            self.kinds[name][kind(task)] = True
        return name, tuple(cards)


def kind(task):
    return "share" if task[1] == 1 and task[2] < 1000 else task[1]


def shape_of(task):
    cpu, count, milli, models = task
    amount = Amount(milli_percent=milli * 100) if count else Amount()
    return Shape(gpu_count=count, request=amount, models=models if count else (), cpu_milli=cpu)


def build(nodes, tasks, policy, ties=None):
    engine = Engine(policy, ties=ties)
    for name in sorted(nodes):
        cpu, gpus, model = nodes[name]
        engine.upsert_node(NodeInfo(name=name, cpu_milli=cpu))
        for index in range(gpus):
            engine.upsert_device(
                Device(
                    uuid=f"{name}/{index}", node=name, index=index, model=model,
                    capacity_gflops=MILLI_CARD,
                )
            )  # fmt: skip
    engine.set_typical(most_typical(count_shapes(shape_of(task) for task in tasks), 1.0))
    return engine


def place(engine, task, uid):
    demand = Demand(namespace="", name=uid, uid=uid, shape=shape_of(task))
    found = engine.find(demand)
    if found is None:
        return None
    engine.reserve(demand, found)
    return found.node, tuple(int(uuid.rpartition("/")[2]) for uuid in found.devices)


NODES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "e"]),
    st.tuples(
        st.sampled_from([16_000, 64_000, 128_000]),
        st.integers(1, 8),
        st.sampled_from(MODELS),
    ),
    min_size=1,
)
SHARED = st.tuples(
    st.sampled_from([1_000, 6_000, 12_000]),
    st.just(1),
    st.sampled_from([100, 333, 500, 750, 1000]),
    st.sampled_from([(), ("T4",), ("T4", "G2")]),
)
WHOLE = st.tuples(
    st.sampled_from([2_000, 20_000]),
    st.integers(2, 8),
    st.just(1000),
    st.sampled_from([(), ("G2",)]),
)
NO_GPU = st.tuples(st.sampled_from([1_000, 9_000]), st.just(0), st.just(0), st.just(()))
TASKS = st.lists(st.one_of(SHARED, SHARED, WHOLE, NO_GPU), min_size=1, max_size=40)


@pytest.mark.parametrize("policy", ["fgd", "bestfit", "dotprod", "gpuclustering", "gpupacking"])
@settings(max_examples=40, deadline=None)
@given(nodes=NODES, tasks=TASKS)
def test_policy_places_as_its_definition_says(policy, nodes, tasks):
    typical: dict[tuple[object, ...], int] = {}
    for task in tasks:
        typical[task] = typical.get(task, 0) + 1
    slow = Slow(nodes, typical)
    engine = build(nodes, tasks, POLICIES[policy])
    for number, task in enumerate(tasks):
        assert place(engine, task, str(number)) == slow.place(policy, task)
    assert engine.ledger.check_invariants() == []


def test_fgd_agrees_with_its_definition_on_a_larger_cluster():
    rng = random.Random(5)
    nodes = {
        f"n{number:02d}": (rng.choice((32_000, 96_000)), rng.choice((1, 2, 8)), rng.choice(MODELS))
        for number in range(20)
    }
    menu = [
        (rng.choice((1_000, 4_000)), 1, rng.choice((50, 250, 460, 800, 1000)), ()) for _ in range(8)
    ] + [(8_000, 4, 1000, ()), (8_000, 8, 1000, ("G2",)), (4_000, 0, 0, ())]
    tasks = [rng.choice(menu) for _ in range(200)]
    slow = Slow(nodes, {task: tasks.count(task) for task in tasks})
    engine = build(nodes, tasks, POLICIES["fgd"])
    for number, task in enumerate(tasks):
        assert place(engine, task, str(number)) == slow.place("fgd", task)


def test_fgd_knows_no_preference_before_anything_is_typical():
    engine = Engine(POLICIES["fgd"])
    for name in ("b", "a"):
        engine.upsert_node(NodeInfo(name=name))
        engine.upsert_device(Device(uuid=f"{name}/0", node=name, capacity_gflops=1000))
    assert place(engine, (0, 1, 500, ()), "x") == ("a", (0,))


def test_fgd_learns_what_is_typical_from_the_workers():
    engine = Engine(POLICIES["fgd"])
    for name in ("a", "b"):
        engine.upsert_node(NodeInfo(name=name))
        engine.upsert_device(Device(uuid=f"{name}/0", node=name, capacity_gflops=1000))
    part, whole = shape_of((0, 1, 400, ())), shape_of((0, 1, 600, ()))
    for uid, shape, uuid in (("x", part, "a/0"), ("y", whole, "b/0")):
        engine.ledger.allocate(Demand(namespace="", name=uid, uid=uid, shape=shape), (uuid,))
    assert engine.fleet.statistics.typical is None
    # Where 600 are left, a request for 600 still fits, so 400 go where 400 are left.
    found = engine.place(Demand(namespace="", name="z", uid="z", shape=part))
    assert getattr(found, "node", None) == "b"
    typical = engine.fleet.statistics.typical
    assert typical is not None
    assert sorted(shape.request.milli_percent for shape in typical.counts) == [40_000, 60_000]


def test_random_draws_nodes_and_cards_by_seed():
    nodes = dict.fromkeys("abcdefgh", (128000, 8, "T4"))
    task = (0, 1, 100, ())

    def story(seed):
        engine = build(nodes, [task], POLICIES["random"], Ties("name", seed))
        return [place(engine, task, str(number)) for number in range(100)]

    assert story(1) == story(1)
    assert story(1) != story(2)
    assert {node for node, _ in story(1)} == set(nodes)
    assert {cards[0] for _, cards in story(1)} == set(range(8))
