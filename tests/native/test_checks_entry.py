"""Ways into the driver: each leads to the limiter, and what is asked of the driver is answered as without it."""

import csv
import subprocess

import pytest
from native.machine import GIB, ROOT, compile_program, result

with (ROOT / "native" / "data" / "driver_calls.csv").open() as file:
    NAMES = [row["base"] for row in csv.DictReader(file)]
NAMES += ["cuNoSuchCall", "tfSimTruth", "cuGetProcAddress", ""]
LIMITER = "libtensorfusion_limiter.so"
WAYS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int cuMemAlloc_v2(unsigned long long *, unsigned long);
static void tell(const char *way, void *function) {
  Dl_info info;
  const char *file = function && dladdr(function, &info) ? strrchr(info.dli_fname, '/') + 1 : "nothing";
  printf("%s\"%s\": \"%s\"", way[0] == 'd' && way[1] == 'i' ? "{" : ", ", way, file);
}
int main(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  tell("direct link", (void *)cuMemAlloc_v2);
  tell("dlsym", dlsym(library, "cuMemAlloc_v2"));
  tell("default", dlsym(RTLD_DEFAULT, "cuMemAlloc_v2"));
  tell("next", dlsym(RTLD_NEXT, "cuMemAlloc_v2"));
  printf("}\n");
  return 0;
}
"""


def test_every_way_of_linking_leads_to_the_limiter(machine, build, tmp_path):
    program = compile_program(build, tmp_path, WAYS)

    seen = result(machine.start([program], **machine.worker(vram=GIB).environment()))

    assert seen == dict.fromkeys(["direct link", "dlsym", "default", "next"], LIMITER)


VERSIONED = r"""
int cuMemAlloc_v2(unsigned long long *address, unsigned long bytes) { return !address || !bytes; }
int nothing_of_the_driver(void) { return 0; }
"""
ASKS_VERSIONS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int cuInit(unsigned);
int main(int count, char **arguments) {
  static const char *const asked[][2] = {
      {"cuMemAlloc_v2", "DRIVER_1"}, {"cuMemAlloc_v2", "DRIVER_2"}, {"nothing_of_the_driver", "DRIVER_1"}, {"no", "DRIVER_1"}};
  void *library = dlopen(arguments[count - 1], RTLD_NOW);
  if (!library || cuInit(0)) return 1;
  for (int i = 0; i < 4; i++) {
    Dl_info info;
    void *found = dlvsym(library, asked[i][0], asked[i][1]);
    printf("%s\n", found && dladdr(found, &info) ? strrchr(info.dli_fname, '/') + 1 : "nothing");
  }
  return 0;
}
"""


def test_a_look_up_with_a_version_leads_to_the_limiter_where_there_is_that_version(
    machine, build, tmp_path
):
    """The driver's names have no versions, so a library of the test has them."""
    program = compile_program(build, tmp_path, ASKS_VERSIONS)
    source, script, library = (tmp_path / f"versioned{end}" for end in (".c", ".map", ".so"))
    source.write_text(VERSIONED)
    script.write_text("DRIVER_1 { global: *; };\nDRIVER_2 { } DRIVER_1;\n")
    command = ["cc", "-shared", "-fPIC", f"-Wl,--version-script={script}", "-o", library, source]
    subprocess.run(command, check=True, capture_output=True, text=True)

    def seen(**environment):
        out, err = machine.start([program, library], **environment).communicate(timeout=30)
        return out.splitlines(), err

    assert seen() == ([library.name, "nothing", library.name, "nothing"], "")
    hooked = seen(**machine.worker(vram=GIB).environment())
    assert hooked == ([LIMITER, "nothing", library.name, "nothing"], "")


@pytest.mark.parametrize("call", ["cuGetProcAddress", "cuGetProcAddress_v2"])
def test_a_look_up_is_answered_as_by_the_driver(machine, call):
    """Found or not, and with which code and status, for all names, versions and stream flags."""
    code = f"""
rows = [(name, version, flags, *proc(name, version, flags, {call!r}))
        for name in {NAMES!r} for version in (11030, 11080, 12000, 12040, 13000) for flags in (0, 1, 2)]
say(rows=[[name, version, flags, bool(address), code, status]
          for name, version, flags, address, code, status in rows])
"""
    machine.configure(cuda_version=13000)
    bare = result(machine.python(code))["rows"]

    assert machine.worker(vram=GIB).run(code)["rows"] == bare
    assert {row[3] for row in bare} == {True, False}
    assert len(bare) > 440


def test_without_limits_the_management_library_answers_as_the_driver(machine):
    code = """
nvml, handle = C.CDLL("libnvidia-ml.so.1"), C.c_void_p()
init(); alloc(64 << 20)
ok(nvml.nvmlInit_v2()); ok(nvml.nvmlDeviceGetHandleByIndex_v2(0, C.byref(handle)))
memory, newer, count = (C.c_ulonglong * 3)(), (C.c_ulonglong * 5)(), C.c_uint(8)
newer[0] = 40 | 2 << 24  # size and version, as nvml.h packs them
codes = [nvml.nvmlDeviceGetMemoryInfo(handle, memory), nvml.nvmlDeviceGetMemoryInfo_v2(handle, newer),
         nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, C.byref(count), (C.c_ubyte * 400)())]
say(codes=codes, memory=list(memory), newer=list(newer), count=count.value, info=info())
"""
    bare = result(machine.python(code))
    preload = {"LD_PRELOAD": str(machine.build / LIMITER)}

    assert result(machine.python(code, **preload)) == bare
    assert bare["codes"] == [0, 0, 0]


CHILDREN = {
    "fork": """
pid = os.fork()
if not pid: os._exit(0 if alloc(MIB)[0] == bare else 9)
""",
    "fork and exec": """
pid = os.fork()
if not pid: os.execv(sys.executable, [sys.executable, "-c", "from native.actor import *\\n" + again])
""",
    "spawn": """
pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "from native.actor import *\\n" + again], os.environ)
""",
}


@pytest.mark.parametrize("way", CHILDREN)
def test_children_of_a_program_that_used_the_driver_end(machine, way):
    """A forked child cannot use the driver, with the limiter as without; one of its own attaches as itself."""
    machine.mode = "wall"
    bare = result(machine.python("""
init(); pid = os.fork()
if not pid: print(alloc(MIB)[0], flush=True); os._exit(0)
os.waitpid(pid, 0)
"""))  # fmt: skip
    worker = machine.worker(vram=2 * GIB)
    seen = worker.run(f"""
bare, again = {bare}, "init(); sys.exit(9 * (alloc(1 << 30)[0] != 2))"
init(); ok(alloc(1 << 30)[0])
{CHILDREN[way]}
say(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), left=info()[0])
""")

    assert seen["code"] == 0
    assert worker.region.use(0).used_bytes == 0


def test_threads_and_signals_disturb_nothing(machine):
    machine.mode = "wall"
    seen = machine.worker(vram=GIB, compute=0.9).run("""
init(); kernel, context, caught = function("spin_10us"), C.c_void_p(), []
ok(cuda.cuCtxGetCurrent(C.byref(context)))
signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def body():
    ok(cuda.cuCtxSetCurrent(context))
    for _ in range(5): code, address = alloc(4096); ok(code); ok(launch(kernel)); ok(free(address))
threads = [threading.Thread(target=body) for _ in range(512)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ok(cuda.cuCtxSynchronize()); signal.setitimer(signal.ITIMER_REAL, 0)
say(used=info()[1] - info()[0] - (300 << 20), caught=len(caught) > 0)
""")

    assert seen == {"used": 0, "caught": True}
