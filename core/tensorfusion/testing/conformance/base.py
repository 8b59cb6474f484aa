"""What the parts of the suite share: the backend under test, a node to test it on, specs, loads."""

import os
import shlex
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tensorfusion import names
from tensorfusion.clock import Clock, SystemClock
from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import (
    Backend,
    Capabilities,
    DeviceInfo,
    Enforcement,
    NodeBackend,
    NodeContext,
    PreparedWorker,
    Share,
    WorkerSpec,
)
from tensorfusion.testing.clock import FakeClock
from tensorfusion.testing.conformance.calls import call, watch_backend, watch_session
from tensorfusion.testing.conformance.finding import installed_backend, read_settings

GIB = 1 << 30
ISOLATION_MODES = ("shared", "soft", "hard", "partitioned")
LOAD_SECONDS = 10.0
"""How long a load runs before its use is read."""


class Rig:
    """One node of the backend under test, with a state folder that outlives its sessions.

    Time: a backend that simulates its devices must follow the clock it is given, so the suite
    moves a fake one; on real devices it waits.
    """

    def __init__(
        self,
        backend: Backend,
        state_dir: Path,
        *,
        settings: Mapping[str, object],
        call_seconds: float,
        load_command: str = "",
        stand_in: bool = False,
    ) -> None:
        self.backend = backend
        self.capabilities = backend.capabilities()
        self.call_seconds = call_seconds
        simulates = Enforcement.SIMULATED in self.capabilities.isolation.values()
        self.is_model = stand_in or simulates
        self.clock: Clock = FakeClock(SystemClock().now()) if self.is_model else SystemClock()
        self.load_command = load_command
        self.node = next(iter(backend.nodes(settings)), "")
        self.settings = settings
        self._state_dir = state_dir
        self._open: list[NodeBackend] = []

    def open(self, node: str = "", folder: str = "node") -> NodeBackend:
        """Start a session; the same folder is the same node after a restart."""
        state_dir = self._state_dir / folder
        state_dir.mkdir(parents=True, exist_ok=True)
        context = NodeContext(
            node=node or self.node, state_dir=state_dir, clock=self.clock, settings=self.settings
        )
        session = watch_session(self.backend.open(context), self.call_seconds)
        self._open.append(session)
        return session

    def close(self, session: NodeBackend) -> None:
        """End a session."""
        self._open.remove(session)
        session.close()

    def restart(self, session: NodeBackend) -> NodeBackend:
        """End a session and start the next one on the same state."""
        self.close(session)
        return self.open()

    def pass_time(self, seconds: float) -> None:
        """Let time pass: at once on a fake clock, by waiting on a real one."""
        if isinstance(self.clock, FakeClock):
            self.clock.advance(seconds)
        else:
            self.clock.wait(threading.Event(), seconds)

    @contextmanager
    def load(self, *prepared: PreparedWorker) -> Iterator[None]:
        """Run the load command in each worker's environment, if there is a command."""
        running = []
        try:
            if self.load_command:
                for worker in prepared:
                    environment = {**os.environ, **worker.env}
                    running.append(
                        subprocess.Popen(shlex.split(self.load_command), env=environment)
                    )
            yield
        finally:
            for process in running:
                process.kill()
                process.wait()

    def clean_up(self) -> None:
        """Release what a test left behind, so that a real device is free for the next."""
        if not self._open:
            self.open()
        for session in self._open:
            try:
                for spec in session.workers():
                    session.release(spec.worker)
                session.close()
            except (BackendError, AssertionError):
                continue  # the test that met it has said so already
        self._open.clear()


