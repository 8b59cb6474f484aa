"""A program that plays a load profile on the CUDA driver, real or simulated, through ``ctypes``.

``python -m tensorfusion_simulated.program --load=sine,min=10%,max=90%,vram=2Gi``. Every visible
device gets the load. A line every few seconds says what it wanted, held and was refused.
"""

import argparse
import ctypes as c
import subprocess
import sys
import threading
from collections.abc import Sequence

import click

from tensorfusion.clock import SystemClock
from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.model.hardware import find_card
from tensorfusion.units import human_bytes, human_tflops
from tensorfusion_simulated.load import Profile, parse_profile

CLOCK = SystemClock()
PERIOD_SECONDS = 0.1
KERNEL_US = 1000
BLOCKS_PER_SM = 16
"""Of 128 threads each: they fill a multiprocessor of 2048."""
REPORT_SECONDS = 2.0
OUT_OF_MEMORY = 2
CHUNK_BYTES = 64 << 20
CONTEXT_BYTES = 300 << 20
"""What a context takes of the memory that a profile names."""
USUAL_GFLOPS = 100_000


class Driver:
    """The few calls of the driver that a load needs.

    Raises:
        BackendError: A call failed; its name and the driver's code.
    """

    def __init__(self, ordinal: int) -> None:
        self._cuda = c.CDLL("libcuda.so.1")
        device, context, module = c.c_int(), c.c_void_p(), c.c_void_p()
        self._function = c.c_void_p()
        self._check("cuDeviceGet", c.byref(device), ordinal)
        self._check("cuDevicePrimaryCtxRetain", c.byref(context), device)
        self._check("cuCtxSetCurrent", context)
        self._check("cuModuleLoadData", c.byref(module), b"spin_us")
        self._check("cuModuleGetFunction", c.byref(self._function), module, b"spin_us")
        name = c.create_string_buffer(96)
        self._check("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        sms = c.c_int()
        self._check("cuDeviceGetAttribute", c.byref(sms), 16, device)
        self._blocks = sms.value * BLOCKS_PER_SM
        self._length = c.c_uint64(KERNEL_US)
        self._parameters = (c.c_void_p * 1)(c.cast(c.pointer(self._length), c.c_void_p))

    def launch(self) -> None:
        """Start a kernel of `KERNEL_US` that fills the device."""
        self._check(
            "cuLaunchKernel", self._function, self._blocks, 1, 1, 128, 1, 1, 0, None,
            self._parameters, None,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait for everything that was started."""
        self._check("cuCtxSynchronize")

    def allocate(self, amount: int) -> int:
        """Allocate; 0 when there is no memory."""
        address = c.c_uint64()
        code = self._cuda.cuMemAlloc_v2(c.byref(address), c.c_size_t(amount))
        if code not in (0, OUT_OF_MEMORY):
            raise BackendError("CUDA", "cuMemAlloc", code=str(code))
        return 0 if code else address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._check("cuMemFree_v2", c.c_uint64(address))

    def _check(self, call: str, *arguments: object) -> None:
        code = getattr(self._cuda, call)(*arguments)
        if code:
            raise BackendError("CUDA", call, code=str(code))


def count_devices() -> int:
    """Initialise the driver and count the visible devices.

    Raises:
        BackendError: There is no driver, or it has no device.
    """
    try:
        cuda = c.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError("CUDA", str(error)) from error
    count = c.c_int()
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(c.byref(count))
    if code:
        raise BackendError("CUDA", "cuInit", code=str(code))
    return count.value


def rates(name: str) -> tuple[int, int]:
    """Tell the rate of a device by its name, and that of the card which it is, or of which it is a partition; GFLOP/s.

    Args:
        name: As the driver tells it; that of a partition is ``CARD MIG TEMPLATE``.
    """
    model, _, template = name.partition(" MIG ")
    try:
        card = find_card(model)
    except ConfigError:
        return USUAL_GFLOPS, USUAL_GFLOPS
    whole, geometry = card.compute_gflops, card.geometry
    kinds = geometry.kinds(whole, card.vram_bytes) if geometry is not None else ()
    return next((kind.gflops for kind in kinds if kind.template == template), whole), whole


class Player:
    """Plays a profile on one device.

    Args:
        gflops: Rate of the device.
        whole: Rate of the card, of which a profile's percentages are.
    """

    def __init__(self, driver: Driver, profile: Profile, gflops: int, whole: int) -> None:
        self._driver = driver
        self._profile = profile
        self._gflops = gflops
        self._whole = whole
        self._held: list[int] = []
        self._owed = 0.0
        self.refusals = 0

    def step(self, seconds: float) -> None:
        """Play one period, ``seconds`` after the start; longer where the limiter holds it back."""
        wanted = self._profile.at(seconds, self._whole)
        self._hold(max(0, wanted.vram_bytes - CONTEXT_BYTES) // CHUNK_BYTES)
        self._owed += min(1.0, wanted.gflops / self._gflops) * PERIOD_SECONDS * 1e6 / KERNEL_US
        for _ in range(int(self._owed)):
            self._driver.launch()
        self._owed %= 1
        self._driver.wait()

    def report(self, seconds: float) -> str:
        """Say what is wanted and what is had."""
        wanted = self._profile.at(seconds, self._whole)
        return (
            f"{seconds:.0f} s: wants {human_tflops(round(wanted.gflops))} TFLOPS and"
            f" {human_bytes(wanted.vram_bytes)}, holds"
            f" {human_bytes(len(self._held) * CHUNK_BYTES + CONTEXT_BYTES)},"
            f" {self.refusals} allocations refused"
        )

    def _hold(self, chunks: int) -> None:
        while len(self._held) > chunks:
            self._driver.free(self._held.pop())
        while len(self._held) < chunks:
            address = self._driver.allocate(CHUNK_BYTES)
            if not address:
                self.refusals += 1
                return
            self._held.append(address)


def play(ordinal: int, arguments: argparse.Namespace) -> None:
    """Play the profile on one device until the process is ended."""
    driver = Driver(ordinal)
    gflops, whole = rates(driver.name)
    profile = parse_profile(arguments.load, arguments.worker, arguments.gflops, arguments.vram)
    player, never = Player(driver, profile, gflops, whole), threading.Event()
    start = told = CLOCK.monotonic()
    click.echo(f"device {ordinal}: {driver.name}, load {arguments.load or 'sine'}")
    while True:
        began = CLOCK.monotonic()
        player.step(began - start)
        now = CLOCK.monotonic()
        if now - told >= REPORT_SECONDS:
            click.echo(f"device {ordinal}: {player.report(now - start)}")
            told = now
        CLOCK.wait(never, max(0.0, PERIOD_SECONDS - (now - began)))


def own_command(argv: Sequence[str] | None) -> list[str]:
    """How this program is started again."""
    given = sys.argv[1:] if argv is None else argv
    return [sys.executable, "-m", "tensorfusion_simulated.program", *given]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", default="", help="the profile, as the pod's annotation has it")
    parser.add_argument("--worker", default="worker", help="workers of other names are not in step")
    parser.add_argument("--gflops", type=int, default=10_000, help="request, for the usual load")
    parser.add_argument("--vram", type=int, default=1 << 30, help="request in bytes, likewise")
    parser.add_argument("--device", type=int, help="ordinal of the only device to load")
    arguments = parser.parse_args(argv)
    try:
        count = count_devices()
        if arguments.device is None:
            # A process per device: one that is held back must not hold the others back.
            for ordinal in range(1, count):
                subprocess.Popen([*own_command(argv), f"--device={ordinal}"])
        play(arguments.device or 0, arguments)
    except BackendError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
