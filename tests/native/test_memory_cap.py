"""Every class of allocation stops at the cap, whoever asks and however many at a time."""

import itertools
import os
import signal
import time

import pytest
from native.machine import CONTEXT, GIB, MIB, compile_program, result

from tensorfusion_native.region import DeviceLimit

CLASSES = [
    "plain", "managed", "pitch", "async", "pool", "array", "array3d", "mipmap", "physical", "graph",
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_refused_at_the_cap_with_out_of_memory(machine, kind):
    worker = machine.worker(vram=2 * GIB)

    seen = worker.run(f"""
init()
codes = []
while not codes or (codes[-1] == 0 and len(codes) < 40):
    codes.append(allocate({kind!r}, 256 * MIB))
say(codes=codes, used=truth()[0], left=info()[0], total=info()[1])
""")

    assert set(seen["codes"][:-1]) == {0}
    assert seen["codes"][-1] == 2
    assert 2 * GIB - 400 * MIB < seen["used"] <= 2 * GIB
    assert seen["total"] == 2 * GIB
    assert seen["left"] == 2 * GIB - seen["used"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_ledger_equals_the_driver_after_a_random_mix(machine, fails):
    """100,000 operations of eight threads on all classes, compared at every 1000th; a driver that fails or not."""
    machine.mode = "wall"
    worker = machine.worker(vram=5 * GIB)
    # Managed memory that the card has no room for is the host's: then the driver counts less.
    command = [machine.build / "tf-memory-mix", "seed=7", f"managed={int(not fails)}"]
    refusing = {"TF_SIM_FAIL_ALLOCATION": "13"} if fails else {}

    seen = result(machine.start(command, **worker.environment(), **refusing))

    assert seen["stops"] == 101
    assert seen["wrong"] == 0
    assert seen["left"] == CONTEXT
    assert sum(count > 3000 for count in seen["granted"]) == len(CLASSES) - fails
    assert seen["refused"] > 100
    assert worker.region.use(0).used_bytes == 0


def test_sixteen_racing_processes_never_pass_the_cap(machine):
    machine.mode = "wall"
    worker = machine.worker(vram=8 * GIB)
    racers = [
        worker.start("""
ok(init()); say(ready=0); sys.stdin.readline()
taken = 0
for _ in range(300):
    code, address = alloc(32 * MIB)
    if code == 0: taken += 1
    if code == 0 and _ % 3 == 0: ok(free(address)); taken -= 1
    assert truth()[1] <= 8 << 30, truth()
say(ready=taken)
sys.stdin.read()
say(taken=taken)
""")
        for _ in range(16)
    ]
    for racer in racers:
        assert "ready" in racer.stdout.readline()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        assert "ready" in racer.stdout.readline()

    use = worker.region.use(0)
    total = sum(result(racer)["taken"] for racer in racers)

    assert use.peak_bytes <= 8 * GIB
    assert use.used_bytes == total * 32 * MIB + 16 * CONTEXT
    assert use.used_bytes > 8 * GIB - 32 * MIB
    assert worker.region.use(0).used_bytes == 0


TAKES = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int cuInit(unsigned), cuDevicePrimaryCtxRetain(void **, int), cuCtxSetCurrent(void *);
int cuMemAlloc_v2(unsigned long long *, unsigned long);
int main(int count, char **arguments) {
  void *context;
  unsigned long long address;
  int code = cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context) ? -1
             : cuMemAlloc_v2(&address, strtoul(arguments[1], NULL, 10));
  printf("%d\n", code);
  fflush(stdout);
  if (count > 2) pause();
  return 0;
}
"""


def test_what_a_killed_process_held_is_given_to_the_next(machine, build, tmp_path):
    """A hundred times: nine tenths of the cap are held, and the next one gets eight before the deadline."""
    machine.mode = "wall"
    worker = machine.worker(vram=8 * GIB)
    program = compile_program(build, tmp_path, TAKES)
    for _ in range(100):
        holder = machine.start([program, str(8 * GIB * 9 // 10), "hold"], **worker.environment())
        assert holder.stdout.readline() == "0\n"
        holder.kill()
        holder.wait(10)

        following = machine.start([program, str(8 * GIB * 8 // 10)], **worker.environment())
        assert following.communicate(timeout=10)[0] == "0\n"

    assert worker.region.faults().recovered == 100


def test_a_process_killed_anywhere_leaves_a_ledger_that_adds_up(machine):
    machine.mode = "wall"
    worker = machine.worker(vram=8 * GIB)
    for round_ in range(12):
        churner = worker.start("""
init(); say(ready=1)
while True:
    code, address = alloc(MIB); free(address)
""")
        churner.stdout.readline()
        time.sleep(0.003 * round_)
        os.kill(churner.pid, signal.SIGKILL)
        churner.communicate()

    # A full allocation makes the limiter look for the dead.
    assert worker.run(f"init(); say(code=alloc({8 * GIB - CONTEXT})[0])")["code"] == 0
    assert worker.region.use(0).used_bytes == 0


def test_a_lowered_cap_spares_what_exists_and_a_raised_one_admits(machine):
    worker = machine.worker(vram=4 * GIB)
    tenant = worker.start("""
init(); ok(alloc(3 << 30)[0]); say(ready=1)
for line in sys.stdin: say(info=info(), code=alloc(512 * MIB)[0])
""")

    tenant.stdout.readline()

    def after(vram):
        worker.region.write([DeviceLimit(worker.rows[0].uuid, vram, 1.0, CONTEXT)])
        tenant.stdin.write("\n")
        tenant.stdin.flush()
        return eval(tenant.stdout.readline())

    assert after(2 * GIB) == {"info": [0, 2 * GIB], "code": 2}
    assert after(6 * GIB) == {"info": [3 * GIB - CONTEXT, 6 * GIB], "code": 0}
    tenant.communicate()


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["retain", "map", "unmap", "release"]))
)
def test_physical_memory_is_counted_while_anything_refers_to_it(machine, order):
    """Whatever order is asked for, calls that the driver refuses change nothing, and all ends at zero."""
    seen = machine.worker(vram=2 * GIB).run(f"""
init()
before = info()[0]
code, handle = create_physical(64 * MIB)
ok(code)
address = C.c_uint64()
ok(cuda.cuMemAddressReserve(C.byref(address), C.c_size_t(64 * MIB), C.c_size_t(0), C.c_uint64(0),
                            C.c_ulonglong(0)))
again, retained = C.c_uint64(), 0
def retain(): return cuda.cuMemRetainAllocationHandle(C.byref(again), C.c_void_p(address.value))
def map_(): return cuda.cuMemMap(address, C.c_size_t(64 * MIB), C.c_size_t(0), handle, C.c_ulonglong(0))
def unmap(): return cuda.cuMemUnmap(address, C.c_size_t(64 * MIB))
def release(): return cuda.cuMemRelease(handle)
steps = dict(retain=retain, map=map_, unmap=unmap, release=release)
drift = []
for name in {order!r}:
    steps[name]()
    drift.append(before - info()[0] - (truth()[0] - 300 * MIB))
unmap(); release(); release()
say(drift=drift, left=before - info()[0], driver=truth()[0])
""")

    assert seen == {"drift": [0] * 4, "left": 0, "driver": CONTEXT}


def test_a_pool_is_charged_for_what_it_keeps_and_trimmed_before_a_refusal(machine):
    seen = machine.worker(vram=2 * GIB).run("""
init()
pool, address, keep = new_pool(), C.c_uint64(), C.c_uint64(1 << 40)
ok(cuda.cuMemPoolSetAttribute(pool, 4, C.byref(keep)))
ok(cuda.cuMemAllocFromPoolAsync(C.byref(address), C.c_size_t(1 << 30), pool, None))
ok(cuda.cuMemFreeAsync(address, None))
kept = truth()[0], info()[1] - info()[0]
say(kept=kept, code=alloc(1536 * MIB)[0], used=truth()[0], ledger=info()[1] - info()[0])
""")

    assert seen["kept"] == [GIB + CONTEXT] * 2
    assert seen["code"] == 0
    assert seen["used"] == seen["ledger"] == 1536 * MIB + CONTEXT


def test_contexts_are_charged_and_take_their_memory_with_them(machine):
    seen = machine.worker(vram=2 * GIB).run("""
ok(cuda.cuInit(0))
used, contexts = [], []
for _ in range(3):
    context = C.c_void_p()
    ok(cuda.cuCtxCreate_v2(C.byref(context), 0, 0))
    contexts.append(context)
    ok(alloc(100 * MIB)[0])
    used.append((info()[1] - info()[0]) // MIB)
for context in contexts[1:]: ok(cuda.cuCtxDestroy_v2(context))
ok(cuda.cuCtxSetCurrent(contexts[0]))
say(used=used, ledger=info()[1] - info()[0], driver=truth()[0])
""")

    assert seen["used"] == [400, 800, 1200]
    assert seen["ledger"] == seen["driver"] == 400 * MIB


def test_a_free_of_something_unknown_gets_the_drivers_answer(machine):
    seen = machine.worker(vram=GIB).run("""
init()
code, address = alloc(MIB)
say(unknown=free(4096), first=free(address), again=free(address), left=info()[0])
""")

    assert seen == {"unknown": 1, "first": 0, "again": 1, "left": GIB - CONTEXT}
