import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.api import registry
from tensorfusion.api.validation import prune_and_default, validate

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "default"},
    "spec": {"containers": [{"name": "c", "image": "busybox"}]},
}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "namespace": "default"},
    "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": POD["spec"]},
    },
}


def ours(resource, spec):
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": "x", **({"namespace": "default"} if resource.namespaced else {})},
        "spec": spec,
    }


def put(obj, path, value):
    """A deep copy with one value changed; ``None`` removes it."""
    result = copy.deepcopy(obj)
    *parents, last = path
    target = result
    for key in parents:
        target = target[key] if isinstance(key, int) else target.setdefault(key, {})
    if value is None:
        del target[last]
    else:
        target[last] = value
    return result


def findings(resource, obj, old=None):
    ready, _ = prune_and_default(resource, obj)
    former = prune_and_default(resource, old)[0] if old else None
    return {cause.field: cause for cause in validate(resource, ready, former)}


PROFILE_CASES = [
    ({"gpuCount": 0}, "spec.gpuCount", "Invalid value: 0: should be between 1 and 128"),
    ({"gpuCount": 129}, "spec.gpuCount", "should be between 1 and 128"),
    ({"gpuCount": "2"}, "spec.gpuCount", "must be of type integer"),
    ({"gpuCount": True}, "spec.gpuCount", "must be of type integer"),
    ({"replicas": -1}, "spec.replicas", "greater than or equal to 0"),
    ({"replicas": 2**31}, "spec.replicas", "must fit int32"),
    ({"qos": "urgent"}, "spec.qos", 'Unsupported value: "urgent": supported values: "low", "medium"'),
    ({"isolation": "none"}, "spec.isolation", 'supported values: "shared", "soft", "hard"'),
    ({"isLocalGPU": "true"}, "spec.isLocalGPU", "must be of type boolean"),
    ({"gpuIndices": [0, "1"]}, "spec.gpuIndices[1]", "must be of type integer"),
    ({"gpuIndices": 1}, "spec.gpuIndices", "must be of type array"),
    ({"resources": {"requests": {"tflops": "ten"}}}, "spec.resources.requests.tflops", "must be a quantity"),
    ({"resources": {"requests": {"vram": "-4Gi"}}}, "spec.resources.requests.vram", "not negative"),
    ({"resources": {"limits": {"tflops": -1}}}, "spec.resources.limits.tflops", "greater than or equal to 0"),
    ({"resources": {"limits": {"tflops": 1.5}}}, "spec.resources.limits.tflops", "integer or string"),
    ({"resources": {"requests": {"tflops": "5", "compute": "50"}}}, "spec.resources.requests", "exclude each other"),
    ({"resources": {"limits": {"tflops": "5", "compute": "50"}}}, "spec.resources.limits", "exclude each other"),
    ({"gangScheduling": {"minMembers": 1}}, "spec.gangScheduling.minMembers", "0 (no gang) or at least 2"),
    ({"gangScheduling": {"minMembers": -1}}, "spec.gangScheduling.minMembers", "greater than or equal to 0"),
    ({"gangScheduling": {"mode": "Loose"}}, "spec.gangScheduling.mode", 'supported values: "Strict"'),
    ({"gangScheduling": {"minMembers": 3}, "replicas": 2}, "spec.gangScheduling.minMembers", "must not exceed replicas"),
    ({"gangScheduling": {"timeout": "soon"}}, "spec.gangScheduling.timeout", "must be a duration"),
    ({"autoScalingConfig": {"autoSetResources": {"targetTflopsPercentile": "x"}}}, "spec.autoScalingConfig.autoSetResources.targetTflopsPercentile", "must be a number"),
    ({"autoScalingConfig": {"autoSetResources": {"marginFraction": True}}}, "spec.autoScalingConfig.autoSetResources.marginFraction", "number or string"),
    ({"autoScalingConfig": {"autoSetResources": {"marginFraction": -0.1}}}, "spec.autoScalingConfig.autoSetResources.marginFraction", "greater than or equal to 0"),
    ({"autoScalingConfig": {"autoSetResources": {"targetResource": "cpu"}}}, "spec.autoScalingConfig.autoSetResources.targetResource", "Unsupported value"),
    ({"autoScalingConfig": {"cronScalingRules": {}}}, "spec.autoScalingConfig.cronScalingRules", "must be of type array"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "text"), PROFILE_CASES)
