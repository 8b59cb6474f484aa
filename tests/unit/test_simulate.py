"""Simulation: reading traces, arrivals, replay, statistics, and the command."""

import csv
import io
import json
import os
import re
import textwrap
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.cli.main import run
from tensorfusion.errors import ConfigError
from tensorfusion.simulate.arrivals import Arrivals
from tensorfusion.simulate.published import published_for
from tensorfusion.simulate.replay import replay
from tensorfusion.simulate.summary import estimate, student_t_95
from tensorfusion.simulate.synthetic import write_trace
from tensorfusion.simulate.trace import read_trace
from tensorfusion_plugins.policies import tensorfusion_placement_policies

POLICIES = {policy.name: policy for policy in tensorfusion_placement_policies()}
NODES = "sn,cpu_milli,memory_mib,gpu,model\nn1,64000,1000,2,T4\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np1,1000,10,1,500,\n"


def made_up(folder, **fields):
    """Options that name a small made-up cluster and its tasks."""
    nodes, pods = write_trace(folder, **{"tasks": 120, **fields})
    return ["--nodes", str(nodes), "--pods", str(pods)]


def small(tmp_path, **fields):
    made_up(tmp_path, **fields)
    return read_trace(tmp_path / "nodes.csv", tmp_path / "pods.csv")


@pytest.mark.parametrize(
    ("nodes", "pods", "message"),
    [
        ("sn,cpu_milli\n", PODS, "line 1: no column memory_mib, gpu, model; needed are sn, cpu"),
        (NODES + "n2,x,1,1,T4\n", PODS, "line 3: column cpu_milli is 'x', allowed are whole"),
        (NODES + "n2,1,1,129,T4\n", PODS, "column gpu is '129', allowed are .* 0 to 128"),
        (NODES + "n2,1,1,1,\n", PODS, "line 3: column model is '', allowed are a name"),
        (NODES + "n1,1,1,1,T4\n", PODS, "column sn is 'n1', allowed are names that are not in li"),
        (NODES, PODS + "p2,1,1,1,0,\n", "line 3: column gpu_milli is '0', allowed are 1 to 1000"),
        (NODES, PODS + "p2,1,1,1,1001,\n", "column gpu_milli is '1001', allowed are .* to 1000"),
        (NODES, PODS + "p2,-1,1,1,100,\n", "column cpu_milli is '-1'"),
        (NODES, PODS + "p2,1,1\n", "line 3: column num_gpu is ''"),
        (NODES, PODS.splitlines()[0] + "\n", "no lines after the heading"),
    ],
)
def test_bad_files_are_refused_with_line_column_and_value(tmp_path, nodes, pods, message):
    (tmp_path / "nodes.csv").write_text(nodes)
    (tmp_path / "pods.csv").write_text(pods)
    with pytest.raises(ConfigError, match=message):
        read_trace(tmp_path / "nodes.csv", tmp_path / "pods.csv")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "pods.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "nodes.csv").write_text(NODES)
    with pytest.raises(ConfigError, match=r"pods\.csv: not UTF-8 text at byte 0"):
        read_trace(tmp_path / "nodes.csv", tmp_path / "pods.csv")
    with pytest.raises(ConfigError, match=r"none\.csv: No such file"):
        read_trace(tmp_path / "none.csv", tmp_path / "pods.csv")


def test_tasks_become_requests(tmp_path):
    pods = PODS + "p2,2000,20,4,1000,T4|G2\np3,500,5,0,0,T4\n"
    (tmp_path / "pods.csv").write_text(pods)
    (tmp_path / "nodes.csv").write_text(NODES)
    trace = read_trace(tmp_path / "nodes.csv", tmp_path / "pods.csv")
    part, whole, none = (task.shape for task in trace.tasks)
    assert (part.gpu_count, part.request.milli_percent, part.cpu_milli) == (1, 50_000, 1000)
    assert (whole.gpu_count, whole.request.milli_percent, whole.models) == (
        4,
        100_000,
        ("T4", "G2"),
    )
    assert (none.gpu_count, none.models, none.memory_bytes) == (0, (), 5 << 20)
    assert [task.gpu_milli for task in trace.tasks] == [500, 4000, 0]


