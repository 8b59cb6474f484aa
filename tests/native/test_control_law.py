"""The comparison of control laws: what its figures mean, and the same at small size."""

import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace

import pytest
from bench import control_law
from bench.control_law import (
    LAWS,
    Figures,
    compare,
    figures,
    main,
    median_and_p95,
    meets_targets,
    random_workload,
    run,
    table,
)
from bench.law_plot import to_svg

STEADY = replace(random_workload(0), cap_pct=50, then_us=0)
PHASED = replace(STEADY, then_us=100)


@pytest.mark.parametrize(
    ("workload", "shares", "expected"),
    [
        (STEADY, [50] * 120, (0, 0, 0, 0, 0)),
        (STEADY, [0] * 10 + [50] * 110, (0, 0, 0.9, 0.5, 0)),
        (STEADY, [100] * 10 + [50] * 110, (0, 0, 0.9, 0, 0.5)),
        (STEADY, [60] * 120, (10, 10, 11.1, 0, 0.3)),
        (STEADY, [50] * 60 + [100] * 10 + [50] * 50, (5, 50, 6.9, 0, 0)),
        (PHASED, [50] * 60 + [100] * 10 + [50] * 50, (5, 0, 0.9, 0, 0)),
        (PHASED, [50] * 60 + [100] * 30 + [50] * 30, (15, 50, 2.9, 0, 0)),
    ],
    ids=("exact", "late", "early", "above", "a bad second", "a new phase", "a long new phase"),
)
def test_figures_of_shares(workload, shares, expected):
    assert astuple(figures(workload, shares)) == pytest.approx(expected, abs=1e-9)


def test_workloads_cover_what_they_should():
    workloads = [random_workload(seed) for seed in range(500)]

    assert random_workload(7) == random_workload(7)
    assert {w.cap_pct for w in workloads} == set(range(5, 96))
    assert min(w.kernel_us for w in workloads) < 6
    assert max(w.kernel_us for w in workloads) > 45_000
    for part in ("then_us", "mix_every", "sync"):
        assert 100 < sum(bool(getattr(w, part)) for w in workloads) < 200
    assert 100 < sum(w.streams > 1 for w in workloads) < 250


def test_table_and_plot_have_a_row_and_a_line_per_law():
    found = {law: [Figures(0.1, i, 0.5, 0.1, 0.1) for i in range(10)] for law in LAWS}
    lines = table(found)
    assert len(lines) == 2 + len(LAWS)
    assert lines[2].endswith(
        "| 0.10 / 0.10 | 4.50 / 9.00 | 0.50 / 0.50 | 0.10 / 0.10 | 0.10 / 0.10 | 60 % |"
    )
    assert median_and_p95(range(101)) == (50, 95)
    assert meets_targets(Figures(0.5, 5, 1, 0.2, 9))
    assert not meets_targets(Figures(0.5, 5, 1, 0.21, 0))

    svg = ElementTree.fromstring(to_svg([("a <b", 1.0, {law: [0.0, 2.0] for law in LAWS})] * 5))
    assert sum(element.tag.endswith("polyline") for element in svg.iter()) == 5 * len(LAWS)


@pytest.fixture(scope="module")
def measured(build):
    return compare(range(12), build, jobs=2)


def test_ours_is_the_nearest_to_its_caps(measured):
    for name in ("mean_error", "worst_second", "settling"):
        middle = {
            law: statistics.median(getattr(row, name) for row in rows)
            for law, rows in measured.items()
        }
        assert middle.pop("ours") < min(middle.values()), name
    together = {
        law: statistics.mean(row.deficit + row.excess for row in rows)
        for law, rows in measured.items()
    }
    assert together.pop("ours") < min(together.values())
    assert sum(map(meets_targets, measured["ours"])) >= 11


def test_ours_is_within_the_targets_in_the_mean(build):
    """Seeds with a change of length on several streams among them, which are the hardest."""
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda seed: run("ours", random_workload(seed), build), range(20, 80)))
    means = [statistics.mean(values) for values in zip(*map(astuple, rows), strict=True)]

    assert meets_targets(Figures(*means)), means


def test_the_published_laws_act_as_described(build):
    """The elastic law holds a small cap; the loop of blocks lets long kernels pass, because it only counts them."""
    long = replace(
        STEADY, cap_pct=10, kernel_us=1000, grid=1024, mix_every=0, sync=0, streams=1
    )  # fmt: skip

    assert run("elastic", long, build).mean_error < 1
    assert run("HAMi loop", long, build).mean_error > 10
    assert run("HAMi loop", replace(long, kernel_us=100, grid=4096), build).mean_error < 3
    assert run("elastic, slewed", long, build).mean_error < 3


@pytest.mark.parametrize("streams", [2, 8])
@pytest.mark.parametrize(("kernel_us", "cap"), [(6, 30), (6, 53), (50, 30), (439, 70)])
def test_short_kernels_that_overlap_settle(build, kernel_us, cap, streams):
    busy = run(
        "ours",
        replace(STEADY, cap_pct=cap, kernel_us=kernel_us, grid=16, mix_every=0, sync=0, streams=streams),
        build,
    )  # fmt: skip

    assert busy.mean_error < 1
    assert busy.worst_second < 5


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize(
    ("kernel_us", "then_us", "cap"), [(8, 1987, 9), (42, 3000, 49), (195, 1840, 31), (9200, 42, 49)]
)
def test_a_kernel_that_becomes_another_length_settles(build, kernel_us, then_us, cap, streams):
    got = run(
        "ours",
        replace(STEADY, cap_pct=cap, kernel_us=kernel_us, then_us=then_us, mix_every=0, sync=0,
                streams=streams),
        build,
    )  # fmt: skip

    assert got.worst_second < 5
    assert got.settling <= 2


def test_a_library_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["control_law.py", "--hami-core", str(tmp_path / "no.so")])
    with pytest.raises(SystemExit, match=r"--hami-core .*no\.so: there is no such file"):
        main()


def test_a_library_built_elsewhere_gets_a_row(build, tmp_path, monkeypatch, capsys):
    """In wall time. A library that lets everything pass stands for one that was built elsewhere."""
    source, library = tmp_path / "open.c", tmp_path / "open.so"
    source.write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setattr(control_law, "SECONDS", 4)
    monkeypatch.setattr(
        sys, "argv",
        ["control_law.py", "--workloads", "1", "--build", str(build), "--json", str(tmp_path / "j"),
         "--plot", str(tmp_path / "p.svg"), "--hami-core", str(library)],
    )  # fmt: skip

    main()

    assert "| HAMi-core, built elsewhere | 1 |" in capsys.readouterr().out
    assert len((tmp_path / "j").read_text().splitlines()) == len(LAWS) + 1
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
