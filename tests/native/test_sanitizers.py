"""Programs in C under the address, undefined-behaviour and thread sanitizers, on the simulated driver.

They open the limiter themselves (``through=``): what the start of a sanitizer looks up would otherwise come by the
limiter's dlsym before there is anything to run it on. A finding ends a program with code 99.
"""

import contextlib
import fcntl
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from native.machine import GIB, MIB, Machine, end, uuid

from tensorfusion_native.region import DeviceLimit, FullPolicy

ROOT = Path(__file__).parents[2]
FINDING = 99
SANITIZERS = {"asan": "address,undefined", "tsan": "thread"}
OPTIONS = {
    "ASAN_OPTIONS": f"exitcode={FINDING}:detect_leaks=1:detect_stack_use_after_return=1",
    "LSAN_OPTIONS": f"exitcode={FINDING}",
    "UBSAN_OPTIONS": f"exitcode={FINDING}:print_stacktrace=1",
    # A child of a program with threads may go on, as the programs under the limiter do.
    "TSAN_OPTIONS": f"exitcode={FINDING}:die_after_fork=0:second_deadlock_stack=1",
}
pytestmark = [pytest.mark.sanitize, pytest.mark.timeout(180)]


def supports(sanitizer, folder):
    source = folder / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    command = ["cc", f"-fsanitize={sanitizer}", str(source), "-o", str(folder / "probe")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        return built.stderr.strip().splitlines()[-1]
    ran = subprocess.run([folder / "probe"], capture_output=True, text=True, check=False)
    return ran.stderr.strip().splitlines()[0] if ran.returncode else ""


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitized(request, tmp_path_factory):
    problem = supports(SANITIZERS[request.param], tmp_path_factory.mktemp("probe"))
    if problem:
        pytest.skip(f"the compiler has no {request.param}: {problem}")
    folder = ROOT / "build" / f"native-{request.param}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["cmake", "--preset", request.param], ["cmake", "--build", str(folder)]):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=ROOT / "native"
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Site:
    """A machine whose programs were built with a sanitizer."""

    def __init__(self, build, folder, **settings):
        self.machine = Machine(build, folder, extra=OPTIONS, **settings)
        self.machine.configure(cuda_version=12080)

    def start(self, program, *arguments, worker=None, **environment):
        command = [str(self.machine.build / program), *arguments]
        if worker is not None:
            command.append(f"through={self.machine.build / 'libtensorfusion_limiter.so'}")
            environment |= worker.region.environment()
        return self.machine.start(command, **environment)

    def exercise(self, mode, *, worker=None, environment=None, **options):
        arguments = [f"{k}={v}" for k, v in options.items()]
        return self.start("tf-exercise", mode, *arguments, worker=worker, **(environment or {}))


@pytest.fixture
def site(sanitized, tmp_path):
    """Makes machines, one state of time each."""
    with contextlib.ExitStack() as stack:

        def make(mode="wall"):
            made = Site(sanitized, tmp_path, mode=mode)
            stack.callback(made.machine.close)
            return made

        yield make


def finish(process, timeout=120):
    """Wait; the program's last line. A report of a sanitizer is the failure's text."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit code {process.returncode}: {err[-8000:]} {out[-500:]}"
    return out


LOADS = {
    "sync": "sync=1",
    "async": "watch=1",
    "streams": "kind=ex streams=4 mix_every=7 mix_us=300",
    "cooperative": "kind=cooperative grid=20",
    "graph": "kind=graph nodes=5 kernel_us=200",
    "per thread": "kind=per_thread duty=50",
    "churn": "churn=1048576 hold=1048576",
    "phase": "then_us=5000 phase_s=1",
}


@pytest.mark.parametrize("arguments", LOADS.values(), ids=LOADS)
def test_loads_of_all_kinds_under_a_share(site, arguments):
    here = site("virtual")
    worker = here.machine.worker(vram=GIB, compute=0.5)
    load = here.start("tf-load", "seconds=2", *arguments.split(), worker=worker)

    shares = re.findall(r'"busy_pct": ([0-9.]+)', finish(load))

    assert len(shares) == 2
    assert 20 < float(shares[-1]) < 65
    assert worker.region.use(0).used_bytes == 0


def test_threads_use_everything_without_a_limiter(site):
    assert '"done": 240' in finish(site().exercise("mix", threads=4, rounds=60))


@pytest.mark.parametrize("mode", ["wall", "virtual"])
def test_threads_at_their_cap(site, mode):
    here = site(mode)
    worker = here.machine.worker(vram=306 * MIB, compute=0.7)

    out = finish(here.exercise("mix", worker=worker, threads=6, rounds=60, bytes=4 * MIB))

    assert re.search(r'"refused": [1-9]', out)
    use = worker.region.use(0)
    assert use.denied > 0
    assert use.peak_bytes <= 306 * MIB
    assert use.used_bytes == 0


def test_threads_allocate_and_free_all_classes(site):
    here = site()
    worker = here.machine.worker(vram=2 * GIB)
    sizes = ("operations=8000", "stop=800", "largest=200000000")

    out = finish(here.start("tf-memory-mix", *sizes, worker=worker))

    assert '"wrong": 0' in out
    assert worker.region.use(0).denied > 0
    assert worker.region.use(0).used_bytes == 0


def test_processes_share_memory(site):
    here = site()
    worker = here.machine.worker(vram=2 * GIB)

    out = finish(here.exercise("share", worker=worker, threads=4, rounds=40))

    assert '"done": 160' in out
    assert worker.region.use(0).used_bytes == 0


def test_limits_change_all_the_time(site):
    here = site()
    worker = here.machine.worker(vram=GIB, compute=0.5)
    chance = random.Random(1)
    running = here.exercise("mix", worker=worker, threads=4, rounds=80)
    while running.poll() is None:
        share = chance.choice((0.3, 0.6, 0.9, 1.0))
        limit = DeviceLimit(uuid(), chance.choice((GIB, 2 * GIB)), share, 300 * MIB)
        worker.region.write([limit], full=FullPolicy(chance.choice(("deny", "wait", "spill")), 1))
        time.sleep(0.005)

    assert '"done": 320' in finish(running)
    assert worker.region.faults().bad_limits == 0


def test_a_process_killed_in_the_middle_leaves_the_others_whole(site):
    here = site()
    worker = here.machine.worker(vram=2 * GIB, compute=0.8)
    for seed in range(3):
        killed = here.exercise("mix", worker=worker, threads=4, rounds=100_000, seed=seed)
        other = here.exercise("mix", worker=worker, threads=4, rounds=40, seed=seed + 100)
        until = time.monotonic() + 60
        while worker.region.use(0).launches < 5 * (seed + 1) and time.monotonic() < until:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert '"done": 160' in finish(other)
        end(killed)

    # Its bytes come back when room is short.
    limit = DeviceLimit(uuid(), 306 * MIB, 0.8, 300 * MIB)
    worker.region.write([limit])
    assert '"done": 20' in finish(here.exercise("mix", worker=worker, threads=1, rounds=20))
    assert worker.region.use(0).used_bytes == 0
    assert worker.region.faults().recovered > 0


def test_children_by_fork_and_by_exec(site):
    here = site()
    worker = here.machine.worker(vram=2 * GIB, compute=0.8)

    out = finish(here.exercise("fork", worker=worker, threads=3, rounds=40))

    assert out.count('"done": 120') == 2
    assert worker.region.use(0).used_bytes == 0


@pytest.mark.parametrize("limited", [False, True])
def test_a_process_is_taken_off_and_brought_back_while_it_works(site, limited):
    here = site()
    worker = here.machine.worker(vram=2 * GIB, compute=0.8) if limited else None
    working = here.exercise("mix", worker=worker, threads=4, rounds=100_000)
    taking = here.exercise("suspend", pid=working.pid, rounds=15)

    assert '"done": 15' in finish(taking)
    assert working.poll() is None
    end(working)


@pytest.mark.parametrize("policy", ["wait", "spill", "evict"])
def test_a_worker_finds_the_card_full(site, policy):
    here = site()
    here.machine.configure(cuda_version=12080, device_memory_bytes=660 * MIB)
    neighbour = here.machine.worker(vram=GIB)
    holding = here.start("tf-load", f"hold={40 * MIB}", "seconds=100", "duty=1", worker=neighbour)
    until = time.monotonic() + 60
    while neighbour.region.use(0).used_bytes < 340 * MIB and time.monotonic() < until:
        time.sleep(0.01)
    worker = here.machine.worker(
        DeviceLimit(uuid(), GIB, 0.9, 300 * MIB, spill_bytes=GIB),
        full=FullPolicy(policy, 30 if policy == "wait" else 0.2),
    )

    out = finish(here.exercise("mix", worker=worker, threads=6, rounds=40, bytes=16 * MIB))

    end(holding)
    assert '"done": 240' in out
    use = worker.region.use(0)
    assert (use.spilled_total_bytes if policy == "spill" else use.full_waits) > 0
    assert use.wanted_bytes == use.used_bytes == use.spilled_bytes == 0


def test_a_driver_that_fails_now_and_then(site):
    here = site()
    worker = here.machine.worker(vram=2 * GIB)
    environment = {"TF_SIM_FAIL_ALLOCATION": "3", "TF_SIM_FAIL_CHECKPOINT": "2"}
    # The first allocations are the context's.
    out = finish(here.exercise("mix", worker=worker, threads=4, rounds=50, environment=environment))

    assert re.search(r'"refused": [1-9]', out)
    assert worker.region.use(0).used_bytes == 0
