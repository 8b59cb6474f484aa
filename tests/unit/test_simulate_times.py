"""Runs by the clock, and the search for capacity: by hand, against a plain version, and as a user."""

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.cli.main import run
from tensorfusion.errors import ConfigError
from tensorfusion.model.demand import Amount, Shape
from tensorfusion.simulate.capacity import CapacitySearch, Offer, new_nodes, parse_offer
from tensorfusion.simulate.synthetic import write_trace
from tensorfusion.simulate.timed_report import seconds_text
from tensorfusion.simulate.timeline import replay_times, story_of
from tensorfusion.simulate.trace import Task, TraceNode, Visit, read_visits
from tensorfusion_plugins.policies import load

NODE = TraceNode("n", 64_000, 65_536, 1, "T4")


def visit(arrives, runs, milli=1000, count=1, models=()):
    shape = Shape(request=Amount(milli_percent=milli * 100), gpu_count=count, models=models)
    return Visit(Task(f"t{arrives}", shape, milli * count), arrives, runs)


def play(nodes, visits, **more):
    return replay_times(nodes, visits, load.compact_first(), "name", more.get("seed", 1))


def test_who_waits_starts_when_somebody_leaves_oldest_first():
    found = play([NODE], [visit(0, 100), visit(10, 50), visit(20, 30, milli=500)])
    waits = found.waits
    assert (waits.tasks, waits.waited, waits.never) == (3, 2, 0)
    assert waits.mean == pytest.approx((0 + 90 + 130) / 3)
    assert (waits.p50, waits.longest) == (90, 130)
    assert found.utilization_pct == 100, "the card is full until the last arrival"


def test_a_task_that_fits_does_not_wait_behind_one_that_does_not():
    story = [visit(0, 100, milli=500), visit(10, 50), visit(20, 30, milli=500)]
    waits = play([NODE], story).waits
    assert (waits.waited, waits.longest) == (1, 90)


def test_task_that_fits_nowhere_never_starts_and_one_without_end_stays():
    found = play([NODE], [visit(0, None), visit(10, 5), visit(20, 5, models=("A100",))])
    assert found.waits.never == 2
    assert found.peak_pct == 100


def test_utilization_is_over_time():
    found = play([NODE], [visit(0, 25), visit(50, 50, milli=500), visit(100, 1)])
    assert found.utilization_pct == pytest.approx((100 * 25 + 0 * 25 + 50 * 50) / 100)
    assert [(s.time, s.allocated_pct, s.waiting) for s in found.samples[::50]] == [
        (0, 100, 0),
        (50, 50, 0),
        (100, 100, 0),
    ]


def plain(cards, visits):
    """Waits on cards of one node, by trying everything at every second."""
    free = [1000] * cards
    waiting, running, waits = [], [], {}
    last = max((v.arrives for v in visits), default=0)
    horizon = last + sum(v.runs_seconds for v in visits) + 1
    for now in range(horizon + 1):
        for end, index, milli in list(running):
            if end == now:
                running.remove((end, index, milli))
                free[index] += milli
        waiting += [i for i, v in enumerate(visits) if v.arrives == now]
        for i in list(waiting):
            milli = visits[i].task.gpu_milli
            # compact first: the fullest card that fits, the first of equals
            fits = [(room, c) for c, room in enumerate(free) if room >= milli]
            if fits:
                _, card = min(fits)
                free[card] -= milli
                running.append((now + max(1, visits[i].runs_seconds), card, milli))
                waits[i] = now - visits[i].arrives
                waiting.remove(i)
    return sorted(waits.values())


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 9), st.sampled_from([250, 500, 1000])),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_waits_are_those_of_a_plain_simulation(tasks, cards):
    visits = [visit(*task) for task in sorted(tasks, key=lambda t: t[0])]
    node = TraceNode("n", 10**9, 10**9, cards, "T4")
    found = play([node], visits).waits
    expected = plain(cards, visits)
    assert found.never == 0
    assert found.mean == pytest.approx(sum(expected) / len(expected))
    assert found.longest == expected[-1]
    assert found.waited == sum(wait > 0 for wait in expected)