@pytest.mark.parametrize("demand", [50, 130, 300])
def test_arrivals_ask_for_just_below_the_wanted_demand(tmp_path, demand):
    trace = small(tmp_path)
    arrivals = Arrivals(trace, 3, demand)
    asked = sum(task.gpu_milli for task in arrivals.tasks)
    assert demand * trace.gpus * 10 - 8000 <= asked <= demand * trace.gpus * 10
    listed = len(trace.tasks)
    if demand == 300:
        assert sorted(t.name for t in arrivals.tasks[:listed]) == [t.name for t in trace.tasks]


def test_arrivals_repeat_by_seed_and_shuffle_nodes(tmp_path):
    trace = small(tmp_path)
    one, two, other = Arrivals(trace, 1), Arrivals(trace, 1), Arrivals(trace, 2)
    assert (one.tasks, one.nodes) == (two.tasks, two.nodes)
    assert one.tasks != other.tasks
    assert list(one.nodes) == sorted(one.nodes)
    assert [node.name for node in one.nodes.values()] != [n.name for n in other.nodes.values()]
    assert {node.name for node in one.nodes.values()} == {node.name for node in trace.nodes}


def test_event_log_has_one_hash_on_any_machine(tmp_path):
    trace = small(tmp_path)
    hashes = {
        (policy, ties): replay(
            trace.tasks, Arrivals(trace, 42), POLICIES[policy], ties
        ).event_log_hash[:12]
        for policy, ties in (("fgd", "name"), ("bestfit", "pack"), ("random", "random"))
    }
    assert hashes == {
        ("fgd", "name"): "d288094300cb",
        ("bestfit", "pack"): "e090dac2f744",
        ("random", "random"): "47c375bff3ca",
    }


@pytest.mark.parametrize("policy", ["fgd", "bestfit", "random", "compact-first"])
def test_points_cover_every_percentage_and_add_up(tmp_path, policy):
    trace = small(tmp_path)
    points = replay(trace.tasks, Arrivals(trace, 1), POLICIES[policy], "name").points
    assert [point.demand_pct for point in points] == list(range(len(points)))
    assert 128 <= points[-1].demand_pct <= 130
    assert points[0].allocated_pct == 0
    for before, after in pairwise(points):
        assert before.allocated_pct <= after.allocated_pct <= after.demand_pct
        idle = 100 - after.allocated_pct
        assert 0 <= after.frag_pct <= idle + 1e-9
        assert after.frag_ratio_pct == pytest.approx(100 * after.frag_pct / idle if idle else 100)


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
)
def test_student_t_is_that_of_the_tables(freedom, t):
    assert student_t_95(freedom) == pytest.approx(t, abs=5e-5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-100, 100))
def test_estimate_moves_with_the_values(values, shift):
    one, two = estimate(values), estimate([value + shift for value in values])
    assert two.mean == pytest.approx(one.mean + shift, abs=1e-6)
    assert two.margin == pytest.approx(one.margin, rel=1e-6, abs=1e-6)


def traces():
    found = Path(os.environ.get("TENSORFUSION_TRACES", "../shared/data")) / "openb"
    if not found.is_dir():
        pytest.skip(f"no traces in {found}; set TENSORFUSION_TRACES")
    return found


def test_known_trace_is_recognised_and_bestfit_comes_out_as_published():
    data = traces()
    trace = read_trace(data / "openb_node_list_gpu_node.csv", data / "openb_pod_list_default.csv")
    known = published_for(trace)
    assert known is not None
    assert (known.name, known.figure, trace.gpus) == ("default", "9a", 6212)
    last = replay(trace.tasks, Arrivals(trace, 42), POLICIES["bestfit"], "name").points[130]
    value = known.value("bestfit", "allocated_pct", 130)
    assert value is not None
    assert last.allocated_pct == pytest.approx(value, abs=0.8)


