"""``python tests/bench/attach.py [--json] [--processes 300]``: many processes come under one worker's limits.

The processes are `tf-load`, a C program, so that starting them costs little beside attaching. The
same processes without the limiter are started before, for comparison.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.model.hardware import find_card
from tensorfusion_native.libraries import libraries
from tensorfusion_native.simulated_machine import CONTEXT_BYTES, SimulatedMachine, device_uuid
from tensorfusion_native.workers import WorkerRecord, Workers

TARGET_SECONDS = 5.0
DEADLINE_SECONDS = 60.0
CARD = "A100_SXM_80G"


def start(count, environment):
    """Start the programs, which then do next to nothing."""
    command = [str(libraries().load), "seconds=3600", "duty=1", "kernel_us=10", "deadline_s=120"]
    return [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(count)
    ]


def end(processes):
    """End them; returns the CPU seconds that they took, which include their work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timed(count, environment, present):
    """Seconds from the first start until all are there, and CPU seconds until then."""
    moment = time.monotonic()
    processes = start(count, environment)
    try:
        while present() < count:
            if time.monotonic() - moment > DEADLINE_SECONDS:
                raise SystemExit(f"only {present()} of {count} after {DEADLINE_SECONDS:.0f} s")
            time.sleep(0.02)
        lasted = time.monotonic() - moment
    finally:
        used = end(processes)
    return lasted, used


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--processes", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, card = Path(name), find_card(CARD)
        uuid = device_uuid("bench", 0, CARD)
        machine = SimulatedMachine.create(folder / "machine", [(uuid, card)], libraries())
        management = machine.management()
        workers = Workers(folder / "workers")
        record = WorkerRecord(
            name="w", devices=[uuid], vram_bytes=0, compute_ratio=0.5, context_bytes=CONTEXT_BYTES
        )
        workers.put(record)
        bare = process_environment(os.environ, machine.environment())
        # A context takes 300 MiB, and not all of 300 fit on one card: a process that is refused one
        # has attached all the same, so the ledger is counted and not the device.
        limited = process_environment(bare, workers.environment("w", libraries()))
        fits = min(given.processes, card.vram_bytes // CONTEXT_BYTES - 1)
        without, _ = timed(fits, bare, lambda: len(management.process_bytes(0)))
        attached, cpu = timed(given.processes, limited, lambda: len(workers.pids("w")))
        workers.close()
    per = (without / fits, attached / given.processes)
    row = {
        "processes": given.processes,
        "seconds": round(attached, 3),
        "target": TARGET_SECONDS,
        "ratio": round(attached / TARGET_SECONDS, 3),
        "cpu_seconds": round(cpu, 3),
        "without_limiter_ms_per_process": round(1000 * per[0], 3),
        "with_limiter_ms_per_process": round(1000 * per[1], 3),
    }
    if given.json:
        print(json.dumps(row))
        return
    for what, value in row.items():
        print(f"{what:34} {value}")


if __name__ == "__main__":
    main()
