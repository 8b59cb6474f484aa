"""``python tests/bench/agent.py [--json] [--seconds 10] [--workers 64] [--kills 50]``: the node agent.

The real program beside a real control plane, on the simulated driver. Times of the agent are CPU
time (utime and stime of proc(5)), which other programs of the machine do not add to.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from rig.agents import Site
from rig.program import alive, wait

from tensorfusion.api.registry import SECRETS
from tensorfusion.app.agent_readings import PATH, AgentConnection
from tensorfusion.app.agents import NAMESPACE, decode_address, secret_name
from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.series import decode_reading
from tensorfusion.spi.backend import NodeContext, Share, WorkerSpec
from tensorfusion_native.libraries import libraries
from tensorfusion_simulated.backend import SimulatedBackend

SAMPLE_SECONDS = 0.1
SETTLE_SECONDS = 6.0
ROW = tuple[str, float, float, str]
"""What, measured, target, unit."""


def machine(devices):
    """The description of a node under the fidelity ``driver``."""
    group = {"model": "A100_SXM_80G", "count": devices}
    return {"fidelity": "driver", "nodes": [{"name": "sim", "gpus": [group]}]}


def cpu_seconds(pid):
    """CPU time that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def registered(workers=256, devices=8) -> list[ROW]:
    """Register workers on all devices, twice, and find them again."""
    with tempfile.TemporaryDirectory() as folder:
        description = machine(devices)

        def open_session():
            backend = SimulatedBackend()
            backend.nodes(description)
            return backend.open(
                NodeContext(
                    node="sim", state_dir=Path(folder), clock=SystemClock(), settings=description
                )
            )

        session = open_session()
        uuids = tuple(device.uuid for device in session.discover())
        specs = [
            WorkerSpec(
                worker=f"w{n}", namespace="ns", name=f"w{n}", workload="w", devices=uuids,
                share=Share(1000, 1 << 30, 1000, 1 << 30),
            )
            for n in range(workers)
        ]  # fmt: skip
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        for spec in specs:
            session.prepare(spec)
        first = time.process_time() - start
        again = time.process_time()
        for spec in specs:
            session.prepare(spec)
        again = time.process_time() - again
        session.usage()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        session.close()
        later = time.process_time()
        found = open_session()
        assert len(found.usage()) == workers * devices
        later = time.process_time() - later
        found.close()
    return [
        ("register a worker, CPU", 1000 * first / workers, 20.0, "ms"),
        ("register it again, CPU", 1000 * again / workers, 20.0, "ms"),
        (f"find {workers} x {devices} after a restart, CPU", later, 2.0, "s"),
        (f"memory of {workers} x {devices}", grown, 256.0, "MiB"),
    ]


def site_of(folder, devices, **agent_environment):
    """A control plane and an agent that samples every 100 ms, with further variables for the agent."""
    build = str(libraries().load.parent)
    site = Site(
        Path(folder), machine(devices), "sim",
        sample_seconds=SAMPLE_SECONDS, TENSORFUSION_NATIVE_BUILD=build,
    )  # fmt: skip
    site.up()
    site.environment |= agent_environment
    site.start_agent()
    return site


def create_loads(site, count, percent, *arguments):
    """Pods that each run one load program; waits until all run."""
    for number in range(count):
        command = [str(libraries().load), "seconds=3600", "interval_ms=60000", *arguments]
        site.create_pod(f"load-{number}", percent, command=command, vram="1Gi")
    wait(lambda: list(site.phases().values()).count("Running") == count, 60)


def busy(site):
    """Device seconds by pod, as metered; with the moment."""
    rows = site.get("/api/v1/workers")["workers"]
    return time.monotonic(), {w["name"]: w["usage"][0]["busySeconds"] for w in rows if w["usage"]}


def cost(workers, seconds) -> list[ROW]:
    """CPU of the agent with many workers that all run, by part of the program."""
    with tempfile.TemporaryDirectory() as folder:
        site = site_of(folder, 8)
        try:
            create_loads(site, workers, 1, "kernel_us=200", "duty=1")
            time.sleep(SETTLE_SECONDS)
            start, moment = cpu_seconds(site.agent.pid), time.monotonic()
            time.sleep(seconds)
            used = cpu_seconds(site.agent.pid) - start
            share = 100 * used / (time.monotonic() - moment)
            driver = 100 * driver_seconds(site)
        finally:
            site.close()
    what = f"agent with {workers} workers at 100 ms, CPU"
    print(
        f"a loop of 1,000 takes {loop_microseconds():.1f} us: the machine's speed now", flush=True
    )
    return [
        (what, share, 1.0, "% of a core"),
        ("  of which simulating devices, about", driver, 1.0, "% of a core"),
        ("  without that", share - driver, 1.0, "% of a core"),
    ]


