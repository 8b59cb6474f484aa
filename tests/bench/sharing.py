"""``python tests/bench/sharing.py [--json] [--seconds 10]``: how soon compute is lent, and what a critical tenant notices.

Real processes under the limiter on one simulated card, and an arbiter at work beside them. Busy time
is the simulator's own account, read twenty times a second; moments are those at which a quarter of a
second was as asked, so they include that quarter. Latencies are of one program that launches a short
kernel and waits for it, first beside nobody, then beside three neighbours that never stop.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.agent import machine, print_rows

from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.arbiter import Arbiter, Rules
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.spi.backend import NodeContext, Share, WorkerSpec
from tensorfusion_native.libraries import libraries
from tensorfusion_native.processes import worker_of
from tensorfusion_native.simulated_machine import SimulatedMachine
from tensorfusion_simulated.backend import SimulatedBackend

TESTS = str(Path(__file__).parents[1])
WINDOW = 0.25
DEADLINE = 20.0
CRITICAL = """
from native.actor import *
ok(init())
kernel, length = function("spin_us"), C.c_uint64(200)
say(ready=1)
for line in sys.stdin:
    calls, whole, until = [], [], time.monotonic() + float(line)
    while time.monotonic() < until:
        started = time.perf_counter()
        ok(launch(kernel, length, grid=8))
        calls.append(time.perf_counter() - started)
        ok(cuda.cuCtxSynchronize())
        whole.append(time.perf_counter() - started)
        time.sleep(0.005)
    p99 = lambda values: sorted(values)[int(len(values) * 0.99)]
    say(call=p99(calls), whole=p99(whole))
"""
LOAD = ("kernel_us=500", "seconds=600", "deadline_s=600")


class Card:
    """One simulated card, its workers, and an arbiter that lends."""

    def __init__(self, folder):
        description = machine(1)
        backend = SimulatedBackend()
        backend.nodes(description)
        context = NodeContext(
            node="sim", state_dir=folder, clock=SystemClock(), settings=description
        )
        self.session = backend.open(context)
        (self.card,) = self.session.discover()
        found = SimulatedMachine.find(folder / "native/simulated/sim", libraries())
        self.truth = found.management()
        self.specs = []
        self.running = {}
        self._stop = threading.Event()
        arbiter = Arbiter(
            {"sim": self.session},
            promised=lambda _node: [*self.specs],
            capacities=lambda _node: {self.card.uuid: self.card.compute_gflops},
            rules=lambda _node: Rules(lends=True),
            clock=SystemClock(),
        )
        self._thread = threading.Thread(target=arbiter.run, args=(self._stop,))
        self._thread.start()

    def start(self, name, percent, command, *, qos="medium"):
        """Start a worker with a share; returns its process."""
        gflops = self.card.compute_gflops * percent // 100
        spec = WorkerSpec(
            worker=name, namespace="ns", name=name, workload="w", devices=(self.card.uuid,),
            share=Share(gflops, 1 << 30, gflops, 1 << 30), qos=qos,
        )  # fmt: skip
        environment = process_environment(os.environ, self.session.prepare(spec).env)
        self.running[name] = subprocess.Popen(
            command, env=environment | {"PYTHONPATH": TESTS},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.specs.append(spec)
        return self.running[name]

    def busy(self, *names):
        """Busy seconds of some workers, and the moment."""
        rows = [row for row in self.truth.truth(0) if row.alive and worker_of(row.pid) in names]
        return time.monotonic(), sum(row.busy_ns for row in rows) / 1e9

    def until(self, least, *names):
        """Seconds until some workers had a share of the card over the window."""
        start, readings = time.monotonic(), [self.busy(*names)]
        while time.monotonic() - start < DEADLINE:
            time.sleep(0.05)
            readings.append(self.busy(*names))
            at, busy = readings[-1]
            since, before = next(
                r for r in reversed(readings) if at - r[0] >= WINDOW or r is readings[0]
            )
            if at - since >= WINDOW and (busy - before) / (at - since) >= least:
                return at - start
        return DEADLINE

    def close(self):
        """End everything."""
        self._stop.set()
        self._thread.join()
        for process in self.running.values():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()
        self.session.close()


@contextlib.contextmanager
def card():
    """A card for one part."""
    with tempfile.TemporaryDirectory() as folder:
        made = Card(Path(folder))
        try:
            yield made
        finally:
            made.close()


def lending():
    """A tenant of 30 percent beside one of 60 that sleeps and wakes up."""
    load = [str(libraries().load), *LOAD]
    with card() as node:
        node.start("small", 30, load)
        large = node.start("large", 60, load)
        node.until(0.55, "large")
        time.sleep(3.0)
        large.send_signal(signal.SIGSTOP)
        lent = node.until(0.95, "small")
        time.sleep(3.0)
        large.send_signal(signal.SIGCONT)
        back = node.until(0.57, "large")
    return [
        ("idle compute is lent, after", 1000 * (lent - WINDOW), 1000.0, "ms"),
        ("it is taken back, after", 1000 * (back - WINDOW), 500.0, "ms"),
    ]


def critical(seconds):
    """A critical tenant's launches beside three of low quality of service."""
    load = [str(libraries().load), *LOAD]

    def measure():
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with card() as node:
        process = node.start("critical", 70, [sys.executable, "-c", CRITICAL], qos="critical")
        process.stdout.readline()
        alone = measure()
        lows = [f"low{number}" for number in range(3)]
        for name in lows:
            node.start(name, 10, load, qos="low")
        time.sleep(3.0)
        beside = measure()
        time.sleep(0.5)
        left = node.until(0.9, *lows)
    return [
        ("launch call of a critical tenant, p99, beside 3", beside["call"] / alone["call"], 1.2, "of alone"),
        ("  in microseconds, alone", 1e6 * alone["call"], 300.0, "us"),
        ("launch and wait, p99, beside 3", beside["whole"] / alone["whole"], 1.2, "of alone"),
        ("low ones have the card, after it idles", left - WINDOW, 1.0, "s"),
    ]  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one object a row.")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    for part in (lending, lambda: critical(given.seconds)):
        print_rows(part(), as_json=given.json)


if __name__ == "__main__":
    main()
