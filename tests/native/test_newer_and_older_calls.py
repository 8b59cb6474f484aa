"""Calls that few programs make: the generic graph node, capture into a graph, names that changed their meaning, and
launches from before CUDA 4.0."""

import pytest
from native.machine import CONTEXT, GIB

NODE = """
class Node(C.Structure):
    _fields_ = (("type", C.c_int), ("zero", C.c_int * 3), ("alloc", AllocNode), ("rest", C.c_ubyte * 256))

def node_with_memory(name, *edges):
    graph, node, ready = C.c_void_p(), C.c_void_p(), C.c_void_p()
    ok(cuda.cuGraphCreate(C.byref(graph), 0))
    wanted = Node(type=10, alloc=AllocNode(pool=PoolProperty(type=1, location=1), bytes=256 * MIB))
    ok(getattr(cuda, name)(C.byref(node), graph, None, *edges, C.c_size_t(0), C.byref(wanted)))
    return cuda.cuGraphInstantiateWithFlags(C.byref(ready), graph, C.c_ulonglong(0))
"""


@pytest.mark.parametrize("call", ['"cuGraphAddNode"', '"cuGraphAddNode_v2", None'])
def test_memory_of_a_generic_graph_node_stops_at_the_cap(machine, call):
    seen = machine.worker(vram=2 * GIB, compute=1.0).run(f"""{NODE}
init()
granted = 0
while granted < 16 and (code := node_with_memory({call})) == 0: granted += 1
say(granted=granted, code=code, own=truth()[0])
""")

    assert (seen["granted"], seen["code"]) == (6, 2)
    assert seen["own"] <= 2 * GIB
    assert seen["own"] == CONTEXT + 6 * (256 << 20)


def test_a_capture_into_a_graph_neither_waits_nor_is_charged(machine):
    seen = machine.worker(compute=0.05).run("""
init()
cuda.tfSimNow.restype = C.c_uint64
kernel, length, graph, out = function("spin_us"), C.c_uint64(1000), C.c_void_p(), C.c_void_p()
lane = stream()
ok(launch(kernel, length)); ok(cuda.cuCtxSynchronize())
start = cuda.tfSimNow()
ok(cuda.cuGraphCreate(C.byref(graph), 0))
ok(cuda.cuStreamBeginCaptureToGraph(lane, graph, None, None, C.c_size_t(0), 0))
for _ in range(2000): ok(launch(kernel, length, stream=lane))
ok(cuda.cuStreamEndCapture(lane, C.byref(out)))
say(captured=cuda.tfSimNow() - start, same=out.value == graph.value)
""")

    assert seen == {"captured": 0, "same": True}


@pytest.mark.parametrize(
    "call",
    ["cuLaunch(kernel)", "cuLaunchGrid(kernel, 4, 4)", "cuLaunchGridAsync(kernel, 4, 4, None)"],
)
def test_launches_from_before_cuda_4_are_charged(machine, call):
    seen = machine.worker(compute=0.1).run(f"""
init()
cuda.tfSimNow.restype = C.c_uint64
kernel = function("spin_1000us")
start = cuda.tfSimNow()
for _ in range(200): ok(cuda.{call})
ok(cuda.cuCtxSynchronize())
say(seconds=(cuda.tfSimNow() - start) / 1e9)
""")

    assert seen["seconds"] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("version", "symbol"),
    [(11000, "cuGraphInstantiate_v2"), (11080, "cuGraphInstantiate_v2"),
     (12000, "cuGraphInstantiateWithFlags"), (13000, "cuGraphInstantiateWithFlags")],
)  # fmt: skip
def test_a_name_that_changed_its_meaning_leads_to_the_hook_of_that_version(
    machine, version, symbol
):
    seen = (
        machine.configure(cuda_version=13000)
        .worker(vram=GIB)
        .run(f"""
init()
address, code, status = proc("cuGraphInstantiate", {version})
say(code=code, library=library_of(address), same=address == address_of(cuda.{symbol}))
""")
    )

    assert seen == {"code": 0, "library": "libtensorfusion_limiter.so", "same": True}
