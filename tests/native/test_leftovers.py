"""A test run that is killed leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUNNER = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from native.machine import Machine
machine = Machine(Path({build!r}), Path({folder!r}), mode="wall").configure()
child = {start}
print(child.pid, flush=True)
time.sleep(600)
"""


def ended(pid, seconds=10):
    """Whether the process is gone, or only waits to be collected."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("start", "processes"),
    [
        ("machine.worker().start('init(); time.sleep(600)')", 1),
        ("machine.worker().start('init(); os.fork(); time.sleep(600)')", 2),
        ("machine.worker().load(seconds=600, deadline_s=2)", 1),
    ],
    ids=["actor", "fork", "load"],
)
def test_children_of_a_killed_run_end(build, tmp_path, start, processes):
    from native.machine import ROOT, TESTS

    paths = [str(TESTS), str(ROOT / "native" / "python")]
    code = RUNNER.format(paths=paths, build=str(build), folder=str(tmp_path), start=start)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        child = int(run.stdout.readline())
        family = at_work(tmp_path / "worker1" / f"attest.{child}", child, processes)
        run.kill()

    still = [pid for pid in family if not ended(pid)]
    for pid in still:
        os.kill(pid, signal.SIGKILL)
    assert not still


def at_work(attached, pid, count, seconds=20):
    """Wait until a process uses the driver and has its children; all their ids."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        family = descendants(pid)
        if attached.exists() and len(family) == count:
            return family
        time.sleep(0.05)
    raise AssertionError(f"{attached} or one of {count} processes did not come")


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in descendants(int(child)))]