class Conformance:
    """Base of the suite's parts.

    Attributes:
        vendor: The backend under test; empty takes the option ``--vendor``.
        settings: The plugin's block of the settings; empty takes ``--settings``.
        stand_in: The backend drives a stand-in without a time of its own, so that the suite
            moves a fake clock instead of waiting.
    """

    vendor: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}
    stand_in: ClassVar[bool] = False

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        """The backend under test; override it to test one that is not installed."""
        vendor = self.vendor or request.config.getoption("--vendor")
        return installed_backend(vendor, request.config.getoption("--settings"))

    @pytest.fixture
    def rig(
        self, backend: Backend, tmp_path: Path, request: pytest.FixtureRequest
    ) -> Iterator[Rig]:
        """A node of the backend; skips where the machine has no such devices."""
        seconds = request.config.getoption("--call-seconds")
        works, why = call(seconds, "available()", backend.available)
        if not works:
            assert why.strip(), "available() must say why the machine has no devices"
            pytest.skip(f"{backend.name} has no devices on this machine: {why}")
        rig = Rig(
            watch_backend(backend, seconds),
            tmp_path,
            settings=self.settings or read_settings(request.config.getoption("--settings")),
            call_seconds=seconds,
            load_command=request.config.getoption("--load-command"),
            stand_in=self.stand_in,
        )
        yield rig
        rig.clean_up()

    @pytest.fixture
    def session(self, rig: Rig) -> NodeBackend:
        """A session on the node."""
        return rig.open()

    @pytest.fixture
    def devices(self, session: NodeBackend) -> Sequence[DeviceInfo]:
        """The healthy devices of the node, without those that only take partitions if there are others."""
        found = [info for info in session.discover() if info.healthy]
        assert found, "discover() must find a healthy device where available() is true"
        return [info for info in found if not info.partitioned] or found

    @pytest.fixture
    def device_to_cut(self, session: NodeBackend, devices: Sequence[DeviceInfo]) -> DeviceInfo:
        """The device that partitions are tried on: one that is set up for them, else the first."""
        found = (info for info in session.discover() if info.healthy and info.partitioned)
        return next(found, devices[0])


def usual_mode(capabilities: Capabilities) -> str:
    """The isolation mode that tests of other things use."""
    for mode in ("soft", "hard", "shared"):
        if mode in capabilities.isolation:
            return mode
    raise AssertionError(
        "capabilities().isolation must offer shared, soft or hard, got"
        f" {', '.join(capabilities.isolation) or 'none'}"
    )


def quarter(device: DeviceInfo) -> Share:
    """A share with a tenth of a device requested and a quarter as its limit."""
    return Share(
        request_gflops=device.compute_gflops // 10,
        request_vram_bytes=device.vram_bytes // 10,
        limit_gflops=device.compute_gflops // 4,
        limit_vram_bytes=device.vram_bytes // 4,
    )


def hungry(device: DeviceInfo) -> dict[str, str]:
    """Annotations of a load that wants the whole of a device, for backends that simulate it."""
    return {names.SIMULATED_LOAD: f"constant,compute=100%,vram={device.vram_bytes}"}


def worker_spec(
    capabilities: Capabilities,
    *devices: DeviceInfo,
    worker: str = "conformance-1",
    **changes: Any,
) -> WorkerSpec:
    """A worker with a quarter of each device that wants all of it, unless changed."""
    values: dict[str, Any] = {
        "worker": worker,
        "namespace": "conformance",
        "name": worker,
        "workload": "conformance",
        "devices": tuple(device.uuid for device in devices),
        "share": quarter(devices[0]),
        "isolation": usual_mode(capabilities),
        "annotations": hungry(devices[0]),
    }
    return WorkerSpec(**{**values, **changes})


def seats(
    capabilities: Capabilities, devices: Sequence[DeviceInfo], count: int
) -> list[DeviceInfo]:
    """A device for each of at most ``count`` workers that may run at the same time.

    A mode that hands out whole devices seats one worker on each.
    """
    most = capabilities.max_workers_per_device or count
    per_device = 1 if usual_mode(capabilities) == "shared" else min(count, most)
    return [device for _ in range(per_device) for device in devices][:count]
