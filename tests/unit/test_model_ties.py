"""Rules for ties: which of equal nodes and cards is taken."""

from collections import Counter

import pytest

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.ties import Ties
from tensorfusion_plugins.policies import load


class Equal:
    """Scores everything alike, so that the rule decides all."""

    name = "equal"
    aliases = ()
    reads_demand = False
    random_ties = False

    def score_nodes(self, demand, rows, fleet):
        return rows.free_gpu_milli * 0

    def score_devices(self, demand, rows, fleet):
        return rows.free_milli * 0


def engine_of(ties, names=("n2", "n1", "n3")):
    engine = Engine(Equal(), ties=ties)
    for name in names:
        engine.upsert_node(NodeInfo(name=name, pool="p"))
        for index in range(3):
            engine.upsert_device(
                Device(
                    uuid=f"{name}/{index}", node=name, pool="p", index=index, capacity_gflops=1000
                )
            )
    return engine


def demand(uid, percent=20, count=1):
    shape = Shape(pool="p", request=Amount(milli_percent=percent * 1000), gpu_count=count)
    return Demand(namespace="d", name=uid, uid=uid, shape=shape)


def hold(engine, uid, uuid, percent=20):
    engine.ledger.allocate(demand(uid, percent), (uuid,))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("name", ("n1", ("n1/0",))), ("pack", ("n3", ("n3/1",)))],
)
def test_rule_decides_node_and_card(rule, expected):
    engine = engine_of(Ties(rule))
    hold(engine, "a", "n2/2", 30)
    hold(engine, "b", "n3/0", 20)
    hold(engine, "c", "n3/1", 30)
    found = engine.place(demand("x"))
    assert isinstance(found, Placement)
    assert (found.node, found.devices) == expected


def test_pack_falls_back_to_the_name():
    found = engine_of(Ties("pack")).place(demand("x", count=2))
    assert isinstance(found, Placement)
    assert (found.node, found.devices) == ("n1", ("n1/0", "n1/1"))


def test_random_is_fair_and_repeats_for_the_same_pod():
    engine = engine_of(Ties("random", 7))
    chosen = Counter()
    for number in range(600):
        found = engine.place(demand(f"pod-{number}"))
        assert found == engine.place(demand(f"pod-{number}"))
        assert isinstance(found, Placement)
        chosen[found.devices[0]] += 1
    assert len(chosen) == 9
    assert 35 < min(chosen.values()) <= max(chosen.values()) < 105


def test_random_does_not_depend_on_the_order_in_which_nodes_came():
    first, second = engine_of(Ties("random", 3)), engine_of(Ties("random", 3), ("n1", "n2", "n3"))
    for number in range(50):
        assert first.place(demand(f"{number}")) == second.place(demand(f"{number}"))


def test_random_looks_again_when_a_drawn_node_has_no_single_card_for_it():
    engine = engine_of(Ties("random", 1))
    shape = Shape(
        pool="p", request=Amount(gflops=600, vram_bytes=0), limit=Amount(gflops=900), gpu_count=2
    )
    for node in ("n1", "n2"):
        hold(engine, f"{node}-a", f"{node}/0", 60)
        hold(engine, f"{node}-b", f"{node}/1", 60)
    for number in range(30):
        uid = str(number)
        found = engine.find(Demand(namespace="d", name=uid, uid=uid, shape=shape))
        assert found is not None
        assert found.node == "n3"


def test_pool_has_its_own_rule():
    engine = engine_of(Ties("name"))
    hold(engine, "a", "n3/1")
    engine.set_policy("p", Equal(), Ties("pack"))
    found = engine.place(demand("x"))
    assert isinstance(found, Placement)
    assert found.devices == ("n3/1",)
    engine.set_policy("p", load.compact_first())
    engine.set_policy("p", Equal())
    again = engine.place(demand("x"))
    assert isinstance(again, Placement)
    assert again.devices == ("n1/0",)


def test_unknown_rule_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="ties is 'luck', allowed are name, pack, random"):
        Ties("luck")
