import pytest
from rig.admitting import BASIC, admit, context, native_pod, pool, profile, quota, written

from tensorfusion.admission import Refused, admit_pod
from tensorfusion.api.decode import decode
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate

DEFAULTS = quota(
    single={
        "defaultRequests": {"tflops": "1", "vram": "1Gi"},
        "defaultLimits": {"tflops": "2", "vram": "2Gi"},
    }
)
PROFILE = profile(
    resources={
        "requests": {"tflops": "3", "vram": "3Gi"},
        "limits": {"tflops": "30", "vram": "30Gi"},
    }
)
AMOUNTS = ("tflops-request", "tflops-limit", "vram-request", "vram-limit")


def amounts(annotations, **given):
    found = written(admit(annotations, ctx=context(**given)))
    return tuple(found.get(key) for key in AMOUNTS)


def test_amounts_come_from_the_annotation_first():
    given = {
        "workload-profile": "prof",
        "tflops-request": "5",
        "tflops-limit": "6",
        "vram-request": "5Gi",
        "vram-limit": "6Gi",
    }
    assert amounts(given, profiles=(PROFILE,), quotas=(DEFAULTS,)) == ("5", "6", "5Gi", "6Gi")


def test_amounts_come_from_the_profile_next():
    found = amounts({"workload-profile": "prof"}, profiles=(PROFILE,), quotas=(DEFAULTS,))
    assert found == ("3", "30", "3Gi", "30Gi")


def test_amounts_come_from_the_namespace_last():
    assert amounts({}, quotas=(DEFAULTS,)) == ("1", "2", "1Gi", "2Gi")


def test_each_amount_is_looked_up_on_its_own():
    found = amounts(
        {"workload-profile": "prof", "tflops-request": "7"},
        profiles=(profile(resources={"limits": {"tflops": "9"}}),),
        quotas=(DEFAULTS,),
    )
    assert found == ("7", "9", "1Gi", "2Gi")


def test_zero_counts_as_silence():
    assert amounts({"tflops-request": "0"}, quotas=(DEFAULTS,))[0] == "1"


@pytest.mark.parametrize(
    ("annotation", "spec_field", "on_pod", "in_profile"),
    [
        ("gpupool", "poolName", "spare", "other"),
        ("gpu-count", "gpuCount", "2", 3),
        ("gpu-model", "gpuModel", "T4", "L4"),
        ("vendor", "vendor", "NVIDIA", "Ascend"),
        ("qos", "qos", "low", "critical"),
        ("isolation", "isolation", "soft", "shared"),
        ("gpu-indices", "gpuIndices", "1", [0, 2]),
    ],
)
def test_annotation_beats_profile_and_profile_beats_defaults(
    annotation, spec_field, on_pod, in_profile
):
    ctx = context(pools=(pool("other"),), profiles=(profile(**{spec_field: in_profile}),))
    given = {**BASIC, "workload-profile": "prof"}
    plain = ",".join(map(str, in_profile)) if isinstance(in_profile, list) else str(in_profile)
    assert written(admit(given, ctx=ctx))[annotation] == plain
    assert written(admit({**given, annotation: on_pod}, ctx=ctx))[annotation] == on_pod


def test_local_gpu_order_is_annotation_profile_pool():
    remote_pool = pool(defaultUsingLocalGPU=False)
    given = {**BASIC, "workload-profile": "prof"}
    ctx = context(pools=(remote_pool,), profiles=(profile(isLocalGPU=True),))
    assert admit(given, ctx=ctx).enabled
    with pytest.raises(Refused) as refusal:
        admit(BASIC, ctx=ctx)
    assert refusal.value.field == 'GPUPool "main" spec.defaultUsingLocalGPU'
    assert admit({**BASIC, "is-local-gpu": "true"}, ctx=ctx).enabled
    remote_profile = context(profiles=(profile(isLocalGPU=False),))
    with pytest.raises(Refused) as refusal:
        admit(given, ctx=remote_profile)
    assert refusal.value.field == 'WorkloadProfile "prof" spec.isLocalGPU'


def test_isolation_falls_back_to_the_pool():
    manager = {"defaultIsolationMode": "shared"}
    ctx = context(pools=(pool(nodeManagerConfig=manager),))
    assert written(admit(BASIC, ctx=ctx))["isolation"] == "shared"
    assert written(admit({**BASIC, "isolation": "soft"}, ctx=ctx))["isolation"] == "soft"


def test_pool_must_be_named_without_a_default():
    with pytest.raises(Refused, match="there is no default one; there are: main, spare"):
        admit(ctx=context(default_pool=""))


def test_higher_notation_of_compute_silences_the_other_one_below():
    ctx = context(profiles=(PROFILE,), quotas=(DEFAULTS,))
    found = written(admit({"workload-profile": "prof", "compute-percent-request": "50"}, ctx=ctx))
    assert found["compute-percent-limit"] == "50"
    assert "tflops-limit" not in found
    assert found["vram-limit"] == "30Gi"


