"""The program in processes of its own, in a folder of its own; what every rig of such tests shares."""

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tensorfusion.cli.options import connect

PREFIX = "tensor-fusion.ai/"


class Program:
    """A control plane's folder and the commands on it.

    Args:
        settings: Written to ``settings.yaml``.
        seconds: How long a command may take.
    """

    def __init__(self, folder, settings, *, seconds=50, **environment):
        self.folder, self.data, self.seconds = folder, folder / "data", seconds
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TENSORFUSION_", "KUBE"))},
            "HOME": str(folder),
            **environment,
        }
        self.settings = folder / "settings.yaml"
        self.settings.write_text(yaml.safe_dump(settings))

    def cli(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "tensorfusion", *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=self.seconds,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self):
        self.cli("up", "--detach", "--data", str(self.data), "--config", str(self.settings))
        self.store = connect(self.data)

    def down(self):
        self.cli("down", "--data", str(self.data))


def worker_pod(
    name, percent, *, load="", command=(), vram="2Gi", qos="", policy="Always", grace_seconds=2
):
    """A pod with one container that is promised, and held to, a share of a card."""
    annotations = {
        PREFIX + "compute-percent-request": str(percent),
        PREFIX + "compute-percent-limit": str(percent),
        PREFIX + "vram-request": vram,
        PREFIX + "vram-limit": vram,
    }
    annotations |= {PREFIX + "simulated-load": load} if load else {}
    annotations |= {PREFIX + "qos": qos} if qos else {}
    container = {"name": "c", "image": "none"} | ({"command": list(command)} if command else {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {PREFIX + "enabled": "true"},
            "annotations": annotations,
        },
        "spec": {
            "containers": [container],
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": grace_seconds,
        },
    }


def wait(condition, seconds=20.0, why=lambda: "it did not come"):
    """Ask until something is there, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(why())


def alive(pid):
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
