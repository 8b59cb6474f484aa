"""`tensorfusion render`: outputs, exit codes, and one clear line for every bad input."""

import json

import pytest
import yaml
from click.testing import CliRunner

from tensorfusion.cli.render import render

DOCUMENTED = """
kind: Deployment
apiVersion: apps/v1
metadata:
  name: torch
spec:
  template:
    metadata:
      labels:
        tensor-fusion.ai/enabled: "true"
      annotations:
        tensor-fusion.ai/inject-container: python # could be comma split
        tensor-fusion.ai/tflops-limit: '20'
        tensor-fusion.ai/tflops-request: '10'
        tensor-fusion.ai/vram-limit: 4Gi
        tensor-fusion.ai/vram-request: 4Gi
        tensor-fusion.ai/qos: medium
        tensor-fusion.ai/workload-profile: default-profile
        tensor-fusion.ai/is-local-gpu: 'true'
        tensor-fusion.ai/gpu-count: '1'
    spec:
      containers:
      - {name: python, image: pytorch}
      - {name: sidecar, image: envoy}
---
apiVersion: tensor-fusion.ai/v1
kind: WorkloadProfile
metadata:
  name: default-profile
spec:
  qos: low
  resources:
    requests: {tflops: "5", vram: 3Gi}
    limits: {tflops: "15", vram: 3Gi}
  autoScalingConfig: {}
"""


def run(tmp_path, text, *options):
    path = tmp_path / "in.yaml"
    path.write_text(text)
    return CliRunner().invoke(render, ["-f", str(path), *options])


def test_documented_deployment_renders(tmp_path):
    result = run(tmp_path, DOCUMENTED)
    assert result.exit_code == 0, result.output
    pod, workload = yaml.safe_load_all(result.stdout)
    noted = pod["metadata"]["annotations"]
    assert noted["tensor-fusion.ai/tflops-limit"] == "20"
    assert noted["tensor-fusion.ai/qos"] == "medium"
    assert noted["tensor-fusion.ai/gpupool"] == "tensor-fusion-shared"
    assert noted["tensor-fusion.ai/inject-container"] == "python"
    assert pod["metadata"]["labels"]["tensor-fusion.ai/workload"] == "torch"
    assert workload["metadata"]["name"] == "torch"
    assert workload["spec"]["resources"]["limits"] == {"tflops": "20", "vram": "4Gi"}


def test_json_is_a_report(tmp_path):
    report = json.loads(run(tmp_path, DOCUMENTED, "-o", "json").stdout)
    assert set(report) == {"allowed", "pod", "workload", "warnings", "error"}
    assert report["allowed"] is True
    assert report["error"] is None


def test_json_of_a_refusal(tmp_path):
    result = run(tmp_path, DOCUMENTED.replace("4Gi", "4GiB"), "-o", "json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["allowed"] is False
    assert report["pod"] is None
    error = report["error"]
    assert error["field"] == "spec.template.metadata.annotations[tensor-fusion.ai/vram-request]"
    assert error["value"] == "4GiB"
    assert "4Gi" in error["allowed"]


def test_refusal_exits_with_one(tmp_path):
    result = run(tmp_path, DOCUMENTED.replace("qos: medium", "qos: gold"))
    assert result.exit_code == 1
    assert 'refused: Deployment.apps "torch" is invalid' in result.stderr
    assert result.stdout == ""


def test_diff_shows_only_what_changes(tmp_path):
    result = run(tmp_path, DOCUMENTED, "-o", "diff")
    assert "+    tensor-fusion.ai/isolation: soft" in result.stdout
    assert "+  schedulerName: tensor-fusion-scheduler" in result.stdout
    assert "-" not in {line[0] for line in result.stdout.splitlines()[2:]}


def test_pod_that_is_not_ours_has_an_empty_diff(tmp_path):
    text = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c}]}}"
    result = run(tmp_path, text, "-o", "diff")
    assert (result.exit_code, result.stdout) == (0, "")
    report = json.loads(run(tmp_path, text, "-o", "json").stdout)
    assert report["workload"] is None