def test_same_seed_same_story_and_same_log(tmp_path):
    _, pods = write_trace(tmp_path)
    visits = read_visits(pods)
    nodes = [NODE, TraceNode("m", 64_000, 65_536, 4, "G2")]
    one, two, other = (story_of(visits, seed, 1.0, resample=True) for seed in (1, 1, 2))
    assert one == two != other
    assert [v.arrives for v in one] == [v.arrives - visits[0].arrives for v in visits]
    assert play(nodes, one).event_log_hash == play(nodes, two).event_log_hash
    faster = story_of(visits, 1, 2.0, resample=False)
    assert faster[-1].arrives == pytest.approx((visits[-1].arrives - visits[0].arrives) / 2, abs=1)
    assert [v.task for v in faster] == [v.task for v in visits]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("creation_time", "-1", "column creation_time is '-1'"),
        ("deletion_time", "3", "column deletion_time is '3', allowed are times from 5"),
        ("scheduled_time", "soon", "column scheduled_time is 'soon'"),
    ],
)
def test_bad_times_are_named(tmp_path, column, value, message):
    row = {"name": "p", "cpu_milli": "1", "memory_mib": "1", "num_gpu": "1", "gpu_milli": "1"}
    row |= {"creation_time": "5", "scheduled_time": "5", "deletion_time": "9", column: value}
    (tmp_path / "pods.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    with pytest.raises(ConfigError, match=message):
        read_visits(tmp_path / "pods.csv")


def search(visits, target=10.0, seeds=(1,), **more):
    fields = {"ties": "name", "percentile": "longest", "load": 1.0, **more}
    return CapacitySearch(
        [NODE], visits, load.compact_first(), target_seconds=target, seeds=seeds, **fields
    )


def test_capacity_is_the_fewest_nodes_that_help_and_the_cheapest_kind():
    visits = [visit(number, 100) for number in range(6)]
    plan = search(visits).plan([Offer("T4", 1, 1.0), Offer("T4", 4, 0.5), Offer("A100", 8, 0.1)])
    assert plan.met == 0
    # Six whole cards are wanted at once and there is one: five more, or two nodes of four.
    assert [(a.offer.gpus, a.nodes, a.hour_price) for a in plan.additions] == [
        (8, 1, 0.8),
        (4, 2, 4.0),
        (1, 5, 5.0),
    ]
    assert plan.best.offer.model == "A100"
    for addition in plan.additions:
        fewer = [NODE, *new_nodes(addition.offer, addition.nodes - 1, [NODE])]
        assert play(fewer, visits).waits.longest > 10
        assert addition.wait_seconds <= 10


def test_capacity_that_nothing_helps_says_so_and_enough_needs_nothing():
    picky = [visit(0, 100, models=("A100",))]
    plan = search(picky).plan([Offer("T4", 1)])
    assert plan.best is None
    assert plan.additions[0].nodes is None
    assert "1 of 1 stories wait longer even with" in plan.additions[0].reason
    plan = search([visit(0, 5), visit(50, 5)]).plan([Offer("T4", 1)])
    assert (plan.met, plan.best, plan.additions[0].nodes) == (1, None, 0)


@pytest.mark.parametrize(
    ("text", "offer"),
    [("L40S:4@1.5", Offer("L40S", 4, 1.5)), ("T4:1", Offer("T4", 1)), ("L40S", None)]
    + [(bad, None) for bad in ("L40S:0", "L40S:x", ":4", "T4:4@-1", "T4:4@nan", "T4:17")],
)
def test_offers_are_read_or_refused(text, offer):
    if offer is not None:
        assert parse_offer(text) == offer
        return
    with pytest.raises(ConfigError, match=r"allowed is MODEL:GPUS"):
        parse_offer(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (45, "45 s"), (750, "12.5 min"), (12_240, "3.4 h"), (2e5, "2.31 d")],
)
def test_waits_are_printed_as_people_say_them(seconds, text):
    assert seconds_text(seconds) == text


@pytest.fixture
def files(tmp_path, capsys):
    assert run(["simulate", "--example", str(tmp_path)]) == 0
    command = capsys.readouterr().out.split()
    assert command[:2] == ["tensorfusion", "simulate"]
    return command[2:6]


def test_replay_by_times_as_table_json_csv_and_picture(files, tmp_path, capsys):
    options = ["simulate", *files, "--replay", "times", "--load", "2", "--seeds", "1,2"]
    picture = tmp_path / "times.svg"
    assert run([*options, "--policy", "bestfit,fgd", "--plot", str(picture), "-o", "json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["policy"], r["seed"]) for r in runs] == [
        ("bestfit", 1), ("bestfit", 2), ("fgd", 1), ("fgd", 2)
    ]  # fmt: skip
    assert all(r["waits"]["waited"] > 0 and 0 < r["utilization_pct"] < 100 for r in runs)
    lines = ET.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4, "two panels with a line for each policy"
    assert run([*options, "--policy", "fgd", "-o", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run([*options, "--policy", "fgd"]) == 0
    assert "UTILIZATION %" in capsys.readouterr().out


def test_capacity_as_a_user_asks_for_it(files, capsys):
    options = [
        "plan",
        "capacity",
        *files,
        "--load",
        "2",
        "--seeds",
        "1..3",
        "--offer",
        "V100M16:4@2",
    ]
    assert run([*options, "--target-wait", "30m", "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (offer,) = answer["offers"]
    assert answer["stories"] == 3
    assert offer["nodes"] is None or offer["hourPrice"] == offer["nodes"] * 8
    assert run([*options, "--target-wait", "30m"]) == 0
    assert "as it is: p95 wait" in capsys.readouterr().out
    assert run([*options[:-1], "x"]) == 1
    assert "allowed is MODEL:GPUS" in capsys.readouterr().err
