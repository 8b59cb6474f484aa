"""Rules of choice that span modules: order of the filters, evictions, partitions, gangs, indices."""

import msgspec
import pytest

from tensorfusion.api.decode import decode
from tensorfusion.api.scheduling_config import Placement as PlacementSettings
from tensorfusion.errors import Terminal
from tensorfusion.model.claims import INDEX, Claim
from tensorfusion.model.demand import Amount, Demand, Requirement, SelectorTerm, Shape
from tensorfusion.model.device import Device, NodeInfo, Peer, Taint
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.gang import GangPlan, GangRequest, place_gang
from tensorfusion.model.hardware import cards
from tensorfusion.model.preemption import plan_preemption
from tensorfusion.model.quota import Quota, QuotaAmount
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.model.topology import TopologyWish
from tensorfusion.model.victims import Disruptable, PreemptionPlan, Victim
from tensorfusion.model.wishes import wishes_of
from tensorfusion.scheduling.fleet_sync import policy_of
from tensorfusion_plugins.policies import load

GIB = 2**30


def device(node="n1", index=0, model="", **fields):
    values = {
        "uuid": f"{node}-g{index}",
        "node": node,
        "pool": "p",
        "index": index,
        "vendor": "NVIDIA",
        "model": "A100",
        "full_model": "A100",
        "capacity_gflops": 100_000,
        "capacity_vram_bytes": 80 * GIB,
    }
    if model:
        known = cards()[model]
        values |= {
            "vendor": known.vendor,
            "model": known.model,
            "full_model": known.full_model,
            "capacity_gflops": known.compute_gflops,
            "capacity_vram_bytes": known.vram_bytes,
            "geometry": known.geometry,
        }
    return Device(**{**values, **fields})


def pod(uid, gflops=10_000, gib=10, pool="p", claims=(), **shape):
    shape.setdefault("request", Amount(gflops, gib * GIB))
    return Demand(namespace="ns", name=uid, uid=uid, claims=claims, shape=Shape(pool=pool, **shape))


def engine_with(*devices, **node):
    engine = Engine(load.compact_first())
    for name in sorted({one.node for one in devices}):
        engine.upsert_node(NodeInfo(name=name, **{"pool": "p", **node}))
    for one in devices:
        engine.upsert_device(one)
    return engine


def put(engine, demand):
    found = engine.place(demand)
    assert isinstance(found, Placement), found.message
    return engine.reserve(demand, found).after


# Every rule of the chain in order, each with a card or a node that breaks it.
BROKEN = [
    ("pool", {"pool": "q"}, {}),
    ("phase", {"phase": "Pending"}, {}),
    ("owner", {"used_by": "nvidia-device-plugin"}, {}),
    ("vendor", {"vendor": "AMD"}, {}),
    ("model", {"model": "T4", "full_model": "T4"}, {}),
    ("isolation", {"supported_isolation": ("soft",)}, {}),
    ("index", {"index": 7}, {}),
    ("node-selector", {}, {"labels": {"zone": "b"}}),
    ("node-affinity", {}, {"labels": {"zone": "a", "rack": "9"}}),
    ("cordoned", {}, {"schedulable": False}),
    ("taint", {}, {"taints": (Taint("gpu"),)}),
    ("worker-cap", {}, {"max_workers": 0}),
    ("capacity", {"capacity_gflops": 5_000}, {}),
]


PICKY = pod(
    "new",
    vendor="NVIDIA",
    models=("A100",),
    isolation="hard",
    indices=(0,),
    node_selector=(("zone", "a"),),
    affinity=(SelectorTerm((Requirement("rack", "NotIn", ("9",)),)),),
)


@pytest.mark.parametrize("first", range(len(BROKEN)), ids=[name for name, _, _ in BROKEN])
def test_rules_are_applied_in_order_and_the_first_one_counts_the_card(first):
    """The card breaks this rule and all later ones; labels, and so both rules on them, are one."""
    card: dict[str, object] = {}
    node: dict[str, object] = {"labels": {"zone": "a"}}
    for _, on_card, on_node in reversed(BROKEN[first:]):
        card |= on_card
        node |= on_node
    engine = engine_with(device(**card), **node)
    refusal = engine.place(PICKY)
    assert isinstance(refusal, NoFit)
    removed = [item.constraint for item in refusal.exclusions if item.removed]
    assert removed == [BROKEN[first][0]]


@pytest.mark.parametrize("rule", [row for row in BROKEN if row[0] not in ("phase", "worker-cap")],
                         ids=lambda row: row[0])  # fmt: skip
