"""Each known way around the limiter, shown to work on the simulated driver.

`docs/explanation/limiter.md` lists these ways and names the test of each. A test here that fails because a way no
longer works is good news: take it out of both.
"""

import re
import subprocess
import sys

import pytest
from native.machine import CONTEXT, GIB, MIB, ROOT, result, uuid

from tensorfusion_native.region import DeviceLimit, WorkerRegion

PAGE = ROOT / "docs" / "explanation" / "limiter.md"
CAP = 2 * GIB
OUT_OF_MEMORY = 2
TAKE = "init(); code = alloc(4 << 30)[0]; say(code=code, own=truth()[0])"
"""Asks for twice the cap."""

PROGRAM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#define CALL(name) ((int (*)())dlsym(library, name))
int take(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW), *context = 0;
  unsigned long long address = 0;
  if (!library) return -1;
  CALL("cuInit")(0);
  CALL("cuDevicePrimaryCtxRetain")(&context, 0);
  CALL("cuCtxSetCurrent")(context);
  return CALL("cuMemAlloc_v2")(&address, 4ull << 30);
}
int main(void) { printf("{\"code\": %d}\n", take()); return 0; }
"""
LOOK_UP = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
/* Which file the look-up of an allocation leads to. */
int main(void) {
  unsigned long low, high, found = (unsigned long)dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemAlloc_v2");
  char line[4096], path[4096];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, maps))
    if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %4095s", &low, &high, path) == 3 && low <= found && found < high)
      printf("{\"library\": \"%s\"}\n", strrchr(path, '/') + 1);
  return 0;
}
"""


@pytest.fixture
def worker(machine):
    return machine.worker(vram=CAP)


def compiled(folder, name, *options, program=PROGRAM):
    source = folder / "program.c"
    source.write_text(program)
    command = ["cc", "-w", "-O0", "-o", str(folder / name), str(source), *options, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(options)}: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / name)


def test_the_ordinary_way_is_held(machine, worker, tmp_path):
    """What the others are compared with: the same calls, and the same program linked as usual."""
    program = compiled(tmp_path, "ordinary")

    assert worker.run(TAKE) == {"code": OUT_OF_MEMORY, "own": CONTEXT}
    assert result(machine.start([program], **worker.environment())) == {"code": OUT_OF_MEMORY}


@pytest.mark.parametrize("missing", ["LD_PRELOAD", "TENSORFUSION_WORKER_DIR"])
def test_a_program_started_without_the_variables(machine, worker, missing):
    environment = {k: v for k, v in worker.environment().items() if k != missing}
    seen = result(machine.python(TAKE, **environment))

    assert seen == {"code": 0, "own": CONTEXT + 4 * GIB}


def test_a_program_that_takes_the_preload_away_and_executes(machine, worker):
    seen = worker.run(f"""
assert "LD_PRELOAD" in os.environ
del os.environ["LD_PRELOAD"]
os.execv({sys.executable!r}, [{sys.executable!r}, "-c", "from native.actor import *; {TAKE}"])
""")

    assert seen == {"code": 0, "own": CONTEXT + 4 * GIB}


def test_a_worker_folder_of_its_own(machine, worker, tmp_path):
    """The environment is the tenant's: it can name a folder whose limits it wrote itself."""
    own = WorkerRegion.create(tmp_path / "own", [DeviceLimit(uuid(), 0, 1.0, CONTEXT)])
    own.close()
    environment = worker.environment() | {"TENSORFUSION_WORKER_DIR": str(tmp_path / "own")}
    seen = result(machine.python(TAKE, **environment))

    assert seen == {"code": 0, "own": CONTEXT + 4 * GIB}


def test_a_statically_linked_program(machine, worker, tmp_path):
    """Only the look-up: the simulated driver does not run beside a static C library, which a real one may."""
    found = {}
    for link in ("-rdynamic", "-static"):
        program = compiled(tmp_path, f"look-up{link}", link, program=LOOK_UP)
        found[link] = result(machine.start([program], **worker.environment()))["library"]

    assert found["-rdynamic"] == "libtensorfusion_limiter.so"
    assert found["-static"].startswith("libcuda.so")


def test_a_second_namespace_of_the_loader(machine, worker, tmp_path):
    """A library opened by dlmopen gets a C library and a driver of its own, and no preloads."""
    library = compiled(tmp_path, "libhelper.so", "-shared", "-fPIC")
    seen = worker.run(f"""
libc = C.CDLL(None)
libc.dlmopen.restype = libc.dlsym.restype = C.c_void_p
libc.dlmopen.argtypes, libc.dlsym.argtypes = (C.c_long, C.c_char_p, C.c_int), (C.c_void_p, C.c_char_p)
handle = libc.dlmopen(-1, {library!r}.encode(), 2)
say(code=C.CFUNCTYPE(C.c_int)(libc.dlsym(handle, b"take"))())
""")

    assert seen == {"code": 0}


