"""PyTorch under limits of memory and compute, on a real GPU: the simulated driver computes nothing of its kernels."""

import importlib.util
import sys

import pytest
from native.machine import GIB, MIB, lines

pytestmark = pytest.mark.gpu
CAP = 2 * GIB
PROGRAM = """
import json, sys, time
import pynvml, torch
def say(**values): print(json.dumps(values), flush=True)
def nvml(uuid):
    pynvml.nvmlInit()
    row = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    return [row.free, row.total]
def fill(block):
    blocks, error = [], ""
    while not error and len(blocks) < 4096:
        try: blocks.append(torch.empty(block, dtype=torch.uint8, device="cuda"))
        except torch.cuda.OutOfMemoryError as refused: error = str(refused)
    return blocks, error
"""


@pytest.fixture
def target(open_real):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    target = open_real()
    [seen] = torch(target, "say(there=torch.cuda.is_available())", None)
    if not seen["there"]:
        pytest.skip("this PyTorch has no CUDA")
    return target


def torch(target, code, environment):
    """Run a program; the lines that it printed."""
    program = target.start([sys.executable, "-c", PROGRAM + code], environment)
    return lines(program, timeout=300)


@pytest.mark.timeout(600)
def test_out_of_memory_comes_at_the_cap(target):
    [seen] = torch(
        target,
        f"""
before = torch.cuda.mem_get_info()
blocks, error = fill({64 * MIB})
taken, full = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
del blocks; torch.cuda.empty_cache()
say(before=before, taken=taken, full=full, error=error, after=torch.cuda.mem_get_info())
""",
        target.tenant(vram_bytes=CAP),
    )

    assert "out of memory" in seen["error"]
    assert [seen[key][1] for key in ("before", "full", "after")] == [CAP] * 3
    assert CAP - 512 * MIB < seen["taken"] <= CAP
    assert seen["full"][0] < 64 * MIB
    assert seen["after"] == seen["before"]


@pytest.mark.timeout(600)
def test_memory_info_is_that_of_the_management_library(target):
    seen = torch(
        target,
        f"""
for size in (0, 100 << 20, 700 << 20):
    block = torch.empty(size, dtype=torch.uint8, device="cuda")
    say(torch=torch.cuda.mem_get_info(), nvml=nvml({target.uuid!r}),
        properties=torch.cuda.get_device_properties(0).total_memory)
""",
        target.tenant(vram_bytes=CAP),
    )

    assert len(seen) == 3
    for look in seen:
        assert look["torch"] == look["nvml"]
        assert look["properties"] == CAP
    assert seen[0]["torch"][0] - seen[2]["torch"][0] >= 700 * MIB


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cap", [30, 70])
@pytest.mark.parametrize("size", [256, 4096], ids=["launch-bound", "compute-bound"])
def test_multiplications_are_held_to_a_share(target, size, cap):
    """Against the rate without a limit, of the device's time that the multiplications take."""
    code = f"""
a = torch.randn({size}, {size}, device="cuda")
def multiply(seconds, count=0):
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        for _ in range(100 if {size} < 1000 else 8): b = a @ a; count += 1
        torch.cuda.synchronize()
    return count / (time.monotonic() - start)
multiply(2)
say(rate=multiply(8))
"""
    environment = target.tenant(compute_ratio=cap / 100)
    [bare], [held] = (torch(target, code, e) for e in (None, environment))
    share = 100 * held["rate"] / bare["rate"]

    if size >= 4096:
        assert share == pytest.approx(cap, abs=2)
    else:
        # Without a limit such a loop leaves the device idle for a part of the time, which nobody knows here.
        assert cap - 2 <= share <= 100
