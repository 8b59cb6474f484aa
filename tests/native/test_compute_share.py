"""Shares of device time, measured by the simulator and never by the limiter itself."""

import threading
import time

import pytest
from native.machine import CONTEXT, GIB, busy, lines, result, uuid

from tensorfusion_native.region import DeviceLimit


def shares(machine, limits, loads):
    machine.configure(expected_processes=len(limits))
    workers = [machine.worker(compute=limit) for limit in limits]
    started = [worker.load(**load) for worker, load in zip(workers, loads, strict=True)]
    return [busy(process) for process in started]


def mean(windows):
    return sum(windows) / len(windows)


@pytest.mark.parametrize("grid", [1, 108, 4096])
@pytest.mark.parametrize("kernel_us", [5, 100, 1000, 20000, 50000])
@pytest.mark.parametrize("cap", [5, 25, 50, 95])
def test_a_cap_holds_in_the_mean_and_in_every_second(machine, cap, kernel_us, grid):
    [windows] = shares(machine, [cap / 100], [{"kernel_us": kernel_us, "grid": grid}])

    assert len(windows) >= 10
    assert mean(windows) == pytest.approx(cap, abs=2)
    assert windows[2:] == pytest.approx([cap] * len(windows[2:]), abs=5)
    assert windows[:2] == pytest.approx([cap] * 2, abs=10)


@pytest.mark.parametrize(
    "load",
    [
        {"kind": "ex"},
        {"kind": "cooperative"},
        {"kind": "per_thread"},
        {"kind": "graph", "nodes": 10},
        {"kind": "graph", "nodes": 1000, "kernel_us": 20},
        {"streams": 4},
        {"streams": 4, "grid": 10},
        {"streams": 4, "grid": 10, "kernel_us": 5000},
        {"streams": 16, "kernel_us": 20},
        {"streams": 16, "kernel_us": 1000, "grid": 27},
        {"sync": 1},
    ],
    ids=str,
)
def test_every_kind_of_launch_is_charged(machine, load):
    [windows] = shares(machine, [0.3], [{"kernel_us": 200} | load])

    assert mean(windows) == pytest.approx(30, abs=2)
    assert windows[2:] == pytest.approx([30] * len(windows[2:]), abs=5)


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [((1000, 1000), (30, 60)), ((100, 5000), (30, 60)), ((100, 100), (30, 60))],
)
def test_two_tenants_get_their_shares(machine, kernels, expected):
    loads = [{"kernel_us": kernel} for kernel in kernels]
    measured = shares(machine, [0.3, 0.6], loads)

    assert [mean(windows[2:]) for windows in measured] == pytest.approx(expected, abs=2)


def test_a_new_phase_settles_within_two_seconds(machine):
    [windows] = shares(machine, [0.2], [{"kernel_us": 100, "then_us": 5000, "phase_s": 4}])

    assert windows[6:] == pytest.approx([20] * len(windows[6:]), abs=5)


def test_processes_of_one_worker_share_its_time(machine):
    machine.configure(expected_processes=8)
    worker = machine.worker(compute=0.3)

    measured = [busy(p) for p in [worker.load(kernel_us=1000) for _ in range(8)]]

    means = [mean(windows[2:]) for windows in measured]
    assert sum(means) == pytest.approx(30, abs=2)
    assert means == pytest.approx([mean(means)] * 8, rel=0.2)


def test_two_devices_are_limited_independently(machine):
    machine.configure(devices=2, expected_processes=2)
    machine.extra = {}
    (machine.folder / "config").write_text(
        f"expected_processes=2\n[device]\nuuid={uuid(0)}\n[device]\nuuid={uuid(1)}\n"
    )
    rows = [DeviceLimit(uuid(i), 4 * GIB, share, CONTEXT) for i, share in enumerate((0.2, 0.7))]
    worker = machine.worker(*rows)

    first, second = (busy(p) for p in [worker.load(device=i, kernel_us=500) for i in range(2)])

    assert mean(first[2:]) == pytest.approx(20, abs=2)
    assert mean(second[2:]) == pytest.approx(70, abs=2)


def test_a_whole_device_is_not_held_back(machine):
    worker = machine.worker(compute=1.0)

    assert busy(worker.load(kernel_us=1000, seconds=3))[1:] == pytest.approx([100] * 2, abs=0.5)
    assert worker.region.use(0).throttled_ns == 0