def loop_microseconds():
    """The best of a few runs of a fixed loop, beside which figures of other hours can be read."""
    return 1e3 * min(timeit.repeat("sum(range(1000))", number=1000, repeat=5))


def driver_seconds(site, rounds=5):
    """CPU that the simulated driver takes in its caller for what an agent asks once a second.

    It moves its timeline on in whoever asks, and looks for dead processes; a real driver does not.
    """
    management = Truth(site).management
    indexes = [device.index for device in management.devices()]
    start = time.process_time()
    for _ in range(rounds):
        for index in indexes:
            management.truth(index)
            management.read(index)
        time.sleep(1.0)
    return (time.process_time() - start) / rounds


def metering(seconds) -> list[ROW]:
    """Metered shares against the simulator's own account, over the same seconds."""
    shares = (10, 20, 30, 40)
    with tempfile.TemporaryDirectory() as folder:
        site = site_of(folder, 1)
        try:
            for percent in shares:
                command = [str(libraries().load), "seconds=3600", "interval_ms=60000"]
                site.create_pod(f"p{percent}", percent, command=command)
            wait(lambda: list(site.phases().values()).count("Running") == len(shares), 60)
            time.sleep(SETTLE_SECONDS)
            truth = Truth(site)
            (at, before), exact_before, exact_at = busy(site), truth.read(), time.monotonic()
            time.sleep(seconds)
            (end, after), exact_after, exact_end = busy(site), truth.read(), time.monotonic()
        finally:
            site.close()
    worst = 0.0
    for percent in shares:
        name = f"p{percent}"
        metered = 100 * (after[name] - before[name]) / (end - at)
        exact = 100 * (exact_after[name] - exact_before[name]) / (exact_end - exact_at)
        worst = max(worst, abs(metered - exact))
    return [(f"metering against the truth over {seconds:.0f} s, worst", worst, 1.0, "points")]


def reads(workers, requests=1000) -> list[ROW]:
    """CPU of both ends of what a control plane asks an agent once a period, on a kept connection."""
    with tempfile.TemporaryDirectory() as folder:
        node = {"nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G", "count": 8}]}]}
        site = Site(Path(folder), node, "sim")
        site.up()
        site.start_agent()
        try:
            for number in range(workers):
                site.create_pod(f"load-{number}", 1, vram="1Gi")
            wait(lambda: list(site.phases().values()).count("Running") == workers, 60)
            secret = wait(lambda: address_secret(site))
            before, at = cpu_seconds(site.agent.pid), time.monotonic()
            time.sleep(SETTLE_SECONDS)
            idle = (cpu_seconds(site.agent.pid) - before) / (time.monotonic() - at)
            before, at = cpu_seconds(site.agent.pid), time.monotonic()
            plane, size = asyncio.run(read_often(decode_address(secret["data"]), requests))
            agent = cpu_seconds(site.agent.pid) - before - idle * (time.monotonic() - at)
        finally:
            site.close()
    return [
        (f"read an agent of {workers} workers, {size} bytes: plane", 1e3 * plane, 1.0, "ms of CPU"),
        ("  the agent", 1e3 * agent / requests, 2.0, "ms of CPU"),
    ]


def address_secret(site):
    """The Secret in which the agent says where it is."""
    found = site.store.list(SECRETS, NAMESPACE).items
    return next((s for s in found if s["metadata"]["name"] == secret_name("sim")), None)


async def read_often(agent, requests):
    """CPU seconds of one reading, and its size in bytes."""
    connection = AgentConnection(agent)
    size = len(await connection.get(PATH))  # the handshake is once per agent
    start = time.process_time()
    for _ in range(requests):
        decode_reading(await connection.get(PATH))
    used = time.process_time() - start
    connection.close()
    return used / requests, size


class Truth:
    """The simulator's account of a site's pods, read beside the agent."""

    def __init__(self, site):
        from tensorfusion_native.simulated_machine import SimulatedMachine

        folder = site.state / "nodes/sim/native/simulated/sim"
        self.management = SimulatedMachine.find(folder, libraries()).management()
        self.names = {site.pod(n)["metadata"]["uid"]: n for n in site.phases()}

    def read(self):
        """Device seconds by pod."""
        from tensorfusion_native.processes import worker_of

        found = dict.fromkeys(self.names.values(), 0.0)
        for row in self.management.truth(0):
            worker = worker_of(row.pid) if row.alive else ""
            if worker in self.names:
                found[self.names[worker]] += row.busy_ns / 1e9
        return found


