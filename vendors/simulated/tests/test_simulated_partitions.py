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


def test_neighbours_in_partitions_do_not_touch_each_other(node):
    session = node.open(partitioned=True)
    cut(node, session, "a", "3g.40gb", 0)
    alone = node.run(session)["a"]
    cut(node, session, "b", "3g.40gb", 4)
    assert node.run(session)["a"].compute_gflops == pytest.approx(alone.compute_gflops)


def test_partition_is_kept_and_taken_again(node):
    session = node.open(partitioned=True)
    first = cut(node, session, "a", "3g.40gb", 4)
    session.release("a")
    assert there(session) == [("3g.40gb", 4)]
    assert [one.uuid for one in idle_of(session)] == list(first.partitions)
    second = cut(node, session, "b", "3g.40gb", 4)
    assert second.partitions == first.partitions
    assert idle_of(session) == []


def test_idle_partition_that_is_in_the_way_is_removed_and_others_stay(node):
    session = node.open(partitioned=True)
    for worker, start in (("a", 0), ("b", 1), ("c", 6)):
        cut(node, session, worker, "1g.10gb", start)
    session.release("a")
    session.release("c")
    with pytest.raises(BackendError, match=r"no room for 3g\.40gb at slot 0"):
        cut(node, session, "large", "3g.40gb", 0)  # b is still there
    cut(node, session, "large", "3g.40gb", 4)
    assert there(session) == [("1g.10gb", 0), ("1g.10gb", 1), ("3g.40gb", 4)]


def test_what_was_cut_before_a_crash_is_found_by_the_next_try(node):
    session = node.open(partitioned=True)
    info = session.discover()[0]
    session.create_partition(info.uuid, "3g.40gb", 0)  # and then the process was killed
    again = node.open(partitioned=True)
    cut(node, again, "a", "3g.40gb", 0)
    assert there(again) == [("3g.40gb", 0)]


def test_workers_and_partitions_outlive_a_restart(node):
    session = node.open(partitioned=True)
    spec = cut(node, session, "a", "2g.20gb", 2)
    again = node.open(partitioned=True)
    assert list(again.workers()) == [spec]
    assert there(again) == [("2g.20gb", 2)]
    assert node.run(again)["a"].compute_gflops == pytest.approx(312_000 * 2 / 7, rel=1e-5)
    assert cut(node, again, "a", "2g.20gb", 2) == spec, "asking again changes nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partitions": ()}, "0 partitions for 1 devices"),
        ({"partitions": ("part-nothing",)}, "has no partition 'part-nothing'"),
    ],
)
def test_worker_without_its_partition_is_refused(node, changes, message):
    session = node.open(partitioned=True)
    with pytest.raises(BackendError, match=message):
        session.prepare(node.spec(session, isolation="partitioned", **changes))
    assert not session.workers()


def test_partition_in_use_is_neither_shared_nor_removed_nor_resized(node):
    session = node.open(partitioned=True)
    spec = cut(node, session, "a", "1g.10gb", 0)
    other = node.spec(session, "b", isolation="partitioned", partitions=spec.partitions)
    with pytest.raises(BackendError, match="is used by worker a"):
        session.prepare(other)
    with pytest.raises(BackendError, match="is used by worker a"):
        session.remove_partition(spec.partitions[0])
    with pytest.raises(BackendError, match="has the size of its template"):
        session.set_limits("a", spec.share)


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
    ],
)
def test_unknown_template_is_named_with_what_is_allowed(node, model, template, message):
    session = node.open(model)
    with pytest.raises(BackendError, match=message):
        session.create_partition(session.discover()[0].uuid, template)


def test_place_of_a_cut_is_the_drivers_when_none_is_asked_for(node):
    session = node.open(partitioned=True)
    uuid = session.discover()[0].uuid
    made = [session.create_partition(uuid, "1g.10gb").start for _ in range(7)]
    assert sorted(made) == list(range(7))
    with pytest.raises(BackendError, match=r"no room for 1g\.10gb beside"):
        session.create_partition(uuid, "1g.10gb")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"nodes": [{"name": "n", "gpus": [{"model": "T4", "partitioned": True}]}]},
         "T4 has no partitions"),
        ({"fidelity": "driver",
          "nodes": [{"name": "n", "gpus": [{"model": "A100_SXM_80G", "partitioned": True}]}]},
         "needs fidelity model"),
    ],
)  # fmt: skip
def test_description_of_cards_that_cannot_be_cut_is_refused(block, message):
    with pytest.raises(ConfigError, match=message):
        expand(read_settings(block))


def test_a_thousand_workers_come_and_go_without_an_orphan(node):
    session = node.open(partitioned=True)
    card = session.discover()[0]
    geometry = geometry_of(card.model, card.full_model)
    rng, live = random.Random(7), {}
    for number in range(1000):
        if number % 250 == 249:
            session = node.open(partitioned=True)
        template = rng.choice([t.id for t in geometry.templates])
        choice = best_cut(geometry, tuple(sorted(live.values())), (), template)
        if choice is not None and rng.random() < 0.7:
            live[f"w{number}"] = choice.cut
            cut(node, session, f"w{number}", choice.cut.template, choice.cut.start)
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
