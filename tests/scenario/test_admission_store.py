"""The embedded store with its admission: what is stored, what is refused, in one transaction."""

from types import SimpleNamespace

import pytest

from tensorfusion import names
from tensorfusion.admission import Migration
from tensorfusion.api import registry
from tensorfusion.app.admission import StoreAdmission
from tensorfusion.app.defaults import default_pool_spec, provider_configs
from tensorfusion.errors import Forbidden, Invalid, NotFound
from tensorfusion.host import PluginHost
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.scheduling.log_file import DecisionLogFile
from tensorfusion.scheduling.placer import Placer
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.store.admission import collected_warnings
from tensorfusion.store.interface import PatchType
from tensorfusion_plugins.policies import tensorfusion_placement_policies as policies

PREFIX = names.PREFIX
GIB = 1 << 30
USER = "kubectl"


@pytest.fixture
def world(tmp_path):
    store = SQLiteStore(tmp_path / "state.db")
    placer = Placer(DecisionLogFile(tmp_path / "decisions.log"), policies()[0], store.clock)
    admission = StoreAdmission(store, placer, PluginHost(), migration=Migration(enable=True))
    store.set_admission(admission)
    for config in provider_configs():
        store.create(registry.PROVIDER_CONFIGS, config)
    store.create(registry.GPU_POOLS, pool("main", default=True))
    yield SimpleNamespace(store=store, placer=placer, admission=admission)
    store.close()


def pool(name, *, default=False):
    return {
        "metadata": {"name": name, "annotations": {names.IS_DEFAULT_POOL: str(default).lower()}},
        "spec": {**default_pool_spec(), "schedulingConfigTemplate": ""},
    }


def template(annotations=None, **labels):
    given = {"tflops-request": "10", "vram-request": "4Gi"} if annotations is None else annotations
    return {
        "metadata": {
            "labels": {PREFIX + "enabled": "true", "app": "web", **labels},
            "annotations": {PREFIX + key: text for key, text in given.items()},
        },
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
    }


def pod(name="p", annotations=None, **metadata):
    made = template(annotations)
    made["metadata"] |= {"name": name, **metadata}
    return made


def deployment(name="web", replicas=1, annotations=None):
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(annotations),
        },
    }


def quota(**spec):
    return {"metadata": {"name": "q"}, "spec": spec}


def hold(placer, name, gflops, workload=""):
    """Let a worker hold GPU, as the scheduler would."""
    if not placer.ledger.devices:
        placer.upsert_node(NodeInfo(name="n", pool="main"))
        placer.upsert_devices(
            [
                Device(
                    uuid="g", node="n", pool="main", vendor="NVIDIA", model="A100",
                    capacity_gflops=312_000, capacity_vram_bytes=80 * GIB,
                )
            ]
        )  # fmt: skip
    shape = Shape(pool="main", request=Amount(gflops, GIB))
    placer.place(Demand(namespace="default", name=name, uid=name, shape=shape, workload=workload))


def get(world, resource, name):
    try:
        return world.store.get(resource, name, "default")
    except NotFound:
        return None


def test_pod_and_workload_are_stored_together(world):
    created = world.store.create(registry.PODS, pod(), "default", field_manager=USER)
    workload = get(world, registry.WORKLOADS, "p")
    assert created["metadata"]["labels"][names.COMPONENT] == "worker"
    assert workload["spec"]["resources"]["requests"] == {"tflops": "10", "vram": "4Gi"}
    assert workload["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]


def test_refused_pod_leaves_nothing(world):
    with pytest.raises(Invalid, match=r"Pod \"p\" is invalid: .*qos.*gold.*low, medium"):
        world.store.create(registry.PODS, pod(annotations={"qos": "gold"}), "default")
    assert get(world, registry.PODS, "p") is None
    assert get(world, registry.WORKLOADS, "p") is None


def test_pod_that_fails_validation_after_admission_leaves_no_workload(world):
    broken = pod()
    broken["spec"]["containers"][0]["name"] = "Not Valid"
    broken["metadata"]["annotations"][PREFIX + "inject-container"] = "Not Valid"
    with pytest.raises(Invalid):
        world.store.create(registry.PODS, broken, "default")
    assert get(world, registry.WORKLOADS, "p") is None


def test_dry_run_stores_and_remembers_nothing(world):
    given = pod(
        annotations={"vram-request": "1Gi", "enabled-replicas": "1"},
        ownerReferences=replica_set(world),
    )
    shown = world.store.create(registry.PODS, given, "default", dry_run=True)
    assert shown["metadata"]["labels"][names.COMPONENT] == "worker"
    assert get(world, registry.PODS, "p") is None
    assert get(world, registry.WORKLOADS, "p") is None
    real = world.store.create(registry.PODS, given, "default")
    assert names.COMPONENT in real["metadata"]["labels"]


def replica_set(world, name="rs"):
    """A ReplicaSet that exists, as the owner of pods: collection removes orphans."""
    plain = {"metadata": {"labels": {"app": "web"}}, "spec": template()["spec"]}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": plain}
    made = world.store.create(
        registry.REPLICA_SETS, {"metadata": {"name": name}, "spec": spec}, "default"
    )
    return [{**RS, "name": name, "uid": made["metadata"]["uid"]}]


RS = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "controller": True}


