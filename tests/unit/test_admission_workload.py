import pytest
from rig.admitting import BASIC, admit, context, pod, pool, profile, quota, written

from tensorfusion import names
from tensorfusion.admission import (
    QuotaExceeded,
    Refused,
    admit_pod,
    check_profile,
    check_quota_object,
)
from tensorfusion.api import registry
from tensorfusion.api.validation import prune_and_default, validate
from tensorfusion.model.quota import Usage

REPLICA_SET = {
    "kind": "ReplicaSet",
    "metadata": {
        "name": "web-abc",
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": "web",
                "uid": "d1",
                "controller": True,
            }
        ],
    },
}
BY_REPLICA_SET = [
    {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web-abc",
        "uid": "r1",
        "controller": True,
    }
]


def owned(**given):
    made = pod(given.pop("annotations", None), name="web-abc-xyz", ownerReferences=BY_REPLICA_SET)
    made["metadata"]["labels"]["pod-template-hash"] = "abc"
    made["metadata"]["uid"] = "p1"
    return made


def test_workload_is_named_after_the_deployment_and_goes_with_it():
    workload = admit_pod(owned(), context(owners=(REPLICA_SET,))).workload
    assert workload["metadata"]["name"] == "web"
    assert workload["metadata"]["ownerReferences"] == [
        REPLICA_SET["metadata"]["ownerReferences"][0]
    ]


def test_deployment_is_known_by_the_hash_when_the_replica_set_is_not_seen():
    workload = admit_pod(owned(), context()).workload
    assert workload["metadata"]["name"] == "web"
    assert "ownerReferences" not in workload["metadata"]


def test_bare_pod_owns_its_workload():
    workload = admit(uid="u1").workload
    assert workload["metadata"]["name"] == "p"
    assert workload["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u1"}
    ]


def test_generated_name_is_trimmed():
    workload = admit(name="", generateName="job-").workload
    assert workload["metadata"]["name"] == "job"


def test_long_name_still_fits_in_a_label():
    long = "x" * 80
    first = admit(name=long).workload["metadata"]["name"]
    other = admit(name=long + "y").workload["metadata"]["name"]
    assert len(first) == 63
    assert first != other


def test_workload_passes_the_schema_and_is_stable_under_its_defaults():
    gang = profile(
        gangScheduling={"minMembers": 2, "timeout": "5m"},
        replicas=3,
        autoScalingConfig={"autoSetResources": {"enable": True, "targetResource": "all"}},
    )
    ctx = context(profiles=(gang,))
    given = {**BASIC, "workload-profile": "prof", "gpu-indices": "0,1", "vendor": "NVIDIA"}
    workload = admit(given, ctx=ctx).workload
    stored, unknown = prune_and_default(registry.WORKLOADS, workload)
    assert unknown == []
    assert validate(registry.WORKLOADS, stored) == []
    again = admit(given, ctx=context(profiles=(gang,), workloads=(stored,)))
    assert again.workload is None


def test_defect_17_metadata_of_an_existing_workload_is_refreshed_and_others_kept():
    first = admit({**BASIC, "disable-features": "gpu-opt"}).workload
    first["metadata"]["labels"]["team"] = "a"
    first["metadata"]["annotations"]["note"] = "b"
    second = admit({**BASIC, "gpupool": "spare"}, ctx=context(workloads=(first,))).workload
    assert second["metadata"]["labels"] == {names.GPU_POOL: "spare", "team": "a"}
    assert names.DISABLE_FEATURES not in second["metadata"]["annotations"]
    assert second["metadata"]["annotations"]["note"] == "b"
    assert second["spec"]["poolName"] == "spare"


def test_defect_13_disabled_features_come_from_the_annotation():
    workload = admit({**BASIC, "disable-features": "mem-manager"}).workload
    assert workload["metadata"]["annotations"][names.DISABLE_FEATURES] == "mem-manager"


def test_shared_workload_lends_its_settings_and_keeps_its_spec():
    existing = {
        "metadata": {"name": "model", "namespace": "team"},
        "spec": {
            "poolName": "spare",
            "gpuCount": 2,
            "resources": {"requests": {"tflops": "7", "vram": "7Gi"}},
        },
    }
    ctx = context(workloads=(existing,))
    admitted = admit({"workload": "model"}, ctx=ctx, uid="u1")
    found = written(admitted)
    assert (found["tflops-request"], found["gpu-count"], found["gpupool"]) == ("7", "2", "spare")
    assert admitted.workload["spec"] == existing["spec"]
    assert [o["uid"] for o in admitted.workload["metadata"]["ownerReferences"]] == ["u1"]


