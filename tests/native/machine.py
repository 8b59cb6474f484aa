"""A simulated machine for tests: its state file, its devices, and workers whose processes run under the limiter."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tensorfusion_native.region import DeviceLimit, WorkerRegion

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
MIB = 1 << 20
GIB = 1 << 30
CONTEXT = 300 * MIB
DEADLINE_S = 60  # wall time; no test waits longer


def compile_program(build, folder, source):
    """A program in C that is linked directly with the simulated driver."""
    path, program = folder / "program.c", folder / "program"
    path.write_text(source)
    command = ["cc", "-o", program, path, "-ldl", f"-L{build / 'simulated'}", "-l:libcuda.so.1"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def uuid(index=0):
    return f"GPU-00000000-0000-0000-0000-{index:012}"


@dataclass
class Machine:
    build: Path
    folder: Path
    mode: str = "virtual"
    workers: int = 0
    extra: dict = field(default_factory=dict)
    opened: list = field(default_factory=list)

    def configure(self, devices=1, **settings):
        """Write the configuration; ``device_*`` settings go to every device."""
        lines = [f"{k}={v}" for k, v in settings.items() if not k.startswith("device_")]
        for _ in range(devices):
            lines.append("[device]")
            lines += [
                f"{k.removeprefix('device_')}={v}"
                for k, v in settings.items()
                if k.startswith("device_")
            ]
        (self.folder / "config").write_text("\n".join(lines) + "\n")
        return self

    def environment(self):
        return {
            **os.environ,
            "TF_SIM_STATE": str(self.folder / "state"),
            "TF_SIM_CONFIG": str(self.folder / "config"),
            "TF_SIM_TIME": self.mode,
            "LD_LIBRARY_PATH": str(self.build / "simulated"),
            "PYTHONPATH": str(TESTS),
            **self.extra,
        }

    def worker(self, *limits, vram=0, compute=1.0, context=CONTEXT, **options):
        self.workers += 1
        rows = list(limits) or [
            DeviceLimit(uuid(), vram_bytes=vram, compute_ratio=compute, context_bytes=context)
        ]
        region = WorkerRegion.create(self.folder / f"worker{self.workers}", rows, **options)
        self.opened.append(region.close)
        return Worker(self, region, rows)

    def close(self):
        """End what a failed test left behind."""
        for close in self.opened:
            close()

    def start(self, command, **environment):
        process = subprocess.Popen(
            command,
            env=self.environment() | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.opened.append(lambda: end(process))
        return process

    def python(self, code, **environment):
        return self.start(
            [sys.executable, "-c", "from native.actor import *\n" + code], **environment
        )


@dataclass
class Worker:
    machine: Machine
    region: WorkerRegion
    rows: list

    def environment(self):
        library = self.machine.build / "libtensorfusion_limiter.so"
        return {"LD_PRELOAD": str(library), **self.region.environment()}

    def start(self, code, **environment):
        return self.machine.python(code, **self.environment(), **environment)

    def run(self, code, **environment):
        return result(self.start(code, **environment))

    def load(self, **arguments):
        arguments = {"deadline_s": DEADLINE_S} | arguments
        command = [str(self.machine.build / "tf-load"), *(f"{k}={v}" for k, v in arguments.items())]
        return self.machine.start(command, **self.environment())


def end(process):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def lines(process, timeout=50):
    """Wait for a process and return the JSON lines that it printed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit code {process.returncode}: {out[-500:]} {err[-2000:]}"
    return [json.loads(line) for line in out.splitlines()]


def result(process, timeout=50):
    return lines(process, timeout)[-1]


def busy(process):
    """Percent busy per interval of a load."""
    return [row["busy_pct"] for row in lines(process)]
