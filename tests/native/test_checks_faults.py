"""Faults of ours: files that cannot be used, and an owner that has gone silent."""

import random
import struct
import subprocess
import time

import pytest
from native import offsets
from native.machine import GIB, compile_program, uuid

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


ASKS = r"""
#include <stdio.h>
int cuInit(unsigned), cuDevicePrimaryCtxRetain(void **, int), cuCtxSetCurrent(void *);
int cuMemAlloc_v2(unsigned long long *, unsigned long);
int main(void) {
  void *context;
  unsigned long long address;
  int code = cuInit(0);
  if (!code) code = cuDevicePrimaryCtxRetain(&context, 0);
  if (!code) code = cuCtxSetCurrent(context);
  if (!code) code = cuMemAlloc_v2(&address, 2ul << 30);
  printf("%d\n", code);
  return 0;
}
"""


@pytest.fixture(scope="module")
def asks(build, tmp_path_factory):
    """A small program that prints the driver's code for 2 GiB, quickly started."""
    return compile_program(build, tmp_path_factory.mktemp("asks"), ASKS)


def said_by(machine, command, policy, environment):
    process = machine.start(command, **environment, TENSORFUSION_FAULT_POLICY=policy)
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, f"{process.returncode}: {out} {err}"
    return int(out), [line for line in err.splitlines() if "limiter" in line]


HEADS = {"limits": offsets.LIMITS["devices"] + 80, "ledger": offsets.LEDGER["lock"]}
"""Bytes from the beginning that decide whether a file can be used; what a lock is made of is tried elsewhere."""


@pytest.mark.parametrize("file", HEADS)
def test_random_headers_never_crash_a_program(machine, asks, file):
    worker, chance = machine.worker(vram=GIB), random.Random(5)
    path, outcomes = worker.region.folder / file, set()
    whole = path.read_bytes()[: HEADS[file]]
    for number in range(100):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 9)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        with path.open("r+b") as opened:
            opened.write(content)
        policy = ("open", "closed")[number % 2]

        code, said = said_by(machine, [asks], policy, worker.environment())

        assert len(said) <= 1
        # Without a line the file was taken: the cap holds, or says something else now.
        assert code in ({"open": {0}, "closed": {REFUSED}}[policy] if said else {0, 2})
        outcomes.add((policy, code, len(said)))
    assert {("open", 0, 1), ("closed", REFUSED, 1)} <= outcomes


MOUNTS = {
    "read-only": "mount -o remount,ro {new}",
    "full": "! head -c 2m /dev/zero > {new}/rest 2> /dev/null",
}
REASONS = {"read-only": "Read-only file system", "full": "No space left on device"}


@pytest.mark.parametrize("kind", MOUNTS)
def test_a_file_system_that_takes_no_bytes_is_said_and_the_policy_decides(machine, asks, kind):
    """On a full one the ledger, of which little was ever written, has no room for the rest."""
    worker, new = machine.worker(vram=GIB), machine.folder / "mounted"
    new.mkdir()
    private = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f"mount -t tmpfs -o size=256k none {new}"
    tried = subprocess.run([*private, mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"mounting is not permitted: {tried.stderr.strip()}")
    folder = worker.region.folder
    script = f"{mount}\ncp --sparse=always {folder}/limits {folder}/ledger {new}\n"
    script += MOUNTS[kind].format(new=new) + '\nexec env "LD_PRELOAD=$LIMITER" "$0"'
    environment = worker.environment() | {"TENSORFUSION_WORKER_DIR": str(new)}
    environment["LIMITER"] = environment.pop("LD_PRELOAD")

    for policy, expected in (("open", 0), ("closed", REFUSED)):
        code, said = said_by(machine, [*private, script, asks], policy, environment)
        assert code == expected
        assert len(said) == 1
        assert REASONS[kind] in said[0]


def silence(region):
    """Let the owner's last sign of life be three seconds old."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 3_000_000_000
    region.beat(before)


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
