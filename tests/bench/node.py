"""``python tests/bench/node.py [--json] [--only churn|pods|smi|full|slow]``: what else a node has to bear.

churn: workers made and killed over and over; what is left of files, open files and memory.
pods: the same of a whole agent, a third as many, by pods that come and go.
smi: the tables of many workers, laid out for 80 columns, and the whole command once Python has started.
full: how soon a worker has memory that asks for it beside an idle one of lower quality of service.
slow: clients of the agent that never finish their requests, and what they do to the sampler.
"""

import argparse
import contextlib
import gc
import io
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.agent import SAMPLE_SECONDS, create_loads, machine, print_rows, site_of
from bench.freeze import LINK_BYTES_PER_SECOND
from native import test_oversold_node as oversold
from native.test_freezing import Node
from rig.agents import Site, UnixConnection
from rig.program import wait

from tensorfusion.api.registry import PODS
from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.hypervisor.evictor import IDLE_SECONDS
from tensorfusion.spi.backend import FullPolicy, NodeContext, Share, WhenFull, WorkerSpec
from tensorfusion_native import commands
from tensorfusion_native.libraries import libraries
from tensorfusion_native.show import COLUMNS, Watcher, to_text
from tensorfusion_simulated.backend import SimulatedBackend

GIB = 1 << 30
ALIVE = 16
"""Workers at a time, at most."""
REAL_EVERY = 20
"""One worker of so many has a process on the driver, which is killed."""
CLIENTS = 1000
NAMES = 200_000
"""More than the interpreter's table of names takes before it has its lasting size."""


def session_of(folder, devices):
    """A session of the fidelity driver, without an agent."""
    description = machine(devices)
    backend = SimulatedBackend()
    backend.nodes(description)
    return backend.open(
        NodeContext(node="sim", state_dir=folder, clock=SystemClock(), settings=description)
    )


def worker(number, devices):
    """The worker of a number, on one of the devices."""
    name = f"w{number}"
    return WorkerSpec(
        worker=name, namespace="ns", name=name, workload="w",
        devices=(devices[number % len(devices)],), share=Share(1000, GIB, 1000, GIB),
    )  # fmt: skip


def held(process="self"):
    """Open files of a process, and bytes of memory that are its own.

    Mapped files, such as the simulated driver's state, are no memory of its own.
    """
    gc.collect()
    text = Path(f"/proc/{process}/status").read_text()
    own = next(line for line in text.splitlines() if line.startswith("RssAnon:"))
    return len(os.listdir(f"/proc/{process}/fd")), 1024 * int(own.split()[1])


def settle_names():
    """Bring the interpreter's table of names to the size that it keeps.

    ``pathlib`` enters each part of a path. A name goes with its last user, but its place in the table
    is not used again until the table is laid out anew, then once with twice the room: 0.9 MiB at some
    moment that depends on how many names there were before, and nothing later.
    """
    for number in range(NAMES):
        sys.intern(f"name {number}")


def start(session, spec):
    """A process of a worker that uses its device."""
    prepared = session.prepare(spec)
    return subprocess.Popen(
        [str(libraries().load), "seconds=600", "kernel_us=100", "duty=5", "deadline_s=600"],
        env=process_environment(os.environ, prepared.env),
        stdout=subprocess.DEVNULL,
    )


def end(process):
    """Kill a worker's process, if it has one."""
    if process is not None:
        process.kill()
        process.wait()


def churn(count, seed=1):
    """Make and kill workers in random order; growth is that of the last nine tenths."""
    chance = random.Random(seed)
    settle_names()
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(Path(folder), 4)
        devices = [device.uuid for device in session.discover()]
        alive: dict[str, subprocess.Popen | None] = {}

        def shrink(most):
            while len(alive) > most:
                name = chance.choice(list(alive))
                end(alive.pop(name))
                session.release(name)

        before = (0, 0)
        for number in range(count):
            spec = worker(number, devices)
            session.prepare(spec)
            alive[spec.worker] = start(session, spec) if number % REAL_EVERY == 0 else None
            if number % 10 == 0:
                list(session.usage())
            shrink(chance.randint(0, ALIVE))
            if number == count // 10:
                shrink(0)
                list(session.usage())
                before = held()
        shrink(0)
        list(session.usage())
        after = held()
        files = list(Path(folder).glob("native/workers/*"))
        used = sum(reading.vram_used_bytes or 0 for reading in session.metrics())
        session.close()
    later = f"over the last {count - count // 10} of them"
    return [
        (f"files left by {count} workers", float(len(files)), 0.0, "files"),
        (f"bytes on devices left by {count} workers", float(used), 0.0, "bytes"),
        (f"open files, {later}", float(after[0] - before[0]), 0.0, "files"),
        (f"memory of its own, {later}", (after[1] - before[1]) / 2**20, 1.0, "MiB"),
    ]