def test_eviction_obeys_every_rule_of_placement(rule):
    """The cheaper victim is where the request could not go; the dearer one goes."""
    _, card, node = rule
    engine = engine_with(device("b"), labels={"zone": "a"})
    put(engine, pod("dear", 95_000, node_name="b"))
    engine.upsert_node(NodeInfo(name="a", **{"pool": "p", "labels": {"zone": "a"}, **node}))
    engine.upsert_device(device("a", **card))
    held = msgspec.structs.replace(
        engine.ledger.allocations["dear"], key="cheap", holders=("cheap",), node="a"
    )
    take = msgspec.structs.replace(held.takes[0], uuid=engine.fleet.blocks[1][0].uuid)
    engine.ledger.restore(msgspec.structs.replace(held, takes=(take,)))
    victims = {k: Victim(key=k, priority=p) for k, p in (("cheap", 1), ("dear", 5))}
    found = plan_preemption(engine, PICKY, 10, Disruptable(victims=victims))
    assert isinstance(found, PreemptionPlan)
    assert (found.victims, found.nodes) == (("dear",), ("b",))


def test_request_for_a_pool_without_cards_is_told_so():
    refusal = engine_with(device()).place(pod("a", pool="empty"))
    assert refusal.message == "0/1 GPUs fit: 1 in another pool"
    assert not refusal.resolvable


POLICIES = {
    policy.name: policy
    for policy in (load.compact_first(), load.low_load_first(), load.node_compact_gpu_low_load())
}


@pytest.mark.parametrize(
    ("placement", "name"),
    [
        (None, "node-compact-gpu-low-load"),
        ({}, "node-compact-gpu-low-load"),
        ({"mode": "LowLoadFirst"}, "low-load-first"),
        ({"mode": "LowLoadFirst", "policy": "compact-first"}, "compact-first"),
        ({"policy": "CompactFirst"}, "compact-first"),
    ],
)
def test_policy_of_a_pool_is_what_it_names_else_its_mode_else_the_default(placement, name):
    found = None if placement is None else decode(PlacementSettings, placement)
    assert policy_of(POLICIES, found).name == name


def test_policy_that_does_not_exist_is_an_error_and_not_the_default():
    with pytest.raises(Terminal, match="policy 'tetris' is not installed; installed: compact-f"):
        policy_of(POLICIES, decode(PlacementSettings, {"policy": "tetris"}))


@pytest.mark.parametrize(
    ("cards_", "points"),
    [
        pytest.param([{"peers": (Peer("n1-g1", 0),)}, {}], 3 * 25 + 24, id="linked"),
        pytest.param([{"numa_node": 0}, {"numa_node": 0}], 2 * 25 + 14, id="one-numa-node"),
        pytest.param([{"numa_node": 0}, {"numa_node": 1}], 25 + 4, id="across"),
        pytest.param([{"numa_node": 0}, {}], 0, id="one-unknown"),
        pytest.param([{}, {}], 0, id="unknown"),
    ],
)
def test_set_of_cards_is_worth_its_tier_and_how_near_the_pairs_are(cards_, points):
    engine = engine_with(*(device(index=n, **fields) for n, fields in enumerate(cards_)))
    shape = pod("a", gpu_count=2, topology=TopologyWish()).shape
    found = wishes_of(engine.fleet, shape)
    assert found.weighs
    assert found.worth(engine.fleet.slot_of("n1"), [0, 1]) == points


@pytest.mark.parametrize("vendor", sorted({card.vendor for card in cards().values()}))
def test_vendors_without_partition_tables_offer_no_partitions(vendor):
    for known in (card for card in cards().values() if card.vendor == vendor):
        found = engine_with(device(model=known.model)).place(
            pod("a", 0, 1, isolation="partitioned")
        )
        assert isinstance(found, Placement) == (known.geometry is not None)
        if known.geometry is None:
            assert found.message == "0/1 GPUs fit: 1 isolation mode not offered"


PARTITIONS = [
    # template asked for, amounts, template given
    ("", Amount(0, 8 * GIB), "1g.10gb"),
    ("mig-1g.10gb", Amount(0, 8 * GIB), "1g.10gb"),
    ("1G_10GB", Amount(), "1g.10gb"),
    ("1g.10gb", Amount(0, 11 * GIB), None),
    ("1g.10gb", Amount(50_000), None),
    ("1g.10gb", Amount(0, 0, 20_000), None),
    ("1g.99gb", Amount(), None),
    ("", Amount(0, 81 * GIB), None),
]


@pytest.mark.parametrize(("template", "amount", "given"), PARTITIONS)
def test_partition_asked_for_by_name_must_cover_the_amounts(template, amount, given):
    engine = engine_with(device(model="A100_SXM_80G"))
    found = engine.place(pod("a", partition=template, request=amount, isolation="partitioned"))
    if given is None:
        assert found.message == "0/1 GPUs fit: 1 without a partition template that will do"
        return
    held = engine.reserve(
        pod("a", partition=template, request=amount, isolation="partitioned"), found
    ).after
    assert held.takes[0].cut.template == given


