"""Shares and views in less usual places: other devices, first launches, neighbours of long kernels, many readers."""

import pytest
from native.machine import CONTEXT, GIB, busy


def mean(windows):
    return sum(windows) / len(windows)


@pytest.mark.parametrize(
    ("multiprocessors", "kernel_us", "grid", "cap"),
    [(16, 5, 16, 10), (16, 1000, 1_000_000, 75), (256, 100, 4096, 10), (256, 20000, 16, 75)],
)
def test_a_cap_holds_on_small_and_large_devices(machine, multiprocessors, kernel_us, grid, cap):
    machine.configure(expected_processes=1, device_sms=multiprocessors)
    windows = busy(machine.worker(compute=cap / 100).load(kernel_us=kernel_us, grid=grid))

    assert mean(windows) == pytest.approx(cap, abs=2)
    assert windows[2:] == pytest.approx([cap] * len(windows[2:]), abs=5)


def test_ten_to_ninety_is_within_five_percent(machine):
    machine.configure(expected_processes=2)
    loads = [machine.worker(compute=c).load(kernel_us=1000, seconds=20) for c in (0.1, 0.9)]
    small, large = (busy(load)[2:] for load in loads)

    assert mean(large) / mean(small) == pytest.approx(9, rel=0.05)


def test_the_first_launch_does_not_wait(machine):
    seen = machine.worker(compute=0.05).run("""
init(); kernel = function("spin_1000us")
cuda.tfSimNow.restype = C.c_uint64
start = cuda.tfSimNow(); ok(launch(kernel)); say(waited_ms=(cuda.tfSimNow() - start) / 1e6)
""")

    assert seen["waited_ms"] < 1


def test_a_long_kernel_leaves_its_neighbour_most_of_its_share(machine):
    machine.configure(expected_processes=2)
    steady = machine.worker(compute=0.5).load(kernel_us=1000, seconds=30)
    machine.worker(compute=0.1).load(kernel_us=2_000_000, sync=1, seconds=30)

    # A kernel is not interrupted: its neighbour loses two seconds of twenty, and no more.
    assert mean(busy(steady)) >= 0.85 * 50


def test_what_readers_see_always_adds_up(machine):
    seen = machine.worker(vram=2 * GIB).run("""
init(); context, wrong, done = C.c_void_p(), [], threading.Event()
ok(cuda.cuCtxGetCurrent(C.byref(context)))
nvml, handle = C.CDLL("libnvidia-ml.so.1"), C.c_void_p()
ok(nvml.nvmlInit_v2()); ok(nvml.nvmlDeviceGetHandleByIndex_v2(0, C.byref(handle)))
def churn():
    cuda.cuCtxSetCurrent(context)
    while not done.is_set(): code, address = alloc(3 << 20); ok(code); ok(free(address))
def read():
    cuda.cuCtxSetCurrent(context)
    memory = (C.c_ulonglong * 3)()
    for _ in range(2500):
        left, total = info(); ok(nvml.nvmlDeviceGetMemoryInfo(handle, memory))
        if total != 2 << 30 or left > total or memory[0] != total or memory[1] + memory[2] != total:
            wrong.append([left, total, *memory])
writers, readers = [[threading.Thread(target=f) for _ in range(n)] for f, n in ((churn, 2), (read, 4))]
for thread in writers + readers: thread.start()
for thread in readers: thread.join()
done.set()
for thread in writers: thread.join()
say(wrong=wrong, used=info()[1] - info()[0])
""")

    assert seen == {"wrong": [], "used": CONTEXT}