def pods(count, at_once=40):
    """Pods that come and go at an agent on the modelled backend; growth is that of the last nine tenths."""
    node = {"nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G", "count": 8}]}]}
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), node, "sim", sample_seconds=SAMPLE_SECONDS)
        site.up()
        site.start_agent()
        containers = site.state / "nodes/sim/pods"
        before = None
        try:
            for first in range(0, count, at_once):
                for number in range(first, first + at_once):
                    load = "constant,tflops=1,vram=512Mi"
                    site.create_pod(f"p{number}", 1, vram="1Gi", load=load)
                wait(lambda: list(site.phases().values()).count("Running") == at_once, 60)
                for name in site.phases():
                    site.store.delete(PODS, name, "default", grace_period_seconds=0)
                wait(lambda: not site.phases() and not any(containers.glob("*")), 60)
                if before is None and first + at_once >= count // 10:
                    before = held(site.agent.pid)
            after = held(site.agent.pid)
        finally:
            site.close()
    later = f"the agent over the last {count - count // 10} pods"
    return [
        (f"open files, {later}", float(after[0] - before[0]), 0.0, "files"),
        (f"memory, {later}", (after[1] - before[1]) / 2**20, 1.0, "MiB"),
    ]


def command_seconds(data):
    """How long the command takes in a process that has everything imported."""
    with contextlib.redirect_stdout(io.StringIO()):
        moment = time.perf_counter()
        commands.smi.main(["--data", str(data)], standalone_mode=False)
        return time.perf_counter() - moment


def smi(workers, rounds=20):
    """Lay out the tables of many workers; the reading before it is told beside, and the command as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "nodes" / "sim"
        session = session_of(state, 8)
        devices = [device.uuid for device in session.discover()]
        for number in range(workers):
            session.prepare(worker(number, devices))
        watcher = Watcher([state / "native"], libraries())
        looks, layouts, wholes = [], [], []
        for _ in range(rounds):
            moment = time.perf_counter()
            seen = watcher.look()
            looks.append(time.perf_counter() - moment)
            moment = time.perf_counter()
            lines = to_text(seen)
            layouts.append(time.perf_counter() - moment)
            wholes.append(command_seconds(Path(folder)))
        session.close()
    assert len(seen.workers) == workers
    widest = max(map(len, lines))
    return [
        (f"smi, {workers} workers: reading, median", 1000 * statistics.median(looks), 50.0, "ms"),
        (f"smi, {workers} workers: whole command", 1000 * statistics.median(wholes), 50.0, "ms"),
        (f"smi, {workers} workers: tables, worst", 1000 * max(layouts), 50.0, "ms"),
        (f"smi, {workers} workers: widest line", float(widest), float(COLUMNS), "columns"),
    ]


def insist(site):
    """Ask for the agent's metrics; a full backlog of its socket is no answer yet."""
    while True:
        try:
            status, text = site.ask("GET", "/metrics")
        except (BlockingIOError, ConnectionError):  # the failed socket is the garbage collector's
            time.sleep(0.01)
            continue
        assert status == 200, text
        return


RECORDER = """
import os, time
from tensorfusion.hypervisor.sampling import Sampling
read, file = Sampling.read, os.open(os.environ["BENCH_READINGS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def recorded(sampling):
    os.write(file, b"%.6f\\n" % time.monotonic())
    read(sampling)
Sampling.read = recorded
"""
"""Python runs it before the agent: the moment of each reading, since who asks the agent over and over
misses readings while an answer is late."""