def test_canary_enables_as_many_pods_as_live(world):
    given = {"tflops-request": "1", "enabled-replicas": "2"}
    owner = replica_set(world)

    def create(name):
        made = world.store.create(registry.PODS, pod(name, given, ownerReferences=owner), "default")
        return names.COMPONENT in made["metadata"]["labels"]

    assert [create(name) for name in ("a", "b", "c")] == [True, True, False]
    world.store.delete(registry.PODS, "a", "default", grace_period_seconds=0)
    assert [create(name) for name in ("d", "e")] == [True, False]


def test_canary_is_counted_anew_after_a_restart(world):
    given = {"tflops-request": "1", "enabled-replicas": "1"}
    owner = replica_set(world)
    world.store.create(registry.PODS, pod("a", given, ownerReferences=owner), "default")
    world.store.set_admission(StoreAdmission(world.store, world.placer, PluginHost()))
    made = world.store.create(registry.PODS, pod("b", given, ownerReferences=owner), "default")
    assert names.COMPONENT not in made["metadata"]["labels"]


def test_host_ports_are_given_out_once_and_freed(world):
    def create(name):
        given = pod(name)
        given["metadata"]["labels"] |= {PREFIX + "host-port": "auto", PREFIX + "port-name": "http"}
        given["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 80}]
        made = world.store.create(registry.PODS, given, "default")
        return made["metadata"]["annotations"][names.PORT_NUMBER]

    assert [create("a"), create("b")] == ["42000", "42001"]
    world.store.delete(registry.PODS, "a", "default", grace_period_seconds=0)
    assert create("c") == "42000"


def test_bad_annotation_is_refused_when_the_deployment_is_applied(world):
    bad = deployment(annotations={"vram-request": "4GiB"})
    with pytest.raises(Invalid) as refusal:
        world.store.create(registry.DEPLOYMENTS, bad, "default")
    cause = refusal.value.causes[0]
    assert cause.field == "spec.template.metadata.annotations[tensor-fusion.ai/vram-request]"
    assert '"4GiB"' in cause.message
    assert get(world, registry.DEPLOYMENTS, "web") is None


def test_deployment_itself_is_stored_as_written(world):
    with collected_warnings() as warnings:
        made = world.store.create(
            registry.DEPLOYMENTS,
            deployment(annotations={"vram-request": "1Gi", "vram-limits": "1Gi"}),
            "default",
        )
    assert names.COMPONENT not in made["spec"]["template"]["metadata"]["labels"]
    assert any("did you mean tensor-fusion.ai/vram-limit?" in text for text in warnings)
    assert get(world, registry.WORKLOADS, "web") is None


def test_second_deployment_above_the_quota_is_refused(world):
    world.store.create(registry.QUOTAS, quota(total={"requests": {"tflops": "50"}}), "default")
    world.store.create(registry.DEPLOYMENTS, deployment("web", 3), "default")
    for number in range(3):
        hold(world.placer, f"w{number}", 10_000, "web")
    with pytest.raises(Forbidden) as refusal:
        world.store.create(registry.DEPLOYMENTS, deployment("more", 3), "default")
    assert str(refusal.value) == (
        'Deployment "more" is forbidden: quota exceeded in namespace default for'
        " total.max.tflops.request of GPUResourceQuota q:"
        " requested 30 TFLOPS, used 30 TFLOPS, limit 50 TFLOPS"
    )
    grown = get(world, registry.DEPLOYMENTS, "web")
    bigger = {**grown, "spec": {**grown["spec"], "replicas": 5}}
    assert world.store.update(registry.DEPLOYMENTS, bigger)["spec"]["replicas"] == 5
    with pytest.raises(Forbidden, match="requested 60 TFLOPS, used 0 TFLOPS"):
        world.store.patch(
            registry.DEPLOYMENTS, "web", {"spec": {"replicas": 6}}, "default",
            patch_type=PatchType.MERGE,
        )  # fmt: skip


def test_quota_lowered_later_does_not_block_other_changes(world):
    world.store.create(registry.DEPLOYMENTS, deployment("web", 3), "default")
    world.store.create(registry.QUOTAS, quota(total={"requests": {"tflops": "5"}}), "default")
    patch = {"metadata": {"annotations": {"note": "x"}}, "spec": {"replicas": 2}}
    done = world.store.patch(registry.DEPLOYMENTS, "web", patch, "default")
    assert done["spec"]["replicas"] == 2


def test_replica_set_of_a_user_is_checked_and_one_of_a_deployment_is_not(world):
    bad = deployment(annotations={"qos": "gold"})
    with pytest.raises(Invalid, match="ReplicaSet"):
        world.store.create(registry.REPLICA_SETS, bad, "default")
    owner = {**RS, "uid": "d1", "kind": "Deployment"}
    bad["metadata"]["ownerReferences"] = [owner]
    assert world.store.create(registry.REPLICA_SETS, bad, "default")


def test_gang_of_a_deployment_takes_its_size_from_it(world):
    gang = {"vram-request": "1Gi", "gang-enabled": "true"}
    assert world.store.create(registry.DEPLOYMENTS, deployment("two", 2, gang), "default")
    with pytest.raises(Invalid, match="at least 2 members"):
        world.store.create(registry.DEPLOYMENTS, deployment("one", 1, gang), "default")


def test_pools_quotas_and_profiles_are_seen_at_once(world):
    with pytest.raises(Invalid, match="there are: main"):
        world.store.create(registry.PODS, pod(annotations={"gpupool": "new"}), "default")
    world.store.create(registry.GPU_POOLS, pool("new"))
    profile = {"metadata": {"name": "prof"}, "spec": {"resources": {"limits": {"tflops": "7"}}}}
    world.store.create(registry.PROFILES, profile, "default")
    given = {"gpupool": "new", "workload-profile": "prof"}
    made = world.store.create(registry.PODS, pod("a", given), "default")
    assert made["metadata"]["annotations"][names.TFLOPS_REQUEST] == "7"
    patch = {"spec": {"resources": {"limits": {"tflops": "8"}}}}
    world.store.patch(registry.PROFILES, "prof", patch, "default")
    made = world.store.create(registry.PODS, pod("b", given), "default")
    assert made["metadata"]["annotations"][names.TFLOPS_REQUEST] == "8"
    world.store.delete(registry.GPU_POOLS, "new")
    with pytest.raises(Invalid, match="there are: main"):
        world.store.create(registry.PODS, pod("c", given), "default")
    world.store.create(registry.QUOTAS, quota(total={"maxWorkers": 0}), "default")
    with pytest.raises(Forbidden, match="quota exceeded"):
        world.store.create(registry.PODS, pod("d"), "default")
    world.store.delete(registry.QUOTAS, "q", "default")
    assert world.store.create(registry.PODS, pod("d"), "default")


@pytest.mark.parametrize(
    ("resource", "spec", "message"),
    [
        (
            registry.QUOTAS,
            {"total": {"requests": {"vram": "2Gi"}, "limits": {"vram": "1Gi"}}},
            "must not exceed spec.total.limits.vram, 1Gi",
        ),
        (
            registry.PROFILES,
            {"resources": {"requests": {"tflops": "2"}, "limits": {"tflops": "1"}}},
            "must not exceed the limit of 1 TFLOPS",
        ),
        (registry.PROFILES, {"vendor": "Nobody"}, "must be one of NVIDIA"),
        (registry.PROFILES, {"resources": {"limits": {"tflops": "many"}}}, "tflops"),
        (registry.WORKLOADS, {"resources": {"limits": {"compute": "200"}}}, "from 0 to 100"),
    ],
)
def test_objects_that_contradict_themselves_are_refused(world, resource, spec, message):
    with pytest.raises(Invalid, match=message) as refusal:
        world.store.create(resource, {"metadata": {"name": "x"}, "spec": spec}, "default")
    assert refusal.value.causes[0].field.startswith("spec.")


@pytest.mark.parametrize("key", ["gpu-ids", "tflops-limit", "qos", "worker", "port-number"])
def test_users_cannot_change_what_a_worker_was_given(world, key):
    world.store.create(registry.PODS, pod(), "default", field_manager=USER)
    patch = {"metadata": {"annotations": {PREFIX + key: "9"}}}
    with pytest.raises(Invalid, match="cannot be changed on a pod"):
        world.store.patch(registry.PODS, "p", patch, "default", field_manager=USER)
    done = world.store.patch(
        registry.PODS, "p", patch, "default", field_manager="tensorfusion-autoscaler"
    )
    assert done["metadata"]["annotations"][PREFIX + key] == "9"


def test_users_may_change_everything_else(world):
    world.store.create(registry.PODS, pod(), "default", field_manager=USER)
    patch = {
        "metadata": {
            "annotations": {PREFIX + "simulated-load": "constant", "note": "x"},
            "labels": {"a": "b"},
        }
    }
    assert world.store.patch(registry.PODS, "p", patch, "default", field_manager=USER)
    patch = {"metadata": {"labels": {names.GPU_POOL: "other"}}}
    with pytest.raises(Invalid, match="gpupool"):
        world.store.patch(registry.PODS, "p", patch, "default", field_manager=USER)


def test_plain_pod_cannot_be_turned_into_a_worker(world):
    plain = {"metadata": {"name": "p"}, "spec": pod()["spec"]}
    world.store.create(registry.PODS, plain, "default", field_manager=USER)
    with pytest.raises(Invalid, match="component"):
        world.store.patch(
            registry.PODS, "p", {"metadata": {"labels": {names.COMPONENT: "worker"}}}, "default",
            field_manager=USER,
        )  # fmt: skip


def test_native_pod_is_migrated(world):
    given = {"metadata": {"name": "p"}, "spec": pod()["spec"]}
    given["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    made = world.store.create(registry.PODS, given, "default")
    assert made["metadata"]["annotations"][names.ISOLATION] == "shared"
    assert "limits" not in made["spec"]["containers"][0].get("resources", {})


def test_pods_of_one_workload_write_it_once(world):
    world.store.create(registry.DEPLOYMENTS, deployment("web", 3), "default")
    uid = get(world, registry.DEPLOYMENTS, "web")["metadata"]["uid"]
    owner = [{**RS, "kind": "Deployment", "name": "web", "uid": uid}]
    world.store.create(registry.PODS, pod("a", ownerReferences=owner), "default")
    version = get(world, registry.WORKLOADS, "web")["metadata"]["resourceVersion"]
    world.store.create(registry.PODS, pod("b", ownerReferences=owner), "default")
    assert get(world, registry.WORKLOADS, "web")["metadata"]["resourceVersion"] == version


def test_rows_read_per_pod_do_not_grow_with_the_number_of_pods(world):
    def rows(first, count):
        before = world.store.counters.rows_read
        for number in range(first, first + count):
            world.store.create(registry.PODS, pod(f"p{number}"), "default")
        return (world.store.counters.rows_read - before) / count

    rows(0, 5)
    few = rows(5, 20)
    rows(25, 200)
    assert rows(225, 20) <= 1.2 * few + 1


@pytest.mark.parametrize(
    "broken",
    [
        {"spec": {"template": 1}},
        {"spec": {"template": {"metadata": {"labels": [1]}}}},
        {"spec": {"template": {"metadata": {"annotations": {"a": 1}}, "spec": []}}},
        {"spec": {"template": {"metadata": {"labels": {PREFIX + "enabled": True}}}}},
        {"spec": {"replicas": "x", "template": template()}},
        {"spec": None},
    ],
)
def test_malformed_deployment_is_refused_not_crashed_on(world, broken):
    with pytest.raises(Invalid):
        world.store.create(registry.DEPLOYMENTS, {"metadata": {"name": "x"}, **broken}, "default")
