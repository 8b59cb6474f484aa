"""GPU counts, native requests, migration, canary, claims: what the reference gets wrong is here."""

import pytest
from rig.admitting import (
    BASIC,
    PREFIX,
    PROVIDERS,
    admit,
    context,
    native_pod,
    pod,
    profile,
    written,
)

from tensorfusion import names
from tensorfusion.admission import Claims, Migration, MigrationScope, Offers, Refused, admit_pod
from tensorfusion.admission.claims import decode_index, encode_index, next_index
from tensorfusion.api.meta import LabelSelector
from tensorfusion.model.hardware import find_card
from tensorfusion.units import format_bytes, format_tflops

ON = Migration(enable=True)
PARTITIONS = Offers(everywhere=frozenset({"shared", "soft", "partitioned"}))


def test_defect_1_profile_is_not_overwritten_by_absent_annotations():
    ctx = context(
        profiles=(profile(isolation="shared", poolName="spare", gpuIndices=[1, 3], gpuModel="T4"),)
    )
    found = written(admit({"workload-profile": "prof"}, ctx=ctx))
    assert (found["isolation"], found["gpupool"]) == ("shared", "spare")
    assert (found["gpu-indices"], found["gpu-count"]) == ("1,3", "2")


def test_defect_3_container_counts_make_the_gpu_count():
    found = written(
        admit({**BASIC, "container-gpu-count": '{"a": 1, "b": 2}'}, containers=("a", "b"))
    )
    assert found["gpu-count"] == "3"
    assert found["inject-container"] == "a,b"


def test_defect_3_a_different_sum_is_refused():
    with pytest.raises(Refused, match="must be 3, the sum of") as refusal:
        admit(
            {**BASIC, "container-gpu-count": '{"a": 1, "b": 2}', "gpu-count": "2"},
            containers=("a", "b"),
        )
    assert refusal.value.field.endswith("gpu-count]")


def test_container_counts_add_up_to_at_most_128():
    with pytest.raises(Refused, match="at most 128"):
        admit({**BASIC, "container-gpu-count": '{"a": 100, "b": 29}'}, containers=("a", "b"))


def test_container_counts_must_be_among_the_injected():
    with pytest.raises(Refused, match="leaves out"):
        admit(
            {**BASIC, "container-gpu-count": '{"a": 1, "b": 1}', "inject-container": "a"},
            containers=("a", "b"),
        )


def test_count_above_the_listed_indices_is_refused():
    assert written(admit({**BASIC, "gpu-indices": "0,1,2", "gpu-count": "2"}))["gpu-count"] == "2"
    with pytest.raises(Refused, match="must not exceed the 2 devices"):
        admit({**BASIC, "gpu-indices": "0,1", "gpu-count": "3"})


def test_defect_4_two_resource_names_of_one_container_add_up():
    ctx = context(migration=ON)
    given = native_pod({"huawei.com/Ascend310P": "1", "huawei.com/npu": "2"})
    found = written(admit_pod(given, ctx))
    assert (found["gpu-count"], found["inject-container"], found["vendor"]) == (
        "3",
        "main",
        "Ascend",
    )


def test_resources_of_two_vendors_are_refused():
    with pytest.raises(Refused, match="these are NVIDIA and AMD"):
        admit_pod(native_pod({"nvidia.com/gpu": "1", "amd.com/gpu": "1"}, enabled=True), context())


def test_defect_5_dedicated_card_clears_percent_and_takes_the_smallest_allowed_card():
    found = written(
        admit({"dedicated-gpu": "true", "gpu-model": "A100", "compute-percent-request": "50"})
    )
    card = find_card("A100_PCIe_40G")
    assert "compute-percent-request" not in found
    assert found["tflops-request"] == found["tflops-limit"] == format_tflops(card.compute_gflops)
    assert found["vram-request"] == format_bytes(card.vram_bytes)
    assert found["dedicated-gpu"] == "true"


def test_dedicated_card_must_be_known():
    with pytest.raises(Refused, match=r"not in the hardware catalogue.*close: A100"):
        admit({"dedicated-gpu": "true", "gpu-model": "A1000"})