@pytest.mark.parametrize("resource", [registry.PROFILES, registry.WORKLOADS])
def test_workload_spec_refuses(resource, spec, field, text):
    found = findings(resource, ours(resource, spec))
    assert list(found) == [field]
    assert text in found[field].message


@pytest.mark.parametrize("rounds", [1, 2])
def test_rules_answer_the_same_however_often_they_are_asked(rounds):
    good = {"replicas": 3, "gangScheduling": {"minMembers": 2}, "poolName": "a"}
    for _ in range(rounds):
        assert not findings(registry.PROFILES, ours(registry.PROFILES, good))
        for bad in ({**good, "replicas": 1}, {**good, "gangScheduling": {"minMembers": 4}}):
            assert findings(registry.PROFILES, ours(registry.PROFILES, bad))
        other = {**good, "poolName": "b"}
        assert not findings(registry.PROFILES, ours(registry.PROFILES, other))


MANAGER = {"nodeManagerConfig": {}}


@pytest.mark.parametrize(
    ("resource", "spec", "field", "text"),
    [
        (registry.GPU_POOLS, {}, "spec.nodeManagerConfig", "Required value"),
        (registry.GPU_POOLS, {**MANAGER, "capacityConfig": {"oversubscription": {"tflopsOversellRatio": 99}}}, "spec.capacityConfig.oversubscription.tflopsOversellRatio", "between 100 and 100000"),
        (registry.GPU_POOLS, {**MANAGER, "capacityConfig": {"oversubscription": {"vramFull": [{"qos": "low", "policy": "swap"}]}}}, "spec.capacityConfig.oversubscription.vramFull[0].policy", "Unsupported value"),
        (registry.GPU_POOLS, {**MANAGER, "capacityConfig": {"oversubscription": {"vramFull": [{"policy": "deny"}]}}}, "spec.capacityConfig.oversubscription.vramFull[0].qos", "Required value"),
        (registry.GPU_POOLS, {**MANAGER, "capacityConfig": {"oversubscription": {"vramFull": [{"qos": "low", "policy": "wait", "timeout": "soon"}]}}}, "spec.capacityConfig.oversubscription.vramFull[0].timeout", "a duration"),
        (registry.GPU_POOLS, {**MANAGER, "capacityConfig": {"oversubscription": {"vramFull": [{"qos": "low", "policy": "spill", "hostMemory": "-1Gi"}]}}}, "spec.capacityConfig.oversubscription.vramFull[0].hostMemory", "not negative"),
        (registry.GPU_POOLS, {**MANAGER, "componentConfig": {"hypervisor": {"portNumber": 70000}}}, "spec.componentConfig.hypervisor.portNumber", "between 0 and 65535"),
        (registry.GPU_POOLS, {"nodeManagerConfig": {"provisioningMode": "Magic"}}, "spec.nodeManagerConfig.provisioningMode", "Unsupported value"),
        (registry.GPU_POOLS, {"nodeManagerConfig": {"isolationModeRules": [{"mode": "soft"}]}}, "spec.nodeManagerConfig.isolationModeRules[0].selector", "Required value"),
        (registry.GPU_POOLS, {"nodeManagerConfig": {"nodeCompaction": {"defrag": {"timezone": ""}}}}, "spec.nodeManagerConfig.nodeCompaction.defrag.timezone", "at least 1 chars"),
        (registry.GPU_POOLS, {"nodeManagerConfig": {"nodeCompaction": {"defrag": {"timezone": "UTC", "schedule": "TZ=UTC * * * * *"}}}}, "spec.nodeManagerConfig.nodeCompaction.defrag.schedule", "cron expression"),
        (registry.CLUSTERS, {"gpuPools": [{"name": "a"}]}, "spec.gpuPools[0].specTemplate", "Required value"),
        (registry.CLUSTERS, {"computingVendor": {"type": "moon"}}, "spec.computingVendor.type", "Unsupported value"),
        (registry.QUOTAS, {"total": {"alertThresholdPercent": 101}}, "spec.total.alertThresholdPercent", "between 0 and 100"),
        (registry.CONNECTIONS, {"workloadName": "w"}, "spec.clientPod", "Required value"),
        (registry.NODE_CLAIMS, {"gpuDeviceOffered": 1, "tflopsOffered": "1"}, "spec.vramOffered", "Required value"),
        (registry.NODE_CLASSES, {"osImageType": "Stolen"}, "spec.osImageType", "Unsupported value"),
        (registry.GPU_NODES, {"manageMode": "x"}, "spec.manageMode", "Unsupported value"),
        (registry.PROVIDER_CONFIGS, {"images": {"middleware": "i"}}, "spec.vendor", "Required value"),
        (registry.SCHEDULING_CONFIGS, {"placement": {"mode": "x"}}, "spec.placement.mode", "Unsupported value"),
        (registry.SCHEDULING_CONFIGS, {"placement": {"ties": "x"}}, "spec.placement.ties", "Unsupported value"),
        (registry.SCHEDULING_CONFIGS, {}, "spec.placement", "Required value"),
    ],
)  # fmt: skip
def test_other_kinds_refuse(resource, spec, field, text):
    found = findings(resource, ours(resource, spec))
    assert list(found) == [field]
    assert text in found[field].message


