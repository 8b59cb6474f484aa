"""Hardware partitions: the vendor's table, the choice of slots, and who may share a card."""

from itertools import combinations, combinations_with_replacement

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.model.decision_log import LogEncoder, replay
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.gang import room
from tensorfusion.model.hardware import cards, geometry_of
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.partitions import (
    Cut,
    PartitionBits,
    PartitionWish,
    best_cut,
    best_of,
    canonical,
    choices,
    conflicts,
    legal_starts,
)
from tensorfusion.model.preemption import plan_preemption
from tensorfusion.model.relax.answer import relax
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.model.typical import wanted_milli
from tensorfusion.model.victims import Disruptable, PreemptionPlan, Victim
from tensorfusion_plugins.policies import load, tensorfusion_placement_policies

GIB = 2**30
FGD = next(p for p in tensorfusion_placement_policies() if p.name == "fgd")

# NVIDIA Multi-Instance GPU User Guide: profile, compute slices of 7, starts, width, at most.
TABLE = (
    ("1g.{0}gb", 1, (0, 1, 2, 3, 4, 5, 6), 1, 7),
    ("1g.{0}gb+me", 1, (0, 1, 2, 3, 4, 5, 6), 1, 1),
    ("1g.{1}gb", 1, (0, 2, 4, 6), 2, 4),
    ("2g.{1}gb", 2, (0, 2, 4), 2, 3),
    ("3g.{2}gb", 3, (0, 4), 4, 2),
    ("4g.{2}gb", 4, (0,), 4, 1),
    ("7g.{3}gb", 7, (0,), 8, 1),
)
MEMORY = {"A100_SXM_40G": (5, 10, 20, 40), "H100_SXM": (10, 20, 40, 80)}


def vendor_table(model):
    """Template to (slices, mask of slots per start, at most), from the table alone."""
    return {
        name.format(*MEMORY[model]): (
            slices,
            {start: ((1 << width) - 1) << start for start in starts},
            most,
        )
        for name, slices, starts, width, most in TABLE
    }


def allowed(table, state, name):
    """Starts the vendor's rules leave: no slot twice, at most 7 slices, at most so many of one."""
    taken = sum(table[cut.template][1][cut.start] for cut in state)
    slices = sum(table[cut.template][0] for cut in state)
    count = sum(cut.template == name for cut in state)
    size, masks, most = table[name]
    if slices + size > 7 or count >= most:
        return set()
    return {start for start, mask in masks.items() if not mask & taken}


def reachable(table):
    """Every state of one card, from the table alone."""
    found, todo = {()}, [()]
    while todo:
        state = todo.pop()
        for name in table:
            for start in allowed(table, state, name):
                after = tuple(sorted((*state, Cut(name, start))))
                if after not in found:
                    found.add(after)
                    todo.append(after)
    return found


def card(model="A100_SXM_80G", node="n1", index=0, **fields):
    known = cards()[model]
    values = {
        "uuid": f"{node}-g{index}",
        "node": node,
        "pool": "p",
        "index": index,
        "vendor": known.vendor,
        "model": known.model,
        "full_model": known.full_model,
        "capacity_gflops": known.compute_gflops,
        "capacity_vram_bytes": known.vram_bytes,
        "geometry": known.geometry,
    }
    return Device(**{**values, **fields})


def pod(uid, partition="", isolation="partitioned", **shape):
    shape = Shape(pool="p", isolation=isolation, partition=partition, **shape)
    return Demand(namespace="ns", name=uid, uid=uid, shape=shape)


def engine_with(*devices):
    engine = Engine(load.compact_first())
    for name in sorted({device.node for device in devices}):
        engine.upsert_node(NodeInfo(name=name, pool="p"))
    for device in devices:
        engine.upsert_device(device)
    return engine


def put(engine, demand):
    found = engine.place(demand)
    assert isinstance(found, Placement), found.message
    return engine.reserve(demand, found).after


def cut_of(allocation):
    return allocation.takes[0].cut


