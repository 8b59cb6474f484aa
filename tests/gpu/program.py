"""What a program does on a device, real or simulated. Runs in child processes; the hand on the driver is `native.actor`.

The kernel does a fixed amount of work instead of watching a clock: a clock goes on while another process has the
device, work does not. How long it takes depends on the device, so shares are ratios to the rate without a limit.
"""

import collections

import pynvml
from native.actor import *  # noqa: F403 - a program is a few lines that use most of it
from native.actor import C, alloc, cuda, launch, ok, say, sys, time

KERNEL = b"""
.version 6.0
.target sm_50
.address_size 64
.global .u64 sink;
.visible .entry spin_us(.param .u64 length_us)
{
.reg .pred %p<3>;
.reg .b64 %rd<4>;
ld.param.u64 %rd1, [length_us];
mul.lo.u64 %rd1, %rd1, 60;
mov.u64 %rd2, 0;
mov.u64 %rd3, %rd1;
again:
add.u64 %rd2, %rd2, 1;
mad.lo.u64 %rd3, %rd3, 6364136223846793005, %rd2;
setp.lt.u64 %p1, %rd2, %rd1;
@%p1 bra again;
setp.eq.u64 %p2, %rd3, 0;
@%p2 st.global.u64 [sink], %rd3;
ret;
}
"""
"""60 turns of about 25 cycles are about a microsecond at 1.5 GHz. The store, which hardly ever happens, keeps the
compiler from leaving the turns out. The simulated driver knows the kernel by its name."""
BATCH_US = 10_000
IN_FLIGHT = 4
BLOCKING, NO_TIMING = 1, 2
MULTIPROCESSORS = 16
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT of cuda.h."""


def now():
    """Seconds; of the simulated machine's clock where there is one."""
    if not hasattr(cuda, "tfSimNow"):
        return time.monotonic()
    cuda.tfSimNow.restype = C.c_uint64
    return cuda.tfSimNow() / 1e9


def pause(seconds):
    """Do nothing, in the same clock."""
    if hasattr(cuda, "tfSimWaitUntil"):
        cuda.tfSimWaitUntil(C.c_uint64(int((now() + seconds) * 1e9)))
    else:
        time.sleep(seconds)


def spin():
    """The kernel that takes about as many microseconds as it is told."""
    module, kernel = C.c_void_p(), C.c_void_p()
    ok(cuda.cuModuleLoadData(C.byref(module), KERNEL))
    ok(cuda.cuModuleGetFunction(C.byref(kernel), module, b"spin_us"))
    return kernel


def work(kernel_us, seconds, kernel, settle_s=1.0):
    """Do batch after batch; the kernels per second that were done after the first seconds.

    While one batch is waited for, the next ones are already in the queue: the device never waits for the program.
    """
    batch, length = max(1, BATCH_US // kernel_us), C.c_uint64(kernel_us)
    ends = collections.deque(C.c_void_p() for _ in range(IN_FLIGHT))
    for end in ends:
        ok(cuda.cuEventCreate(C.byref(end), BLOCKING | NO_TIMING))
    start, counted_from, done = now(), 0.0, 0
    while (at := now()) - start < seconds:
        if not counted_from and at - start >= settle_s:
            counted_from, done = at, 0
        for _ in range(batch):
            ok(launch(kernel, length))
        ok(cuda.cuEventRecord(ends[0], None))
        ends.rotate(-1)
        ok(
            cuda.cuEventSynchronize(ends[0])
        )  # of the oldest batch; one that was never recorded is over at once
        done += batch
    say(rate=done / (now() - counted_from))
    ok(cuda.cuCtxSynchronize())


def hold(size):
    """Allocate, say so, and keep it until a line comes."""
    say(code=alloc(size)[0])
    sys.stdin.readline()


def attribute(number):
    """One attribute of device 0."""
    value = C.c_int()
    ok(cuda.cuDeviceGetAttribute(C.byref(value), number, 0))
    return value.value


def total():
    """The memory of device 0, as the driver tells it."""
    size = C.c_size_t()
    ok(cuda.cuDeviceTotalMem_v2(C.byref(size), 0))
    return size.value


def management(uuid):
    """The two versions of a device's memory info in NVML: total, free, used."""
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    versions = (None, pynvml.nvmlMemory_v2)
    rows = [pynvml.nvmlDeviceGetMemoryInfo(device, version) for version in versions]
    return [(row.total, row.free, row.used) for row in rows]
