"""A node of simulated cards: contention, memory, faults, restarts, heat."""

import json

import pytest

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Enforcement, Share

GIB = 1 << 30
A100 = 312_000


def faults(node, **changes):
    """Write the faults file as the command does."""
    node.folder.joinpath("faults.json").write_text(json.dumps(changes))


def test_limit_binds_and_counts_as_throttled(node):
    session = node.open()
    session.prepare(node.spec(session))
    row = node.run(session, 10)["w"]
    assert row.compute_gflops == pytest.approx(60_000)
    assert row.throttled_seconds_total == pytest.approx(10 * (1 - 60_000 / A100))


@pytest.mark.parametrize(
    ("share", "percents"),
    [
        (Share(31_200, GIB, 31_200, GIB, 10_000, 10_000), {"A100_SXM_80G": 10, "T4": 10}),
        (Share(31_200, GIB, 31_200, GIB), {"A100_SXM_80G": 10, "T4": 48}),
        (Share(31_200, GIB, 156_000, GIB, 10_000, 50_000), {"A100_SXM_80G": 50, "T4": 50}),
    ],
    ids=["share", "flops", "limit above the request"],
)
def test_cards_of_several_models_each_give_their_part(node, share, percents):
    session = node.open("A100_SXM_80G", "T4")
    session.prepare(node.spec(session, cards=2, share=share))
    session.usage()
    node.clock.advance(10)
    cards = {info.uuid: (info.model, info.compute_gflops) for info in session.discover()}
    used = {
        cards[row.uuid][0]: 100 * row.compute_gflops / cards[row.uuid][1] for row in session.usage()
    }
    assert used == {model: pytest.approx(percent, rel=0.01) for model, percent in percents.items()}