@pytest.mark.parametrize("model", MEMORY)
def test_every_state_of_a_card_offers_what_the_vendors_table_says(model):
    table = vendor_table(model)
    geometry = geometry_of(model, "")
    assert {template.id for template in geometry.templates} == table.keys()
    states = reachable(table)
    assert len(states) == 2319
    for state in states:
        offered = {name: set(legal_starts(geometry, state, name)) for name in table}
        assert offered == {name: allowed(table, state, name) for name in table}, state
        assert not conflicts(geometry, state)


def test_both_cards_have_the_published_whole_card_layouts():
    # The user guide's figure of full layouts: the cards with nothing left, by sizes of compute.
    geometry = geometry_of("A100_SXM_40G", "")
    full = {
        tuple(sorted((cut.template.split(".")[0] for cut in state), reverse=True))
        for state in reachable(vendor_table("A100_SXM_40G"))
        if not choices(geometry, state)
    }
    assert {("7g",), ("4g", "3g"), ("3g", "3g"), ("4g", "2g", "1g"), ("1g",) * 7} <= full
    assert ("4g", "4g") not in full
    assert ("3g", "3g", "1g") not in full


@pytest.mark.parametrize("model", MEMORY)
def test_ledger_and_engine_follow_the_table_in_every_state(model):
    table = vendor_table(model)
    engine = engine_with(card(model))
    ledger = engine.ledger
    usage = ledger.devices["n1-g0"]
    pattern = Ledger()
    pattern.set_device(card(model))
    held = pattern.allocate(pod("x", next(iter(table))), ["n1-g0"]).after
    fleet = engine.fleet
    masks = {name: fleet.gate_asked(pod("x", name).shape) for name in table}
    for state in reachable(table):
        mark = ledger.checkpoint()
        for number, cut in enumerate(state):
            take = msgspec.structs.replace(held.takes[0], cut=cut)
            key = f"k{number}"
            ledger.restore(msgspec.structs.replace(held, key=key, holders=(key,), takes=(take,)))
        assert usage.cuts == state
        gate = fleet.gates[0][0]
        for name, mask in masks.items():
            assert bool(gate & mask) == bool(allowed(table, state, name)), (state, name)
        ledger.rollback(mark)
    assert usage.cuts == ()


def test_start_that_leaves_most_choices_is_taken():
    geometry = geometry_of("A100_SXM_40G", "")
    for state in reachable(vendor_table("A100_SXM_40G")):
        for template in geometry.templates:
            found = best_cut(geometry, state, (), template.id)
            starts = legal_starts(geometry, state, template.id)
            if not starts:
                assert found is None
                continue
            left = {
                start: choices(geometry, tuple(sorted((*state, Cut(template.id, start)))))
                for start in starts
            }
            assert left[found.cut.start] == max(left.values())


def test_small_partitions_do_not_spoil_the_large_ones():
    engine = engine_with(card(index=0), card(index=1))
    for number in range(3):
        put(engine, pod(f"s{number}", "1g.10gb"))
    cuts = engine.ledger.devices["n1-g0"].cuts
    assert len(cuts) == 3, "the card that is cut already is cut further"
    assert not engine.ledger.devices["n1-g1"].cuts
    assert put(engine, pod("big", "3g.40gb")).devices == ("n1-g0",), "one half was left whole"
    assert put(engine, pod("whole", "7g.80gb")).devices == ("n1-g1",)


def test_idle_partition_of_the_template_is_reused_before_another_is_made():
    idle = (Cut("2g.20gb", 4),)
    engine = engine_with(card(index=0), card(index=1, idle_partitions=idle))
    held = put(engine, pod("a", "2g.20gb"))
    assert (held.devices, cut_of(held)) == (("n1-g1",), idle[0])
    again = put(engine, pod("b", "2g.20gb"))
    assert cut_of(again) != idle[0]
    engine.ledger.release("a")
    assert cut_of(put(engine, pod("c", "2g.20gb"))) == idle[0]


def test_idle_partitions_in_the_way_are_counted_and_avoided():
    geometry = geometry_of("A100_SXM_80G", "")
    assert best_cut(geometry, (), (Cut("7g.80gb", 0),), "1g.10gb").removes == 1
    half = best_cut(geometry, (), (Cut("1g.10gb", 0),), "3g.40gb")
    assert (half.cut.start, half.removes) == (4, 0)