TENANT = """
import sys
sys.path.insert(0, sys.argv[1])
from native.actor import *
share, kernel_us = float(sys.argv[2]), int(sys.argv[3])
ok(init())
kernel, length = function("spin_us"), C.c_uint64(kernel_us)
last = started = time.monotonic()
worst = 0.0
while True:
    ok(launch(kernel, length))
    now = time.monotonic()
    worst = max(worst, now - last - kernel_us / 1e6 / share)
    last = now
    if now - started >= 0.25:
        say(at=now, wait=worst)
        started, worst = now, 0.0
"""
"""Launches as fast as it may; four times a second the longest wait beyond what its share asks for."""
KERNEL_US = 1000
TENANTS = {"p30": 30, "p60": 60}
WINDOWS = (1.0, 10.0)
"""Seconds over which shares are taken."""


def kills(count, seed=1) -> list[ROW]:
    """Kill the agent again and again while two tenants run; what did they notice?

    The same is measured for as long beside an agent that is left alone: what a machine that is
    busy with other things does to the tenants shows there as well.
    """
    chance = random.Random(seed)
    tests = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        site = site_of(folder, 1)
        try:
            for name, percent in TENANTS.items():
                code = [sys.executable, "-c", TENANT, tests, str(percent / 100), str(KERNEL_US)]
                site.create_pod(name, percent, command=code)
            wait(lambda: list(site.phases().values()).count("Running") == len(TENANTS), 60)
            time.sleep(SETTLE_SECONDS)
            leaders = {name: site.leader(name) for name in TENANTS}
            with Watch(site) as disturbed:
                for _ in range(count):
                    time.sleep(chance.uniform(0.0, 1.0))
                    site.kill_agent()
                    time.sleep(chance.uniform(0.0, 0.5))
                    site.start_agent()
            time.sleep(SETTLE_SECONDS)
            with Watch(site) as quiet:
                time.sleep(disturbed[-1][0] - disturbed[0][0])
            assert {name: site.leader(name) for name in TENANTS} == leaders
            assert all(alive(pid) for pid in leaders.values())
            said = {name: waits(site.output(name)) for name in TENANTS}
        finally:
            site.close()
    return told(f"{count} kills", disturbed, said) + told("no kill", quiet, said)


class Watch:
    """Reads the simulator's account of the tenants four times a second, as long as it is open."""

    def __init__(self, site):
        self._truth = Truth(site)
        self._stop = threading.Event()
        self._readings = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self._readings

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.25):
            self._readings.append((time.monotonic(), self._truth.read()))


def waits(text):
    """What a tenant printed: moments, and the longest wait since the one before."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [(row["at"], row["wait"]) for row in rows if "wait" in row]


def told(when, readings, said) -> list[ROW]:
    """Rows of one part of the run: the longest wait, and by window the worst share."""
    start, end = readings[0][0], readings[-1][0]
    longest = max(w for rows in said.values() for at, w in rows if start < at <= end)
    rows = [(f"{when}: longest wait beyond the limit", 1000 * longest, 100.0, "ms")]
    for window, target in zip((*WINDOWS, end - start), (5.0, 2.0, 2.0), strict=True):
        off = max(abs(off) for off in deviations(readings, window))
        what = "in all" if window == end - start else f"in {window:g} s"
        rows.append((f"{when}: share {what}, worst", off, target, "points off"))
    return rows


def deviations(readings, window):
    """How far tenants were from their shares over every window that long, in points."""
    first = 0
    for at, busy in readings:
        while first + 1 < len(readings) and at - readings[first + 1][0] >= window:
            first += 1
        since, before = readings[first]
        if at - since >= window:
            for name, percent in TENANTS.items():
                yield 100 * (busy[name] - before[name]) / (at - since) - percent


def print_rows(rows, *, as_json) -> None:
    """Print rows with their ratio to the target."""
    for what, measured, target, unit in rows:
        ratio = measured / target if target else measured
        if as_json:
            row = {"what": what, "measured": measured, "target": target, "unit": unit}
            print(json.dumps({**row, "ratio": round(ratio, 3)}), flush=True)
        else:
            good = measured <= target
            print(
                f"{what:52} {measured:9.3f} of {target:g} {unit:12} {ratio:7.2f}"
                f" {'ok' if good else 'MISSED'}",
                flush=True,
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one object a row.")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", choices=("registered", "cost", "reads", "metering", "kills"))
    given = parser.parse_args()
    parts = {
        "registered": registered,
        "cost": lambda: cost(given.workers, given.seconds),
        "reads": lambda: reads(given.workers),
        "metering": lambda: metering(given.seconds),
        "kills": lambda: kills(given.kills),
    }
    for name, part in parts.items():
        if given.only in (None, name):
            print_rows(part(), as_json=given.json)


if __name__ == "__main__":
    main()
