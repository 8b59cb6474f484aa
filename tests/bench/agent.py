"""``python tests/bench/agent.py [--json] [--seconds 10] [--workers 64] [--kills 50]``: the node agent.

The real program beside a real control plane, on the simulated driver. Times of the agent are CPU
time (utime and stime of proc(5)), which other programs of the machine do not add to.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from rig.agents import Site
from rig.program import alive, wait

from tensorfusion.clock import SystemClock
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


def site_of(folder, devices):
    """A control plane and an agent that samples every 100 ms."""
    build = str(libraries().load.parent)
    site = Site(
        Path(folder), machine(devices), "sim",
        sample_seconds=SAMPLE_SECONDS, TENSORFUSION_NATIVE_BUILD=build,
    )  # fmt: skip
    site.up()
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
    return [
        (what, share, 1.0, "% of a core"),
        ("  of which simulating devices, about", driver, share, "% of a core"),
        ("  without that", share - driver, 1.0, "% of a core"),
    ]


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


def kills(count, seed=1) -> list[ROW]:
    """Kill the agent again and again while two tenants run; how far did their shares move?"""
    chance = random.Random(seed)
    expected = {"p30": 30, "p60": 60}
    with tempfile.TemporaryDirectory() as folder:
        site = site_of(folder, 1)
        try:
            for name, percent in expected.items():
                command = [str(libraries().load), "seconds=3600", "interval_ms=60000"]
                site.create_pod(name, percent, command=command)
            wait(lambda: list(site.phases().values()).count("Running") == len(expected), 60)
            time.sleep(SETTLE_SECONDS)
            leaders = {name: site.leader(name) for name in expected}
            truth = Truth(site)
            start, before = time.monotonic(), truth.read()
            for _ in range(count):
                time.sleep(chance.uniform(0.0, 1.0))
                site.kill_agent()
                time.sleep(chance.uniform(0.0, 0.5))
                site.start_agent()
            lasted, after = time.monotonic() - start, truth.read()
            assert {name: site.leader(name) for name in expected} == leaders
            assert all(alive(pid) for pid in leaders.values())
        finally:
            site.close()
    worst = max(abs(100 * (after[n] - before[n]) / lasted - p) for n, p in expected.items())
    return [(f"shares over {count} kills of the agent, worst", worst, 2.0, "points off")]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one object a row.")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", choices=("registered", "cost", "metering", "kills"))
    given = parser.parse_args()
    parts = {
        "registered": registered,
        "cost": lambda: cost(given.workers, given.seconds),
        "metering": lambda: metering(given.seconds),
        "kills": lambda: kills(given.kills),
    }
    for name, part in parts.items():
        if given.only not in (None, name):
            continue
        for what, measured, target, unit in part():
            ratio = measured / target
            if given.json:
                row = {"what": what, "measured": measured, "target": target, "unit": unit}
                print(json.dumps({**row, "ratio": round(ratio, 3)}), flush=True)
            else:
                verdict = "ok" if ratio <= 1 else "MISSED"
                print(
                    f"{what:52} {measured:9.3f} of {target:g} {unit:12} {ratio:7.2f} {verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
