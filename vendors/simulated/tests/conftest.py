"""A simulated node on a fake clock."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tensorfusion import names
from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.spi.backend import NodeContext, Share, WorkerSpec
from tensorfusion.testing.clock import FakeClock
from tensorfusion_native.libraries import built
from tensorfusion_simulated.backend import SimulatedBackend, driver_module
from tensorfusion_simulated.description import CardGroup
from tensorfusion_simulated.session import SimulatedSession

GIB = 1 << 30


@dataclass
class SimulatedNode:
    """A node whose sessions share a folder, as before and after a restart."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)
    name: str = "node"

    def open(self, *models: str, **group) -> SimulatedSession:
        context = NodeContext(node=self.name, state_dir=self.folder, clock=self.clock)
        groups = [CardGroup(model=model, **group) for model in models or ("A100_SXM_80G",)]
        return self.session(context, groups)

    @staticmethod
    def session(context, groups):
        return SimulatedSession(context, groups)

    def spec(self, session, worker="w", load="constant,compute=100%", cards=1, **changes):
        infos = session.discover()[:cards]
        share = changes.pop("share", None) or Share(30_000, 8 * GIB, 60_000, 16 * GIB)
        values = {
            "worker": worker,
            "namespace": "ns",
            "name": worker,
            "workload": "wl",
            "devices": tuple(info.uuid for info in infos),
            "share": share,
            "annotations": {names.SIMULATED_LOAD: load} if load else {},
        }
        return WorkerSpec(**{**values, **changes})

    def run(self, session, seconds=10.0):
        """Let time pass and read every worker, by name."""
        session.usage()
        self.clock.advance(seconds)
        return {row.worker: row for row in session.usage()}


class DriverNode(SimulatedNode):
    """The same in the fidelity ``driver``."""

    @staticmethod
    def session(context, groups):
        return driver_module().DriverSession(context, groups)


@pytest.fixture
def node(tmp_path):
    """A node in ``<data>/nodes/node``, where the control plane would keep it."""
    folder = tmp_path / "nodes" / "node"
    folder.mkdir(parents=True)
    return SimulatedNode(folder)


@pytest.fixture(params=["model", "driver"])
def any_node(request, node):
    """The same in each fidelity."""
    if request.param == "model":
        return node
    if not built():
        pytest.skip("the native part is not built")
    return DriverNode(node.folder)


@pytest.fixture
def driver(tmp_path, settings):
    """Sessions of the first node that ``settings`` describe, and processes of its workers that end with the test."""
    opened, running = [], []

    class Driver:
        @staticmethod
        def open(settings=settings):
            backend = SimulatedBackend()
            [node, *_] = backend.nodes(settings)
            context = NodeContext(
                node=node, state_dir=tmp_path, clock=SystemClock(), settings=settings
            )
            opened.append(backend.open(context))
            return opened[-1]

        @staticmethod
        def start(prepared, *command):
            command = command or prepared.command
            environment = process_environment(os.environ, prepared.env)
            process = subprocess.Popen(
                list(map(str, command)),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running.append(process)
            return process

        @staticmethod
        def end(process):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    yield Driver
    for process in running:
        Driver.end(process)
        process.stdin.close()
        process.stdout.close()
    for session in opened:
        session.close()