def test_a_long_kernel_is_paid_for_before_the_next(machine):
    seen = machine.worker(compute=0.1).run("""
init()
kernel, two_seconds = function("spin_us"), C.c_uint64(2_000_000)
cuda.tfSimNow.restype = C.c_uint64
start = cuda.tfSimNow()
for _ in range(3):
    ok(launch(kernel, two_seconds))
    ok(cuda.cuCtxSynchronize())
say(seconds=(cuda.tfSimNow() - start) / 1e9)
""")

    assert seen["seconds"] == pytest.approx(42, abs=1.5)


def test_a_changed_share_acts_within_200_ms(machine):
    machine.mode = "wall"
    worker = machine.worker(compute=0.1)
    load = worker.load(kernel_us=1000, seconds=3, interval_ms=100)

    def change():
        time.sleep(1.5)
        worker.region.write([DeviceLimit(uuid(), 0, 0.6, CONTEXT)])

    thread = threading.Thread(target=change)
    thread.start()
    windows = [(row["t"], row["busy_pct"]) for row in lines(load)]
    thread.join()

    changed = next(t for t, value in windows if value > 30)
    assert mean([v for t, v in windows if 0.3 < t < changed - 0.15]) == pytest.approx(10, abs=5)
    assert mean([v for t, v in windows if t > changed + 0.15]) == pytest.approx(60, abs=8)
    assert changed < 2.2


def test_what_was_queued_before_there_was_a_limit_is_not_held_against_it(machine):
    """A second of work is queued without being charged, and measured after the limit came."""
    machine.mode = "wall"
    worker = machine.worker(compute=1.0)
    neighbour = machine.worker(compute=0.65).load(kernel_us=500, seconds=6)
    load = worker.load(kernel_us=500, seconds=5, interval_ms=100)
    limit = threading.Timer(1.0, worker.region.write, [[DeviceLimit(uuid(), 0, 0.35, CONTEXT)]])
    limit.start()
    windows = [(row["t"], row["busy_pct"]) for row in lines(load)]
    limit.join()
    lines(neighbour)

    assert mean([value for t, value in windows if 2.8 < t < 4.8]) == pytest.approx(35, abs=5)


def test_a_held_thread_is_woken_by_a_lifted_limit(machine):
    """A debt of half a minute ends the moment that the share is lifted."""
    machine.mode = "wall"
    worker = machine.worker(compute=0.01)
    tenant = worker.start("""
init()
kernel, long = function("spin_us"), C.c_uint64(300_000)
ok(launch(kernel, long)); ok(cuda.cuCtxSynchronize())
say(held=1)
ok(launch(kernel, long)); say(released=1)
""")
    tenant.stdout.readline()
    time.sleep(0.3)
    assert tenant.poll() is None

    worker.region.write([DeviceLimit(uuid(), 0, 1.0, CONTEXT)])

    assert result(tenant, timeout=10) == {"released": 1}


def test_capture_neither_waits_nor_is_charged_and_replay_is(machine):
    worker = machine.worker(compute=0.05)
    seen = worker.run("""
init()
cuda.tfSimNow.restype = C.c_uint64
kernel, length, graph, ready = function("spin_us"), C.c_uint64(1000), C.c_void_p(), C.c_void_p()
lane = stream()
ok(launch(kernel, length)); ok(cuda.cuCtxSynchronize())
start = cuda.tfSimNow()
ok(cuda.cuStreamBeginCapture_v2(lane, 0))
for _ in range(2000): ok(launch(kernel, length, stream=lane))
ok(cuda.cuStreamEndCapture(lane, C.byref(graph)))
captured = cuda.tfSimNow() - start
ok(cuda.cuGraphInstantiateWithFlags(C.byref(ready), graph, C.c_ulonglong(0)))
ok(cuda.cuGraphLaunch(ready, lane)); ok(cuda.cuStreamSynchronize(lane))
say(captured=captured)
ok(cuda.cuGraphLaunch(ready, lane)); ok(cuda.cuStreamSynchronize(lane))
ok(cuda.cuGraphLaunch(ready, lane)); ok(cuda.cuStreamSynchronize(lane))
say(captured=captured, seconds=(cuda.tfSimNow() - start) / 1e9)
""")

    assert seen["captured"] == 0
    # Three replays of two seconds each at 5 percent, the last of which need not be waited out.
    assert 70 < seen["seconds"] < 90


def test_an_illegal_access_of_one_tenant_leaves_its_neighbour_alone(machine):
    machine.configure(expected_processes=2)
    good = machine.worker(compute=0.5).load(kernel_us=1000, seconds=5)
    bad = machine.worker(compute=0.5).run("""
init()
ok(launch(function("bad_access")))
say(after=[cuda.cuCtxSynchronize(), alloc(MIB)[0]])
""")

    assert bad["after"] == [700, 700]
    assert mean(busy(good)) == pytest.approx(50, abs=2)