def test_all_findings_are_reported_at_once():
    spec = {"gpuCount": 0, "qos": "x", "resources": {"requests": {"tflops": "x"}}}
    found = findings(registry.PROFILES, ours(registry.PROFILES, spec))
    assert set(found) == {"spec.gpuCount", "spec.qos", "spec.resources.requests.tflops"}


def test_a_zero_amount_beside_percent_is_allowed_as_the_original_writes_it():
    for zero in (0, "0"):
        spec = {
            "resources": {
                "requests": {"tflops": zero, "compute": "50"},
                "limits": {"compute": "50"},
            }
        }
        assert not findings(registry.PROFILES, ours(registry.PROFILES, spec))


def test_inheritable_fields_get_no_default():
    result, unknown = prune_and_default(registry.PROFILES, ours(registry.PROFILES, {}))
    assert result["spec"] == {}
    assert unknown == []


def test_pool_defaults_fill_objects_that_are_there():
    spec = {"nodeManagerConfig": {"nodeCompaction": {}}, "capacityConfig": {"oversubscription": {}}}
    result, _ = prune_and_default(registry.GPU_POOLS, ours(registry.GPU_POOLS, spec))
    assert result["spec"] == {
        "nodeManagerConfig": {
            "nodeCompaction": {"period": "5m"},
            "provisioningMode": "AutoSelect",
            "defaultVendor": "NVIDIA",
            "defaultIsolationMode": "soft",
        },
        "capacityConfig": {
            "oversubscription": {
                "tflopsOversellRatio": 500,
                "vramExpandToHostMem": 50,
                "vramExpandToHostDisk": 70,
            }
        },
    }


