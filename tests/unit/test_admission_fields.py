import pytest
from rig.admitting import BASIC, admit, context, pod, pool, profile, quota, written

from tensorfusion import names
from tensorfusion.admission import Refused, admit_pod
from tensorfusion.admission.annotations import USER_KEYS, annotation_reference
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.model.demand import Amount
from tensorfusion.scheduling.translate import demand_of

GIB = 1 << 30


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tflops-request": "10", "vram-request": "4Gi"}, ("10", "10", "4Gi", "4Gi")),
        ({"tflops-limit": "20", "vram-limit": "8Gi"}, ("20", "20", "8Gi", "8Gi")),
        (
            {"tflops-request": "0.5", "tflops-limit": "1500m", "vram-request": "1024Mi"},
            ("500m", "1500m", "1Gi", "1Gi"),
        ),
        ({"tflops-request": " 10 ", "vram-request": "1"}, ("10", "10", "1", "1")),
        ({"tflops-request": "1e1", "vram-request": "1k"}, ("10", "10", "1000", "1000")),
        ({"tflops-request": "10"}, ("10", "10", None, None)),
        ({"vram-limit": "2Gi"}, (None, None, "2Gi", "2Gi")),
    ],
)
def test_amounts_are_normalised_and_sides_inherit(given, expected):
    found = written(admit(given))
    keys = ("tflops-request", "tflops-limit", "vram-request", "vram-limit")
    assert tuple(found.get(key) for key in keys) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"compute-percent-request": "25"}, ("25", "25")),
        ({"compute-percent-limit": "50%"}, ("50", "50")),
        ({"compute-percent-request": "12.5", "compute-percent-limit": "80"}, ("12.5", "80")),
    ],
)
def test_percentages_are_normalised(given, expected):
    found = written(admit({**given, "vram-request": "1Gi"}))
    assert (found["compute-percent-request"], found["compute-percent-limit"]) == expected
    assert "tflops-request" not in found


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("qos", "critical", "critical"),
        ("qos", "Low", "low"),
        ("isolation", "shared", "shared"),
        ("isolation", "SOFT", "soft"),
        ("gpu-count", "4", "4"),
        ("gpu-indices", " 0, 2", "0,2"),
        ("gpu-model", "A100_SXM_80G|H100_SXM", "A100_SXM_80G|H100_SXM"),
        ("vendor", "nvidia", "NVIDIA"),
        ("vendor", "MThreads", "MooreThreads"),
        ("vendor", "mooreTHREADS", "MooreThreads"),
        ("vendor", "Cambricon", "Cambricon"),
        ("gpupool", "spare", "spare"),
        ("is-local-gpu", "true", "true"),
        ("is-local-gpu", "True", "true"),
        ("inject-container", "main", "main"),
        ("disable-features", "gpu-limiter, gpu-opt", "gpu-limiter,gpu-opt"),
        ("eviction-protection", "90m", "1h30m"),
        ("require-gpu-topology", "false", "false"),
        ("gpu-topology-max-tier", "0", "0"),
        ("gpu-topology-source", "NUMA", "numa"),
        ("simulated-load", "sine,min=1,max=2", "sine,min=1,max=2"),
        ("container-gpu-count", '{"main":2}', '{"main": 2}'),
        ("workload", "shared-one", "shared-one"),
        ("standalone-worker-mode", "false", "false"),
        ("sidecar-worker", "false", "false"),
        ("autoscale", "true", "true"),
    ],
)
def test_annotation_is_read_and_normalised(key, value, expected):
    assert written(admit({**BASIC, key: value}))[key] == expected


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("tflops-request", "ten", "amount of TFLOPS"),
        ("tflops-limit", "-1", "amount of TFLOPS"),
        ("vram-request", "4GiB", "amount of bytes"),
        ("vram-limit", "", "amount of bytes"),
        ("compute-percent-request", "101", "from 0 to 100"),
        ("compute-percent-limit", "-5", "from 0 to 100"),
        ("gpu-count", "0", "from 1 to 128"),
        ("gpu-count", "129", "from 1 to 128"),
        ("gpu-count", "two", "from 1 to 128"),
        ("gpu-count", "1.5", "from 1 to 128"),
        ("gpu-indices", "0,x", "separated by commas"),
        ("gpu-indices", "-1", "separated by commas"),
        ("gpu-indices", "1,1", "each once"),
        ("gpupool", "nowhere", "there are: main, spare"),
        ("workload-profile", "missing", "no WorkloadProfile of that name in namespace team"),
        ("vendor", "Nvidiaa", "must be one of NVIDIA, AMD"),
        ("qos", "gold", "low, medium, high, critical"),
        ("isolation", "firm", "shared, soft, hard, partitioned"),
        ("isolation", "hard", "process of their own"),
        ("isolation", "partitioned", "not offered by any installed backend"),
        ("is-local-gpu", "yes", '"true" or "false"'),
        ("is-local-gpu", "false", "remote workers are not available"),
        ("sidecar-worker", "true", "hard isolation"),
        ("standalone-worker-mode", "true", "hard isolation"),
        ("inject-container", "other", "no container 'other'; it has main"),
        ("container-gpu-count", "[1]", "JSON object of container names"),
        ("container-gpu-count", '{"main": 0}', "from 1 up"),
        ("container-gpu-count", '{"other": 1}', "no container 'other'"),
        ("container-gpu-count", '{"main": 129}', "from 1 up"),
        ("dedicated-gpu", "true", "needs tensor-fusion.ai/gpu-model"),
        ("partition-id", "1g.10gb", "needs isolation partitioned"),
        ("worker-pod-template", "spec: {}", "remote workers"),
        ("enabled-replicas", "-1", "at least 0"),
        ("autoscale", "1", '"true" or "false"'),
        ("autoscale-target", "memory", "all, compute, tflops, vram"),
        ("auto-resources", "on", '"true" or "false"'),
        ("auto-scale-target-resource", "gpu", "all, compute, tflops, vram"),
        ("auto-replicas", "many", '"true" or "false"'),
        ("disable-features", "everything", "gpu-limiter, gpu-opt, mem-manager, start-worker"),
        ("eviction-protection", "soon", "duration"),
        ("gang-enabled", "maybe", '"true" or "false"'),
        ("gang-min-members", "1", "one member is no gang"),
        ("gang-timeout", "5 minutes", "duration"),
        ("require-gpu-topology", "hard", '"true" or "false"'),
        ("gpu-topology-max-tier", "4", "from 0 to 3"),
        ("gpu-topology-source", "bios", "auto, numa, vendor"),
        ("workload", "Not A Name", "lower-case letters"),
    ],
)
def test_bad_value_is_refused_with_field_value_and_form(key, value, allowed):
    with pytest.raises(Refused) as refusal:
        admit({**BASIC, key: value})
    error = refusal.value
    assert error.field == f"metadata.annotations[tensor-fusion.ai/{key}]"
    assert error.value == value
    assert allowed in error.allowed
    assert error.code == 422
    assert error.field in str(error)
    assert error.causes[0].field == error.field
    assert error.allowed in error.causes[0].message


