"""The product as a user of kubectl and of the command line sees it."""

import json
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def until(check, seconds: float = 40.0):
    """Poll until ``check`` returns something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def applied(plane: Path) -> Path:
    """The documentation's profile and Deployment on the module's control plane."""
    import subprocess

    for file in ("00-workload-profile.yaml", "deployment.yaml"):
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(plane / "kubeconfig"), "apply", "-f", EXAMPLES / file],
            capture_output=True,
            text=True,
            env={"HOME": str(plane.parent), "PATH": "/usr/bin:/bin:/usr/local/bin"},
        )
        assert done.returncode == 0, done.stderr
    return plane


def test_rollout_scale_and_columns(applied, kubectl) -> None:
    rollout = kubectl("rollout", "status", "deployment/pytorch-example", "--timeout=30s")
    assert "successfully rolled out" in rollout.stdout, rollout.stderr

    assert kubectl("scale", "deployment/pytorch-example", "--replicas=5").returncode == 0
    ready = kubectl(
        "wait", "--for=jsonpath={.status.readyReplicas}=5", "deployment/pytorch-example",
        "--timeout=30s",
    )  # fmt: skip
    assert ready.returncode == 0, ready.stderr

    listing = kubectl("get", "gpus,gpupools,tensorfusionworkloads").stdout
    for heading in ("MODEL", "AVAILABLE TFLOPS", "READY"):
        assert heading in listing
    assert "pytorch-example" in listing


def test_describe_shows_gpu_ids_and_events(applied, kubectl) -> None:
    until(lambda: "Scheduled" in kubectl("describe", "pod", "-l", "app=pytorch-example").stdout)
    text = kubectl("describe", "pod", "-l", "app=pytorch-example").stdout

    assert "tensor-fusion.ai/gpu-ids" in text
    assert "placed on node sim-node-" in text


def test_workload_becomes_ready_and_says_what_is_enforced(applied, kubectl) -> None:
    # The first of its pods brings the workload, and kubectl does not wait for what is not there.
    until(lambda: kubectl("get", "tfw", "pytorch-example").returncode == 0)
    done = kubectl(
        "wait", "--for=condition=Ready", "tensorfusionworkload/pytorch-example", "--timeout=30s"
    )
    assert done.returncode == 0, done.stderr

    status = json.loads(kubectl("get", "tfw", "pytorch-example", "-o", "json").stdout)["status"]
    assert status["enforcement"] == "simulated"
    assert status["currentResources"]["requests"] == {"tflops": "10", "vram": "4Gi"}


def test_explain_pool(applied, kubectl) -> None:
    assert "nodeManagerConfig" in kubectl("explain", "gpupool.spec").stdout


def test_quota_refusal_is_in_kubectls_error(applied, kubectl) -> None:
    quota = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "GPUResourceQuota",
        "metadata": {"name": "team", "namespace": "limited"},
        "spec": {"total": {"requests": {"tflops": "15", "vram": "100Gi"}}},
    }
    assert kubectl("create", "namespace", "limited").returncode == 0
    assert kubectl("apply", "-f", "-", stdin=json.dumps(quota)).returncode == 0
    first = (
        (EXAMPLES / "deployment.yaml")
        .read_text()
        .replace("namespace: default", "namespace: limited")
    )
    first = "\n".join(line for line in first.splitlines() if "workload-profile" not in line)

    result = kubectl("apply", "-f", "-", stdin=first)

    assert result.returncode != 0
    assert "quota exceeded" in result.stderr
    assert "requested 20 TFLOPS" in result.stderr


def test_pool_with_finalizer_is_deleted_when_idle(plane, kubectl) -> None:
    pool = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "GPUPool",
        "metadata": {"name": "spare"},
        "spec": {"nodeManagerConfig": {}},
    }
    assert kubectl("apply", "-f", "-", stdin=json.dumps(pool)).returncode == 0
    until(lambda: "finalizer" in kubectl("get", "gpupool", "spare", "-o", "yaml").stdout)

    assert kubectl("delete", "gpupool", "spare", "--timeout=20s").returncode == 0


def test_why_names_the_constraints_of_a_waiting_pod(on_plane) -> None:
    assert on_plane("apply", "-f", str(EXAMPLES / "unplaceable.yaml")).returncode == 0

    answer = until(lambda: json.loads(on_plane("why", "pod/too-big", "-o", "json").stdout or "{}"))

    assert answer["answer"].startswith("0/8 GPUs fit")
    assert {c["constraint"] for c in answer["constraints"]} & {"vram", "capacity"}
    [change] = [c for c in answer["changes"] if c["kind"] == "vram"]
    assert change["change"] == "ask for at most 80Gi of VRAM per GPU, not 200Gi"
    assert {"kind", "because"} == set(answer["cannotHelp"][0])
    assert sum(node["gpus"] for node in answer["nodes"]) == 8


def test_why_works_on_a_snapshot_as_on_the_server(on_plane, cli, tmp_path) -> None:
    assert on_plane("apply", "-f", str(EXAMPLES / "unplaceable.yaml")).returncode == 0
    file = tmp_path / "cluster.json"
    assert "objects" in on_plane("snapshot", str(file)).stdout

    offline = cli("why", "pod/too-big", "--snapshot", str(file), "-o", "wide")

    assert offline.returncode == 0, offline.stderr
    assert "it would fit if you:\n  ask for at most 80Gi of VRAM" in offline.stdout
    assert "sim-node-0" in offline.stdout
    missing = cli("why", "pod/nobody", "--snapshot", str(file))
    assert missing.returncode == 1
    assert f'pods "nobody" not found in {file}' in missing.stderr


def test_history_tells_who_held_a_gpu_and_why(on_plane, applied) -> None:
    gpus = json.loads(on_plane("get", "gpus", "-o", "json").stdout)["items"]
    used = next(g for g in gpus if g["status"].get("runningApps"))
    name = used["metadata"]["name"]

    answer = json.loads(on_plane("history", "gpu", name, "-o", "json").stdout)
    table = on_plane("history", "gpu", name).stdout
    early = on_plane("history", "gpu", name, "--at", "2020-01-01T00:00:00Z").stdout

    assert answer["held"]
    assert answer["entries"][0]["operation"] == "allocate"
    assert "placed by" in answer["entries"][0]["reason"]
    assert "placed by" in table
    assert early.split() == ["POD", "NODE", "GPUS", "COMPUTE", "VRAM"]
    bad = on_plane("history", "gpu", name, "--at", "yesterday")
    assert bad.returncode == 1
    assert "yesterday" in bad.stderr


def test_own_verbs_in_every_format(on_plane, applied) -> None:
    for arguments in (
        ("get", "pods"),
        ("get", "gpus", "-o", "wide"),
        ("get", "gpupools", "-o", "yaml"),
        ("describe", "gpupool", "tensor-fusion-shared"),
        ("events", "-A"),
        ("top",),
        ("top", "gpus", "-o", "json"),
        ("alerts",),
        ("status", "-o", "json"),
        ("doctor",),
        ("why", "workload/pytorch-example"),
    ):
        result = on_plane(*arguments)
        assert result.returncode == 0, (arguments, result.stderr)
        assert result.stdout.strip(), arguments
    checks = json.loads(on_plane("doctor", "-o", "json").stdout)
    assert {
        "check": "backend in use",
        "result": "ok",
        "detail": "simulated, 2 node(s); soft workers are held by the model of the card;"
        " load profiles stand in for pods",
    } in checks
    assert sum(check["check"] == "fidelity driver" for check in checks) == 1


def test_a_failed_card_takes_no_new_work(on_plane, kubectl, applied) -> None:
    gpus = json.loads(kubectl("get", "gpus", "-o", "json").stdout)["items"]
    idle = next(g for g in gpus if not g["status"].get("runningApps"))
    name, node = idle["metadata"]["name"], idle["status"]["nodeName"]

    assert (
        on_plane("simulated", "fail", node, name, "--message", "fell off the bus").returncode == 0
    )
    until(
        lambda: (
            json.loads(kubectl("get", "gpu", name, "-o", "json").stdout)["status"]["phase"]
            == "Unknown"
        )
    )
    assert on_plane("simulated", "restore", node, name).returncode == 0
    until(
        lambda: (
            json.loads(kubectl("get", "gpu", name, "-o", "json").stdout)["status"]["phase"]
            == "Running"
        )
    )