@pytest.mark.parametrize(
    ("amount", "template"),
    [
        (Amount(vram_bytes=8 * GIB), "1g.10gb"),
        (Amount(vram_bytes=11 * GIB), "1g.20gb"),
        (Amount(gflops=80_000, vram_bytes=11 * GIB), "2g.20gb"),
        (Amount(milli_percent=50_000), "4g.40gb"),
        (Amount(milli_percent=90_000), "7g.80gb"),
    ],
)
def test_amounts_get_the_smallest_template_that_covers_them(amount, template):
    engine = engine_with(card())
    held = put(engine, pod("a", request=amount))
    assert cut_of(held).template == template
    take = held.takes[0]
    assert take.vram_bytes >= amount.vram_bytes
    assert take.gflops >= amount.gflops_on(312_000)


def test_ledger_refuses_a_partition_without_a_slot_or_a_template():
    engine = engine_with(card())
    put(engine, pod("a", "4g.40gb"))
    with pytest.raises(AllocationRefused, match=r"no free slot for 4g\.40gb"):
        engine.ledger.allocate(pod("b", "4g.40gb"), ["n1-g0"])
    with pytest.raises(AllocationRefused, match="no partition template 9g-1gb"):
        engine.ledger.allocate(pod("b", "9g.1gb"), ["n1-g0"])
    assert list(engine.ledger.allocations) == ["a"]


def test_template_of_one_model_is_never_used_on_another():
    engine = engine_with(card("A100_SXM_40G", "n1"), card("A100_SXM_80G", "n2"))
    small = put(engine, pod("a", "1g.5gb"))
    assert small.node == "n1"
    shared_name = [put(engine, pod(f"b{n}", "1g.10gb")) for n in range(6)]
    for held in shared_name:
        width = 2 if held.node == "n1" else 1
        template = engine.ledger.devices[held.devices[0]].device.geometry.template("1g.10gb")
        assert template.width == width
    assert engine.ledger.check_invariants() == []


@pytest.mark.parametrize("first", ["partitioned", "soft"])
def test_card_is_cut_up_or_shared_but_never_both(first):
    engine = engine_with(card())
    second = "soft" if first == "partitioned" else "partitioned"
    small = Amount(vram_bytes=GIB)
    put(engine, pod("a", isolation=first, request=small))
    refusal = engine.place(pod("b", isolation=second, request=small))
    assert refusal.message == "0/1 GPUs fit: 1 locked to another isolation mode"
    with pytest.raises(AllocationRefused, match=f"locked to isolation {first}"):
        engine.ledger.allocate(pod("b", isolation=second, request=small), ["n1-g0"])
    assert isinstance(engine.place(pod("c", isolation="shared")), NoFit)
    engine.ledger.release("a")
    put(engine, pod("b", isolation=second, request=small))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"isolation_policy": "dynamic"}, "isolation mode not offered"),
        ({"isolation_mode": "soft"}, "isolation mode not offered"),
        ({"geometry": None}, "isolation mode not offered"),
        ({}, "without a partition template that will do"),
    ],
)
def test_cards_that_offer_no_such_partition_say_so(fields, message):
    engine = engine_with(card(**fields))
    refusal = engine.place(pod("a", "3g.71gb"))
    assert refusal.message == f"0/1 GPUs fit: 1 {message}"
    assert not refusal.resolvable


def test_refusal_names_the_template_that_has_no_free_slot():
    engine = engine_with(card(index=0), card(index=1))
    for number in range(4):
        put(engine, pod(f"x{number}", "3g.40gb"))
    refusal = engine.place(pod("y", "3g.40gb"))
    assert refusal.message == "0/2 GPUs fit: 2 without a free slot for 3g.40gb"
    assert refusal.resolvable
    assert [item.constraint for item in refusal.exclusions] == ["partition-slots"]
    assert engine.explain(pod("y", "3g.40gb").shape)[1] == 0


