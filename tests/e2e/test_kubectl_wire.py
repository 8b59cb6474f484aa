"""kubectl, unchanged, against the embedded server."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorfusion.api.registry import DEPLOYMENTS, PODS, PROFILES
from tensorfusion.apiserver import ApiServer, PodLogRequest, Seams
from tensorfusion.sqlite import SQLiteStore

KUBECTL = shutil.which("kubectl")
pytestmark = [
    pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed"),
    pytest.mark.timeout(120),
]

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: "one", ports: [{containerPort: 80}]}
      - {name: side, image: "two"}
"""
PROFILE = """
apiVersion: tensor-fusion.ai/v1
kind: WorkloadProfile
metadata: {name: small}
spec: {gpuModel: A100, replicas: 2}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec: {containers: [{name: main, image: x}]}
"""


class Kubectl:
    """Runs kubectl with a home and a kubeconfig of its own."""

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "KUBECONFIG": str(kubeconfig),
            "KUBE_EDITOR": "true",
        }

    def run(self, *arguments: str, stdin: str = "", fails: bool = False) -> str:
        result = subprocess.run(
            [str(KUBECTL), *arguments],
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode != 0) is fails, result.stdout + result.stderr
        return result.stderr if fails else result.stdout + result.stderr

    def apply(self, text: str, *arguments: str, fails: bool = False) -> str:
        return self.run("apply", "-f", "-", *arguments, stdin=text, fails=fails)


def logs(request: PodLogRequest) -> Iterator[bytes]:
    return iter([f"hello from {request.name}\n".encode()])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    opened = SQLiteStore(tmp_path / "store.db")
    yield opened
    opened.close()


@pytest.fixture
def kubectl(
    store: SQLiteStore, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kubectl]:
    server = ApiServer(store, data_dir=tmp_path / "data", seams=Seams(pod_logs=logs))
    server.start()
    yield Kubectl(server.kubeconfig_path, tmp_path_factory.mktemp("home"))
    server.stop()


def test_client_side_apply_creates_changes_and_leaves(kubectl: Kubectl, store: SQLiteStore) -> None:
    for text, name in ((DEPLOYMENT, "deployment.apps/web"), (PROFILE, "small")):
        assert f"{name} created" in kubectl.apply(text)
        assert f"{name} unchanged" in kubectl.apply(text)
    assert "configured" in kubectl.apply(DEPLOYMENT.replace('"two"', "three"))
    assert "configured" in kubectl.apply(PROFILE.replace("replicas: 2", "replicas: 3"))
    spec = store.get(DEPLOYMENTS, "web", "default")["spec"]["template"]["spec"]
    assert [(c["name"], c["image"]) for c in spec["containers"]] == [
        ("main", "one"),
        ("side", "three"),
    ]
    assert store.get(PROFILES, "small", "default")["spec"]["replicas"] == 3


def test_client_side_apply_removes_what_left_the_manifest(
    kubectl: Kubectl, store: SQLiteStore
) -> None:
    kubectl.apply(DEPLOYMENT)
    kubectl.apply(DEPLOYMENT.replace('      - {name: side, image: "two"}\n', ""))
    spec = store.get(DEPLOYMENTS, "web", "default")["spec"]["template"]["spec"]
    assert [c["name"] for c in spec["containers"]] == ["main"]
    kubectl.apply(PROFILE)
    kubectl.apply(PROFILE.replace("gpuModel: A100, ", ""))
    assert "gpuModel" not in store.get(PROFILES, "small", "default")["spec"]


def test_server_side_apply_and_its_conflicts(kubectl: Kubectl, store: SQLiteStore) -> None:
    assert "serverside-applied" in kubectl.apply(PROFILE, "--server-side")
    changed = PROFILE.replace("replicas: 2", "replicas: 5")
    message = kubectl.apply(changed, "--server-side", "--field-manager=other", fails=True)
    assert 'conflict with "kubectl": .spec.replicas' in message
    kubectl.apply(changed, "--server-side", "--field-manager=other", "--force-conflicts")
    assert store.get(PROFILES, "small", "default")["spec"]["replicas"] == 5


