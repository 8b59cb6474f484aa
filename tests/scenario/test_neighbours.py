"""Rules about other pods, written as Kubernetes writes them, through binding and restart."""

import pytest
from rig.scheduling import World

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.registry import PODS
from tensorfusion.model.neighbours import ANYWHERE, LabelCondition
from tensorfusion.scheduling.pod_rules import labels_of, neighbours_of
from tensorfusion.testing import build

HOSTNAME = "kubernetes.io/hostname"


@pytest.fixture
def world(cluster, tmp_path):
    made = World(cluster, tmp_path)
    made.nodes(n1=2, n2=2)
    made.start()
    return made


def away(key=HOSTNAME, **term):
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"demo/app": "web"}}, **term}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def test_replicas_keep_off_each_others_nodes_after_a_restart_as_well(world, conditions):
    for name in ("a", "b"):
        world.pod(name, 10, labels={"demo/app": "web"}, affinity=away())
    world.settle()
    assert {world.get(name)["spec"]["nodeName"] for name in ("a", "b")} == {"n1", "n2"}
    before = world.placer.fingerprint()
    world.restart()
    assert world.repairs == []
    assert world.placer.fingerprint() == before
    world.pod("c", 10, labels={"demo/app": "web"})
    world.settle()
    message = conditions(world.get("c"))["PodScheduled"]["message"]
    assert message.startswith("0/4 GPUs fit: 4 too near to pods that must be apart")
    left = world.get("a")["spec"]["nodeName"]
    world.store.delete(PODS, "a", "default")
    world.settle()
    assert world.get("c")["spec"]["nodeName"] == left


def test_pods_spread_over_gpus_by_the_key_for_them(world):
    for number in range(4):
        world.pod(f"p{number}", 10, labels={"demo/app": "web"}, affinity=away(names.GPU_DOMAIN))
    world.settle()
    cards = {
        world.get(f"p{number}")["metadata"]["annotations"][names.GPU_IDS] for number in range(4)
    }
    assert len(cards) == 4


def read(spec, **metadata):
    obj = build.pod("p", tflops="1", labels={"demo/app": "web", "demo/rev": "7"}, **spec)
    obj["metadata"].update(metadata)
    return decode(Pod, obj)


def test_rules_are_read_as_kubernetes_means_them():
    affinity = away(
        namespaces=["x", "other"],
        matchLabelKeys=["demo/rev"],
        mismatchLabelKeys=["demo/app", "none"],
    )
    affinity["podAffinity"] = {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 30, "podAffinityTerm": {"topologyKey": "zone", "namespaceSelector": {}}}
        ]
    }
    spread = {
        "maxSkew": 2,
        "topologyKey": "zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchExpressions": [{"key": "demo/app", "operator": "Exists"}]},
        "minDomains": 3,
    }
    found = neighbours_of(read({"affinity": affinity, "topologySpreadConstraints": [spread]}))
    (apart,) = found.apart
    assert apart.selector.namespaces == ("other", "x")
    assert apart.selector.conditions == (
        LabelCondition("demo/app", "In", ("web",)),
        LabelCondition("demo/rev", "In", ("7",)),
        LabelCondition("demo/app", "NotIn", ("web",)),
    )
    (near,) = found.near
    assert (near.weight, near.selector.namespaces) == (30, ())
    assert not near.selector.matches("default", {}), "no selector selects nobody"
    (rule,) = found.spread
    assert (rule.max_skew, rule.required, rule.min_domains) == (2, False, 3)
    assert rule.selector.matches("default", {"demo/app": "x"})


def test_every_namespace_can_be_meant_but_not_some_by_their_labels():
    (term,) = neighbours_of(read({"affinity": away(namespaceSelector={})})).apart
    assert term.selector.namespaces == (ANYWHERE,)
    with pytest.raises(ValueError, match=r"podAntiAffinity\.namespaceSelector is .*allowed are"):
        neighbours_of(read({"affinity": away(namespaceSelector={"matchLabels": {"a": "b"}})}))


def test_pods_that_share_a_worker_are_not_found_by_their_labels():
    shared = read({"annotations": {"workload": "team"}})
    assert labels_of(shared) == ()
    assert ("demo/app", "web") in labels_of(read({}))
    assert neighbours_of(read({})) is None
