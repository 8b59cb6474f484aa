"""The driver's checkpoint calls on the simulated driver: states, contents, cards, and deaths of either side."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from native.machine import CONTEXT, MIB, result, uuid
from native.test_headers import INCLUDE, measure
from rig.cuda_headers import CUDA_PACKAGES, HeadersMissingError, include_folder
from rig.program import wait

from tensorfusion_native.checkpoint import (
    ILLEGAL_STATE,
    INVALID_VALUE,
    NOT_READY,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    CheckpointError,
    Checkpoints,
    ProcessState,
)

NEWEST = 13000

TENANT = """
import hashlib, random
init()
SEED = random.Random(7)
held = {}
for kind, size in (("plain", 3 * MIB), ("plain", 64 * MIB), ("async", 5 * MIB), ("array", 4 * MIB)):
    address = C.c_uint64()
    if kind == "plain": ok(cuda.cuMemAlloc_v2(C.byref(address), C.c_size_t(size)))
    elif kind == "async": ok(cuda.cuMemAllocAsync(C.byref(address), C.c_size_t(size), None))
    else:
        shape = Array2D(width=size // 4096, height=1024, format=0x20, channels=1)
        ok(cuda.cuArrayCreate_v2(C.byref(address), C.byref(shape)))
    held[address.value] = size
# A page here and there of the large one, all of the others.
for address, size in held.items():
    step = 4 * MIB if size > 8 * MIB else 4096
    for at in range(0, size, step):
        C.memmove(address + at, SEED.randbytes(1000), 1000)
code, handle = create_physical(2 * MIB)
mapped = C.c_uint64()
ok(cuda.cuMemAddressReserve(C.byref(mapped), C.c_size_t(2 * MIB), C.c_size_t(0), C.c_uint64(0), C.c_ulonglong(0)))
ok(cuda.cuMemMap(mapped, C.c_size_t(2 * MIB), C.c_size_t(0), handle, C.c_ulonglong(0)))
ok(cuda.cuMemSetAccess(mapped, C.c_size_t(2 * MIB), (C.c_int * 3)(1, 0, 3), C.c_size_t(1)))
C.memmove(mapped.value, SEED.randbytes(2 * MIB), 2 * MIB)
held[mapped.value] = 2 * MIB

def digest():
    found = hashlib.sha256()
    for address, size in held.items():
        host = C.create_string_buffer(size)
        ok(cuda.cuMemcpyDtoH_v2(host, C.c_uint64(address), C.c_size_t(size)))
        found.update(host)
    return found.hexdigest()

def card():
    name = (C.c_char * 16)()
    ok(cuda.cuDeviceGetUuid_v2(name, 0))
    return bytes(name).hex()

say(digest=digest(), bytes=truth()[0], card=card(), tid=threading.get_native_id())
for line in sys.stdin:
    say(digest=digest(), bytes=truth()[0], card=card())
"""


@pytest.fixture
def machine(machine):
    machine.mode = "wall"
    return machine.configure(devices=2, cuda_version=NEWEST, device_memory_bytes=1 << 30)


def look_at(machine):
    """The machine's driver, as another process sees it; starts the machine."""
    library = machine.folder / "view.so"
    library.write_bytes((machine.build / "simulated" / "libtensorfusion_view.so").read_bytes())
    return Checkpoints(library, machine.folder / "state", machine.folder / "config")


@pytest.fixture
def driver(machine):
    return look_at(machine)


def told(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def ask(process):
    process.stdin.write("\n")
    process.stdin.flush()


def code_of(call, *arguments):
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    return error.value.result


def freeze(driver, pid):
    driver.lock(pid)
    driver.checkpoint(pid)


def thaw(driver, pid, pairs=None):
    driver.restore(pid, pairs)
    driver.unlock(pid)


def free_bytes(machine, device=0):
    seen = result(machine.python(f"ok(cuda.cuInit(0)); say(all=truth({device})[1])", LD_PRELOAD=""))
    return (1 << 30) - seen["all"]


def wait_until(check, seconds=20):
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_the_way_through_the_states(machine, driver):
    tenant = machine.python(TENANT)
    before = told(tenant)
    pid = tenant.pid
    assert driver.offered()
    assert driver.state(pid) == ProcessState.RUNNING
    assert driver.restore_thread(pid) not in (0, pid)

    driver.lock(pid, 5)
    assert driver.state(pid) == ProcessState.LOCKED
    driver.checkpoint(pid)
    assert driver.state(pid) == ProcessState.CHECKPOINTED
    assert driver.held(pid).vram_bytes == before["bytes"] == CONTEXT + 78 * MIB
    assert free_bytes(machine) == 1 << 30

    ask(tenant)
    wait_until(lambda: driver.held(pid).waiting)
    driver.restore(pid)
    assert driver.state(pid) == ProcessState.LOCKED
    assert driver.held(pid).waiting == 1
    driver.unlock(pid)
    assert told(tenant) == {k: v for k, v in before.items() if k != "tid"}
    assert driver.state(pid) == ProcessState.RUNNING
    assert driver.held(pid).waiting == 0


def test_what_is_refused_and_how(machine, driver):
    tenant = machine.python(TENANT)
    told(tenant)
    pid = tenant.pid
    for call in (driver.checkpoint, driver.restore, driver.unlock):
        assert code_of(call, pid) == ILLEGAL_STATE
    assert code_of(driver.store, pid, machine.folder / "image") == ILLEGAL_STATE
    driver.lock(pid)
    for call in (driver.lock, driver.restore):
        assert code_of(call, pid) == ILLEGAL_STATE
    driver.checkpoint(pid)
    for call in (driver.lock, driver.checkpoint, driver.unlock):
        assert code_of(call, pid) == ILLEGAL_STATE
    assert code_of(driver.restore, pid, {uuid(0): uuid(7)}) == INVALID_VALUE
    assert code_of(driver.restore, pid, {uuid(1): uuid(0)}) == INVALID_VALUE
    assert driver.state(pid) == ProcessState.CHECKPOINTED
    for call in (driver.state, driver.lock, driver.checkpoint, driver.restore, driver.unlock):
        assert code_of(call, os.getpid()) == INVALID_VALUE
    assert driver.held(os.getpid()) is None


@pytest.mark.parametrize(("version", "offered"), [(12040, False), (12080, True)])
def test_older_drivers(machine, version, offered):
    driver = look_at(machine.configure(cuda_version=version, devices=2))
    tenant = machine.python(TENANT)
    told(tenant)
    assert driver.offered() is offered
    found = result(
        machine.python('ok(cuda.cuInit(0)); say(code=proc("cuCheckpointProcessLock", 13000)[1])')
    )
    assert found["code"] == (0 if offered else 500)
    if not offered:
        assert code_of(driver.lock, tenant.pid) == NOT_SUPPORTED
        return
    freeze(driver, tenant.pid)
    # Pairs came with 13.0: before, the arguments had to be zero.
    assert code_of(driver.restore, tenant.pid, {uuid(0): uuid(1)}) == INVALID_VALUE
    thaw(driver, tenant.pid)


def test_it_comes_back_on_another_card_with_all_it_had(machine, driver):
    tenant = machine.python(TENANT)
    before = told(tenant)
    for new in (1, 0):
        freeze(driver, tenant.pid)
        thaw(driver, tenant.pid, {uuid(1 - new): uuid(new)})
        ask(tenant)
        after = told(tenant)
        assert after["digest"] == before["digest"]
        assert after["bytes"] == before["bytes"]
        assert after["card"].endswith(f"{new:012}")
        assert free_bytes(machine, new) == (1 << 30) - before["bytes"]
        assert free_bytes(machine, 1 - new) == 1 << 30


def test_without_room_it_stays_and_comes_back_later(machine, driver):
    tenant = machine.python(TENANT)
    before = told(tenant)
    freeze(driver, tenant.pid)
    other = machine.python(
        "init(); ok(alloc(600 * MIB)[0]); say(ready=1); sys.stdin.readline(); say(done=1)"
    )
    told(other)
    for _ in range(3):
        assert code_of(driver.restore, tenant.pid) == OUT_OF_MEMORY
        assert driver.state(tenant.pid) == ProcessState.CHECKPOINTED
    other.communicate("\n", timeout=20)
    thaw(driver, tenant.pid)
    ask(tenant)
    assert told(tenant)["digest"] == before["digest"]


def test_contents_in_a_file(machine, driver):
    tenant = machine.python(TENANT)
    before = told(tenant)
    file = machine.folder / "image"
    freeze(driver, tenant.pid)
    driver.store(tenant.pid, file)
    assert driver.held(tenant.pid).stored
    assert 10 * MIB < file.stat().st_size < 20 * MIB  # what was touched of 78 MiB
    driver.store(tenant.pid, None)
    assert not driver.held(tenant.pid).stored
    driver.store(tenant.pid, file)
    assert code_of(driver.store, tenant.pid, machine.folder / "no" / "such") == OUT_OF_MEMORY
    thaw(driver, tenant.pid)
    ask(tenant)
    assert told(tenant)["digest"] == before["digest"]


def test_submitted_work_ends_first_or_the_time_is_over(machine, driver):
    tenant = machine.python("""
init()
kernel = function("spin_us")
say(ready=1)
sys.stdin.readline()
ok(launch(kernel, C.c_uint64(1_000_000)))
say(launched=1)
sys.stdin.readline()
say(busy=truth()[2])
sys.stdin.readline()
""")
    told(tenant)
    ask(tenant)
    told(tenant)
    assert code_of(driver.lock, tenant.pid, 0.05) == NOT_READY
    assert driver.state(tenant.pid) == ProcessState.RUNNING
    driver.lock(tenant.pid, 20)
    ask(tenant)
    assert told(tenant)["busy"] >= 1_000_000_000
    driver.unlock(tenant.pid)


def test_a_checkpoint_that_fails_leaves_the_process_locked(machine, driver):
    tenant = machine.python(TENANT, TF_SIM_FAIL_CHECKPOINT="2")
    before = told(tenant)
    freeze(driver, tenant.pid)
    thaw(driver, tenant.pid)
    driver.lock(tenant.pid)
    assert code_of(driver.checkpoint, tenant.pid) == OUT_OF_MEMORY
    assert driver.state(tenant.pid) == ProcessState.LOCKED
    driver.unlock(tenant.pid)
    ask(tenant)
    assert told(tenant)["digest"] == before["digest"]


def test_what_is_left_of_a_target_that_was_killed(machine, driver):
    for stage in range(3):
        tenant = machine.python(TENANT)
        told(tenant)
        if stage:
            driver.lock(tenant.pid)
        if stage == 2:
            driver.checkpoint(tenant.pid)
        tenant.kill()
        tenant.wait()
        assert code_of(driver.state, tenant.pid) == INVALID_VALUE
        assert free_bytes(machine) == 1 << 30


def test_a_target_that_is_killed_while_somebody_waits_for_it(machine, driver):
    tenant = machine.python(TENANT)
    told(tenant)
    os.kill(tenant.pid, signal.SIGSTOP)
    caller = machine.python(
        f"ok(cuda.cuInit(0)); say(code=cuda.cuCheckpointProcessLock({tenant.pid}, None))"
    )
    time.sleep(0.2)
    tenant.kill()
    tenant.wait()
    assert result(caller)["code"] == INVALID_VALUE
    assert free_bytes(machine) == 1 << 30


@pytest.mark.parametrize("mode", ["wall", "virtual"])
def test_a_process_that_is_stopped_in_a_call_holds_nobody_up(machine, mode):
    """At most of these instants it holds the lock of all; it must not run on because of that either."""
    machine.mode = mode
    busy = machine.python("init(); say(ready=1)\nwhile True: alloc(1 << 50)")
    told(busy)
    others = [
        machine.python("init(); say(ready=1)\nwhile True: input(); say(left=info()[0])")
        for _ in range(2)
    ]
    for other in others:
        told(other)
    for _ in range(30):
        os.kill(busy.pid, signal.SIGSTOP)
        for other in others:
            ask(other)
        for other in others:
            assert told(other)["left"] > 0
        wait(lambda: state_of(busy.pid) == "T")
        time.sleep(0.005)
        assert state_of(busy.pid) == "T", "who waited for it has what it wanted"
        os.kill(busy.pid, signal.SIGCONT)
        time.sleep(0.001)


def state_of(pid):
    """The letter of a process's state (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


CALLER = """
ok(cuda.cuInit(0))
say(ready=1)
while True:
    for name in ("Lock", "Checkpoint", "Restore", "Unlock"):
        getattr(cuda, "cuCheckpointProcess" + name)({pid}, None)
"""


def go_on(driver, pid):
    """Bring a process back from wherever it is; what the caller asked for last may be under way."""
    ways = {ProcessState.CHECKPOINTED: driver.restore, ProcessState.LOCKED: driver.unlock}
    for _ in range(10):
        with contextlib.suppress(CheckpointError):
            ways.get(driver.state(pid), driver.lock)(pid)
    while (state := driver.state(pid)) != ProcessState.RUNNING:
        ways[state](pid)


def test_a_caller_that_was_killed_leaves_what_another_can_continue(machine, driver):
    tenant = machine.python(TENANT)
    before = told(tenant)
    for pause in range(6):
        caller = machine.python(CALLER.format(pid=tenant.pid))
        told(caller)
        time.sleep(0.01 + pause * 0.007)
        caller.kill()
        caller.wait()
        go_on(driver, tenant.pid)
        ask(tenant)
        assert told(tenant)["digest"] == before["digest"]


def test_a_process_forks_and_starts_programs_while_it_serves(machine, driver):
    tenant = machine.python("""
init()
say(ready=1)
sys.stdin.readline()
child = os.fork()
if not child: os._exit(cuda.cuInit(0) == 0)
say(child=os.waitpid(child, 0)[1])
""")
    told(tenant)
    freeze(driver, tenant.pid)
    thaw(driver, tenant.pid)
    ask(tenant)
    assert told(tenant)["child"] == 0


def test_cycles_leave_nothing_behind(machine, driver):
    """More of them, and larger: tests/bench/freeze.py."""
    tenant = machine.python(TENANT)
    before = told(tenant)

    def footprint(cycles):
        for _ in range(cycles):
            freeze(driver, tenant.pid)
            thaw(driver, tenant.pid)
        ask(tenant)
        after = told(tenant)
        assert (after["digest"], after["bytes"]) == (before["digest"], before["bytes"])
        resident = int(Path(f"/proc/{tenant.pid}/statm").read_text().split()[1]) * 4096
        return len(os.listdir(f"/proc/{tenant.pid}/fd")), resident

    files, resident = footprint(3)
    files_after, resident_after = footprint(40)
    assert files_after == files
    assert resident_after < resident + 2 * MIB


def test_in_virtual_time_a_copy_takes_its_bytes_over_the_link(machine):
    machine.mode = "virtual"
    settings = {"virtual_time": 1, "device_copy_bytes_per_second": 10**9}
    driver = look_at(machine.configure(cuda_version=NEWEST, **settings))
    tenant = machine.python("""
init()
cuda.tfSimNow.restype = C.c_uint64
ok(alloc(500 * MIB)[0])
start = cuda.tfSimNow()
say(ready=1)
sys.stdin.readline()
ok(cuda.cuCtxSynchronize())
say(seconds=(cuda.tfSimNow() - start) / 1e9)
""")
    told(tenant)
    freeze(driver, tenant.pid)
    thaw(driver, tenant.pid)
    ask(tenant)
    assert told(tenant)["seconds"] == pytest.approx(2 * 500 * MIB / 1e9, rel=0.01)


@pytest.mark.parametrize("package", [v for v in CUDA_PACKAGES if int(v.split(".")[0]) >= 13])
def test_our_structs_are_the_drivers(package, tmp_path):
    try:
        path = include_folder(CUDA_PACKAGES[package], "cuda.h") / "cuda.h"
    except HeadersMissingError as error:
        pytest.skip(str(error))
    text = (INCLUDE / "tf_checkpoint.h").read_text()
    lines = [
        f'NUMBER("{name}", sizeof({name}));' for name in re.findall(r"\} (CUcheckpoint\w+);", text)
    ]
    lines += [f'NUMBER("{name}", {name});' for name in re.findall(r"CU_PROCESS_STATE_\w+", text)]
    for field in ("gpuPairs", "gpuPairsCount", "reserved1"):
        lines.append(f'NUMBER("{field}", offsetof(CUcheckpointRestoreArgs, {field}));')
    assert len(lines) == 12
    ours = measure(tmp_path, f'#include "{INCLUDE}/tf_cuda.h"', lines)
    assert ours == measure(tmp_path, f'#include "{path}"', lines)


def test_programs_keep_their_signals(machine, driver):
    """The thread that serves takes none of them."""
    tenant = machine.python("""
init()
signal_ = __import__("signal")
signal_.signal(signal_.SIGUSR1, lambda *_: say(signal=threading.get_native_id() == os.getpid()))
say(ready=1)
while True: time.sleep(0.05)
""")
    told(tenant)
    subprocess.run(["kill", "-USR1", str(tenant.pid)], check=True)
    assert told(tenant) == {"signal": True}
