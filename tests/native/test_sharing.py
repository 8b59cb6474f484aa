"""Idle compute is lent between real processes under the limiter, and taken back."""

import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.arbiter import Arbiter, Rules
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.spi.backend import NodeContext, Share, WorkerSpec
from tensorfusion_native.libraries import libraries
from tensorfusion_simulated.backend import SimulatedBackend

SETTINGS = {
    "fidelity": "driver",
    "nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G"}]}],
}
DEADLINE_SECONDS = 20


@pytest.fixture
def node(build, tmp_path, monkeypatch):
    """A session with an arbiter at work, and workers whose load can be stopped and continued."""
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(build))
    backend = SimulatedBackend()
    backend.nodes(SETTINGS)
    context = NodeContext(node="sim", state_dir=tmp_path, clock=SystemClock(), settings=SETTINGS)
    session = backend.open(context)
    (card,) = session.discover()
    specs, running = [], {}
    arbiter = Arbiter(
        {"sim": session},
        promised=lambda _node: list(specs),
        capacities=lambda _node: {card.uuid: card.compute_gflops},
        rules=lambda _node: Rules(lends=True),
        clock=SystemClock(),
    )

    class Node:
        @staticmethod
        def start(name, percent):
            gflops = card.compute_gflops * percent // 100
            spec = WorkerSpec(
                worker=name, namespace="ns", name=name, workload="w", devices=(card.uuid,),
                share=Share(gflops, 1 << 30, gflops, 1 << 30),
            )  # fmt: skip
            prepared = session.prepare(spec)
            running[name] = subprocess.Popen(
                [str(libraries().load), "kernel_us=500", "seconds=60", "deadline_s=60"],
                env=process_environment(os.environ, prepared.env),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            specs.append(spec)

        @staticmethod
        def signal(name, number):
            running[name].send_signal(number)

        @staticmethod
        def shares(seconds=1.0):
            """Percent of the card by worker over the next seconds."""
            before = {row.worker: row.busy_seconds_total for row in session.usage()}
            since = time.monotonic()
            time.sleep(seconds)
            span = time.monotonic() - since
            return {
                row.worker: 100 * (row.busy_seconds_total - before[row.worker]) / span
                for row in session.usage()
            }

        @classmethod
        def settles(cls, **expected):
            """Wait until the shares of a second are as expected; the last ones seen."""
            end = time.monotonic() + DEADLINE_SECONDS
            while (seen := cls.shares()) != expected and time.monotonic() < end:
                pass
            return seen

    stop = threading.Event()
    thread = threading.Thread(target=arbiter.run, args=(stop,))
    thread.start()
    yield Node
    stop.set()
    thread.join()
    for process in running.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    session.close()


def test_a_sleeping_tenants_share_is_lent_and_taken_back(node):
    node.start("small", 30)
    node.start("large", 60)
    both = {"small": pytest.approx(35, abs=4), "large": pytest.approx(65, abs=4)}
    assert node.settles(**both) == both, "what nobody is promised is divided, too"
    node.signal("large", signal.SIGSTOP)
    alone = {"small": pytest.approx(97, abs=4), "large": pytest.approx(0, abs=1)}
    assert node.settles(**alone) == alone
    node.signal("large", signal.SIGCONT)
    assert node.settles(**both) == both