def test_unknown_model_is_a_warning_otherwise():
    assert any("close: " in text for text in admit({**BASIC, "gpu-model": "H1000"}).warnings)


def test_defect_7_limits_alone_are_migrated():
    given = native_pod({"nvidia.com/gpu": "2"})
    admitted = admit_pod(given, context(migration=ON))
    found = written(admitted)
    assert admitted.pod["metadata"]["labels"][names.ENABLED] == "true"
    assert (found["isolation"], found["gpu-count"], found["vendor"]) == ("shared", "2", "NVIDIA")
    assert admitted.pod["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "1"}}


def test_defect_8_init_containers_count_as_kubernetes_counts_them():
    given = native_pod({"nvidia.com/gpu": "1"})
    given["spec"]["initContainers"] = [
        {"name": "warm", "resources": {"limits": {"nvidia.com/gpu": 3}}}
    ]
    admitted = admit_pod(given, context(migration=ON))
    assert written(admitted)["gpu-count"] == "3"
    assert "resources" not in admitted.pod["spec"]["initContainers"][0]


def test_defect_49_mig_slice_is_a_partition_not_a_whole_card():
    given = native_pod({"nvidia.com/mig-3g.40gb": "2"}, enabled=True)
    found = written(admit_pod(given, context(offers=PARTITIONS)))
    assert (found["isolation"], found["partition-id"], found["gpu-count"]) == (
        "partitioned",
        "3g.40gb",
        "2",
    )


def test_mig_slice_without_partitions_is_refused_or_left_alone():
    given = native_pod({"nvidia.com/mig-1g.10gb": "1"}, enabled=True)
    with pytest.raises(Refused, match="hardware partitions are not offered"):
        admit_pod(given, context())
    unmarked = native_pod({"nvidia.com/mig-1g.10gb": "1"})
    admitted = admit_pod(unmarked, context(migration=ON))
    assert admitted.pod is unmarked
    assert "not taken over" in admitted.warnings[0]


def test_partition_template_must_exist():
    with pytest.raises(Refused, match=r"must be one of 1g\.10gb"):
        admit(
            {"isolation": "partitioned", "partition-id": "9g.9gb"}, ctx=context(offers=PARTITIONS)
        )
    found = written(
        admit(
            {"isolation": "partitioned", "partition-id": "1g.10gb"}, ctx=context(offers=PARTITIONS)
        )
    )
    assert found["partition-id"] == "1g.10gb"


def test_native_gpus_of_several_containers_are_dealt_out():
    given = native_pod({"nvidia.com/gpu": "1"}, containers=("a", "b", "c"))
    given["spec"]["containers"][1]["resources"] = {"requests": {"nvidia.com/gpu": "2"}}
    found = written(admit_pod(given, context(migration=ON)))
    assert found["container-gpu-count"] == '{"a": 1, "b": 2}'
    assert found["inject-container"] == "a,b"


def test_native_gpus_beside_amounts_are_a_share_of_as_many_cards():
    given = native_pod({"nvidia.com/gpu": "2"}, enabled=True, annotations={"vram-request": "4Gi"})
    found = written(admit_pod(given, context()))
    assert (found["isolation"], found["gpu-count"]) == ("soft", "2")
    assert found["compute-percent-limit"] == "100"


def scope(**given):
    return MigrationScope(**given)


TEAM = scope(namespace_names=("team",))
GOLD = scope(namespace_selector=LabelSelector(match_labels={"tier": "gold"}))
APP = scope(pod_selector=LabelSelector(match_labels={"app": "x"}))


@pytest.mark.parametrize(
    ("migration", "taken"),
    [
        (Migration(), False),
        (Migration(enable=True), True),
        (Migration(enable=True, includes=(TEAM,)), True),
        (Migration(enable=True, includes=(GOLD,)), True),
        (Migration(enable=True, includes=(APP,)), True),
        (Migration(enable=True, includes=(scope(namespace_names=("other",)),)), False),
        (Migration(enable=True, includes=(scope(),)), False),
        (Migration(enable=True, excludes=(scope(),)), True),
        (Migration(enable=True, excludes=(GOLD,)), False),
        (Migration(enable=True, includes=(TEAM,), excludes=(APP,)), False),
    ],
)
def test_migration_scopes(migration, taken):
    given = native_pod({"nvidia.com/gpu": "1"}, labels={"x/app": "y"})
    given["metadata"]["labels"]["app"] = "x"
    admitted = admit_pod(given, context(migration=migration))
    assert admitted.enabled is taken
    assert (admitted.pod is given) is not taken


def test_migration_respects_an_explicit_no():
    given = native_pod({"nvidia.com/gpu": "1"}, labels={"enabled": "false"})
    assert admit_pod(given, context(migration=ON)).pod is given


@pytest.mark.parametrize(
    ("fields", "swapped"),
    [
        ({}, True),
        ({"labels": {"enabled": "false"}}, True),
        ({"schedulerName": "default-scheduler"}, True),
        ({"schedulerName": "volcano"}, False),
    ],
)
def test_progressive_migration_sends_native_pods_that_stay_native_to_our_scheduler(fields, swapped):
    scheduler = fields.pop("schedulerName", None)
    given = native_pod({"nvidia.com/gpu": "1"}, **fields)
    if scheduler:
        given["spec"]["schedulerName"] = scheduler
    admitted = admit_pod(given, context(migration=Migration(progressive=True)))
    assert not admitted.enabled
    own = admitted.pod["spec"].get("schedulerName", "default-scheduler")
    assert own == (names.SCHEDULER if swapped else scheduler)
    assert admitted.pod["spec"]["containers"] == given["spec"]["containers"]


@pytest.mark.parametrize(
    ("resources", "migration"),
    [
        ({"cpu": "1"}, Migration(progressive=True)),
        ({"nvidia.com/gpu": "1"}, Migration()),
        ({"nvidia.com/gpu": "1"}, Migration(enable=True, excludes=(GOLD,))),
    ],
)
def test_other_pods_keep_their_scheduler(resources, migration):
    given = native_pod(resources)
    assert admit_pod(given, context(migration=migration)).pod is given


def test_progressive_migration_still_takes_over_what_it_is_told_to():
    given = native_pod({"nvidia.com/gpu": "1"})
    assert admit_pod(given, context(migration=Migration(enable=True, progressive=True))).enabled


def test_defect_9_sidecar_never_yields_a_client_without_worker():
    with pytest.raises(Refused):
        admit({**BASIC, "isolation": "soft", "sidecar-worker": "true"})


def test_defect_10_soft_injection_fails_closed_and_obeys_the_kill_switch():
    admitted = admit({**BASIC, "vendor": "MThreads"}, ctx=context(inject=True))
    spec = admitted.pod["spec"]
    script = spec["initContainers"][0]["command"][-1]
    assert "libtensorfusion_musa.so" in script
    assert "|| true" not in script
    env = {e["name"]: e.get("value") for e in spec["containers"][0]["env"]}
    assert env["LD_PRELOAD"].endswith("libtensorfusion_musa.so")
    assert not any("nvidia" in m["mountPath"] for m in spec["containers"][0]["volumeMounts"])
    off = admit({**BASIC, "disable-features": "gpu-limiter"}, ctx=context(inject=True)).pod["spec"]
    env = {e["name"]: e.get("value") for e in off["containers"][0]["env"]}
    assert "LD_PRELOAD" not in env
    assert env["TENSORFUSION_DISABLE_LIMITER"] == "true"
    assert "initContainers" not in off


def test_injection_keeps_what_the_application_preloads():
    given = pod()
    given["spec"]["containers"][0]["env"] = [{"name": "LD_PRELOAD", "value": "/mine.so"}]
    env = admit_pod(given, context(inject=True)).pod["spec"]["containers"][0]["env"]
    assert env[0]["value"] == "/tensorfusion/limiter/libtensorfusion_cuda.so:/mine.so"


def test_shared_isolation_injects_nothing():
    spec = admit({"isolation": "shared"}, ctx=context(inject=True)).pod["spec"]
    assert "initContainers" not in spec
    assert "volumes" not in spec
    assert "env" not in spec["containers"][0]


def test_embedded_mode_injects_nothing():
    assert admit().pod["spec"]["containers"] == pod()["spec"]["containers"]


def test_defect_12_canary_counts_and_needs_no_owner():
    given = {**BASIC, "enabled-replicas": "2"}
    for already, expected in ((0, True), (1, True), (2, False), (5, False)):
        admitted = admit(given, ctx=context(enabled_pods=lambda n=already: n))
        assert admitted.enabled is expected
        assert (admitted.workload is not None) is expected
    assert not admit({**BASIC, "enabled-replicas": "0"}).enabled


def test_canary_has_no_effect_on_a_disabled_pod():
    given = pod({**BASIC, "enabled-replicas": "2"}, labels={"enabled": "false"}, enabled=False)
    assert admit_pod(given, context()).pod is given


def test_admitted_canary_stays_enabled_when_admitted_again():
    ctx = context(enabled_pods=lambda: 0)
    first = admit({**BASIC, "enabled-replicas": "1"}, ctx=ctx).pod
    assert admit_pod(first, context(enabled_pods=lambda: 1)).pod == first


def test_defect_19_every_index_survives_its_encoding():
    seen = set()
    for index in range(128):
        resource, amount = encode_index(index)
        assert 1 <= amount <= 8
        assert resource.removeprefix(PREFIX + "index_") in set("0123456789abcdef")
        assert decode_index(resource, amount) == index
        seen.add((resource, amount))
    assert len(seen) == 128
    with pytest.raises(ValueError, match="0 to 127"):
        encode_index(128)
    with pytest.raises(ValueError, match="no index claim"):
        decode_index(PREFIX + "index_10", 1)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (Claims(), 0),
        (Claims(next_index=127), 127),
        (Claims(next_index=128), 0),
        (Claims(next_index=126, indices=frozenset({126, 127, 0})), 1),
        (Claims(next_index=5, indices=frozenset(range(128))), 5),
    ],
)
def test_next_index_goes_around(claims, expected):
    assert next_index(claims) == expected


