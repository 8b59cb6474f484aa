"""Memory that one process of a worker makes a handle of and others open: charged once, while any of them has it."""

import json
import os
import random
import signal
import time

import pytest
from native.machine import CONTEXT, GIB, MIB, result

SIZE = 1 << 30
CAP = 4 * GIB

MAKE = {
    "handle": """
init(); code, address = alloc(1 << 30); ok(code); write_word(address, 7)
def let_go(): ok(free(address))
say(told=handle_of(address).hex())
""",
    "descriptor": """
init(); code, handle = create_physical(1 << 30, handles=1); ok(code)
address = map_physical(handle, 1 << 30); write_word(address, 7); file = export(handle)
def let_go(): ok(cuda.cuMemRelease(handle)); unmap(address, 1 << 30)
say(told="")
give(sys.argv[1], file)
""",
}
OPEN = {
    "handle": """
code, address = open_handle(told); ok(code)
def let_go(): ok(close_handle(address))
""",
    "descriptor": """
handle = take(sys.argv[1]); address = map_physical(handle, 1 << 30); ok(cuda.cuMemRelease(handle))
def let_go(): unmap(address, 1 << 30)
""",
}
SERVE = """
for line in sys.stdin: exec(line)
"""


def ask(process, code):
    process.stdin.write(code + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def share(machine, kind, owners, openers):
    """Two processes with the same memory: who allocated it and who opened it."""
    machine.mode = "wall"
    path = str(machine.folder / "passed")
    named = f"sys.argv = ['', {path!r}]\n"
    owner = owners.start(named + MAKE[kind] + SERVE)
    told = json.loads(owner.stdout.readline())["told"]
    opener = openers.start(
        f"{named}told = {told!r}\ninit()\n{OPEN[kind]}say(word=read_word(address))\n{SERVE}"
    )
    assert json.loads(opener.stdout.readline()) == {"word": 7}
    return owner, opener


def settled(worker):
    """Bytes of ledger and driver once both have looked for the dead; without the context of who asks."""
    assert result(worker.machine.python("init(); say(code=alloc(64 << 30)[0])")) == {"code": 2}
    seen = worker.run("""
init(); assert alloc(64 << 30)[0] == 2
say(ledger=info()[1] - info()[0] - (300 << 20), driver=truth()[1] - (300 << 20))
""")
    assert seen["ledger"] == seen["driver"]
    return seen["ledger"]


def leave(process, how):
    if how == "lets go":
        ask(process, "let_go(); say(done=1)")
    elif how == "ends":
        process.communicate(timeout=30)
    else:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("first", ["owner", "opener"])
@pytest.mark.parametrize("how", ["lets go", "ends", "is killed"])
def test_it_is_charged_once_until_the_last_has_left(machine, kind, first, how):
    worker = machine.worker(vram=CAP)
    owner, opener = share(machine, kind, worker, worker)
    one, other = (owner, opener) if first == "owner" else (opener, owner)
    context = CONTEXT if how == "lets go" else 0

    assert settled(worker) == SIZE + 2 * CONTEXT
    ask(opener, "write_word(address, 9); say(done=1)")
    assert ask(owner, "say(word=read_word(address))") == {"word": 9}
    leave(one, how)
    assert settled(worker) == SIZE + CONTEXT + context
    assert ask(other, "say(word=read_word(address))") == {"word": 9}
    leave(other, how)
    assert settled(worker) == 2 * context


@pytest.mark.parametrize("kind", MAKE)
def test_who_is_charged_is_the_one_that_allocated_it_and_then_who_is_left(machine, kind):
    worker = machine.worker(vram=CAP)
    owner, opener = share(machine, kind, worker, worker)

    def of_driver():
        return [ask(process, "say(own=truth()[0])")["own"] for process in (owner, opener)]

    assert of_driver() == [SIZE + CONTEXT, CONTEXT]
    leave(owner, "lets go")
    assert of_driver() == [CONTEXT, SIZE + CONTEXT]
    assert worker.region.use(0).used_bytes == SIZE + 2 * CONTEXT


@pytest.mark.parametrize("kind", MAKE)
def test_of_another_worker_it_is_not_charged_to_who_opens_it(machine, kind):
    worker, stranger = machine.worker(vram=CAP), machine.worker(vram=CAP)
    owner, opener = share(machine, kind, worker, stranger)

    assert worker.region.use(0).used_bytes == SIZE + CONTEXT
    assert stranger.region.use(0).used_bytes == CONTEXT
    leave(opener, "lets go")
    leave(owner, "lets go")
    assert worker.region.use(0).used_bytes == stranger.region.use(0).used_bytes == CONTEXT


def test_it_fills_the_cap_once(machine):
    worker = machine.worker(vram=CAP)
    _, opener = share(machine, "handle", worker, worker)

    left = CAP - SIZE - 2 * CONTEXT
    codes = ask(opener, f"say(fits=alloc({left})[0], more=alloc({MIB})[0])")

    assert codes == {"fits": 0, "more": 2}


@pytest.mark.parametrize("call", ["cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2"])
def test_opened_again_it_is_the_same_and_closed_as_often(machine, call):
    worker = machine.worker(vram=CAP)
    owner, opener = share(machine, "handle", worker, worker)
    again = ask(owner, "say(told=handle_of(address + 4096).hex())")["told"]

    assert ask(opener, f"say(same=open_handle({again!r}, {call!r}) == (0, address))")["same"]
    leave(owner, "lets go")
    leave(opener, "lets go")
    assert worker.region.use(0).used_bytes == SIZE + 2 * CONTEXT
    leave(opener, "lets go")
    assert worker.region.use(0).used_bytes == 2 * CONTEXT
    assert ask(opener, "say(code=close_handle(address))") == {"code": 1}


def test_with_its_context_goes_what_it_opened(machine):
    worker = machine.worker(vram=CAP)
    owner, opener = share(machine, "handle", worker, worker)
    leave(owner, "lets go")

    ask(opener, "ok(cuda.cuDevicePrimaryCtxReset_v2(0)); say(done=1)")

    assert settled(worker) == CONTEXT


def test_a_handle_of_the_own_process_or_of_freed_memory_gets_the_drivers_answer(machine):
    worker = machine.worker(vram=CAP)
    owner, opener = share(machine, "handle", worker, worker)
    own = "told = handle_of(address).hex(); say(told=told, code=open_handle(told)[0])"
    seen = ask(owner, own)
    leave(opener, "lets go")
    leave(owner, "lets go")

    assert seen["code"] == 201
    assert ask(opener, f"say(code=open_handle({seen['told']!r})[0])") == {"code": 1}
    assert worker.region.use(0).used_bytes == 2 * CONTEXT


def test_a_descriptor_passed_several_times_is_known_each_time(machine):
    worker = machine.worker(vram=CAP)
    owner, opener = share(machine, "descriptor", worker, worker)
    paths = [str(machine.folder / f"passed{i}") for i in range(3)]
    for path in paths:
        owner.stdin.write(f"give({path!r}, export(handle))\n")
        owner.stdin.flush()
        assert ask(opener, f"more = take({path!r}); say(done=1)") == {"done": 1}
    leave(owner, "lets go")
    leave(opener, "lets go")

    assert settled(worker) == SIZE + 2 * CONTEXT


def test_processes_that_are_killed_while_they_share_leave_a_ledger_that_adds_up(machine):
    machine.mode = "wall"
    worker, chance = machine.worker(vram=CAP), random.Random(3)
    for _ in range(8):
        owner = worker.start("""
init(); print("ready", flush=True)
while True:
    code, address = alloc(MIB); print(handle_of(address).hex(), flush=True); free(address)
""")
        opener = worker.start("""
init(); print("ready", flush=True)
for line in sys.stdin:
    code, address = open_handle(line)
    if not code: close_handle(address)
""")
        for process in (owner, opener):
            assert process.stdout.readline() == "ready\n"
        until = time.monotonic() + chance.uniform(0, 0.05)
        while time.monotonic() < until:
            opener.stdin.write(owner.stdout.readline())
            opener.stdin.flush()
        for process in (owner, opener):
            process.kill()
            process.wait(30)

    assert settled(worker) == 0
