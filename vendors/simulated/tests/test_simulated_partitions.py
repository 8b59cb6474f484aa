"""Hardware partitions of simulated cards: cut, used, given back, kept over a restart."""

import random

import pytest

from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.hypervisor.partitions import cut_for, idle_of
from tensorfusion.model.hardware import geometry_of
from tensorfusion.model.partitions import Cut, best_cut, conflicts
from tensorfusion_simulated.description import expand, read_settings

GIB = 1 << 30


def cut(node, session, worker, template, start):
    """Do what the hypervisor does for a pod that was given this cut of the first card."""
    info = session.discover()[0]
    spec = node.spec(session, worker, isolation="partitioned")
    spec = cut_for(session, spec, [info], {info.uuid.lower(): Cut(template, start)})
    session.prepare(spec)
    return spec


def there(session):
    return [(one.template, one.start) for one in session.partitions()]


def test_partition_binds_as_hardware_does(node):
    session = node.open(partitioned=True)
    spec = cut(node, session, "w", "2g.20gb", 0)
    (made,) = session.partitions()
    assert spec.share.limit_vram_bytes == made.vram_bytes == 20 * GIB
    row = node.run(session)["w"]
    assert row.compute_gflops == pytest.approx(made.compute_gflops)
    assert made.compute_gflops == pytest.approx(312_000 * 2 / 7, rel=1e-5)
    again = node.open(partitioned=True)
    assert node.run(again)["w"].compute_gflops == pytest.approx(made.compute_gflops)


def test_neighbours_in_partitions_do_not_touch_each_other(node):
    session = node.open(partitioned=True)
    cut(node, session, "a", "3g.40gb", 0)
    alone = node.run(session)["a"]
    cut(node, session, "b", "3g.40gb", 4)
    assert node.run(session)["a"].compute_gflops == pytest.approx(alone.compute_gflops)


def test_partition_is_kept_and_taken_again(any_node):
    session = any_node.open(partitioned=True)
    first = cut(any_node, session, "a", "3g.40gb", 4)
    session.release("a")
    assert there(session) == [("3g.40gb", 4)]
    assert [one.uuid for one in idle_of(session)] == list(first.partitions)
    second = cut(any_node, session, "b", "3g.40gb", 4)
    assert second.partitions == first.partitions
    assert idle_of(session) == []


def test_idle_partition_that_is_in_the_way_is_removed_and_others_stay(any_node):
    session = any_node.open(partitioned=True)
    for worker, start in (("a", 0), ("b", 1), ("c", 6)):
        cut(any_node, session, worker, "1g.10gb", start)
    session.release("a")
    session.release("c")
    with pytest.raises(BackendError, match=r"no room for 3g\.40gb at slot 0"):
        cut(any_node, session, "large", "3g.40gb", 0)  # b is still there
    cut(any_node, session, "large", "3g.40gb", 4)
    assert there(session) == [("1g.10gb", 0), ("1g.10gb", 1), ("3g.40gb", 4)]


def test_what_was_cut_before_a_crash_is_found_by_the_next_try(any_node):
    session = any_node.open(partitioned=True)
    info = session.discover()[0]
    session.create_partition(info.uuid, "3g.40gb", 0)  # and then the process was killed
    again = any_node.open(partitioned=True)
    cut(any_node, again, "a", "3g.40gb", 0)
    assert there(again) == [("3g.40gb", 0)]


def test_workers_and_partitions_outlive_a_restart(any_node):
    session = any_node.open(partitioned=True)
    spec = cut(any_node, session, "a", "2g.20gb", 2)
    again = any_node.open(partitioned=True)
    assert list(again.workers()) == [spec]
    assert there(again) == [("2g.20gb", 2)]
    assert cut(any_node, again, "a", "2g.20gb", 2) == spec, "asking again changes nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partitions": ()}, "0 partitions for 1 devices"),
        ({"partitions": ("part-nothing",)}, "has no partition 'part-nothing'"),
    ],
)
def test_worker_without_its_partition_is_refused(any_node, changes, message):
    session = any_node.open(partitioned=True)
    with pytest.raises(BackendError, match=message):
        session.prepare(any_node.spec(session, isolation="partitioned", **changes))
    assert not session.workers()