def test_several_workloads_are_a_list(tmp_path):
    documents = DOCUMENTED.split("---")
    text = "---".join(
        [documents[0], documents[0].replace("name: torch", "name: two"), documents[1]]
    )
    reports = json.loads(run(tmp_path, text, "-o", "json").stdout)
    assert [r["workload"]["metadata"]["name"] for r in reports] == ["torch", "two"]


@pytest.mark.parametrize("kind", ["ReplicaSet", "StatefulSet", "DaemonSet", "Job"])
def test_every_kind_with_a_template_renders(tmp_path, kind):
    result = run(tmp_path, DOCUMENTED.replace("Deployment", kind), "-o", "json")
    assert json.loads(result.stdout)["workload"]["metadata"]["name"] == "torch"


def test_inject_shows_the_limiter(tmp_path):
    result = run(tmp_path, DOCUMENTED, "--inject")
    pod = next(yaml.safe_load_all(result.stdout))
    assert pod["spec"]["initContainers"][0]["name"] == "tensorfusion-limiter"
    assert "env" not in pod["spec"]["containers"][1]


def test_auto_migrate_takes_native_pods(tmp_path):
    text = (
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers:"
        " [{name: c, resources: {limits: {nvidia.com/gpu: 1}}}]}}"
    )
    report = json.loads(run(tmp_path, text, "-o", "json", "--auto-migrate").stdout)
    assert report["pod"]["metadata"]["annotations"]["tensor-fusion.ai/isolation"] == "shared"
    assert json.loads(run(tmp_path, text, "-o", "json").stdout)["workload"] is None


SNAPSHOT = """
apiVersion: v1
kind: List
items:
- apiVersion: tensor-fusion.ai/v1
  kind: GPUPool
  metadata: {name: gold}
  spec: {nodeManagerConfig: {}}
- apiVersion: tensor-fusion.ai/v1
  kind: GPUResourceQuota
  metadata: {name: q, namespace: default}
  spec: {total: {requests: {tflops: "45"}}}
- apiVersion: v1
  kind: Pod
  metadata:
    name: other
    namespace: default
    uid: u1
    labels: {tensor-fusion.ai/component: worker, tensor-fusion.ai/workload: other}
    annotations:
      tensor-fusion.ai/gpu-ids: gpu-1
      tensor-fusion.ai/tflops-request: "20"
  spec: {containers: [{name: c}], nodeName: n}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: ignored}}
"""


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_snapshot_brings_pools_quotas_and_usage(tmp_path, form):
    snapshot = tmp_path / "cluster"
    snapshot.write_text(SNAPSHOT if form == "yaml" else json.dumps(yaml.safe_load(SNAPSHOT)))
    options = ("--cluster", str(snapshot), "-o", "json")
    report = json.loads(run(tmp_path, DOCUMENTED, *options).stdout)
    assert report["pod"]["metadata"]["annotations"]["tensor-fusion.ai/gpupool"] == "gold"
    three = DOCUMENTED.replace("spec:\n  template", "spec:\n  replicas: 3\n  template")
    result = run(tmp_path, three, *options)
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert "requested 30 TFLOPS, used 20 TFLOPS, limit 45 TFLOPS" in error["allowed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("a: \x00", "not YAML"),
        ("- 1", "must be an object"),
        ("a: 1", "must have apiVersion and kind"),
        ("{apiVersion: v1, kind: Potato, metadata: {name: x}}", 'no matches for kind "Potato"'),
        ("{apiVersion: v1, kind: Namespace, metadata: {name: x}}", "nothing to render"),
        ("", "nothing to render"),
        ("{apiVersion: v1, kind: Namespace}", "metadata.name of a Namespace"),
        ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}", "must be a pod template"),
        ("{apiVersion: v1, kind: Pod, metadata: 3}", "must be objects"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, text, message):
    result = run(tmp_path, text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_missing_file_is_one_line(tmp_path):
    result = CliRunner().invoke(render, ["-f", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert result.stderr.endswith("none.yaml: No such file or directory\n")


def test_standard_input_is_read():
    result = CliRunner().invoke(render, ["-f", "-"], input=DOCUMENTED)
    assert result.exit_code == 0


def test_help_has_an_example():
    assert "tensorfusion render -f deployment.yaml" in CliRunner().invoke(render, ["--help"]).stdout