@pytest.mark.parametrize("side", ["request", "limit"])
def test_both_notations_on_one_level_are_refused(side):
    with pytest.raises(Refused, match="TFLOPS or percent, not both") as refusal:
        admit({f"tflops-{side}": "1", f"compute-percent-{side}": "1"})
    assert f"compute-percent-{side}" in refusal.value.field
    both = profile(resources={f"{side}s": {"tflops": "1", "compute": "1"}})
    with pytest.raises(Refused, match='WorkloadProfile "prof"'):
        admit({"workload-profile": "prof"}, ctx=context(profiles=(both,)))


@pytest.mark.parametrize(
    ("annotations", "field"),
    [
        ({"tflops-request": "3", "tflops-limit": "2"}, "tflops-request"),
        ({"vram-request": "3Gi", "vram-limit": "2Gi"}, "vram-request"),
        ({"compute-percent-request": "3", "compute-percent-limit": "2"}, "compute-percent-request"),
    ],
)
def test_request_above_limit_is_refused(annotations, field):
    with pytest.raises(Refused, match="must not exceed the limit of") as refusal:
        admit(annotations)
    assert refusal.value.field.endswith(f"{field}]")


def test_request_above_the_limit_of_another_level_names_that_level():
    with pytest.raises(Refused) as refusal:
        admit({"tflops-request": "5"}, ctx=context(quotas=(DEFAULTS,)))
    assert 'GPUResourceQuota "q" spec.single.defaultLimits.tflops' in refusal.value.allowed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"autoscale": "true"}, {"enable": True, "targetResource": "all"}),
        ({"autoscale": "true", "autoscale-target": "vram"}, {"enable": True, "targetResource": "vram"}),
        ({"auto-resources": "true"}, {"enable": True}),
        (
            {"auto-resources": "true", "auto-scale-target-resource": "tflops"},
            {"enable": True, "targetResource": "tflops"},
        ),
        ({"auto-resources": "true", "autoscale": "true"}, {"enable": True, "targetResource": "all"}),
        ({"autoscale": "false"}, {"enable": False}),
    ],
)  # fmt: skip
def test_both_dialects_of_autoscaling(given, expected):
    workload = admit({**BASIC, **given}).workload
    assert workload["spec"]["autoScalingConfig"]["autoSetResources"] == expected


@pytest.mark.parametrize(
    "given",
    [
        {"autoscale": "true", "auto-resources": "false"},
        {"autoscale-target": "all", "auto-scale-target-resource": "vram"},
        {"sidecar-worker": "false", "standalone-worker-mode": "true"},
    ],
)
def test_dialects_that_contradict_each_other_are_refused(given):
    with pytest.raises(Refused, match="contradicts"):
        admit({**BASIC, **given})


def test_auto_replicas_is_recorded_and_said_to_be():
    admitted = admit({**BASIC, "auto-replicas": "true"})
    scaling = admitted.workload["spec"]["autoScalingConfig"]
    assert scaling["autoSetReplicas"] == {"enable": True}
    assert any("auto-replicas is recorded" in text for text in admitted.warnings)


def test_autoscaling_order_is_annotation_profile_pool_rule():
    template = decode(
        SchedulingConfigTemplate,
        {
            "metadata": {"name": "t"},
            "spec": {
                "placement": {"mode": "CompactFirst"},
                "verticalScalingRules": [
                    {
                        "name": "other",
                        "selector": {"matchLabels": {"app": "y"}},
                        "autoScaling": {"autoSetResources": {"interval": "1m"}},
                    },
                    {
                        "name": "mine",
                        "selector": {"matchLabels": {"app": "x"}},
                        "autoScaling": {
                            "autoSetResources": {
                                "enable": True,
                                "targetResource": "vram",
                                "interval": "9m",
                                "historyDataPeriod": "4h",
                            },
                            "cronScalingRules": [{"name": "night"}, {"name": "day"}],
                        },
                    },
                ],
            },
        },
    )
    own = profile(
        autoScalingConfig={
            "autoSetResources": {"interval": "5m", "targetResource": "compute"},
            "cronScalingRules": [{"name": "day", "start": "0 8 * * *"}],
        }
    )
    ctx = context(
        pools=(pool(schedulingConfigTemplate="t"),),
        profiles=(own,),
        template={"t": template}.get,
    )
    given = {**BASIC, "workload-profile": "prof", "autoscale-target": "all"}
    labelled = native_pod({}, annotations=given, enabled=True)
    labelled["metadata"]["labels"]["app"] = "x"
    config = admit_pod(labelled, ctx).workload["spec"]["autoScalingConfig"]
    assert config["autoSetResources"] == {
        "enable": True,
        "targetResource": "all",
        "interval": "5m",
        "historyDataPeriod": "4h",
    }
    assert [rule["name"] for rule in config["cronScalingRules"]] == ["day", "night"]
    assert config["cronScalingRules"][0]["start"] == "0 8 * * *"