def test_label_must_be_true_or_false():
    with pytest.raises(Refused, match="enabled") as refusal:
        admit(labels={"enabled": "maybe"}, enabled=False)
    assert refusal.value.field == "metadata.labels[tensor-fusion.ai/enabled]"


def test_unquoted_value_is_refused_with_advice():
    bad = pod()
    bad["metadata"]["annotations"][names.GPU_COUNT] = 1
    with pytest.raises(Refused, match="quote the value"):
        admit_pod(bad, context())


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("tflop-request", "tflops-request"),
        ("vram-requests", "vram-request"),
        ("gpucount", "gpu-count"),
        ("auto-scale", "autoscale"),
    ],
)
def test_unknown_annotation_is_a_warning_with_the_closest_key(key, meant):
    admitted = admit({**BASIC, key: "1"})
    assert any(f"tensor-fusion.ai/{key} " in w and f"tensor-fusion.ai/{meant}?" in w
               for w in admitted.warnings)  # fmt: skip
    assert written(admitted)[key] == "1"


def test_label_given_as_annotation_and_the_reverse_are_told_apart():
    admitted = admit({**BASIC, "enabled": "true"}, labels={"qos": "high"})
    text = " ".join(admitted.warnings)
    assert "it is a label" in text
    assert "it is an annotation" in text


def test_annotations_without_the_label_are_a_warning():
    admitted = admit(enabled=False)
    assert not admitted.enabled
    assert "no effect without the label" in admitted.warnings[0]


@pytest.mark.parametrize("labels", [{}, {"enabled": "false"}])
def test_pod_that_is_not_enabled_is_the_very_same_object(labels):
    given = pod(labels=labels, enabled=False)
    admitted = admit_pod(given, context())
    assert admitted.pod is given
    assert admitted.workload is None


def test_scheduler_reads_what_admission_wrote():
    admitted = admit(
        {
            "tflops-request": "10",
            "tflops-limit": "20",
            "vram-limit": "4Gi",
            "container-gpu-count": '{"a": 1, "b": 2}',
            "gpu-model": "H100_SXM",
            "vendor": "nvidia",
        },
        containers=("a", "b", "c"),
    )
    demand = demand_of(decode(Pod, admitted.pod))
    assert demand.workload == "p"
    assert demand.shape.pool == "main"
    assert demand.shape.request == Amount(10_000, 4 * GIB)
    assert demand.shape.limit == Amount(20_000, 4 * GIB)
    assert demand.shape.containers == (("a", 1), ("b", 2))
    assert demand.shape.gpu_count == 3
    assert demand.shape.vendor == "NVIDIA"