def gaps(site, readings, seconds):
    """The longest pause between two readings of the agent, and the longest answer; seconds."""
    answers = []
    since = time.monotonic()
    while time.monotonic() - since < seconds:
        asked = time.monotonic()
        insist(site)
        answers.append(time.monotonic() - asked)
        time.sleep(SAMPLE_SECONDS / 4)
    moments = [at for at in map(float, readings.read_text().split()) if at >= since]
    return max(b - a for a, b in itertools.pairwise(moments)), max(answers)


def full(rounds=3):
    """Ask for more than the card has left while the neighbour has been idle for long enough.

    Its bytes pass the simulated card's link on their way to host memory, which is told beside.
    """
    waits, held, asked = [], 16, 70
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.closing(Node(Path(folder))) as node,
        ):
            share = Share(1000, GIB, 1000, (asked + 1) * GIB)
            evict = WhenFull(FullPolicy.EVICT, 60.0)
            low = node.spec("low", share=share, qos="low")
            high = node.spec("high", share=share, qos="high", when_full=evict)
            node.start(low, oversold.HOLDER.replace("50 << 30", f"{held} << 30"))
            asker = node.start(high, oversold.ASKER.replace("40 << 30", f"{asked} << 30"))
            stop = threading.Event()
            thread = threading.Thread(target=oversold.evictor(node, [low, high]).run, args=(stop,))
            thread.start()
            time.sleep(2 * IDLE_SECONDS)
            moment = time.perf_counter()
            asker.ask()
            if asker.hear() == {"code": 0}:
                waits.append(time.perf_counter() - moment)
            stop.set()
            thread.join()
    link = held * GIB / LINK_BYTES_PER_SECOND
    return [
        ("memory of an idle neighbour, refused", float(rounds - len(waits)), 0.0, "times"),
        (
            f"the same, {held} GiB of it in its way, worst",
            1000 * max(waits, default=float("inf")),
            1000.0,
            "ms",
        ),
        ("of it, on the simulated link", 1000 * link, 1000.0, "ms"),
    ]


def slow(clients, seconds):
    """Clients that send half a request and wait, beside a sampler and one client in a hurry."""
    with tempfile.TemporaryDirectory() as folder:
        readings = Path(folder) / "readings"
        (Path(folder) / "sitecustomize.py").write_text(RECORDER)
        site = site_of(folder, 8, PYTHONPATH=folder, BENCH_READINGS=str(readings))
        try:
            create_loads(site, 8, 1, "kernel_us=200", "duty=1")
            time.sleep(3.0)
            quiet, alone = gaps(site, readings, seconds)
            stop = threading.Event()
            thread = threading.Thread(target=annoy, args=(site, clients, stop))
            thread.start()
            time.sleep(1.0)
            pressed, beside = gaps(site, readings, seconds)
            stop.set()
            thread.join()
        finally:
            site.close()
    return [
        ("sampler's longest pause, nobody else", 1000 * quiet, 200.0, "ms"),
        (f"sampler's longest pause, {clients} slow clients", 1000 * pressed, 200.0, "ms"),
        ("longest answer of /metrics, nobody else", 1000 * alone, 1000.0, "ms"),
        (f"longest answer of /metrics, {clients} slow clients", 1000 * beside, 1000.0, "ms"),
    ]


def annoy(site, clients, stop):
    """Keep so many connections open that send a byte now and then."""
    with contextlib.ExitStack() as stack:
        opened: list[UnixConnection] = []
        while not stop.is_set():
            while len(opened) < clients:
                connection = UnixConnection(site.socket)
                try:
                    connection.connect()
                    connection.sock.sendall(b"GET /api/v1/workers HTTP/1.1\r\nX-Slow: ")
                except OSError:
                    connection.close()
                    break
                opened.append(stack.enter_context(contextlib.closing(connection)))
            stop.wait(0.5)
            for connection in [*opened]:
                try:
                    connection.sock.sendall(b"a")
                except OSError:
                    connection.close()
                    opened.remove(connection)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one object a row.")
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", choices=("churn", "pods", "smi", "full", "slow"))
    given = parser.parse_args()
    parts = {
        "churn": lambda: churn(given.workers),
        "pods": lambda: pods(given.workers // 3),
        "smi": lambda: smi(64),
        "full": full,
        "slow": lambda: slow(CLIENTS, given.seconds),
    }
    for name, part in parts.items():
        if given.only in (None, name):
            print_rows(part(), as_json=given.json)


if __name__ == "__main__":
    main()