def test_why_names_another_template_or_who_must_leave():
    engine = engine_with(card(index=0))
    for number in range(2):
        put(engine, pod(f"x{number}", "2g.20gb"))
    demand = pod("y", "4g.40gb")
    steps = {step.kind: step for step in relax(engine, demand).alone}
    assert steps["partition"].shape.partition == "2g.20gb"
    assert len(steps["evict"].evict) == 1
    changed = msgspec.structs.replace(demand, shape=steps["partition"].shape)
    assert isinstance(engine.place(changed), Placement)
    for key in steps["evict"].evict:
        engine.ledger.release(key)
    assert isinstance(engine.place(demand), Placement)


def test_each_of_several_gpus_gets_a_partition_of_its_own():
    engine = engine_with(card(index=0), card(index=1))
    put(engine, pod("a", "4g.40gb"))
    held = put(engine, pod("b", "3g.40gb", gpu_count=2))
    assert [take.cut.template for take in held.takes] == ["3g.40gb"] * 2
    assert len(set(held.devices)) == 2
    assert room(engine, pod("c", "3g.40gb").shape) == {"n1": 1}


def test_names_that_round_up_still_fill_the_card():
    engine = engine_with(card("H200"))
    for number in range(2):
        put(engine, pod(f"x{number}", "3g.71gb"))
    usage = engine.ledger.devices["n1-g0"]
    assert usage.used_vram_bytes == 141 * GIB
    assert engine.ledger.check_invariants() == []


@pytest.mark.parametrize("name", ["MIG-3g.40gb", "3G_40GB", "3g 40gb", " mig-3g-40gb "])
def test_template_is_found_by_any_spelling(name):
    assert canonical(name) == "3g-40gb"
    assert cut_of(put(engine_with(card()), pod("a", name))).template == "3g.40gb"


def test_npu_templates_share_groups_and_engines():
    geometry = geometry_of("Ascend310P3", "")
    shared = tuple(Cut("vir01", start) for start in (0, 0))
    assert 0 not in legal_starts(geometry, shared, "vir01"), "two share a group, not three"
    assert 0 in legal_starts(geometry, shared[:1], "vir01")
    assert 0 not in legal_starts(geometry, shared[:1], "vir02"), "other templates keep out"
    assert not legal_starts(geometry, (Cut("vir04", 0),), "vir04"), "7 control CPUs for 4 + 4"
    for names in combinations_with_replacement(["vir01", "vir02", "vir04"], 3):
        cuts = ()
        for name in names:
            found = best_cut(geometry, cuts, (), name)
            if found is not None:
                cuts = tuple(sorted((*cuts, found.cut)))
        cpus = sum(dict(geometry.template(cut.template).engines)["AICPU"] for cut in cuts)
        assert cpus <= 7
        assert not conflicts(geometry, cuts)
    engine = engine_with(card("Ascend310P3"))
    held = [put(engine, pod(f"v{number}", "vir01")) for number in range(7)]
    assert sorted(cut_of(one).start for one in held) == [0, 0, 1, 1, 2, 2, 3]
    assert isinstance(engine.place(pod("v8", "vir01")), NoFit)


def test_restored_partitions_that_overlap_are_reported():
    ledger = Ledger()
    ledger.set_device(card())
    held = ledger.allocate(pod("a", "3g.40gb"), ["n1-g0"]).after
    ledger.restore(msgspec.structs.replace(held, key="b", holders=("b",)))
    start = cut_of(held).start
    assert ledger.check_invariants() == [
        f"device n1-g0: partition 3g.40gb at slot {start} has no room"
    ]


def test_partitions_come_back_from_the_log_bit_for_bit():
    engine = engine_with(card(index=0), card(index=1))
    encoder, lines = LogEncoder(), []
    for number, name in enumerate(["1g.10gb", "3g.40gb", "2g.20gb", "1g.20gb"]):
        demand = pod(f"u{number}", name)
        found = engine.place(demand)
        lines.append(encoder.encode(engine.reserve(demand, found), 1.0))
    lines.append(encoder.encode(engine.ledger.release("u1"), 2.0))
    again = replay(lines).ledger
    assert again.state_hash() == engine.ledger.state_hash()
    assert {uuid: usage.cuts for uuid, usage in again.devices.items()} == {
        uuid: usage.cuts for uuid, usage in engine.ledger.devices.items() if usage.members
    }