@pytest.mark.parametrize("model", [m for m, card in cards().items() if card.geometry is not None])
def test_partitions_of_a_card_end_at_one_number_everywhere(model):
    """Choice, refusal and accounts agree on when a card is full."""
    geometry = cards()[model].geometry
    engine = engine_with(device(model=model))
    smallest = min(geometry.templates, key=lambda t: (t.slices, t.vram_bytes, t.engines)).id
    count = 0
    while isinstance(
        engine.place(one := pod(f"u{count}", 0, 0, isolation="partitioned", partition=smallest)),
        Placement,
    ):
        put(engine, one)
        count += 1
    assert count == min(geometry.template(smallest).max_instances, geometry.max_partitions)
    with pytest.raises(AllocationRefused, match="no free slot"):
        engine.ledger.allocate(one, ["n1-g0"])
    assert engine.ledger.check_invariants() == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_partition_does_not_depend_on_the_order_in_which_cards_came(order):
    found = [device("n1", 0, "A100_SXM_40G"), device("n1", 1, "A100_SXM_80G"),
             device("n2", 0, "H100_SXM")]  # fmt: skip
    engine = engine_with(*(found[position] for position in order))
    held = [put(engine, pod(f"u{n}", 0, 9, isolation="partitioned")) for n in range(6)]
    assert [(h.devices[0], h.takes[0].cut.template, h.takes[0].cut.start) for h in held] == [
        ("n1-g0", "1g.10gb", 6), ("n1-g0", "1g.10gb", 4), ("n1-g0", "1g.10gb", 0),
        ("n1-g0", "1g.10gb", 2), ("n1-g1", "1g.10gb", 6), ("n1-g1", "1g.10gb", 4),
    ]  # fmt: skip


def test_npu_partitions_are_restored_into_their_groups():
    engine = engine_with(device(model="Ascend310P3"))
    held = [put(engine, pod(f"v{n}", 0, 0, isolation="partitioned", partition="vir01"))
            for n in range(4)]  # fmt: skip
    again = engine_with(device(model="Ascend310P3"))
    for one in reversed(held):
        again.ledger.restore(one)
    assert again.ledger.state_hash() == engine.ledger.state_hash()
    assert again.ledger.devices["n1-g0"].cuts == engine.ledger.devices["n1-g0"].cuts
    assert put(again, pod("x", 0, 0, isolation="partitioned", partition="vir01")).takes[0].cut == (
        put(engine, pod("x", 0, 0, isolation="partitioned", partition="vir01")).takes[0].cut
    )


@pytest.mark.parametrize(
    ("quota", "resource"),
    [
        ({"total_requests": QuotaAmount(vram_bytes=39 * GIB)}, "total.max.vram.request"),
        ({"total_requests": QuotaAmount(gflops=100_000)}, "total.max.tflops.request"),
        ({"single_max_requests": QuotaAmount(vram_bytes=39 * GIB)}, "single.max.vram.request"),
        ({"single_max_request_share": 40_000}, "single.max.percent.request"),
        ({"total_requests": QuotaAmount(vram_bytes=40 * GIB)}, None),
    ],
)
def test_pinned_partition_counts_against_the_quota_as_its_template(quota, resource):
    engine = engine_with(device(model="A100_SXM_80G"))
    engine.ledger.quotas.put(Quota(namespace="ns", name="q", **quota))
    demand = pod("a", 0, 0, isolation="partitioned", partition="3g.40gb")
    placement = engine.place(demand)
    if resource is None:
        engine.reserve(demand, placement)
        return
    with pytest.raises(AllocationRefused) as caught:
        engine.reserve(demand, placement)
    assert [violation.resource for violation in caught.value.violations] == [resource]


def test_members_of_a_gang_may_want_different_pools():
    engine = engine_with(device("n1"), device("n2", pool="q"))
    members = (pod("a", 60_000), pod("b", 60_000, pool="q"))
    found = place_gang(engine, GangRequest(key="g", members=members, required=2))
    assert isinstance(found, GangPlan)
    assert [one.placement.node for one in found.members] == ["n1", "n2"]
    engine.ledger.release("a")
    engine.ledger.release("b")
    both = (pod("a", 60_000, pool="q"), pod("b", 60_000, pool="q"))
    assert not isinstance(
        place_gang(engine, GangRequest(key="g", members=both, required=2)), GangPlan
    )


def test_every_index_can_start_on_a_node_at_the_same_time():
    engine = engine_with(device())
    for number in range(128):
        put(engine, pod(f"u{number}", 1, 0, claims=(Claim(INDEX, number),)))
    found = engine.place(pod("late", 1, 0, claims=(Claim(INDEX, 127),)))
    assert found.message == "0/1 GPUs fit: 1 where index 127 of the node is taken"
    assert found.resolvable
    engine.ledger.settle("u127")
    assert isinstance(engine.place(pod("late", 1, 0, claims=(Claim(INDEX, 127),))), Placement)
