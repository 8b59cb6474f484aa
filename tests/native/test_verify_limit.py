"""The error curve: what a row says, and a short measurement on the simulator."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tensorfusion_native.verify import Cell, Report, Row, cells, shares, summarize
from tensorfusion_native.verify_report import error_bar, table, to_svg

CELL = Cell(cap_pct=50, kernel_us=100, grid=8)


@pytest.mark.parametrize(
    ("intervals", "mean", "worst", "settled"),
    [
        ([50] * 100, 50, 50, 0),
        ([100] * 10 + [50] * 90, 55, 50, 0.9),
        ([0] * 20 + [50] * 80, 40, 50, 2.0),
        ([50] * 50 + [80] * 10 + [50] * 40, 53, 80, 5.9),
        ([20] * 100, 20, 20, 10.0),
    ],
    ids=("exact", "burst at first", "late start", "one bad second", "never"),
)
def test_a_row_says_mean_worst_second_and_settling(intervals, mean, worst, settled):
    row = summarize(CELL, intervals)
    assert (row.mean_pct, row.worst_window_pct) == (mean, worst)
    assert row.settle_s == pytest.approx(settled, abs=0.11)


def test_the_usual_cells_fit_eight_minutes():
    usual = cells(full=False)
    assert 24 <= len(usual) <= 40
    assert len(set(usual)) == len(usual)
    assert set(usual) - set(cells(full=True)) <= {c for c in usual if c.kernel_us == 50}


def test_shares_of_a_real_device_come_from_kernels_of_known_length():
    lines = '{"t": 0.1, "launches": 30}\n{"t": 0.3, "launches": 130}\n'
    assert shares(lines, 1000, simulated=False) == pytest.approx([30, 50])


def test_bars_and_plot_show_every_row():
    rows = [Row(cap, 50, grid, cap + 1, cap - 2, 0.5) for cap in (10, 90) for grid in (1, 8)]
    report = Report("A <card>", True, "wall", 10, rows)
    assert error_bar(-1) == "        ██|"
    assert error_bar(1.5).strip() == "|███"
    assert len(table(report)) == 7
    assert "1.00 points on average" in table(report)[-1]
    svg = ElementTree.fromstring(to_svg(report))
    assert sum(element.tag.endswith("circle") for element in svg.iter()) == 4


def test_a_measurement_on_the_simulator(build, tmp_path):
    """In virtual time, so that the figures do not depend on this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "tensorfusion", "verify-limit", "--simulated", "T4",
         "--time", "virtual", "--seconds", "4", "-o", "json", "--plot", str(tmp_path / "e.svg")],
        env={**os.environ, "TENSORFUSION_NATIVE_BUILD": str(build),
             "TENSORFUSION_RUN_DIR": str(tmp_path / "runs")},
        capture_output=True, text=True, check=False, timeout=55,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["device"], report["simulated"], report["time"]) == ("Tesla T4", True, "virtual")
    assert len(report["rows"]) == len(cells(full=False))
    for row in report["rows"]:
        assert row["mean_pct"] == pytest.approx(row["cap_pct"], abs=2), row
        assert row["worst_window_pct"] == pytest.approx(row["cap_pct"], abs=5), row
        assert row["settle_s"] <= 2, row
    assert (tmp_path / "e.svg").read_text().startswith("<svg")