def test_index_is_claimed_by_the_injected_containers():
    ctx = context(inject=True, claims=Claims(next_index=9))
    admitted = admit({**BASIC, "inject-container": "a"}, ctx=ctx, containers=("a", "b"))
    a, b = admitted.pod["spec"]["containers"]
    assert a["resources"]["limits"] == {PREFIX + "index_1": "2"}
    assert "resources" not in b
    assert written(admitted)["index"] == "9"


def with_port(**labels):
    given = pod(labels={"host-port": "auto", "port-name": "http", **labels})
    given["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 80}]
    return given


def test_defect_16_host_port_needs_no_pod_name():
    given = with_port()
    del given["metadata"]["name"]
    given["metadata"]["generateName"] = "web-"
    taken = {42000, 42001}
    admitted = admit_pod(given, context(claims=Claims(port_taken=taken.__contains__)))
    assert admitted.pod["spec"]["containers"][0]["ports"][0]["hostPort"] == 42002
    assert written(admitted)["port-number"] == "42002"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"host-port": "yes"}, 'must be "auto"'),
        ({"port-name": "grpc"}, "the pod's named ports: http"),
        ({"port-name": ""}, "must name a container port"),
    ],
)
def test_bad_host_port_is_refused(labels, message):
    with pytest.raises(Refused, match=message):
        admit_pod(with_port(**labels), context())


def test_no_free_host_port_is_refused():
    with pytest.raises(Refused, match="no host port from 42000 to 61999 is free"):
        admit_pod(with_port(), context(claims=Claims(port_taken=lambda _port: True)))


def test_copied_bindings_are_dropped():
    for enabled in (True, False):
        given = pod({**BASIC, "gpu-ids": "gpu-1", "container-gpus": "{}"}, enabled=enabled)
        admitted = admit_pod(given, context())
        assert "gpu-ids" not in written(admitted)
        assert any("only a binding writes them" in text for text in admitted.warnings)


def test_providers_read_resource_names_of_every_vendor():
    assert PROVIDERS.whole["nvidia.com/gpu"] == "NVIDIA"
    assert PROVIDERS.slice_of("nvidia.com/mig-1g.10gb.me") == "1g.10gb+me"
    assert PROVIDERS.slice_of("nvidia.com/gpu") is None
