"""Faults of ours: files that cannot be used, and an owner that has gone silent."""

import random
import struct
import time

import pytest
from native.machine import GIB, uuid

from tensorfusion_native import layout
from tensorfusion_native.region import DeviceLimit

REFUSED = 800
"""CUDA_ERROR_NOT_PERMITTED of cuda.h."""
DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "not ours": lambda path: change(path, 0, "<Q", 0),
    "older layout": lambda path: change(path, 8, "<I", layout.LAYOUT_VERSION - 1),
    "newer layout": lambda path: change(path, 8, "<I", layout.LAYOUT_VERSION + 1),
    "another declaration": lambda path: change(path, 12, "<I", layout.LAYOUT_HASH ^ 1),
}


def change(path, at, kind, value):
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, at, value)
    path.write_bytes(content)


def ask(worker, policy):
    """What a program gets that asks the driver, and what the limiter says on stderr."""
    code = "ok = lambda code: code\n" + "say(code=cuda.cuInit(0) or init() or alloc(2 << 30)[0])"
    process = worker.start(code, TENSORFUSION_FAULT_POLICY=policy)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, f"{process.returncode}: {err}"
    return out, [line for line in err.splitlines() if "limiter" in line]


@pytest.mark.parametrize("file", ["limits", "ledger"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_cannot_be_used_are_said_and_the_policy_decides(machine, file, damage):
    worker = machine.worker(vram=GIB)
    DAMAGE[damage](worker.region.folder / file)

    for policy, code, words in (
        ("open", 0, "limits are not enforced"),
        ("closed", REFUSED, "the GPU is refused"),
    ):
        out, said = ask(worker, policy)
        assert out == f'{{"code": {code}}}\n'
        assert len(said) == 1
        assert said[0].endswith(words)
        assert str(worker.region.folder) in said[0]


def test_random_headers_never_crash_a_program(machine):
    worker = machine.worker(vram=GIB)
    path = worker.region.folder / "limits"
    whole, chance = path.read_bytes(), random.Random(5)
    for _ in range(25):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 9)):
            content[chance.randrange(layout.LIMITS["devices"] + 80)] = chance.randrange(256)
        path.write_bytes(content)

        assert ask(worker, "closed")[0] in ('{"code": 800}\n', '{"code": 2}\n', '{"code": 0}\n')


def silence(region):
    """Let the owner's last sign of life be three seconds old."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 3_000_000_000
    struct.pack_into("<Q", region._limits, layout.LIMITS["heartbeat_ns"], before)


def test_a_silent_owner_with_an_open_policy_lets_work_through_and_is_counted(machine):
    worker = machine.worker(vram=GIB, compute=0.5, heartbeat=True)
    silence(worker.region)

    seen = worker.run("""
init(); kernel = function("spin_10us")
say(codes=[launch(kernel), alloc(64 << 20)[0]])
""")

    assert seen["codes"] == [0, 0]
    assert worker.region.faults().fail_open > 0
    assert worker.region.faults().fail_closed == 0


@pytest.mark.parametrize("compute", [0.5, 1.0])
def test_a_silent_owner_with_a_closed_policy_holds_work_back_until_it_speaks(machine, compute):
    machine.mode = "wall"
    worker = machine.worker(vram=GIB, compute=compute, heartbeat=True, closed=True)
    tenant = worker.start("""
init(); kernel = function("spin_10us"); say(ready=1); sys.stdin.readline()
say(code=alloc(64 << 20)[0])
say(code=launch(kernel))
say(code=alloc(64 << 20)[0])
""")
    worker.region.beat()
    assert "ready" in tenant.stdout.readline()
    silence(worker.region)
    tenant.stdin.write("\n")
    tenant.stdin.flush()
    refused = tenant.stdout.readline()
    time.sleep(0.3)
    held = tenant.poll() is None

    worker.region.beat()

    assert refused != '{"code": 0}\n'
    assert held
    assert [tenant.stdout.readline() for _ in range(2)] == ['{"code": 0}\n'] * 2
    assert worker.region.faults().fail_closed > 0
    assert worker.rows == [DeviceLimit(uuid(), GIB, compute, worker.rows[0].context_bytes)]