def test_client_side_objects_move_to_server_side_apply(
    kubectl: Kubectl, store: SQLiteStore
) -> None:
    kubectl.apply(DEPLOYMENT)
    kubectl.apply(DEPLOYMENT, "--server-side")
    kubectl.apply(DEPLOYMENT.replace('"two"', "three"), "--server-side")
    managers = store.get(DEPLOYMENTS, "web", "default")["metadata"]["managedFields"]
    assert ("kubectl", "Apply") in {(m["manager"], m["operation"]) for m in managers}


def test_get_prints_tables_and_objects(kubectl: Kubectl) -> None:
    kubectl.apply(DEPLOYMENT + "---" + PROFILE + "---" + POD)
    assert "READY" in kubectl.run("get", "deploy")
    assert "CONTAINERS" in kubectl.run("get", "deploy", "-o", "wide")
    assert "small" in kubectl.run("get", "wp,deploy,pods")
    assert "kube-system" in kubectl.run("get", "ns")
    assert kubectl.run("get", "wp", "small", "-o", "jsonpath={.spec.gpuModel}") == "A100"
    assert "gpuModel: A100" in kubectl.run("get", "wp", "small", "-o", "yaml")
    assert "pod/one" in kubectl.run("get", "all", "-l", "app=web", "-o", "name")
    assert "one" in kubectl.run(
        "get", "pods", "-A", "--chunk-size=1", "--field-selector=metadata.name=one"
    )
    assert "NotFound" in kubectl.run("get", "wp", "nobody", fails=True)


def test_describe_explain_and_api_resources(kubectl: Kubectl) -> None:
    kubectl.apply(DEPLOYMENT + "---" + POD)
    assert "2 desired" in kubectl.run("describe", "deploy", "web")
    assert "Status:       Pending" in kubectl.run("describe", "pod", "one")
    assert "gpuModel" in kubectl.run("explain", "workloadprofile.spec")
    assert "containerPort" in kubectl.run("explain", "pod.spec.containers.ports")
    listed = kubectl.run("api-resources", "--categories=tensorfusion", "-o", "name")
    assert "gpupools.tensor-fusion.ai" in listed


def test_scale_label_annotate_patch_and_set_image(kubectl: Kubectl, store: SQLiteStore) -> None:
    kubectl.apply(DEPLOYMENT + "---" + PROFILE)
    kubectl.run("scale", "deploy", "web", "--replicas=5")
    kubectl.run("label", "deploy", "web", "tier=front")
    kubectl.run("annotate", "wp", "small", "note=hello world")
    kubectl.run("set", "image", "deploy/web", "main=four")
    kubectl.run("rollout", "restart", "deploy", "web")
    operations = '[{"op": "replace", "path": "/spec/replicas", "value": 7}]'
    kubectl.run("patch", "wp", "small", "--type=json", "-p", operations)
    kubectl.run("patch", "wp", "small", "--type=merge", "-p", '{"spec":{"gpuCount":2}}')
    kubectl.run("edit", "wp", "small")
    web = store.get(DEPLOYMENTS, "web", "default")
    assert web["spec"]["replicas"] == 5
    assert web["metadata"]["labels"] == {"tier": "front"}
    assert web["spec"]["template"]["spec"]["containers"][0]["image"] == "four"
    small = store.get(PROFILES, "small", "default")
    assert (small["spec"]["replicas"], small["spec"]["gpuCount"]) == (7, 2)
    assert small["metadata"]["annotations"]["note"] == "hello world"


def test_refusals_reach_the_user(kubectl: Kubectl) -> None:
    unknown = kubectl.apply(PROFILE.replace("gpuModel", "gpuModle"), fails=True)
    assert "gpuModle" in unknown
    invalid = kubectl.apply(PROFILE.replace("replicas: 2", "gpuCount: 0"), fails=True)
    assert 'The WorkloadProfile "small" is invalid' in invalid
    assert "spec.gpuCount" in invalid
    rule = kubectl.apply(
        PROFILE.replace("replicas: 2", "replicas: 2, gangScheduling: {minMembers: 3}"), fails=True
    )
    assert "minMembers must not exceed replicas" in rule


