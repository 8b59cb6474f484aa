"""Programs under a limit, started from the command line without a control plane."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from native.machine import GIB, MIB, end

MODEL = "A100_SXM_80G"


@pytest.fixture
def command(build, tmp_path):
    """Start the program; what still runs is ended."""
    started = []

    def start(*arguments):
        environment = {
            **os.environ,
            "TENSORFUSION_NATIVE_BUILD": str(build),
            "TENSORFUSION_RUN_DIR": str(tmp_path / "runs"),
            "TENSORFUSION_DATA": str(tmp_path / "data"),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tensorfusion", *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end(process)


def finish(process):
    out, err = process.communicate(timeout=50)
    return process.returncode, out, err


def smi(command):
    return json.loads(finish(command("smi", "-o", "json"))[1])


def wait_for_worker(command, launches=1):
    """Look until the worker works; the last look."""
    for _ in range(50):
        seen = smi(command)
        if seen["workers"] and seen["workers"][0]["launches"] >= launches:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"no worker at work: {seen}")


def test_a_program_is_held_to_its_share_and_told_what_it_used(command, build):
    code, out, err = finish(
        command("run", "--simulated", MODEL, "--percent", 30, "--vram", "2Gi", "-o", "json", "--",
                build / "tf-load", "seconds=3", "kernel_us=500", f"hold={GIB}")
    )  # fmt: skip

    windows = [json.loads(line)["busy_pct"] for line in out.splitlines()]
    summary = json.loads(err.splitlines()[-1])
    assert code == 0
    assert windows == pytest.approx([30] * len(windows), abs=6)
    assert summary["simulated"]
    assert summary["exit_code"] == 0
    assert summary["launches"] > 1000
    assert summary["throttled_seconds"] > 1
    assert summary["peak_vram_bytes"] == GIB + 300 * MIB
    assert summary["denied"] == 0


def test_memory_beyond_the_cap_is_refused(command, build):
    code, out, err = finish(
        command("run", "--simulated", MODEL, "--vram", "2Gi", "-o", "json", "--",
                build / "tf-load", f"hold={3 * GIB}")
    )  # fmt: skip

    assert code == 2
    assert json.loads(out)["error"] == 2
    assert json.loads(err.splitlines()[-1])["denied"] == 1


def test_a_tflops_limit_is_a_share_of_the_model(command, build):
    program = command("run", "--simulated", "T4", "--tflops", 13, "--", build / "tf-load")
    seen = wait_for_worker(command)
    [worker] = seen["workers"]

    assert worker["limit_ratio"] == 0.2
    assert worker["limit_bytes"] == 0
    assert "tf-load" in worker["command"]
    device = next(d for d in seen["devices"] if d["uuid"] == worker["uuid"])
    assert (device["index"], device["name"], device["simulated"]) == (0, "Tesla T4", True)
    program.send_signal(signal.SIGTERM)
    assert finish(program)[0] == 128 + signal.SIGTERM
    assert smi(command)["workers"] == []


def test_runs_share_one_machine_and_a_device_is_chosen(command, build):
    code, out, _ = finish(
        command("run", "--simulated", MODEL, "--gpu", 2, "--", build / "tf-load", "seconds=1")
    )
    before = smi(command)["devices"]
    program = command(
        "run", "--simulated", MODEL, "--gpu", 2, "--", build / "tf-load", f"hold={GIB}"
    )
    [worker] = wait_for_worker(command, launches=0)["workers"]
    for _ in range(50):
        used = [device["used_bytes"] for device in smi(command)["devices"]]
        if any(used):
            break
    end(program)

    assert code == 0
    assert json.loads(out.splitlines()[-1])["busy_pct"] > 90
    assert [device["used_bytes"] for device in before] == [0] * 4
    assert used[:2] + used[3:] == [0, 0, 0]
    assert used[2] == GIB + 300 * MIB
    assert worker["uuid"] == before[2]["uuid"]


def test_exit_codes_and_signals_pass(command):
    assert finish(command("run", "--simulated", "T4", "--", "sh", "-c", "exit 7"))[0] == 7
    assert finish(command("run", "--simulated", "T4", "--", "sh", "-c", "kill -9 $$"))[0] == 137
    # It comes before anything else of the program, while `run` has only just started it.
    early = command("run", "--simulated", "T4", "--", "sh", "-c", "kill -TERM $PPID; exec sleep 40")
    assert finish(early)[0] == 128 + signal.SIGTERM
    program = command(
        "run", "--simulated", "T4", "--", "sh", "-c",
        'trap "echo stopped; exit 5" TERM; echo ready; while :; do sleep 0.05; done',
    )  # fmt: skip
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGTERM)
    assert finish(program)[:2] == (5, "stopped\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tflops", "66"], "--tflops 66: must be above 0 and at most the 65 of Tesla T4"),
        (["--tflops", "1", "--percent", "3"], "give --tflops or --percent, not both"),
        (["--vram", "16Gi"], "--vram 16Gi: must be above 0 and at most the 15Gi of Tesla T4"),
        (["--vram", "100Mi"], "--vram 100Mi: a context alone takes 300Mi"),
        (["--vram", "much"], "much"),
        (["--gpu", "9"], "--gpu 9: a simulated machine has 0 to 3"),
    ],
)
def test_bad_limits_are_named(command, arguments, words):
    code, _, err = finish(command("run", "--simulated", "T4", *arguments, "--", "true"))
    assert code == 1
    assert words in err


def test_a_program_that_is_not_there_is_named(command):
    code, _, err = finish(command("run", "--simulated", "T4", "--", "no-such-program"))
    assert (code, "cannot start 'no-such-program'" in err) == (1, True)


def test_what_a_killed_launcher_left_is_removed_once_its_program_ended(command, build):
    script = f"echo $$; exec {build}/tf-load seconds=30"
    program = command("run", "--simulated", "T4", "--", "sh", "-c", script)
    child = int(program.stdout.readline())
    wait_for_worker(command, launches=0)
    os.kill(program.pid, signal.SIGKILL)
    program.wait(10)
    assert [w["processes"] for w in smi(command)["workers"]] == [1]

    os.kill(child, signal.SIGKILL)
    for _ in range(50):
        seen = smi(command)["workers"]
        if not seen:
            break
    assert seen == []


def test_looking_at_a_simulated_machine_does_not_make_it_a_real_one(build, tmp_path):
    """In a process of its own: the loader remembers what it has."""
    code = """
import ctypes, sys
from pathlib import Path
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.simulated_machine import SimulatedMachine
from tensorfusion.model.hardware import find_card
uuid = "GPU-00000000-0000-0000-0000-000000000000"
files = Libraries.of(Path(sys.argv[2]))
machine = SimulatedMachine.create(Path(sys.argv[1]), [(uuid, find_card("T4"))], files)
assert [device.name for device in machine.management().devices()]
try:
    ctypes.CDLL("libnvidia-ml.so.1")
except OSError:
    print("there is none")
else:
    maps = Path("/proc/self/maps").read_text()
    print("there is none" if "simulated" not in maps and sys.argv[1] not in maps else "taken")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(build)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "there is none"