def test_partition_in_use_is_neither_shared_nor_removed_nor_resized(any_node):
    session = any_node.open(partitioned=True)
    spec = cut(any_node, session, "a", "1g.10gb", 0)
    other = any_node.spec(session, "b", isolation="partitioned", partitions=spec.partitions)
    with pytest.raises(BackendError, match="is used by worker a"):
        session.prepare(other)
    with pytest.raises(BackendError, match="is used by worker a"):
        session.remove_partition(spec.partitions[0])
    with pytest.raises(BackendError, match="has the size of its template"):
        session.set_limits("a", spec.share.limited_to(spec.share.limit_gflops // 2))
    session.set_limits("a", spec.share)
    assert session.workers() == [spec]


def test_card_is_cut_or_used_as_a_whole(node):
    session = node.open()
    session.prepare(node.spec(session, "whole"))
    info = session.discover()[0]
    with pytest.raises(BackendError, match="worker whole uses it as a whole"):
        session.create_partition(info.uuid, "1g.10gb")


@pytest.mark.parametrize(
    ("model", "template", "message"),
    [
        ("A100_SXM_80G", "9g.90gb", r"no partition template '9g\.90gb'; allowed for .*7g\.80gb"),
        ("T4", "1g.5gb", "allowed for T4: none"),
        ("A30", "1g.5gb", r"allowed for A30: 1g\.6gb, 2g\.12gb, 4g\.24gb"),
    ],
)
def test_unknown_template_is_named_with_what_is_allowed(any_node, model, template, message):
    session = any_node.open(model, partitioned=True)
    with pytest.raises(BackendError, match=message):
        session.create_partition(session.discover()[0].uuid, template)


def test_slot_at_which_a_template_never_starts_is_named_with_those_where_it_does(any_node):
    session = any_node.open(partitioned=True)
    with pytest.raises(BackendError, match=r"3g\.40gb may start at slots 0, 4, not at 1"):
        session.create_partition(session.discover()[0].uuid, "3g.40gb", 1)
    assert there(session) == []


def test_place_of_a_cut_is_the_drivers_when_none_is_asked_for(any_node):
    session = any_node.open(partitioned=True)
    uuid = session.discover()[0].uuid
    made = [session.create_partition(uuid, "1g.10gb").start for _ in range(7)]
    assert sorted(made) == list(range(7))
    with pytest.raises(BackendError, match=r"no room for 1g\.10gb beside"):
        session.create_partition(uuid, "1g.10gb")


@pytest.mark.parametrize("fidelity", ["model", "driver"])
def test_description_of_cards_that_cannot_be_cut_is_refused(fidelity):
    nodes = [{"name": "n", "gpus": [{"model": "T4", "partitioned": True}]}]
    with pytest.raises(ConfigError, match=r"gpus\.partitioned: T4 has no partitions"):
        expand(read_settings({"fidelity": fidelity, "nodes": nodes}))


def test_a_thousand_workers_come_and_go_without_an_orphan(any_node):
    session = any_node.open(partitioned=True)
    card = session.discover()[0]
    geometry = geometry_of(card.model, card.full_model)
    rng, live = random.Random(7), {}
    for number in range(1000):
        if number % 250 == 249:
            session = any_node.open(partitioned=True)
        template = rng.choice([t.id for t in geometry.templates])
        choice = best_cut(geometry, tuple(sorted(live.values())), (), template)
        if choice is not None and rng.random() < 0.7:
            live[f"w{number}"] = choice.cut
            cut(any_node, session, f"w{number}", choice.cut.template, choice.cut.start)
        elif live:
            leaver = rng.choice(sorted(live))
            session.release(leaver)
            del live[leaver]
        made = tuple(sorted(Cut(p.template, p.start) for p in session.partitions()))
        assert conflicts(geometry, made) == []
    used = {uuid for spec in session.workers() for uuid in spec.partitions}
    assert len(used) == len(live)
    for one in idle_of(session):
        session.remove_partition(one.uuid)
    assert {one.uuid for one in session.partitions()} == used
