"""A card that is full although the tenant is within its cap: what each policy makes of each class of allocation."""

import json
import os
import signal
import time

import pytest
from native.machine import CONTEXT, DEADLINE_S, GIB, MIB, result, uuid
from native.test_memory_cap import CLASSES

from tensorfusion_native.region import DeviceLimit, FullPolicy

REFUSED = [kind for kind in CLASSES if kind != "managed"]
"""The driver never refuses managed memory for a full card: it keeps it in host memory."""
SPILLING = ["plain", "pitch", "async", "pool", "physical"]
LONG = 3600.0


@pytest.fixture
def card(machine):
    """A card of 4 GiB in wall time: who waits there for others must not stop the clock."""
    machine.mode = "wall"
    return machine.configure(device_memory_bytes=4 * GIB)


class Neighbour:
    """Holds 3 GiB of the card until told otherwise."""

    def __init__(self, card, size=3 * GIB):
        self.process = card.python(f"""
init()
code, address = alloc({size})
ok(code); say(held=1)
sys.stdin.readline()
ok(free(address)); say(held=0)
sys.stdin.read()
""")
        assert '"held": 1' in self.process.stdout.readline()

    def free(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        assert '"held": 0' in self.process.stdout.readline()


def tenant(card, full, wait_seconds=LONG, spill=0, vram=4 * GIB):
    limit = DeviceLimit(uuid(), vram, 1.0, CONTEXT, spill_bytes=spill)
    return card.worker(limit, full=FullPolicy(full, wait_seconds))


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waits(worker, bytes_=1):
    return lambda: worker.region.use(0).wanted_bytes >= bytes_


ONE = "init(); say(code=allocate({!r}, 1 << 30), used=truth()[0], ledger=info()[1] - info()[0])"


@pytest.mark.parametrize("kind", REFUSED)
def test_deny_refuses_at_once_and_charges_nothing(card, kind):
    Neighbour(card)
    worker = tenant(card, "deny")

    assert worker.run(ONE.format(kind)) == {"code": 2, "used": CONTEXT, "ledger": CONTEXT}
    use = worker.region.use(0)
    assert (use.full_denied, use.full_waits, use.denied) == (1, 0, 0)


@pytest.mark.parametrize("policy", ["deny", "wait", "spill", "evict"])
def test_managed_memory_goes_to_host_memory_by_itself(card, policy):
    Neighbour(card)
    worker = tenant(card, policy)

    seen = worker.run(ONE.format("managed"))

    assert seen == {"code": 0, "used": CONTEXT, "ledger": CONTEXT + GIB}
    assert worker.region.use(0).spilled_bytes == 0


@pytest.mark.parametrize("policy", ["wait", "evict"])
@pytest.mark.parametrize("kind", REFUSED)
def test_who_waits_goes_on_when_there_is_room(card, kind, policy):
    neighbour = Neighbour(card)
    worker = tenant(card, policy)
    waiting = worker.start(ONE.format(kind))

    until(waits(worker))
    neighbour.free()
    seen = result(waiting)

    assert seen["code"] == 0
    assert seen["used"] == seen["ledger"] > CONTEXT + GIB // 2
    use = worker.region.use(0)
    assert (use.full_waits, use.full_denied, use.wanted_bytes) == (1, 0, 0)
    assert use.full_waited_ns > 0
    assert use.evict_requests == (policy == "evict")


@pytest.mark.parametrize("policy", ["wait", "evict"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_wait_ends_as_out_of_memory_at_the_deadline(card, kind, policy):
    Neighbour(card)
    worker = tenant(card, policy, wait_seconds=0.1)

    assert worker.run(ONE.format(kind))["code"] == 2
    use = worker.region.use(0)
    assert (use.full_waits, use.full_denied, use.wanted_bytes) == (1, 1, 0)
    assert use.full_waited_ns >= 100_000_000


@pytest.mark.parametrize("call", ["cuDevicePrimaryCtxRetain", "cuCtxCreate_v2"])
def test_a_context_waits_for_room_too(card, call):
    neighbour = Neighbour(card, 3 * GIB + 500 * MIB)
    worker = tenant(card, "wait")
    arguments = "C.byref(made), 0" if "Retain" in call else "C.byref(made), 0, 0"
    waiting = worker.start(f"""
ok(cuda.cuInit(0)); made = C.c_void_p()
say(code=cuda.{call}({arguments}))
""")

    until(waits(worker, CONTEXT))
    neighbour.free()

    assert result(waiting)["code"] == 0


@pytest.mark.parametrize(("policy", "code"), [("deny", 2), ("spill", 0)])
def test_a_changed_policy_ends_a_wait(card, policy, code):
    Neighbour(card)
    worker = tenant(card, "wait")
    waiting = worker.start(ONE.format("plain"))

    until(waits(worker))
    row = DeviceLimit(worker.rows[0].uuid, 4 * GIB, 1.0, CONTEXT, spill_bytes=GIB)
    worker.region.write([row], full=FullPolicy(policy, LONG))

    assert result(waiting)["code"] == code


def test_a_shortened_deadline_ends_a_wait(card):
    Neighbour(card)
    worker = tenant(card, "wait")
    waiting = worker.start(ONE.format("plain"))

    until(waits(worker))
    worker.region.write(worker.rows, full=FullPolicy("wait", 0.0))

    assert result(waiting)["code"] == 2


def test_memory_that_a_sibling_frees_is_had_by_who_waits(card):
    worker = tenant(card, "wait")
    holder = worker.start("""
init(); code, address = alloc(3 << 30); ok(code); say(ready=1)
sys.stdin.readline(); ok(free(address)); say(ready=0); sys.stdin.read()
""")
    holder.stdout.readline()
    row = DeviceLimit(worker.rows[0].uuid, 8 * GIB, 1.0, CONTEXT)
    worker.region.write([row], full=FullPolicy("wait", LONG))
    waiting = worker.start(ONE.format("plain"))

    until(waits(worker))
    holder.stdin.write("go\n")
    holder.stdin.flush()

    assert result(waiting)["code"] == 0


@pytest.mark.parametrize("policy", ["wait", "evict"])
def test_nothing_waits_while_a_stream_is_captured(card, policy):
    Neighbour(card)
    worker = tenant(card, policy)

    seen = worker.run("""
init()
captured, graph = stream(), C.c_void_p()
ok(cuda.cuStreamBeginCapture_v2(captured, 2))
code, _ = alloc(1 << 30)
ok(cuda.cuStreamEndCapture(captured, C.byref(graph)))
say(code=code)
""")

    assert seen["code"] == 2
    assert worker.region.use(0).full_waits == 0


@pytest.mark.parametrize("kind", REFUSED)
def test_spill_takes_what_has_an_address_to_host_memory(card, kind):
    Neighbour(card)
    worker = tenant(card, "spill", spill=2 * GIB)
    holder = worker.start(ONE.format(kind) + "\nsys.stdin.read()")

    seen = json.loads(holder.stdout.readline())
    use = worker.region.use(0)
    holder.communicate()

    if kind not in SPILLING:
        assert seen == {"code": 2, "used": CONTEXT, "ledger": CONTEXT}
        assert use.full_denied == 1
        return
    assert seen["code"] == 0
    assert seen["used"] == CONTEXT
    # Host memory instead of the card's: the tenant's cap counts it all the same.
    assert seen["ledger"] == CONTEXT + use.spilled_bytes
    assert use.spilled_bytes == use.spilled_total_bytes >= GIB
    assert (use.full_denied, use.full_waits) == (0, 0)
    assert worker.region.use(0).spilled_bytes == 0


def test_spilled_memory_ends_at_its_own_cap_and_at_the_worker_s(card):
    Neighbour(card)
    worker = tenant(card, "spill", spill=GIB, vram=3 * GIB)

    seen = worker.run("""
init()
codes = [alloc(512 * MIB)[0] for _ in range(3)]
say(codes=codes, left=info()[0])
""")

    assert seen["codes"] == [0, 0, 2]
    assert seen["left"] == 2 * GIB - CONTEXT
    use = worker.region.use(0)
    assert (use.denied, use.full_denied) == (0, 1)
    row = DeviceLimit(worker.rows[0].uuid, 2 * GIB, 1.0, CONTEXT, spill_bytes=8 * GIB)
    worker.region.write([row], full=FullPolicy("spill"))
    assert worker.run("init(); say(codes=[alloc(512 * MIB)[0] for _ in range(4)])")["codes"] == [
        0, 0, 0, 2,
    ]  # fmt: skip
    assert worker.region.use(0).denied == 1


@pytest.mark.parametrize("free", ["cuMemFree_v2(address)", "cuMemFreeAsync(address, None)"])
@pytest.mark.parametrize(
    "allocate", ["cuMemAlloc_v2(where, size)", "cuMemAllocAsync(where, size, None)"]
)
def test_kernels_compute_on_spilled_memory_slower_and_frees_give_it_back(card, allocate, free):
    Neighbour(card)
    worker = tenant(card, "spill", spill=GIB)

    seen = worker.run(f"""
init()
fill, cells = function("fill"), 1 << 20
def busy(address):
    before = truth()[2]
    ok(launch(fill, address, C.c_uint32(7), C.c_uint64(cells)))
    ok(cuda.cuCtxSynchronize())
    return truth()[2] - before
near = busy(C.c_uint64(alloc(4 * cells)[1]))
address, size = C.c_uint64(), C.c_size_t(1 << 30)
where = C.byref(address)
ok(cuda.{allocate})
far = busy(address)
back = (C.c_uint32 * 2)()
ok(cuda.cuMemcpyDtoH_v2(back, C.c_uint64(address.value + 4 * cells - 8), C.c_size_t(8)))
ledger = info()[1] - info()[0]
ok(cuda.{free})
say(near=near, far=far, back=list(back), freed=ledger - (info()[1] - info()[0]))
""")

    assert seen["back"] == [7, 7]
    assert seen["far"] > 10 * seen["near"]
    assert seen["freed"] == GIB
    assert worker.region.use(0).spilled_total_bytes == GIB


def test_spilled_physical_memory_is_mapped_and_given_back_with_the_last_reference(card):
    Neighbour(card)
    worker = tenant(card, "spill", spill=GIB)

    seen = worker.run("""
init()
code, handle = create_physical(1 << 30)
ok(code)
size, address = C.c_size_t(1 << 30), C.c_uint64()
ok(cuda.cuMemAddressReserve(C.byref(address), size, C.c_size_t(0), C.c_uint64(0), C.c_ulonglong(0)))
ok(cuda.cuMemMap(address, size, C.c_size_t(0), handle, C.c_ulonglong(0)))
ok(cuda.cuMemRelease(handle))
held = info()[1] - info()[0]
ok(cuda.cuMemUnmap(address, size))
say(held=held, left=info()[1] - info()[0])
""")

    assert seen == {"held": CONTEXT + GIB, "left": CONTEXT}


def test_own_pools_are_trimmed_before_anything_else(card):
    Neighbour(card, 2 * GIB)
    worker = tenant(card, "deny")

    seen = worker.run("""
init()
pool, address, keep = new_pool(), C.c_uint64(), C.c_uint64(1 << 40)
ok(cuda.cuMemPoolSetAttribute(pool, 4, C.byref(keep)))
ok(cuda.cuMemAllocFromPoolAsync(C.byref(address), C.c_size_t(1 << 30), pool, None))
ok(cuda.cuMemFreeAsync(address, None))
say(code=alloc(1 << 30)[0])
""")

    assert seen["code"] == 0
    assert worker.region.use(0).full_denied == 0


def test_what_a_killed_process_waited_for_and_spilled_is_forgotten(card):
    Neighbour(card)
    worker = tenant(card, "spill", spill=GIB)
    spilled = worker.start(ONE.format("plain") + "\nsys.stdin.read()")
    spilled.stdout.readline()
    worker.region.write(worker.rows, full=FullPolicy("evict", LONG))
    waiting = worker.start(ONE.format("plain"))
    until(waits(worker))
    for process in (spilled, waiting):
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert worker.region.wanted(0) == 0

    worker.region.write(worker.rows, full=FullPolicy("wait", 0.01))
    worker.run(ONE.format("plain"))

    use = worker.region.use(0)
    assert (use.wanted_bytes, use.spilled_bytes, use.used_bytes) == (0, 0, 0)
    assert worker.region.faults().recovered == 2


def test_waiting_threads_add_up_what_they_want(card):
    neighbour = Neighbour(card)
    worker = tenant(card, "wait")
    waiting = worker.start("""
init()
context = C.c_void_p(); ok(cuda.cuCtxGetCurrent(C.byref(context)))
codes = []
def one():
    ok(cuda.cuCtxSetCurrent(context)); codes.append(alloc(512 * MIB)[0])
threads = [threading.Thread(target=one) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
say(codes=codes)
""")

    until(waits(worker, 4 * 512 * MIB))
    assert worker.region.wanted(0) == 4 * 512 * MIB
    neighbour.free()

    assert result(waiting)["codes"] == [0] * 4
