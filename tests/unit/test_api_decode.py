import pytest
import yaml

from tensorfusion.api import registry
from tensorfusion.api.core.apps import Deployment
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode, to_json
from tensorfusion.api.validation import prune_and_default, validate
from tensorfusion.api.workload import TensorFusionWorkload, WorkloadStatus
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.errors import BadRequest

DEPLOYMENT = """
kind: Deployment
apiVersion: apps/v1
metadata: {name: app, namespace: team}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata:
      labels:
        app: app
        tensor-fusion.ai/enabled: "true"
      annotations:
        tensor-fusion.ai/inject-container: python
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
      - {name: python, image: python}
"""

PROFILE = """
apiVersion: tensor-fusion.ai/v1
kind: WorkloadProfile
metadata: {name: example-workload-profile, namespace: team}
spec:
  resources:
    requests: {tflops: "5", vram: "3Gi"}
    limits: {tflops: "15", vram: "3Gi"}
  replicas: 1
  isLocalGPU: true
  poolName: default-pool
  qos: medium
  gpuCount: 1
  gpuModel: A100
  autoScalingConfig: {}
"""

AUTOSCALING = """
apiVersion: tensor-fusion.ai/v1
kind: WorkloadProfile
metadata: {name: scaled, namespace: team}
spec:
  autoScalingConfig:
    autoSetResources:
      enable: true
      targetResource: all
      targetTflopsPercentile: 0.9
      lowerBoundTflopsPercentile: 0.5
      upperBoundTflopsPercentile: 0.95
      targetVramPercentile: 0.9
      lowerBoundVramPercentile: 0.5
      upperBoundVramPercentile: 0.95
      requestMarginFraction: 0.15
      confidenceInterval: 24h
    autoSetReplicas: {}
    cronScalingRules:
    - enable: True
      name: "test"
      start: "0 0 * * Thu"
      end: "59 23 * * Thu"
      desiredResources:
        limits: {tflops: "99", vram: 10Gi}
        requests: {tflops: "44", vram: 5Gi}
"""


def contains(whole, part):
    """Whether every value of ``part`` is in ``whole``."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return len(whole) == len(part) and all(
            contains(a, b) for a, b in zip(whole, part, strict=True)
        )
    return whole == part


@pytest.mark.parametrize(
    ("text", "struct"),
    [(DEPLOYMENT, Deployment), (PROFILE, WorkloadProfile), (AUTOSCALING, WorkloadProfile)],
)
def test_documented_manifests_round_trip_with_nothing_lost(text, struct):
    obj = yaml.safe_load(text)
    resource = registry.by_kind(obj["apiVersion"], obj["kind"])
    ready, unknown = prune_and_default(resource, obj)
    assert unknown == []
    assert validate(resource, ready) == []
    assert contains(ready, obj)
    assert contains(to_json(decode(struct, ready)), obj)


def test_quoted_ratios_mean_the_same_as_bare_ones():
    quoted = yaml.safe_load(AUTOSCALING.replace("0.9\n", '"0.9"\n'))
    ready, _ = prune_and_default(registry.PROFILES, quoted)
    assert validate(registry.PROFILES, ready) == []


def test_unknown_fields_are_ignored_in_a_typed_view():
    pod = decode(
        Pod,
        {
            "metadata": {"name": "p", "newField": 1},
            "spec": {"containers": [{"name": "c"}], "x": {}},
        },
    )
    assert pod.spec is not None
    assert pod.spec.containers[0].name == "c"
    assert pod.metadata.labels == {}


def test_a_view_of_the_wrong_type_names_the_field():
    with pytest.raises(BadRequest, match=r"TensorFusionWorkload cannot be read: .*gpuCount"):
        decode(
            TensorFusionWorkload,
            {"kind": "TensorFusionWorkload", "metadata": {}, "spec": {"gpuCount": "1"}},
        )


def test_status_patches_always_say_the_phase():
    assert to_json(WorkloadStatus(worker_count=0)) == {"phase": "Pending", "workerCount": 0}
