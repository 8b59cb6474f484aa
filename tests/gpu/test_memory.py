"""Plain driver programs under a cap of memory, and what the driver and NVML tell them."""

import shutil
import subprocess

import pytest
from gpu.target import follow
from native.machine import GIB, MIB, lines

CLASSES = [
    "plain", "managed", "pitch", "async", "pool", "array", "array3d", "mipmap", "physical", "graph",
]  # fmt: skip
CAP = GIB
BLOCK = 64 * MIB


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_of_allocation_stops_at_the_cap(target, kind):
    seen = target.run(
        f"""
init(); codes = []
while len(codes) < 40 and (not codes or codes[-1] == 0): codes.append(allocate({kind!r}, {BLOCK}))
say(codes=codes, left=info()[0], total=info()[1])
""",
        target.tenant(vram_bytes=CAP),
    )

    assert set(seen["codes"][:-1]) == {0}
    assert seen["codes"][-1] == 2
    # A mipmapped array takes a third more than its first level; a pool keeps what it was given.
    assert seen["left"] < 2 * BLOCK
    assert seen["total"] == CAP


def test_the_device_gives_no_more_than_the_cap(target):
    program = target.program(
        f"""
init(); say(ready=1); sys.stdin.readline()
while alloc({BLOCK})[0] == 0: pass
say(full=1); sys.stdin.readline()
""",
        target.tenant(vram_bytes=CAP),
    )
    assert "ready" in program.stdout.readline()
    # What the driver takes for a context is not known on a real device, so it is left out.
    before = target.used_bytes()
    follow(program)
    assert "full" in program.stdout.readline()
    taken = target.used_bytes() - before
    follow(program)
    lines(program)

    assert CAP - 16 * BLOCK < taken <= CAP


def test_processes_of_a_tenant_share_the_cap(target):
    environment = target.tenant(vram_bytes=2 * CAP)
    first = target.program(f"init(); hold({CAP})", environment)
    assert '"code": 0' in first.stdout.readline()
    ask = "init(); say(codes=[alloc(size)[0] for size in {}])"

    assert target.run(ask.format([CAP + 2 * MIB, CAP // 4]), environment)["codes"] == [2, 0]
    follow(first)
    lines(first)
    assert target.run(ask.format([CAP + 2 * MIB]), environment)["codes"] == [0]


def test_a_cap_is_changed_while_the_program_runs(target):
    environment = target.tenant(vram_bytes=CAP)
    program = target.program(
        f"""
init(); ok(alloc({CAP // 2})[0]); say(ready=1)
for _ in range(2): sys.stdin.readline(); say(total=info()[1], code=alloc({CAP // 2})[0])
""",
        environment,
    )
    assert "ready" in program.stdout.readline()
    seen = []
    for cap in (CAP // 4, 2 * CAP):
        target.tenant(vram_bytes=cap)
        follow(program)
        seen.append(eval(program.stdout.readline()))
    program.communicate(timeout=30)

    assert seen == [{"total": CAP // 4, "code": 2}, {"total": 2 * CAP, "code": 0}]


def test_driver_and_management_library_tell_the_same(target):
    seen = target.run(
        f"""
init()
def look(): return dict(info=info(), total=total(), nvml=management({target.uuid!r}))
empty = look(); ok(alloc({CAP // 2})[0])
say(looks=[empty, look()])
pause(1)
say(looks=[empty, look()], again=info())
""",
        target.tenant(vram_bytes=CAP),
    )

    for look in seen["looks"]:
        left, of = look["info"]
        assert of == look["total"] == CAP
        assert look["nvml"] == [[CAP, left, CAP - left]] * 2
    empty, full = (look["info"][0] for look in seen["looks"])
    assert empty - full == CAP // 2
    assert seen["again"] == seen["looks"][1]["info"]


@pytest.mark.gpu
def test_nvidia_smi_shows_the_cap(open_real):
    target = open_real()
    if not shutil.which("nvidia-smi"):
        pytest.skip("nvidia-smi is not installed")
    environment = target.tenant(vram_bytes=CAP)
    holder = target.program(f"init(); hold({CAP // 2})", environment)
    assert '"code": 0' in holder.stdout.readline()

    query = ["nvidia-smi", "-i", target.uuid, "--format=csv,noheader,nounits"]
    smi = target.start([*query, "--query-gpu=memory.total,memory.used,memory.free"], environment)
    out, err = smi.communicate(timeout=30)
    follow(holder)
    lines(holder)

    assert smi.returncode == 0, err
    mib = [int(part) for part in out.split(",")]
    assert mib == [CAP // MIB, CAP // MIB // 2, CAP // MIB // 2]
    bare = subprocess.run([*query, "--query-gpu=memory.total"], capture_output=True, text=True)
    assert int(bare.stdout) > CAP // MIB
