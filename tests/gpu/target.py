"""A device that tests hold programs on: this machine's GPU, or a simulated one with the same programs."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from native.machine import end, result

from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.model.hardware import find_card
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.place import DEFAULT_MODEL, Place
from tensorfusion_native.simulated_machine import CONTEXT_BYTES, SimulatedMachine, device_uuid
from tensorfusion_native.workers import WorkerRecord, Workers

TESTS = Path(__file__).parents[1]
LOOK = """
import json
from tensorfusion_native.place import real_management
found, why = real_management()
maps = open("/proc/self/maps").read().split("\\n") if found else ()
print(json.dumps([why, [line.split()[-1] for line in maps if "libnvidia-ml" in line]]))
"""


@dataclass
class Target:
    """Starts programs on one device, bare or as a tenant.

    Attributes:
        workers: The tenants' files.
        started: Processes to end.
    """

    place: Place
    libraries: Libraries
    workers: Workers
    started: list = field(default_factory=list)

    @property
    def simulated(self):
        return self.place.machine is not None

    @property
    def uuid(self):
        return self.place.device.uuid

    def tenant(self, name="tenant", vram_bytes=0, compute_ratio=1.0):
        """Make a tenant, or change the limits of one that runs; the variables of its processes."""
        self.workers.put(
            WorkerRecord(
                name=name, devices=[self.uuid], vram_bytes=vram_bytes,
                compute_ratio=compute_ratio, context_bytes=self.place.context_bytes,
            )
        )  # fmt: skip
        return self.workers.environment(name, self.libraries)

    def start(self, command, environment=None):
        added = self.place.environment() | (environment or {})
        process = subprocess.Popen(
            [str(part) for part in command],
            env=process_environment(os.environ, added),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def program(self, code, environment=None):
        command = [sys.executable, "-c", "from gpu.program import *\n" + code]
        return self.start(command, {"PYTHONPATH": str(TESTS)} | dict(environment or {}))

    def run(self, code, environment=None):
        return result(self.program(code, environment))

    def used_bytes(self):
        """Memory in use on the device, of everybody, as the driver tells it outside the limiter."""
        return self.place.management.read(self.place.device.index).used_bytes

    def close(self):
        for process in self.started:
            end(process)
        self.workers.close()


def simulated_place(folder, libraries, clock, processes):
    """A simulated device. A virtual clock begins when as many processes have come."""
    card = find_card(DEFAULT_MODEL)
    cards = [(device_uuid("gpu tests", 0, card.model), card)]
    settings = {"expected_processes": processes}
    machine = SimulatedMachine.create(
        folder / "machine", cards, libraries, time=clock, settings=settings
    )
    management = machine.management()
    return Place(management.devices()[0], card, management, CONTEXT_BYTES, machine)


def follow(process, text="\n"):
    """Send a line to a program that waits for one."""
    process.stdin.write(text)
    process.stdin.flush()


@functools.cache
def real_library():
    """The file of the real management library, and why there is none.

    Looked for in another process: in this one the loader gives the simulated library, once that is loaded, to
    whoever asks for one of its name.
    """
    command = [sys.executable, "-c", LOOK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    why, paths = json.loads(done.stdout)
    return (paths[0] if paths else None), why