def test_best_of_takes_nothing_that_does_not_cover():
    device = card()
    kinds = device.partition_kinds
    assert best_of(device.geometry, (), (), kinds, PartitionWish(vram_bytes=81 * GIB)) is None
    found = best_of(device.geometry, (Cut("1g.10gb", 0),), (), kinds, PartitionWish("7g-80gb"))
    assert found is None


def test_catalogue_leaves_bits_to_spare_and_too_many_kinds_are_refused():
    bits = PartitionBits(5)
    for known in cards().values():
        if known.geometry is not None:
            bits.add(known.geometry.kinds(known.compute_gflops, known.vram_bytes))
    geometry = geometry_of("A30", "")
    many = [kind for size in range(1, 30) for kind in geometry.kinds(size * 1_000, size * GIB)]
    with pytest.raises(ValueError, match="at most 58 can be told apart"):
        bits.add(tuple(many))


@settings(max_examples=60, deadline=None)
@given(
    story=st.lists(st.sampled_from(sorted(vendor_table("H100_SXM"))), min_size=1, max_size=12),
    wanted=st.sampled_from(sorted(vendor_table("H100_SXM"))),
    dropped=st.sets(st.integers(0, 11), max_size=5),
)
def test_why_evicts_as_few_as_brute_force(story, wanted, dropped):
    engine = engine_with(card("H100_SXM", index=0), card("H100_SXM", index=1))
    for number, name in enumerate(story):
        demand = pod(f"u{number}", name)
        found = engine.place(demand)
        if isinstance(found, Placement):
            engine.reserve(demand, found)
    for number in dropped:
        engine.ledger.release(f"u{number}")
    demand = pod("last", wanted)
    if isinstance(engine.place(demand), Placement):
        assert relax(engine, demand).alone == ()
        return
    steps = {step.kind: step for step in relax(engine, demand).alone}
    keys = sorted(engine.ledger.allocations)
    fewest = next(
        size
        for size in range(1, len(keys) + 1)
        if any(fits_without(engine, demand, gone) for gone in combinations(keys, size))
    )
    assert len(steps["evict"].evict) == fewest
    assert fits_without(engine, demand, steps["evict"].evict)
    larger = [name for name in vendor_table("H100_SXM") if fits(engine, pod("z", name))]
    assert ("partition" in steps) == bool(larger)
    if larger:
        assert fits(engine, pod("z", steps["partition"].shape.partition))


def fits(engine, demand):
    return isinstance(engine.place(demand), Placement)


def fits_without(engine, demand, gone):
    mark = engine.ledger.checkpoint()
    for key in gone:
        engine.ledger.release(key)
    found = fits(engine, demand)
    engine.ledger.rollback(mark)
    return found


def test_preemption_frees_the_slots_and_no_more():
    engine = engine_with(card(index=0))
    for number, name in enumerate(["1g.10gb", "2g.20gb", "3g.40gb"]):
        put(engine, pod(f"u{number}", name))
    victims = {key: Victim(key=key, priority=0) for key in engine.ledger.allocations}
    demand = pod("high", "3g.40gb")
    state = engine.ledger.state_hash()
    plan = plan_preemption(engine, demand, 10, Disruptable(victims=victims))
    assert isinstance(plan, PreemptionPlan)
    assert engine.ledger.state_hash() == state
    assert plan.victims == ("u2",)
    whole = plan_preemption(engine, pod("all", "7g.80gb"), 10, Disruptable(victims=victims))
    assert whole.victims == ("u0", "u1", "u2")
    soft = pod("soft", isolation="soft", request=Amount(1, 1))
    assert plan_preemption(engine, soft, 10, Disruptable(victims=victims)).victims == (
        "u0",
        "u1",
        "u2",
    )


def test_typical_requests_know_the_size_of_a_partition():
    engine = engine_with(card(index=0), card(index=1))
    engine.set_policy("p", FGD)
    for number in range(3):
        put(engine, pod(f"u{number}", "3g.40gb"))
    (kind,) = engine.fleet.kinds
    assert wanted_milli(pod("x", "3g.40gb").shape, kind) == 500
    assert wanted_milli(pod("x", "9g.9gb").shape, kind) > 1000
    assert wanted_milli(pod("x", request=Amount(vram_bytes=GIB)).shape, kind) == 143
