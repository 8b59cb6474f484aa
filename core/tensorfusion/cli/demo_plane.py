"""The control planes of the demo: started in the background, and stopped with all they started."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from tensorfusion.cli.lifecycle import running, wait_ready
from tensorfusion.clock import SystemClock
from tensorfusion.errors import ConfigError
from tensorfusion.hypervisor.pods import PodRunner

CLOCK = SystemClock()
END_SECONDS = 10.0


def start(folder: Path, settings: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start a control plane for the demo in the background."""
    if running(folder):
        raise ConfigError(f"data folder {folder} is in use by process {running(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "TENSORFUSION_BACKEND": "simulated",
        "TENSORFUSION_ALERT_SECONDS": "1",
        "TENSORFUSION_AUTOSCALE_SECONDS": "2",
    }
    command = [sys.executable, "-m", "tensorfusion", "up", "--data", str(folder)]
    command += ["--config", str(settings)] if settings else []
    with (folder / "log").open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_ready(folder, process)
    except BaseException:
        process.kill()
        process.wait(10)
        raise
    return process


def stop(process: "subprocess.Popen[bytes]", folder: Path, *, remove: bool) -> None:
    """Stop the control plane; of a temporary one remove the folder, after what still runs in it."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    if remove:
        end_pods(folder / "nodes")
        shutil.rmtree(folder, ignore_errors=True)


def end_pods(nodes: Path) -> None:
    """Kill the processes of all pods, which a control plane leaves running when it stops."""
    runner, never = PodRunner(nodes, CLOCK), threading.Event()
    deadline = CLOCK.monotonic() + END_SECONDS
    left = [(path.name, uid) for path in nodes.glob("*") for uid in runner.uids(path.name)]
    while left and CLOCK.monotonic() < deadline:
        left = [pod for pod in left if not runner.stop(*pod, kill_at=0)]
        CLOCK.wait(never, 0.05)