def test_pod_gets_scheduler_labels_toleration_and_priority_class():
    result = admit().pod
    assert result["metadata"]["labels"] == {
        names.ENABLED: "true",
        names.COMPONENT: "worker",
        names.WORKLOAD: "p",
        names.GPU_POOL: "main",
    }
    assert result["spec"]["schedulerName"] == names.SCHEDULER
    assert result["spec"]["tolerations"][0]["key"] == names.USED_BY_TAINT
    assert result["spec"]["priorityClassName"] == "tensor-fusion-high"


@pytest.mark.parametrize("qos", ["low", "medium", "high", "critical"])
def test_each_quality_of_service_has_a_priority_class(qos):
    assert admit({**BASIC, "qos": qos}).pod["spec"]["priorityClassName"] == f"tensor-fusion-{qos}"


def test_priority_class_of_the_user_stays():
    given = pod()
    given["spec"]["priorityClassName"] = "mine"
    assert admit_pod(given, context()).pod["spec"]["priorityClassName"] == "mine"


@pytest.mark.parametrize(
    ("annotations", "pool_default", "expected"),
    [
        ({"tflops-request": "1", "vram-request": "1Gi"}, "low", "high"),
        ({"tflops-request": "1", "tflops-limit": "2", "vram-request": "1Gi"}, "low", "low"),
        ({"tflops-request": "1", "tflops-limit": "2", "vram-request": "1Gi"}, "", "medium"),
        ({"tflops-request": "1"}, "", "medium"),
        ({"tflops-request": "1", "vram-request": "1Gi", "qos": "low"}, "medium", "low"),
    ],
)
def test_quality_of_service_order(annotations, pool_default, expected):
    chosen = pool(qosConfig={"defaultQoS": pool_default})
    assert written(admit(annotations, ctx=context(pools=(chosen,))))["qos"] == expected


@pytest.mark.parametrize("vendor", ["AMD", "Hygon", "MetaX"])
def test_soft_isolation_is_refused_where_no_limiter_exists(vendor):
    with pytest.raises(Refused, match=f"no soft limiter for {vendor}"):
        admit({**BASIC, "vendor": vendor})
    assert written(admit({"vendor": vendor, "isolation": "shared"}))["vendor"] == vendor


def test_soft_isolation_is_refused_for_a_model_of_a_vendor_without_limiter():
    with pytest.raises(Refused, match="no soft limiter for AMD"):
        admit({**BASIC, "gpu-model": "MI300X"})


def test_shared_isolation_needs_no_amounts_and_ignores_namespace_defaults():
    rules = quota(single={"defaultRequests": {"tflops": "5", "vram": "1Gi"}})
    found = written(admit({"isolation": "shared"}, ctx=context(quotas=(rules,))))
    assert "tflops-request" not in found


def test_no_amounts_at_all_are_refused():
    with pytest.raises(Refused, match="no GPU amounts are given"):
        admit({})


def test_several_containers_need_a_choice():
    with pytest.raises(Refused, match="several: a, b"):
        admit(containers=("a", "b"))
    found = written(admit({**BASIC, "inject-container": "b, a"}, containers=("a", "b")))
    assert found["inject-container"] == "b,a"


def test_workload_keeps_the_annotation_only_when_the_user_wrote_it():
    assert "workload" not in written(admit())
    shared = admit({**BASIC, "workload": "team-model"})
    assert written(shared)["workload"] == "team-model"
    assert shared.pod["metadata"]["labels"][names.WORKLOAD] == "team-model"


def test_everything_else_of_the_pod_is_preserved():
    given = pod(finalizers=["example.com/x"])
    given["metadata"]["annotations"]["example.com/note"] = "keep"
    given["spec"]["volumes"] = [{"name": "v", "emptyDir": {}}]
    given["spec"]["tolerations"] = [{"operator": "Exists"}]
    before = repr(given)
    result = admit_pod(given, context()).pod
    assert repr(given) == before
    assert result["metadata"]["finalizers"] == ["example.com/x"]
    assert result["metadata"]["annotations"]["example.com/note"] == "keep"
    assert result["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert result["spec"]["tolerations"][0] == {"operator": "Exists"}


def test_profile_node_affinity_reaches_the_pod_unless_it_has_its_own():
    affinity = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
            ]
        }
    }
    ctx = context(profiles=(profile(nodeAffinity=affinity),))
    given = {**BASIC, "workload-profile": "prof"}
    assert admit(given, ctx=ctx).pod["spec"]["affinity"]["nodeAffinity"] == affinity
    own = pod(given)
    own["spec"]["affinity"] = {"nodeAffinity": {}}
    assert admit_pod(own, ctx).pod["spec"]["affinity"] == {"nodeAffinity": {}}


def test_reference_page_lists_every_annotation():
    page = annotation_reference()["annotations.md"]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(USER_KEYS)
    assert all(f"| `{key.key}` |" in page for key in USER_KEYS)
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
