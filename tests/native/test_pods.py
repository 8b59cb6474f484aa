"""Pods of the embedded mode as real processes under the limiter, on the simulated driver."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
from rig.program import PREFIX, Program, alive, wait, worker_pod

SETTINGS = {
    "backend": "simulated",
    "sample_seconds": 1,
    "plugin_settings": {
        "simulated": {
            "fidelity": "driver",
            "nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G"}]}],
        }
    },
}


class Plane(Program):
    """A control plane in a process of its own, which a test may kill."""

    def __init__(self, folder, build):
        super().__init__(
            folder,
            SETTINGS,
            TENSORFUSION_NATIVE_BUILD=str(build),
            TENSORFUSION_RUN_DIR=str(folder / "runs"),
        )
        self.applied = []

    def kill(self):
        pid = int((self.data / "lock").read_text())
        os.kill(pid, signal.SIGKILL)
        wait(lambda: not alive(pid))

    def kubectl(self, *arguments, stdin=""):
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.data / "kubeconfig"), *arguments],
            env=self.environment, input=stdin, capture_output=True, text=True, check=False, timeout=50,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, name, percent, **asked):
        self.create(worker_pod(name, percent, **asked))

    def create(self, pod):
        self.applied.append(pod["metadata"]["name"])
        self.kubectl("apply", "-f", "-", stdin=json.dumps(pod))

    def pod(self, name):
        return json.loads(self.kubectl("get", "pod", name, "-o", "json"))

    def state(self, name):
        statuses = self.pod(name)["status"].get("containerStatuses") or [{}]
        return statuses[0].get("state", {})

    def shares(self):
        """Percent of the device by pod, as metered in the last second, and the rows."""
        usage = json.loads(self.store.text("/tensorfusion/usage"))["workers"]
        return {row["name"]: (row["computeGflops"] / 3120, row) for row in usage}

    def metrics(self, worker):
        """Series of a worker by name, as a scrape finds them."""
        label = f'worker="{worker}"'
        lines = [line for line in self.store.text("/metrics").splitlines() if label in line]
        return {
            line.partition("{")[0].removeprefix("tensorfusion_"): float(line.rpartition(" ")[2])
            for line in lines
        }

    def leader(self, name):
        """The process that leads a pod's container; waits until it has said its number."""
        uid = self.pod(name)["metadata"]["uid"]
        file = self.data / "nodes/sim/pods" / uid / "containers/c/0.pid"
        return int(wait(lambda: file.exists() and file.read_text().strip()))

    def forget(self):
        """Delete the pods of a test, and wait until no reading has them any more."""
        names, self.applied = self.applied, []
        if names:
            self.kubectl("delete", "pod", "--ignore-not-found", *names)
            wait(lambda: not self.shares().keys() & names)


def assert_shares(plane, seconds=3, **expected):
    """The pods come to their shares and keep them, in the mean of readings a second apart.

    A machine that is busy otherwise keeps a load from asking for its share for a while, which is
    waited out. Once it was at its share, none ever gets more.
    """

    def now():
        seen = plane.shares()
        return {name: seen[name][0] if name in seen else 0.0 for name in expected}

    close = {name: pytest.approx(share, abs=4) for name, share in expected.items()}
    wait(lambda: now() == close)
    rows = []

    def kept():
        time.sleep(1)
        rows.append(now())
        if len(rows) < seconds:
            return False
        means = {name: sum(r[name] for r in rows[-seconds:]) / seconds for name in expected}
        assert all(means[name] <= share + 4 for name, share in expected.items()), rows
        return means == close

    wait(kept, seconds + 20)