def test_over_committed_card_shows_contention(node):
    session = node.open()
    share = Share(A100 // 2, GIB, A100, GIB)
    for n in range(4):
        session.prepare(node.spec(session, f"w{n}", share=share))
    rows = node.run(session)
    assert sum(row.compute_gflops for row in rows.values()) == pytest.approx(A100)
    assert {round(row.compute_gflops) for row in rows.values()} == {A100 // 4}
    assert session.metrics()[0].utilization_ratio == pytest.approx(1)


def test_idle_share_is_lent(node):
    session = node.open()
    share = Share(A100 // 2, GIB, A100, GIB)
    session.prepare(node.spec(session, "busy", share=share))
    session.prepare(node.spec(session, "idle", load="constant,compute=0%", share=share))
    assert node.run(session)["busy"].compute_gflops == pytest.approx(A100)


def test_memory_over_the_limit_is_one_refusal_until_it_is_wanted_less(node):
    session = node.open()
    load = "bursty,idle=1%,burst=2%,on=10s,off=10s,vram=1Gi..20Gi"
    session.prepare(node.spec(session, load=load))
    rows = node.run(session, 5)
    assert (rows["w"].vram_bytes, rows["w"].oom_total) == (16 * GIB, 1)
    node.clock.advance(10)
    assert session.usage()[0].vram_bytes == GIB
    node.clock.advance(10)
    assert session.usage()[0].oom_total == 2


def test_memory_of_a_full_card_is_refused_to_the_later_worker(node):
    session = node.open("T4")
    share = Share(1000, GIB, 2000, 15 * GIB)
    session.prepare(node.spec(session, "first", load="constant,vram=12Gi", share=share))
    node.run(session, 1)
    session.prepare(node.spec(session, "second", load="constant,vram=12Gi", share=share))
    rows = node.run(session, 1)
    assert (rows["first"].vram_bytes, rows["first"].oom_total) == (12 * GIB, 0)
    assert (rows["second"].vram_bytes, rows["second"].oom_total) == (3 * GIB, 1)


def test_shared_worker_has_no_limits_and_says_so(node):
    session = node.open()
    prepared = session.prepare(node.spec(session, isolation="shared"))
    assert prepared.enforcement is Enforcement.NONE
    assert node.run(session)["w"].compute_gflops == pytest.approx(A100)


def test_changed_limit_binds_at_once_and_keeps_totals(node):
    session = node.open()
    session.prepare(node.spec(session))
    before = node.run(session)["w"]
    session.set_limits("w", Share(10_000, GIB, 20_000, 16 * GIB))
    after = node.run(session)["w"]
    assert after.compute_gflops == pytest.approx(20_000)
    assert after.throttled_seconds_total > before.throttled_seconds_total
    assert session.workers()[0].share.limit_gflops == 20_000


def test_another_spec_of_the_same_worker_keeps_totals(node):
    session = node.open()
    session.prepare(node.spec(session))
    before = node.run(session)["w"]
    session.prepare(node.spec(session, load="constant,compute=90%", qos="high"))
    after = {row.worker: row for row in session.usage()}["w"]
    assert after.throttled_seconds_total >= before.throttled_seconds_total > 0
    assert after.vram_bytes == before.vram_bytes


def test_wrong_load_is_refused_and_leaves_the_old_worker(node):
    session = node.open()
    spec = node.spec(session)
    session.prepare(spec)
    with pytest.raises(BackendError, match="unknown profile"):
        session.prepare(node.spec(session, load="no-such"))
    assert list(session.workers()) == [spec]


def test_failed_card_is_unhealthy_gives_nothing_and_takes_no_one(node):
    session = node.open(count=2)
    first, second = session.discover()
    session.prepare(node.spec(session))
    faults(node, cards={first.uuid: {"failed": "fell off the bus"}})
    infos = session.discover()
    assert [info.healthy for info in infos] == [False, True]
    assert infos[0].message == "fell off the bus"
    assert node.run(session)["w"].compute_gflops == 0
    with pytest.raises(BackendError, match="fell off the bus"):
        session.prepare(node.spec(session, "other"))
    faults(node)
    assert session.discover() == [first, second]
    assert node.run(session)["w"].compute_gflops > 0


def test_removed_card_is_gone_everywhere(node):
    session = node.open(count=3)
    uuids = [info.uuid for info in session.discover()]
    assert len(session.topology()) == 3
    faults(node, cards={uuids[0]: {"removed": True}})
    assert [info.uuid for info in session.discover()] == uuids[1:]
    assert [reading.uuid for reading in session.metrics()] == uuids[1:]
    assert [(link.source, link.target) for link in session.topology()] == [(uuids[1], uuids[2])]
    with pytest.raises(BackendError, match="no device"):
        session.prepare(node.spec(session, devices=(uuids[0],)))


def test_added_card_appears_behind_the_others(node):
    session = node.open()
    before = session.discover()
    faults(node, added=["L4"])
    after = session.discover()
    assert after[:1] == before
    assert (after[1].model, after[1].index) == ("L4", 1)
    assert node.open().discover() == after, "it is still there after a restart"


def test_throttled_card_is_slower(node):
    session = node.open()
    (info,) = session.discover()
    share = Share(A100, GIB, A100, GIB)
    session.prepare(node.spec(session, share=share))
    faults(node, cards={info.uuid: {"speed_ratio": 0.25}})
    assert node.run(session)["w"].compute_gflops == pytest.approx(A100 / 4)


def test_restart_keeps_workers_totals_memory_and_energy(node):
    session = node.open()
    spec = node.spec(session, load="constant,compute=100%,vram=20Gi")
    session.prepare(spec)
    before = node.run(session, 30)["w"]
    energy = session.metrics()[0].energy_joules_total
    session.close()
    after_restart = node.open()
    assert list(after_restart.workers()) == [spec]
    after = {row.worker: row for row in after_restart.usage()}["w"]
    assert after.throttled_seconds_total == pytest.approx(before.throttled_seconds_total)
    assert (
        (after.oom_total, after.vram_bytes)
        == (before.oom_total, before.vram_bytes)
        == (1, 16 * GIB)
    )
    assert after_restart.metrics()[0].energy_joules_total == pytest.approx(energy)
    node.clock.advance(5)
    assert after_restart.usage()[0].oom_total == 1, "the same wish is not refused twice"


def test_profile_goes_on_where_it_was_after_a_restart(node):
    session = node.open()
    session.prepare(node.spec(session, load="ramp,from=0%,to=10%,over=100s"))
    node.run(session, 50)
    session.close()
    rows = node.run(node.open(), 1)
    assert rows["w"].compute_gflops == pytest.approx(A100 * 0.1 * 0.505, rel=0.01)


def test_csv_that_went_away_does_not_stop_a_restart(node, tmp_path):
    path = tmp_path / "load.csv"
    path.write_text("seconds,utilization,vram\n0,0.1,1Gi\n")
    session = node.open()
    spec = node.spec(session, load=f"csv,file={path}")
    session.prepare(spec)
    session.close()
    path.unlink()
    assert list(node.open().workers()) == [spec]


@pytest.mark.parametrize("name", ["simulated.json", "faults.json"])
def test_damaged_file_is_named(node, name):
    node.folder.joinpath(name).write_text("{")
    with pytest.raises(BackendError, match=f"{name} cannot be read"):
        node.open()


def test_state_that_cannot_be_written_is_a_backend_error(node):
    session = node.open()
    node.folder.joinpath("simulated.log").mkdir()
    with pytest.raises(BackendError, match=r"simulated\.log cannot be written"):
        session.prepare(node.spec(session))


def test_workers_survive_a_kill_at_any_byte_of_the_change_log(node):
    session = node.open()
    first, second = node.spec(session, "a"), node.spec(session, "b")
    session.prepare(first)
    session.prepare(second)
    session.set_limits("a", second.share)
    session.release("b")
    log = node.folder / "simulated.log"
    written = log.read_bytes()
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")]
    expected = [[], ["a"], ["a", "b"], ["a", "b"], ["a"]]
    for size in range(len(written) + 1):
        (node.folder / "simulated.json").unlink()
        log.write_bytes(written[:size])
        whole = sum(end <= size for end in ends)
        assert [spec.worker for spec in node.open().workers()] == expected[whole]
        assert not log.exists(), "a new session starts with the state alone"


def test_change_that_the_state_has_already_changes_nothing(node):
    session = node.open()
    spec = node.spec(session, share=Share(A100, GIB, A100, GIB))
    session.prepare(spec)
    log = (node.folder / "simulated.log").read_bytes()
    used = node.run(session, 90)["w"]
    (node.folder / "simulated.log").write_bytes(log)
    again = node.open()
    assert list(again.workers()) == [spec]
    assert again.usage()[0].vram_bytes == used.vram_bytes


def test_heat_power_and_energy_follow_the_load(node):
    session = node.open()
    idle = session.metrics()[0]
    share = Share(A100, GIB, A100, GIB)
    session.prepare(node.spec(session, share=share))
    readings = []
    for _ in range(20):
        node.clock.advance(10)
        readings.append(session.metrics()[0])
    heat = [reading.temperature_celsius for reading in readings]
    assert heat == sorted(heat)
    assert idle.temperature_celsius < heat[0] < heat[-1] <= 78
    assert readings[-1].power_watts == pytest.approx(400)
    joules = readings[-1].energy_joules_total - readings[0].energy_joules_total
    assert joules == pytest.approx(400 * 190, rel=0.01)
    session.release("w")
    node.clock.advance(300)
    cold = session.metrics()[0]
    assert cold.temperature_celsius == pytest.approx(30, abs=0.1)
    assert cold.energy_joules_total > readings[-1].energy_joules_total


def test_links_join_cards_of_one_model(node):
    session = node.open("A100_SXM_80G", "T4", count=2)
    (link,) = session.topology()
    assert {link.source, link.target} == {info.uuid for info in session.discover()[:2]}
    assert link.bandwidth_mbps == 300_000