def test_unknown_trace_is_not_recognised(tmp_path):
    assert published_for(small(tmp_path)) is None


def test_command_prints_one_json_object(tmp_path, capsys):
    options = made_up(tmp_path)
    plot = tmp_path / "plot.svg"
    arguments = ["--policy", "bestfit,FGD", "--seeds", "1..3", "--ties", "name,random"]
    price = ["--gpu-hour-price", "2", "--plot", str(plot), "-o", "json"]
    assert run(["simulate", *options, *arguments, *price]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert [(r["policy"], r["ties"], r["seed"]) for r in answer["runs"]] == [
        (policy, ties, seed)
        for policy in ("bestfit", "fgd")
        for ties in ("name", "random")
        for seed in (1, 2, 3)
    ]
    first = answer["runs"][0]
    assert set(first) == {"policy", "ties", "seed", "event_log_hash", "points"}
    assert set(first["points"][0]) == {"demand_pct", "allocated_pct", "frag_pct", "frag_ratio_pct"}
    difference = answer["differences"][1]
    assert difference["gpus"] == pytest.approx(difference["points"] / 100 * answer["trace"]["gpus"])
    assert difference["per_year"] == pytest.approx(difference["gpus"] * 2 * 8760)
    assert err.count("run ") == 12
    drawing = ET.fromstring(plot.read_text())
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 4


def test_command_prints_tables_and_csv(tmp_path, capsys):
    options = [*made_up(tmp_path), "--policy", "dotprod,gpupacking", "--seeds", "4,5"]
    assert run(["simulate", *options]) == 0
    table = capsys.readouterr().out
    assert "dotprod, ties by name, seeds 4, 5\n" in table
    assert "allocated more than dotprod with ties by name, seed by seed" in table
    assert "PUBLISHED" not in table
    assert run(["simulate", *options, "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(row["policy"], row["seed"]) for row in rows} == {
        (policy, seed) for policy in ("dotprod", "gpupacking") for seed in "45"
    }
    assert all(len(row["event_log_hash"]) == 64 for row in rows)


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--policy", "magic"], 2, "--policy: 'magic' is not installed; installed: bestfit"),
        (["--ties", "luck"], 2, "--ties: 'luck' is none of name, pack, random"),
        (["--seeds", "a"], 2, "--seeds: 'a' is neither a number nor a range"),
        (["--seeds", "5..2"], 2, "range '5..2' ends before it starts"),
        (["--plot", "/nowhere/x.svg"], 1, "--plot /nowhere/x.svg: /nowhere is not a folder"),
    ],
)
def test_command_refuses_bad_options(tmp_path, capsys, extra, code, message):
    options = [*made_up(tmp_path, tasks=5), "--policy", "bestfit", "--seeds", "1"]
    assert run(["simulate", *options, *extra]) == code
    assert message in capsys.readouterr().err


def test_command_refuses_a_cluster_without_gpus(tmp_path, capsys):
    options = made_up(tmp_path)
    (tmp_path / "nodes.csv").write_text("sn,cpu_milli,memory_mib,gpu,model\nn1,1,1,0,\n")
    assert run(["simulate", *options]) == 1
    assert "column gpu is 0 in every line" in capsys.readouterr().err


def test_policy_of_the_how_to_page_places_as_it_says(tmp_path):
    page = Path(__file__).parents[2] / "docs/how-to/write-a-placement-policy.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert code is not None
    namespace: dict[str, object] = {"__name__": "how_to"}
    exec(textwrap.dedent(code.group(1)), namespace)
    hook = namespace["tensorfusion_placement_policies"]
    assert callable(hook)
    trace = small(tmp_path)
    result = replay(trace.tasks, Arrivals(trace, 1), hook()[0], "name")
    assert result.policy == "few-idle"
    assert result.points[-1].allocated_pct > 50