@contextmanager
def running_plane(folder, build, kind=Plane):
    """A control plane that runs; the test is skipped where kubectl is not installed."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    plane = kind(folder, build)
    plane.up()
    yield plane
    plane.down()


@pytest.fixture(scope="module")
def running(build, tmp_path_factory):
    with running_plane(tmp_path_factory.mktemp("pods"), build) as plane:
        yield plane


@pytest.fixture
def plane(running):
    yield running
    running.forget()


@pytest.mark.timeout(120)
def test_tenants_keep_their_shares_through_a_crash_of_the_control_plane(plane):
    plane.apply("small", 30, load="constant,compute=100%,vram=1Gi")
    plane.apply("large", 60, load="constant,compute=100%,vram=3Gi")
    wait(lambda: "running" in plane.state("small") and "running" in plane.state("large"))

    assert_shares(plane, small=30, large=60)
    stopped = plane.shares()["large"][1]
    assert stopped["vramBytes"] <= 2 << 30
    assert stopped["vramDenials"] >= 1
    metrics = wait(lambda: (m := plane.metrics("large")).get("worker_vram_denials_total") and m)
    assert metrics["worker_compute_limit_flops"] == 0.6 * 312e12
    assert metrics["worker_compute_used_flops"] == pytest.approx(0.6 * 312e12, rel=0.2)
    assert metrics["worker_vram_limit_bytes"] == 2 << 30
    assert metrics["worker_vram_used_bytes"] == pytest.approx(2 << 30, rel=0.05)
    assert metrics["worker_throttled_seconds_total"] > 0
    log = wait(lambda: (text := plane.kubectl("logs", "large")).count("\n") > 2 and text)
    assert "wants 312 TFLOPS and 3Gi" in log
    assert plane.kubectl("logs", "large", "--tail=1").count("\n") == 1

    leaders = [plane.leader(name) for name in ("small", "large")]
    plane.kill()
    plane.up()
    assert_shares(plane, small=30, large=60)
    assert [plane.leader(name) for name in ("small", "large")] == leaders
    assert plane.pod("small")["status"]["containerStatuses"][0]["restartCount"] == 0
    plane.kubectl("delete", "pod", "large")
    assert not alive(leaders[1])
    assert alive(leaders[0])


@pytest.mark.timeout(120)
def test_a_share_is_changed_while_its_pod_runs(plane):
    plane.apply("grows", 20, load="constant,compute=100%,vram=1Gi")
    wait(lambda: "running" in plane.state("grows"))
    leader = plane.leader("grows")
    assert_shares(plane, 1, grows=20)
    # As the autoscaler does, which alone may change a pod's share.
    plane.kubectl(
        "annotate", "--overwrite", "--field-manager=tensorfusion-autoscaler", "pod", "grows",
        PREFIX + "compute-percent-request=70", PREFIX + "compute-percent-limit=70",
    )  # fmt: skip
    wait(lambda: plane.shares()["grows"][1]["limitGflops"] == 218400)
    assert_shares(plane, grows=70)
    assert plane.leader("grows") == leader
    seen = json.loads(plane.cli("smi", "-o", "json", "--data", str(plane.data)))
    assert [(w["limit_ratio"], w["processes"]) for w in seen["workers"]] == [(0.7, 1)]
    checks = json.loads(plane.cli("doctor", "-o", "json", "--data", str(plane.data)))
    details = {check["check"]: check["detail"] for check in checks}
    assert details["fidelity driver"] == "the simulated driver and the limiter are built"
    assert details["backend in use"] == (
        "simulated, 1 node(s); soft workers are held by the limiter in each of their processes"
    )


@pytest.mark.timeout(120)
def test_exit_codes_and_restarts_are_on_the_pod(plane):
    plane.apply("fails", 5, command=["sh", "-c", "echo started; exit 3"], policy="Never")
    plane.apply("loops", 5, command=["sh", "-c", "exit 4"])
    wait(lambda: plane.pod("fails")["status"]["phase"] == "Failed")
    assert plane.state("fails")["terminated"]["exitCode"] == 3
    assert plane.kubectl("logs", "fails") == "started\n"
    waiting = wait(lambda: plane.state("loops").get("waiting"))
    assert waiting["reason"] == "CrashLoopBackOff"
    [container] = plane.pod("loops")["status"]["containerStatuses"]
    assert container["restartCount"] >= 1
    assert container["lastState"]["terminated"]["exitCode"] == 4
    folders = [
        plane.data / "nodes/sim/pods" / plane.pod(n)["metadata"]["uid"] for n in ("fails", "loops")
    ]
    assert all(folder.is_dir() for folder in folders)
    plane.kubectl("delete", "pod", "fails", "loops")
    assert not any(folder.exists() for folder in folders)


@pytest.mark.timeout(120)
def test_a_pod_that_ignores_the_signal_is_killed_after_its_grace(plane):
    plane.apply(
        "deaf", 5, command=["sh", "-c", 'trap "" TERM; echo up; while :; do sleep 0.1; done']
    )
    wait(lambda: "running" in plane.state("deaf") and plane.kubectl("logs", "deaf") == "up\n")
    leader = plane.leader("deaf")
    began = time.monotonic()
    plane.kubectl("delete", "pod", "deaf")
    assert time.monotonic() - began > 1  # the grace, to the second
    assert not alive(leader)
