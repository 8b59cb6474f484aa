"""What a tenant's process does in tests: a thin hand on the driver's functions. Runs in the child processes."""

import ctypes as C  # noqa: N812 - tests write many C types in one line
import json
import os
import signal
import socket
import sys
import threading
import time

MIB = 1 << 20
OUT_OF_MEMORY = 2
PR_SET_PDEATHSIG = 1


def end_with_parent():
    """Die with the process that started this one, however it dies."""
    C.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


end_with_parent()
os.register_at_fork(after_in_child=end_with_parent)
cuda = C.CDLL("libcuda.so.1")


def say(**values):
    print(json.dumps(values), flush=True)


def ok(code):
    assert code == 0, f"driver error {code}"


def init(device=0):
    ok(cuda.cuInit(0))
    context = C.c_void_p()
    code = cuda.cuDevicePrimaryCtxRetain(C.byref(context), device)
    if code == 0:
        ok(cuda.cuCtxSetCurrent(context))
    return code


def function(name):
    module, found = C.c_void_p(), C.c_void_p()
    ok(cuda.cuModuleLoadData(C.byref(module), b"image"))
    ok(cuda.cuModuleGetFunction(C.byref(found), module, name.encode()))
    return found


def launch(kernel, *values, stream=None, grid=108, call=None):
    pointers = (C.c_void_p * max(1, len(values)))(
        *(C.cast(C.pointer(v), C.c_void_p) for v in values)
    )
    call = call or cuda.cuLaunchKernel
    return call(kernel, grid, 1, 1, 128, 1, 1, 0, stream, pointers, None)


def alloc(size):
    address = C.c_uint64()
    return cuda.cuMemAlloc_v2(C.byref(address), C.c_size_t(size)), address.value


def free(address):
    return cuda.cuMemFree_v2(C.c_uint64(address))


def info():
    left, total = C.c_size_t(), C.c_size_t()
    ok(cuda.cuMemGetInfo_v2(C.byref(left), C.byref(total)))
    return left.value, total.value


def truth(device=0):
    """Own bytes, all bytes, own busy ns, all busy ns, as the simulator knows them."""
    values = (C.c_uint64 * 4)()
    pointers = [C.byref(values, 8 * i) for i in range(4)]
    assert cuda.tfSimTruth(device, *pointers) == 0
    return list(values)


def stream():
    made = C.c_void_p()
    ok(cuda.cuStreamCreate(C.byref(made), 1))
    return made


class Array(C.Structure):
    _fields_ = (
        ("width", C.c_size_t), ("height", C.c_size_t), ("depth", C.c_size_t),
        ("format", C.c_int), ("channels", C.c_uint), ("flags", C.c_uint),
    )  # fmt: skip


class Array2D(C.Structure):
    _fields_ = (
        ("width", C.c_size_t), ("height", C.c_size_t), ("format", C.c_int), ("channels", C.c_uint),
    )  # fmt: skip


class Property(C.Structure):
    _fields_ = (
        ("type", C.c_int), ("handles", C.c_int), ("location", C.c_int), ("id", C.c_int),
        ("meta", C.c_void_p), ("flags", C.c_ubyte * 8),
    )  # fmt: skip


class PoolProperty(C.Structure):
    _fields_ = (
        ("type", C.c_int), ("handles", C.c_int), ("location", C.c_int), ("id", C.c_int),
        ("security", C.c_void_p), ("rest", C.c_ubyte * 64),
    )  # fmt: skip


class AllocNode(C.Structure):
    _fields_ = (
        ("pool", PoolProperty), ("access", C.c_void_p), ("count", C.c_size_t),
        ("bytes", C.c_size_t), ("address", C.c_uint64),
    )  # fmt: skip


def create_physical(size, device=0, handles=0):
    handle = C.c_uint64()
    wanted = Property(type=1, handles=handles, location=1, id=device)
    return cuda.cuMemCreate(
        C.byref(handle), C.c_size_t(size), C.byref(wanted), C.c_ulonglong(0)
    ), handle


def map_physical(handle, size):
    address, access = C.c_uint64(), (C.c_int * 3)(1, 0, 3)
    nothing = C.c_size_t(0)
    ok(
        cuda.cuMemAddressReserve(
            C.byref(address), C.c_size_t(size), nothing, C.c_uint64(0), nothing
        )
    )
    ok(cuda.cuMemMap(address, C.c_size_t(size), nothing, handle, C.c_ulonglong(0)))
    ok(cuda.cuMemSetAccess(address, C.c_size_t(size), C.byref(access), C.c_size_t(1)))
    return address.value


def unmap(address, size):
    ok(cuda.cuMemUnmap(C.c_uint64(address), C.c_size_t(size)))


class Handle(C.Structure):
    _fields_ = (("bytes", C.c_ubyte * 64),)


def handle_of(address):
    """The 64 bytes by which another process opens memory."""
    handle = Handle()
    ok(cuda.cuIpcGetMemHandle(C.byref(handle), C.c_uint64(address)))
    return bytes(handle)