def test_unknown_fields_are_dropped_and_named_and_the_input_is_left_alone():
    obj = ours(
        registry.PROFILES,
        {
            "foo": 1,
            "workerPodTemplate": {"any": {"thing": 1}},
            "resources": {"requests": {"gpu": 1}},
        },
    )
    obj["extra"] = True
    before = copy.deepcopy(obj)
    result, unknown = prune_and_default(registry.PROFILES, obj)
    assert sorted(unknown) == ["extra", "spec.foo", "spec.resources.requests.gpu"]
    assert result["spec"] == {
        "workerPodTemplate": {"any": {"thing": 1}},
        "resources": {"requests": {}},
    }
    assert obj == before
    _, unknown = prune_and_default(registry.PODS, put(POD, ("spec", "containers", 0, "imge"), "x"))
    assert unknown == ["spec.containers[0].imge"]


def test_null_means_absent():
    obj = put(POD, ("metadata", "creationTimestamp"), 0)
    obj["metadata"]["creationTimestamp"] = None
    result, unknown = prune_and_default(registry.PODS, obj)
    assert "creationTimestamp" not in result["metadata"]
    assert unknown == []
    assert not validate(registry.PODS, result)


def test_pod_gets_the_defaults_of_the_real_server():
    pod = put(POD, ("spec", "containers", 0, "resources"), {"limits": {"cpu": "1"}})
    before = copy.deepcopy(pod)
    spec = prune_and_default(registry.PODS, pod)[0]["spec"]
    container = spec["containers"][0]
    assert spec["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"] == {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}
    assert pod == before


def test_deployment_gets_the_defaults_of_the_real_server():
    spec = prune_and_default(registry.DEPLOYMENTS, DEPLOYMENT)[0]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": "25%"}
    assert spec["template"]["spec"]["dnsPolicy"] == "ClusterFirst"
    assert "rollingUpdate" not in prune_and_default(
        registry.DEPLOYMENTS, put(DEPLOYMENT, ("spec", "strategy"), {"type": "Recreate"})
    )[0]["spec"]["strategy"]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "field", "text"),
    [
        (("spec", "containers"), [], "spec.containers", "Required value"),
        (("spec", "containers"), None, "spec.containers", "Required value"),
        (("spec",), None, "spec.containers", "Required value"),
        (("spec", "containers", 0, "name"), "Not_A_Label", "spec.containers[0].name", "RFC 1123"),
        (("spec", "containers", 0, "image"), None, "spec.containers[0].image", "Required value"),
        (("spec", "restartPolicy"), "Sometimes", "spec.restartPolicy", "Unsupported value"),
        (("spec", "containers", 0, "ports"), [{"containerPort": 0}], "spec.containers[0].ports[0].containerPort", "between 1 and 65535"),
        (("spec", "containers", 0, "resources"), {"requests": {"cpu": "x"}}, "spec.containers[0].resources.requests[cpu]", "must be a quantity"),
        (("spec", "containers", 0, "resources"), {"limits": {"cpu": 1}, "requests": {"cpu": "1500m"}}, "spec.containers[0].resources.requests", "less than or equal to cpu limit of 1"),
        (("spec", "containers", 0, "volumeMounts"), [{"name": "v", "mountPath": "/v"}], "spec.containers[0].volumeMounts[0].name", 'Not found: "v"'),
        (("spec", "containers"), [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}], "spec.containers[1].name", "Duplicate value"),
        (("metadata", "name"), "UPPER", "metadata.name", "RFC 1123 subdomain"),
        (("metadata", "name"), None, "metadata.name", "name or generateName is required"),
        (("metadata", "labels"), {"a b": "x"}, "metadata.labels", "qualified name"),
        (("metadata", "labels"), {"a": "x y"}, "metadata.labels", "valid label"),
        (("metadata", "annotations"), {"a": "x" * 300_000}, "metadata.annotations", "Too long"),
        (("metadata", "annotations"), {"a": 1}, "metadata.annotations[a]", "must be of type string"),
        (("metadata", "creationTimestamp"), "yesterday", "metadata.creationTimestamp", "must be a time"),
    ],
)  # fmt: skip
def test_pod_refuses(path, value, field, text):
    found = findings(registry.PODS, put(POD, path, value))
    assert list(found) == [field]
    assert text in found[field].message


