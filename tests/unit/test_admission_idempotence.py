"""Admitting an admitted pod changes nothing, and no input makes admission crash."""

import copy

from hypothesis import given, settings
from hypothesis import strategies as st
from rig.admitting import context, keyed, pod, pool, profile, quota

from tensorfusion.admission import Claims, Migration, Offers, Refused, admit_pod

AMOUNT = st.sampled_from(["0", "1", "2.5", "10", "500m", "3Gi", "80"])
CHOICES = {
    "tflops-request": AMOUNT,
    "tflops-limit": AMOUNT,
    "vram-request": AMOUNT,
    "vram-limit": AMOUNT,
    "compute-percent-request": st.sampled_from(["10", "50", "0"]),
    "compute-percent-limit": st.sampled_from(["60", "100%"]),
    "gpu-count": st.sampled_from(["1", "2", "3"]),
    "gpu-indices": st.sampled_from(["0", "0,1", "2,0,1", ""]),
    "gpu-model": st.sampled_from(["A100", "H100_SXM", "T4|L4", "unheard-of"]),
    "vendor": st.sampled_from(["nvidia", "MThreads", "AMD"]),
    "qos": st.sampled_from(["low", "HIGH"]),
    "isolation": st.sampled_from(["soft", "shared", "partitioned"]),
    "partition-id": st.sampled_from(["1g.10gb", "3g.40gb"]),
    "gpupool": st.sampled_from(["main", "spare"]),
    "workload": st.sampled_from(["alone", "known"]),
    "workload-profile": st.just("prof"),
    "inject-container": st.sampled_from(["a", "a,b", "b"]),
    "container-gpu-count": st.sampled_from(['{"a":1}', '{"a":1,"b":2}']),
    "dedicated-gpu": st.sampled_from(["true", "false"]),
    "autoscale": st.sampled_from(["true", "false"]),
    "auto-resources": st.just("true"),
    "autoscale-target": st.sampled_from(["all", "vram", "compute"]),
    "disable-features": st.sampled_from(["gpu-limiter", "gpu-opt,mem-manager"]),
    "eviction-protection": st.sampled_from(["90m", "0"]),
    "gang-enabled": st.sampled_from(["true", "false"]),
    "gang-min-members": st.sampled_from(["2", "0"]),
    "enabled-replicas": st.sampled_from(["1", "4"]),
    "require-gpu-topology": st.just("True"),
}
annotations = st.lists(st.sampled_from(sorted(CHOICES)), max_size=7, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: CHOICES[key] for key in keys})
)
RECOMMENDATION = {
    "requests": {"tflops": "3", "vram": "2Gi"},
    "limits": {"tflops": "300", "vram": "5Gi"},
}
KNOWN = [
    {
        "metadata": {"name": name, "namespace": "team", "uid": name},
        "spec": {"poolName": "main", "resources": {"requests": {"tflops": "7", "vram": "1Gi"}}},
        "status": {"recommendation": RECOMMENDATION},
    }
    for name in ("known", "p")
]
contexts = st.builds(
    lambda **given: context(**given),
    profiles=st.just(
        (
            profile(
                resources={"limits": {"tflops": "90", "vram": "80Gi"}},
                qos="low",
                autoScalingConfig={"autoSetResources": {"enable": True}},
            ),
        )
    ),
    quotas=st.sampled_from(
        [(), (quota(single={"defaultRequests": {"tflops": "1"}, "defaultLimits": {"vram": "1Gi"}}),)]
    ),
    workloads=st.sampled_from([(), tuple(KNOWN)]),
    inject=st.booleans(),
    claims=st.integers(0, 300).map(lambda n: Claims(next_index=n)),
    offers=st.just(Offers(everywhere=frozenset({"shared", "soft", "partitioned"}))),
    migration=st.just(Migration(enable=True)),
    pools=st.sampled_from(
        [
            (),
            (
                pool(
                    componentConfig={
                        "client": {
                            "patchToContainer": {
                                "env": [{"name": "EXTRA", "value": "1"}],
                                "resources": {"limits": {"cpu": "2"}},
                            }
                        }
                    }
                ),
            ),
        ]
    ),
)  # fmt: skip
natives = st.sampled_from(
    [{}, {"nvidia.com/gpu": "2"}, {"nvidia.com/mig-1g.10gb": 1}, {"amd.com/gpu": "1"}]
)


@given(annotations, contexts, natives, st.booleans(), st.sampled_from([("a",), ("a", "b")]))
@settings(max_examples=400, deadline=None)
def test_admission_is_idempotent_and_leaves_its_argument_alone(
    wanted, ctx, native, enabled, containers
):
    given_pod = pod(wanted, enabled=enabled, containers=containers, uid="u1")
    if native:
        given_pod["spec"]["containers"][0]["resources"] = {"limits": native}
    before = copy.deepcopy(given_pod)
    try:
        first = admit_pod(given_pod, ctx)
    except Refused:
        assert given_pod == before
        return
    second = admit_pod(first.pod, ctx)
    assert given_pod == before
    assert second.pod == first.pod
    assert second.workload == first.workload
    assert admit_pod(given_pod, ctx) == first


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "resources", "limits", "requests", "ports", "env", "nvidia.com/gpu", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
TEXTS = st.dictionaries(
    st.sampled_from(list(keyed({**CHOICES, "host-port": "", "port-name": "", "original-resources": ""}))),
    st.text(max_size=12) | st.sampled_from(["auto", "true", "1", "-1", "{}", "\u0661", "1e999"]),
    max_size=4,
)  # fmt: skip


@given(JSON, JSON, TEXTS, TEXTS, st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_json_is_admitted_or_refused(spec, containers, labels, noted, inject):
    made = pod()
    made["metadata"]["labels"].update(labels)
    made["metadata"]["annotations"].update(noted)
    made["spec"] = spec if not isinstance(spec, dict) else {**spec, "containers": containers}
    refused = None
    try:
        admit_pod(made, context(inject=inject, migration=Migration(enable=True)))
    except Refused as refusal:
        refused = refusal
    assert refused is None or (refused.field and refused.code in (403, 422))
