"""The generated CRDs on a real kube-apiserver: they install cleanly and judge as we do."""

import msgspec
import pytest
from tests.contract.conftest import _kube_apiserver, profile

from tensorfusion.api.registry import CUSTOM_RESOURCES, PROFILES, WORKLOADS
from tensorfusion.errors import ApiError
from tensorfusion.sqlite import SQLiteStore

BAD = {
    "gpu count above the bound": {"gpuCount": 129},
    "gpu count zero": {"gpuCount": 0},
    "unknown qos": {"qos": "best"},
    "unknown isolation": {"isolation": "none"},
    "gang of one": {"gangScheduling": {"minMembers": 1}},
    "gang larger than replicas": {"replicas": 2, "gangScheduling": {"minMembers": 3}},
    "tflops and percent": {"resources": {"requests": {"tflops": "1", "compute": "10"}}},
    "bad quantity": {"resources": {"requests": {"vram": "4 GB"}}},
    "wrong type": {"gpuIndices": "0,1"},
}
GOOD = {
    "empty": {},
    "numbers and strings": {"resources": {"requests": {"tflops": 5, "vram": "3Gi"}}},
    "gang": {"replicas": 4, "gangScheduling": {"minMembers": 2}},
    "documentation's ratios": {
        "autoScalingConfig": {"autoSetResources": {"targetTflopsPercentile": 0.9}}
    },
    "the same as text": {
        "autoScalingConfig": {"autoSetResources": {"targetComputePercentile": "0.9"}}
    },
}


@pytest.mark.cluster
def test_crds_install_without_warnings(tmp_path) -> None:
    with _kube_apiserver(tmp_path) as store:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        listed = store.transport.request("GET", path)
        found = msgspec.json.decode(listed.data)["items"]

    assert {crd["spec"]["names"]["kind"] for crd in found} == {r.kind for r in CUSTOM_RESOURCES}
    for crd in found:
        conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
        assert conditions.get("Established") == "True"
        assert "NonStructuralSchema" not in conditions


@pytest.mark.cluster
@pytest.mark.parametrize("spec", [*BAD.values(), *GOOD.values()], ids=[*BAD, *GOOD])
@pytest.mark.parametrize("resource", [PROFILES, WORKLOADS], ids=lambda r: r.kind)
def test_both_servers_judge_alike(tmp_path, resource, spec) -> None:
    body = profile("judged")
    body = {**body, "kind": resource.kind, "spec": spec}
    ours = SQLiteStore(tmp_path / "s.db")
    with _kube_apiserver(tmp_path) as theirs:
        verdicts = []
        for store in (ours, theirs):
            try:
                created = store.create(resource, body, "default", dry_run=True)
                verdicts.append(created["spec"])
            except ApiError as error:
                verdicts.append(error.code)
    ours.close()

    assert verdicts[0] == verdicts[1]