SYMBOL_TABLE = """
import struct

def read_symbol(name):
    rows = [line.split() for line in open("/proc/self/maps") if line.rstrip().endswith("libcuda.so.1")
            or "/simulated/libcuda.so" in line]
    base, path = min(int(row[0].split("-")[0], 16) for row in rows), rows[0][-1]
    data = open(path, "rb").read()
    start, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
    symbols = next(s for s in sections if s[1] == 11)
    strings = sections[symbols[6]][4]
    for at in range(symbols[4], symbols[4] + symbols[5], 24):
        where, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
        if data[strings + where:].split(b"\\0", 1)[0] == name.encode(): return base + value
"""


def test_own_reading_of_the_drivers_symbol_table(worker):
    seen = worker.run(f"""{SYMBOL_TABLE}
init()
found, address = read_symbol("cuMemAlloc_v2"), C.c_uint64()
call = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_size_t)(found)
say(hooked=library_of(address_of(cuda.cuMemAlloc_v2)), found=library_of(found),
    code=call(C.addressof(address), 4 << 30), own=truth()[0])
""")

    assert seen["hooked"] == "libtensorfusion_limiter.so"
    assert seen["found"].startswith("libcuda.so")
    assert (seen["code"], seen["own"]) == (0, CONTEXT + 4 * GIB)


LEDGER = """
import mmap, struct
from native import offsets
file = open(os.environ["TENSORFUSION_WORKER_DIR"] + "/ledger", "r+b")
ledger = mmap.mmap(file.fileno(), offsets.LEDGER_BYTES)
state, own = offsets.LEDGER["states"], offsets.LEDGER["processes"] + offsets.PROCESS["devices"]
"""


def test_altered_bytes_in_the_ledger(worker):
    seen = worker.run(f"""{LEDGER}
init()
codes = [alloc(1536 * MIB)[0], alloc(1536 * MIB)[0]]
struct.pack_into("<Q", ledger, state + offsets.DEVICE_STATE["used_bytes"], 0)
ledger[own:own + offsets.DEVICE_USE_BYTES] = bytes(offsets.DEVICE_USE_BYTES)
codes.append(alloc(1536 * MIB)[0])
say(codes=codes, own=truth()[0])
""")

    assert seen == {"codes": [0, OUT_OF_MEMORY, 0], "own": CONTEXT + 2 * 1536 * MIB}


def test_an_altered_debt_in_the_ledger(machine):
    """200 ms of kernels at 10 percent take two seconds, unless the debt is struck out before each."""
    taken = {}
    for forgive in (False, True):
        taken[forgive] = machine.worker(compute=0.1).run(f"""{LEDGER}
init()
cuda.tfSimNow.restype = C.c_uint64
kernel, length = function("spin_us"), C.c_uint64(10_000)
start = cuda.tfSimNow()
for _ in range(20):
    if {forgive}: struct.pack_into("<Q", ledger, state + offsets.DEVICE_STATE["ready_at_ns"], 0)
    ok(launch(kernel, length)); ok(cuda.cuCtxSynchronize())
say(seconds=(cuda.tfSimNow() - start) / 1e9)
""")["seconds"]

    assert taken[False] > 1.5
    assert taken[True] < 0.5


def test_limits_rewritten_by_the_folders_owner(machine):
    """Read-only only for another user: as the same user, the tenant is the owner."""
    seen = machine.worker(vram=CAP).run(f"""
from pathlib import Path
from tensorfusion_native.region import DeviceLimit, WorkerRegion
init()
codes = [alloc(4 << 30)[0]]
with WorkerRegion.open(Path(os.environ["TENSORFUSION_WORKER_DIR"])) as region:
    region.write([DeviceLimit({uuid()!r}, 0, 1.0, {CONTEXT})])
codes.append(alloc(4 << 30)[0])
say(codes=codes)
""")

    assert seen["codes"] == [OUT_OF_MEMORY, 0]


def test_internal_tables_come_from_the_driver(worker):
    """The simulated driver offers none, so what could be done with them is not shown: only that nobody is between."""
    seen = worker.run("""
table = C.c_void_p()
code = cuda.cuGetExportTable(C.byref(table), bytes(16))
say(library=library_of(address_of(cuda.cuGetExportTable)), code=code)
""")

    assert seen["library"].startswith("libcuda.so")
    assert seen["code"] == 500


def test_the_page_names_every_demonstration():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text().split("## Ways around it")[1]))
    here = {name for name in globals() if name.startswith("test_")}

    assert named == here - {
        "test_the_ordinary_way_is_held",
        "test_the_page_names_every_demonstration",
    }
