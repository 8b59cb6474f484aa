"""Plain driver programs under a share of compute: work done under the limit over work done without, in one run."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from gpu.target import follow
from native.machine import GIB, lines, result

from tensorfusion_native.verify import Cell, cells, verify

KERNELS = "init(); kernel = spin()\n"


def rates(process):
    return [row["rate"] for row in lines(process) if "rate" in row]


def percent(target, code, environment):
    """The rate of a program as a tenant, in percent of its rate without a limit."""
    bare, held = (rates(target.program(KERNELS + code, e))[-1] for e in (None, environment))
    return 100 * held / bare


@pytest.mark.parametrize(("kernel_us", "cap"), [(100, 30), (1000, 70), (20000, 10)])
def test_work_is_held_to_a_share(target, kernel_us, cap):
    environment = target.tenant(compute_ratio=cap / 100)

    assert percent(target, f"work({kernel_us}, 5, kernel)", environment) == pytest.approx(
        cap, abs=2
    )


@pytest.mark.parametrize("kind", ["plain", "ex", "cooperative", "per_thread", "graph"])
def test_a_kind_of_launch_is_held_to_a_share(target, kind):
    """By `tf-load`, in kernels per second after the first second, which fills the driver's queue."""
    arguments = ["kernel_us=500", f"kind={kind}", "seconds=5", "deadline_s=40"]

    def rate(environment):
        rows = lines(target.start([target.libraries.load, *arguments], environment))
        first, last = rows[0], rows[-1]
        return (last["launches"] - first["launches"]) / (last["t"] - first["t"])

    share = 100 * rate(target.tenant(compute_ratio=0.3)) / rate(None)

    assert share == pytest.approx(30, abs=2)


def test_two_tenants_get_30_and_60(open_target):
    target = open_target(processes=2)
    code = KERNELS + "work(1000, 6, kernel)"
    running = [
        target.program(code, target.tenant(name, compute_ratio=share))
        for name, share in (("small", 0.3), ("large", 0.6))
    ]
    held = [rates(process)[-1] for process in running]
    # The simulated clock waits for two processes; the second one does nothing.
    first = target.program(code)
    result(target.program("init(); say(came=now())"))
    bare = rates(first)[-1]

    assert [100 * rate / bare for rate in held] == pytest.approx([30, 60], abs=2)


def test_a_share_is_changed_while_the_program_runs(target):
    """The new share is measured from 200 ms after the change on."""
    once = "work(1000, 4, kernel)"
    bare = rates(target.program(KERNELS + once))[-1]
    code = f"{KERNELS}{once}; sys.stdin.readline(); work(1000, 4, kernel, settle_s=0.2)"
    program = target.program(code, target.tenant(compute_ratio=0.2))
    before = json.loads(program.stdout.readline())["rate"]

    target.tenant(compute_ratio=0.6)
    follow(program)
    [after] = rates(program)

    assert [100 * rate / bare for rate in (before, after)] == pytest.approx([20, 60], abs=2)


def test_the_error_curve_is_within_its_bounds(target):
    wanted = [
        Cell(cap, kernel, grid) for cap in (30, 70) for kernel, grid in ((1000, 1), (20000, 0))
    ]
    told = []

    report = verify(
        wanted, target.place, target.libraries, seconds=6, clock="virtual",
        progress=lambda number, _text: told.append(number),
    )  # fmt: skip

    assert report.simulated == target.simulated
    assert told == [1, 2, 3, 4]
    for row in report.rows:
        assert row.mean_pct == pytest.approx(row.cap_pct, abs=2), row
        assert row.worst_window_pct == pytest.approx(row.cap_pct, abs=5), row
        assert row.settle_s <= 2, row


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verify_limit_prints_the_error_curve_of_the_real_device(open_real, tmp_path):
    target = open_real()
    done = subprocess.run(
        [sys.executable, "-m", "tensorfusion", "verify-limit", "--seconds", "8", "-o", "json"],
        env={**os.environ, "TENSORFUSION_RUN_DIR": str(tmp_path / "runs")},
        capture_output=True, text=True, check=False, timeout=840,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["device"], report["simulated"]) == (target.place.device.name, False)
    assert len(report["rows"]) == len(cells(full=False))
    for row in report["rows"]:
        assert row["mean_pct"] == pytest.approx(row["cap_pct"], abs=2), row
        assert row["worst_window_pct"] == pytest.approx(row["cap_pct"], abs=5), row


@pytest.mark.parametrize(
    ("arguments", "least"),
    [(["kernel_us=1", "grid=1"], 0.9), (["kernel_us=2000"], 0.98)],
    ids=["launch-bound", "compute-bound"],
)
def test_limits_that_do_not_bind_cost_little(target, arguments, least):
    """The median of three ratios; each pair runs one after the other, so that a slow minute slows both."""
    environment = target.tenant(vram_bytes=2 * GIB)
    command = [target.libraries.load, *arguments, "seconds=1", "interval_ms=250", "deadline_s=40"]

    def rate(environment):
        rows = lines(target.start(command, environment))
        return (rows[-1]["launches"] - rows[0]["launches"]) / (rows[-1]["t"] - rows[0]["t"])

    ratios = []
    for _ in range(1 if target.simulated else 3):
        bare = rate(None)
        ratios.append(rate(environment) / bare)

    assert statistics.median(ratios) >= least


def test_a_share_that_is_not_used_up_slows_nothing(target):
    """Launch, wait, pause: a quarter of the device's time under a share of half of it."""
    code = """
for _ in range(50): ok(launch(kernel, C.c_uint64(1000))); ok(cuda.cuCtxSynchronize())
begin, length = now(), C.c_uint64(1000)
for _ in range(500): ok(launch(kernel, length)); ok(cuda.cuCtxSynchronize()); pause(0.003)
say(rate=500 / (now() - begin))
"""
    assert percent(target, code, target.tenant(compute_ratio=0.5)) >= 99