def test_conditions_are_one_per_type():
    obj = ours(registry.GPU_POOLS, MANAGER)
    condition = {"type": "Ready", "status": "True"}
    obj["status"] = {"conditions": [condition, condition]}
    assert list(findings(registry.GPU_POOLS, obj)) == ["status.conditions[1]"]


def test_cluster_scoped_kind_refuses_a_namespace():
    obj = ours(registry.GPU_POOLS, MANAGER)
    obj["metadata"]["namespace"] = "default"
    assert list(findings(registry.GPU_POOLS, obj)) == ["metadata.namespace"]


def test_namespace_names_are_labels():
    obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b"}}
    assert list(findings(registry.NAMESPACES, obj)) == ["metadata.name"]


def test_deployment_selector_must_match_its_template_and_stay():
    wrong = put(DEPLOYMENT, ("spec", "template", "metadata", "labels"), {"app": "y"})
    assert "spec.template.metadata.labels" in findings(registry.DEPLOYMENTS, wrong)
    moved = put(wrong, ("spec", "selector", "matchLabels"), {"app": "y"})
    found = findings(registry.DEPLOYMENTS, moved, DEPLOYMENT)
    assert "immutable" in found["spec.selector"].message


def test_pod_spec_cannot_change_except_for_a_few_fields():
    for path, value, ok in [
        (("spec", "nodeName"), "n1", True),
        (("spec", "containers", 0, "image"), "other", True),
        (("spec", "containers", 0, "command"), ["x"], False),
        (("spec", "hostNetwork"), True, False),
    ]:
        assert (findings(registry.PODS, put(POD, path, value), POD) == {}) is ok, path
    bound = put(POD, ("spec", "nodeName"), "n1")
    assert "spec.nodeName" in findings(registry.PODS, put(POD, ("spec", "nodeName"), "n2"), bound)


def test_immutable_data_cannot_change():
    old = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "d"},
        "data": {"a": "1"},
        "immutable": True,
    }
    assert list(findings(registry.CONFIG_MAPS, put(old, ("data", "a"), "2"), old)) == ["data"]
    assert findings(registry.CONFIG_MAPS, old, old) == {}


def test_secret_string_data_becomes_data():
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "d"},
        "stringData": {"k": "v"},
    }
    result, _ = prune_and_default(registry.SECRETS, secret)
    assert result["data"] == {"k": "dg=="}
    assert "stringData" not in result
    assert result["type"] == "Opaque"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["", "a", "1Gi", "Always", "ä/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "spec", "containers", "metadata", "labels", "resources", "limits", "requests", "image", "env", "x"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.sampled_from(registry.RESOURCES),
    st.dictionaries(
        st.sampled_from(["metadata", "spec", "status", "data", "value", "involvedObject"]),
        json_values,
        max_size=4,
    ),
)
@settings(max_examples=300)
def test_any_object_is_judged_without_a_crash(resource, parts):
    obj = {"apiVersion": resource.api_version, "kind": resource.kind, **parts}
    ready, _ = prune_and_default(resource, obj)
    validate(resource, ready)
    # A copy: a part that is the stored one itself counts as judged before.
    validate(resource, ready, copy.deepcopy(ready))


@given(st.sampled_from(["replicas", "image", "name", "labels"]), json_values)
@settings(max_examples=150)
def test_any_value_inside_a_deployment_is_judged_without_a_crash(where, value):
    path = {
        "replicas": ("spec", "replicas"),
        "image": ("spec", "template", "spec", "containers", 0, "resources"),
        "name": ("spec", "template", "spec", "containers"),
        "labels": ("spec", "template", "metadata", "labels"),
    }[where]
    obj = copy.deepcopy(DEPLOYMENT)
    target = obj
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    ready, _ = prune_and_default(registry.DEPLOYMENTS, obj)
    validate(registry.DEPLOYMENTS, ready, prune_and_default(registry.DEPLOYMENTS, DEPLOYMENT)[0])