def recommending(**scaling):
    return {
        "metadata": {"name": "p", "namespace": "team"},
        "spec": {"poolName": "main"},
        "status": {
            "recommendation": {
                "requests": {"tflops": "3", "vram": "2Gi"},
                "limits": {"tflops": "6", "vram": "5Gi"},
            }
        },
    }


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({}, ("10", "20", "4Gi")),
        ({"autoscale": "true"}, ("3", "6", "2Gi")),
        ({"autoscale": "true", "autoscale-target": "compute"}, ("3", "6", "4Gi")),
        ({"autoscale": "true", "autoscale-target": "vram"}, ("10", "20", "2Gi")),
        ({"auto-resources": "true"}, ("10", "20", "4Gi")),
    ],
)
def test_defect_14_recommendation_reaches_new_pods_for_the_target_only(scaling, expected):
    given = {"tflops-request": "10", "tflops-limit": "20", "vram-request": "4Gi", **scaling}
    ctx = context(workloads=(recommending(),))
    admitted = admit(given, ctx=ctx)
    found = written(admitted)
    assert (found["tflops-request"], found["tflops-limit"], found["vram-request"]) == expected
    assert admitted.workload["spec"]["resources"]["requests"] == {"tflops": "10", "vram": "4Gi"}
    assert admit_pod(admitted.pod, ctx).pod == admitted.pod
    assert admit_pod(admitted.pod, ctx).workload == admitted.workload


GANG = {**BASIC, "gang-enabled": "true"}


@pytest.mark.parametrize(
    ("given", "replicas", "expected"),
    [
        ({"gang-min-members": "3"}, None, ("3", "3")),
        ({"gang-min-members": "2"}, 4, ("4", "2")),
        ({}, 4, ("4", "4")),
        ({"gang-min-members": "0"}, 4, ("4", "4")),
        ({"enabled-replicas": "2"}, 4, ("2", "2")),
    ],
)
def test_gang_is_made_explicit(given, replicas, expected):
    deployment = {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas}}
    ctx = context(owners=(REPLICA_SET, deployment))
    found = written(admit_pod(owned(annotations={**GANG, **given}), ctx))
    assert (found["gang-desired-members"], found["gang-required-members"]) == expected
    assert found["gang-group-key"] == "team/web"


@pytest.mark.parametrize(
    ("given", "replicas", "message"),
    [
        ({}, None, "number of members is not known"),
        ({}, 1, "at least 2 members"),
        ({"gang-min-members": "5"}, 4, "must not exceed the 4 members"),
    ],
)
def test_impossible_gang_is_refused(given, replicas, message):
    deployment = {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas}}
    ctx = context(owners=(REPLICA_SET, deployment))
    with pytest.raises(Refused, match=message):
        admit_pod(owned(annotations={**GANG, **given}), ctx)


def test_defect_32_gang_of_a_profile_alone_is_a_gang():
    ctx = context(profiles=(profile(gangScheduling={"minMembers": 2}, replicas=3),))
    found = written(admit({**BASIC, "workload-profile": "prof"}, ctx=ctx))
    assert found["gang-enabled"] == "true"
    assert found["gang-desired-members"] == "3"


def exceeded(annotations, usage=None, **given):
    rules = given.pop("rules")
    ctx = context(quotas=(quota(**rules),), usage=usage or Usage(), **given)
    with pytest.raises(QuotaExceeded) as refusal:
        admit(annotations, ctx=ctx)
    return refusal.value


@pytest.mark.parametrize(
    ("annotations", "rules", "message"),
    [
        (
            BASIC,
            {"total": {"requests": {"tflops": "50"}}},
            "total.max.tflops.request of GPUResourceQuota q: requested 10 TFLOPS, used 45 TFLOPS,"
            " limit 50 TFLOPS",
        ),
        (
            BASIC,
            {"total": {"limits": {"vram": "10Gi"}}},
            "total.max.vram.limit of GPUResourceQuota q: requested 4Gi, used 8Gi, limit 10Gi",
        ),
        (
            BASIC,
            {"total": {"maxWorkers": 2}},
            "total.max.workers.limit of GPUResourceQuota q: requested 1, used 2, limit 2",
        ),
        (
            BASIC,
            {"single": {"maxRequests": {"tflops": "9"}}},
            "single.max.tflops.request of GPUResourceQuota q: requested 10 TFLOPS, used 0 TFLOPS,"
            " limit 9 TFLOPS",
        ),
        (
            {**BASIC, "gpu-count": "4"},
            {"single": {"maxGPUCount": 2}},
            "single.max.gpuCount.limit of GPUResourceQuota q: requested 4, used 0, limit 2",
        ),
    ],
)
def test_quota_refusal_names_requested_used_and_limit(annotations, rules, message):
    gib = 1 << 30
    error = exceeded(annotations, Usage(45_000, 8 * gib, 45_000, 8 * gib, 2), rules=rules)
    assert error.code == 403
    assert str(error) == f"quota exceeded in namespace team for {message}"


def test_defect_22_percent_counts_against_the_quota():
    rules = {"total": {"requests": {"tflops": "100"}}}
    given = {"compute-percent-request": "50"}
    error = exceeded(given, rules=rules, smallest_gflops=lambda _pool: 312_000)
    assert "requested 156 TFLOPS" in str(error)