def open_handle(text, call="cuIpcOpenMemHandle_v2"):
    address = C.c_uint64()
    code = getattr(cuda, call)(C.byref(address), Handle.from_buffer_copy(bytes.fromhex(text)), 1)
    return code, address.value


def close_handle(address):
    return cuda.cuIpcCloseMemHandle(C.c_uint64(address))


def export(handle):
    file = C.c_int()
    ok(cuda.cuMemExportToShareableHandle(C.byref(file), handle, 1, C.c_ulonglong(0)))
    return file.value


def give(path, file):
    """Pass a descriptor to who comes for it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with server.accept()[0] as taker:
            socket.send_fds(taker, [b"-"], [file])
    os.close(file)


def take(path):
    """Import the descriptor that another process gives."""
    handle, until = C.c_uint64(), time.monotonic() + 30
    with socket.socket(socket.AF_UNIX) as giver:
        while giver.connect_ex(path):
            assert time.monotonic() < until
            time.sleep(0.01)
        (file,) = socket.recv_fds(giver, 1, 1)[1]
    ok(cuda.cuMemImportFromShareableHandle(C.byref(handle), C.c_void_p(file), 1))
    os.close(file)
    return handle


def write_word(address, value):
    ok(cuda.cuMemsetD32_v2(C.c_uint64(address), value, C.c_size_t(1)))


def read_word(address):
    word = C.c_uint()
    ok(cuda.cuMemcpyDtoH_v2(C.byref(word), C.c_uint64(address), C.c_size_t(4)))
    return word.value


def new_pool(device=0):
    pool = C.c_void_p()
    ok(cuda.cuMemPoolCreate(C.byref(pool), C.byref(PoolProperty(type=1, location=1, id=device))))
    return pool


def graph_with_memory(size):
    graph, node, ready = C.c_void_p(), C.c_void_p(), C.c_void_p()
    ok(cuda.cuGraphCreate(C.byref(graph), 0))
    wanted = AllocNode(pool=PoolProperty(type=1, location=1), bytes=size)
    ok(cuda.cuGraphAddMemAllocNode(C.byref(node), graph, None, C.c_size_t(0), C.byref(wanted)))
    return cuda.cuGraphInstantiateWithFlags(C.byref(ready), graph, C.c_ulonglong(0)), ready


def allocate(kind, size, made=[]):  # noqa: B006
    """Allocate about ``size`` bytes of a class; the driver's code."""
    address, pitch = C.c_uint64(), C.c_size_t()
    bytes_, where, array = C.c_size_t(size), C.byref(address), C.c_void_p()
    if kind == "plain":
        return cuda.cuMemAlloc_v2(where, bytes_)
    if kind == "managed":
        return cuda.cuMemAllocManaged(where, bytes_, 1)
    if kind == "pitch":
        return cuda.cuMemAllocPitch_v2(
            where, C.byref(pitch), C.c_size_t(MIB - 100), C.c_size_t(size // MIB), 4
        )
    if kind == "async":
        return cuda.cuMemAllocAsync(where, bytes_, None)
    if kind == "pool":
        made[:] = made or [new_pool()]
        return cuda.cuMemAllocFromPoolAsync(where, bytes_, made[0], None)
    if kind == "array":
        shape = Array2D(width=size // 4096, height=1024, format=0x20, channels=1)
        return cuda.cuArrayCreate_v2(C.byref(array), C.byref(shape))
    if kind == "array3d":
        shape = Array(size // (4 * 64 * 64), 64, 64, 0x20, 1, 0)
        return cuda.cuArray3DCreate_v2(C.byref(array), C.byref(shape))
    if kind == "mipmap":
        shape = Array(size // 4096, 1024, 0, 0x20, 1, 0)
        return cuda.cuMipmappedArrayCreate(C.byref(array), C.byref(shape), 4)
    if kind == "physical":
        return create_physical(size)[0]
    if kind == "graph":
        return graph_with_memory(size)[0]
    raise ValueError(kind)


def proc(name, version, flags=0, call="cuGetProcAddress_v2"):
    """Look a function up as the CUDA runtime does: address, status code, symbol status."""
    address, status = C.c_void_p(), C.c_int(-1)
    arguments = [name.encode(), C.byref(address), version, C.c_uint64(flags)]
    if call.endswith("_v2"):
        arguments.append(C.byref(status))
    code = getattr(cuda, call)(*arguments)
    return address.value, code, status.value


def library_of(address):
    """The file that an address belongs to."""
    for line in open("/proc/self/maps"):  # noqa: SIM115
        span, *_, path = line.split()
        low, high = (int(part, 16) for part in span.split("-"))
        if low <= address < high:
            return os.path.basename(path)
    return ""


def address_of(symbol):
    return C.cast(symbol, C.c_void_p).value


__all__ = [name for name in dir() if not name.startswith("_")] + [
    "C",
    "os",
    "sys",
    "threading",
    "time",
]