def test_diff_and_dry_run_store_nothing(kubectl: Kubectl, store: SQLiteStore) -> None:
    kubectl.apply(PROFILE)
    before = store.version
    changed = PROFILE.replace("replicas: 2", "replicas: 9")
    assert "configured (server dry run)" in kubectl.apply(changed, "--dry-run=server")
    result = subprocess.run(
        [str(KUBECTL), "diff", "-f", "-"],
        input=changed,
        env=kubectl.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "+  replicas: 9" in result.stdout
    assert store.version == before


def test_wait_and_watch_see_changes(kubectl: Kubectl, store: SQLiteStore) -> None:
    kubectl.apply(POD)
    running: list[Callable[[], Any]] = [
        lambda: store.patch(
            PODS,
            "one",
            {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}},
            "default",
            subresource="status",
        )
    ]
    timer = threading.Timer(1.0, running[0])
    timer.start()
    waited = kubectl.run("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    timer.join()
    assert "condition met" in waited
    deletion = threading.Timer(1.0, store.delete, args=(PODS, "one", "default"))
    deletion.start()
    kubectl.run("wait", "--for=delete", "pod/one", "--timeout=30s")
    deletion.join()
    kubectl.apply(POD)
    watch = subprocess.Popen(
        [str(KUBECTL), "get", "pods", "-w", "--request-timeout=30s"],
        env=kubectl.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert "NAME" in watch.stdout.readline()
    assert "Pending" in watch.stdout.readline()
    store.patch(PODS, "one", {"status": {"phase": "Running"}}, "default", subresource="status")
    assert "Running" in watch.stdout.readline()
    watch.terminate()
    watch.wait(timeout=10)
    watch.stdout.close()


def test_delete_waits_for_finalizers(kubectl: Kubectl, store: SQLiteStore) -> None:
    kubectl.apply(PROFILE.replace("name: small", "name: small, finalizers: [example.com/hold]"))
    message = kubectl.run("delete", "wp", "small", "--timeout=1s", fails=True)
    assert "timed out" in message
    release = threading.Timer(
        1.0,
        store.patch,
        args=(PROFILES, "small", {"metadata": {"finalizers": None}}, "default"),
    )
    release.start()
    assert "deleted" in kubectl.run("delete", "wp", "small", "--timeout=30s")
    release.join()
    kubectl.apply(DEPLOYMENT)
    kubectl.run("delete", "deploy", "--all", "--cascade=foreground", "--timeout=30s")
    assert store.list(DEPLOYMENTS, "default").items == []


def test_namespaces_config_maps_and_secrets_are_created_by_typed_clients(kubectl: Kubectl) -> None:
    kubectl.run("create", "namespace", "team")
    kubectl.run("create", "configmap", "settings", "--from-literal=a=b", "-n", "team")
    kubectl.run("create", "secret", "generic", "keys", "--from-literal=k=v", "-n", "team")
    kubectl.run("create", "deployment", "app", "--image=x", "--replicas=2", "-n", "team")
    path = "jsonpath={.data.a}"
    assert kubectl.run("get", "cm", "settings", "-n", "team", "-o", path) == "b"
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    assert kubectl.run("get", "deploy", "app", "-n", "team", "-o", image) == "x"
    assert "yes" in kubectl.run("auth", "can-i", "create", "pods")
    assert "deleted" in kubectl.run("delete", "namespace", "team", "--timeout=30s")


def test_logs_and_events(kubectl: Kubectl) -> None:
    kubectl.apply(POD)
    assert kubectl.run("logs", "one") == "hello from one\n"
    event = """
apiVersion: v1
kind: Event
metadata: {name: one.1}
involvedObject: {kind: Pod, name: one, namespace: default}
reason: Placed
message: on node n1
type: Normal
"""
    kubectl.apply(event)
    assert "Placed" in kubectl.run("get", "events", "--field-selector=involvedObject.name=one")