def test_defect_22_unset_dimension_of_a_quota_is_unlimited():
    ctx = context(quotas=(quota(total={"requests": {"tflops": "100"}}),))
    assert admit({**BASIC, "vram-request": "4Ti"}, ctx=ctx).enabled


def test_whole_cards_count_against_the_quota():
    rules = {"total": {"requests": {"tflops": "100"}}}
    error = exceeded({"isolation": "shared"}, rules=rules, smallest_gflops=lambda _pool: 312_000)
    assert "requested 312 TFLOPS" in str(error)


def test_several_replicas_count_together_and_freed_workers_do_not():
    rules = {"total": {"requests": {"tflops": "50"}}}
    used = Usage(request_gflops=30_000, workers=3)
    error = exceeded(BASIC, used, rules=rules, replicas=3)
    assert "requested 30 TFLOPS, used 30 TFLOPS, limit 50 TFLOPS" in str(error)
    ctx = context(quotas=(quota(**rules),), usage=used, freed=used, replicas=5)
    assert admit(BASIC, ctx=ctx).enabled


def test_pod_that_shares_running_workers_needs_no_quota():
    rules = quota(total={"maxWorkers": 1})
    ctx = context(quotas=(rules,), usage=Usage(workers=1), has_workers=lambda name: name == "model")
    assert admit({**BASIC, "workload": "model"}, ctx=ctx).enabled
    with pytest.raises(QuotaExceeded):
        admit({**BASIC, "workload": "other"}, ctx=ctx)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (
            {"total": {"requests": {"tflops": "5"}, "limits": {"tflops": "4"}}},
            "spec.total.requests.tflops",
        ),
        (
            {"single": {"maxRequests": {"vram": "5Gi"}, "maxLimits": {"vram": "4Gi"}}},
            "spec.single.maxRequests.vram",
        ),
        (
            {"single": {"defaultRequests": {"tflops": "5"}, "maxRequests": {"tflops": "4"}}},
            "spec.single.defaultRequests.tflops",
        ),
        (
            {"single": {"defaultRequests": {"tflops": "5"}, "defaultLimits": {"tflops": "4"}}},
            "spec.single.defaultRequests.tflops",
        ),
        (
            {"single": {"defaultRequests": {"tflops": "5", "compute": "5"}}},
            "spec.single.defaultRequests.compute",
        ),
        ({"total": {"requests": {"compute": "50"}}}, "spec.total.requests.compute"),
        ({"single": {"defaultLimits": {"compute": "101"}}}, "spec.single.defaultLimits.compute"),
    ],
)
def test_quota_that_contradicts_itself_is_refused(spec, field):
    with pytest.raises(Refused) as refusal:
        check_quota_object(quota(**spec).spec)
    assert refusal.value.field == field


def test_sound_quota_passes():
    check_quota_object(
        quota(
            total={"requests": {"tflops": "5"}, "limits": {"tflops": "9"}, "maxWorkers": 3},
            single={"maxRequests": {"vram": "4Gi"}, "defaultLimits": {"compute": "50"}},
        ).spec
    )


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (
            {"resources": {"requests": {"tflops": "5"}, "limits": {"tflops": "4"}}},
            "spec.resources.requests.tflops",
        ),
        ({"resources": {"limits": {"compute": "120"}}}, "spec.resources.limits.compute"),
        ({"vendor": "Nobody"}, "spec.vendor"),
        ({"partitionTemplateId": "7x"}, "spec.partitionTemplateId"),
        ({"gpuIndices": [0], "gpuCount": 2}, "spec.gpuCount"),
    ],
)
def test_profile_that_no_pod_could_use_is_refused(spec, field):
    with pytest.raises(Refused) as refusal:
        check_profile(profile(**spec).spec, context())
    assert refusal.value.field == field


def test_refusal_about_an_object_reads_like_the_api_servers():
    with pytest.raises(Refused) as refusal:
        admit({**BASIC, "qos": "gold"})
    error = refusal.value.about("Deployment", "web", group="apps", prefix="spec.template.")
    assert str(error) == (
        'Deployment.apps "web" is invalid: '
        "spec.template.metadata.annotations[tensor-fusion.ai/qos]: "
        'Invalid value: "gold": must be one of low, medium, high, critical'
    )
    assert error.details == {"group": "apps", "kind": "Deployment", "name": "web"}


def test_pool_name_of_a_profile_must_exist():
    with pytest.raises(Refused) as refusal:
        admit(
            {**BASIC, "workload-profile": "prof"},
            ctx=context(profiles=(profile(poolName="gone"),), pools=(pool("extra"),)),
        )
    assert refusal.value.field == 'WorkloadProfile "prof" spec.poolName'
    assert "extra, main, spare" in refusal.value.allowed
