"""Defragmentation and compaction from pools to pods: what moves, what comes back, what stays."""

import json

import pytest
from click.testing import CliRunner
from rig.scheduling import World

from tensorfusion import names
from tensorfusion.api.registry import GPU_NODES, GPU_POOLS, NODES, PODS, REPLICA_SETS
from tensorfusion.app.planning import PoolPlanner
from tensorfusion.app.snapshot import read_objects
from tensorfusion.cli.plan import plan
from tensorfusion.clock import format_timestamp
from tensorfusion.controllers.replicaset import ReplicaSetController
from tensorfusion.scheduling.compactor import Compactor
from tensorfusion.scheduling.defragmenter import LAND_SECONDS, Defragmenter
from tensorfusion_plugins.policies import load


class Pool(World):
    """A world whose pods are made anew by replica sets, with both consolidators at work."""

    cordoned_on_eviction: tuple[str, ...] = ()

    def start(self) -> None:
        super().start()
        cluster, i = self.cluster, self.cluster.informers
        policy = load.compact_first()
        planner = PoolPlanner(self.store, {"NodeCompactGPULowLoad": policy})
        events = cluster.events("tensorfusion-controller")
        defrag = Defragmenter(
            self.store,
            i.pools,
            i.nodes,
            i.pods,
            plan=planner.defrag,
            evict=self.evict,
            clock=self.clock,
            events=events,
            instruments=cluster.instruments,
        )
        self.scheduler.target_of = defrag.target_of
        compactor = Compactor(
            self.store, i.pools, i.nodes, plan=planner.compaction, clock=self.clock, events=events
        )
        sets = ReplicaSetController(
            self.store, i.replica_sets, i.pods, clock=self.clock, events=events
        )
        cluster.add(defrag, compactor, sets)
        for controller in cluster.controllers:
            for informer in (i.pools, i.replica_sets):
                for key in informer.all_keys():
                    if controller.name in ("defrag", "compaction", "replicasets"):
                        controller.queue.add(key)
        for node in self.cluster.all(GPU_NODES):
            status = {"status": {"phase": "Running"}}
            self.store.patch(GPU_NODES, node["metadata"]["name"], status, subresource="status")

    def replica_set(self, name: str, node: str, tflops: int = 100, replicas: int = 1) -> None:
        """Run workers on a node first; nothing keeps their successors there."""
        self.pod(name, tflops)
        pod = self.get(name)
        self.store.delete(PODS, name, "default", grace_period_seconds=0)
        labels = {**pod["metadata"]["labels"], "app": name}
        template = {
            "metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]},
            "spec": {"containers": pod["spec"]["containers"]},
        }
        self.store.create(
            REPLICA_SETS,
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": name}},
                    "template": template,
                },
            },
        )
        others = [n for n in self.names() if n != node]
        self.cordon(*others)
        self.settle(3)
        self.cordon(*others, on=False)
        assert set(self.where(name)) == {node}

    def evict(self, pod, message: str) -> None:
        self.cordon(*self.cordoned_on_eviction)
        self.scheduler.evict(pod, message)

    def names(self):
        return [o["metadata"]["name"] for o in self.cluster.all(NODES)]

    def cordon(self, *nodes: str, on: bool = True) -> None:
        for node in nodes:
            self.store.patch(NODES, node, {"spec": {"unschedulable": on or None}})

    def where(self, name: str) -> list[str]:
        """Nodes of a replica set's running pods."""
        return [
            o["spec"].get("nodeName", "")
            for o in self.cluster.all(PODS, "default")
            if o["metadata"]["labels"].get("app") == name
        ]

    def ask(self, key: str) -> None:
        now = format_timestamp(self.clock.now())
        self.store.patch(GPU_POOLS, "shared", {"metadata": {"annotations": {key: now}}})

    def configure(self, **compaction) -> None:
        spec = {"nodeManagerConfig": {"nodeCompaction": compaction}}
        self.store.patch(GPU_POOLS, "shared", {"spec": spec})

    def marks(self, node: str) -> set[str]:
        found = self.store.get(NODES, node)["metadata"].get("labels", {})
        return {k.removeprefix(names.PREFIX) for k in found if k.startswith(names.PREFIX)}

    def said(self, reason: str) -> list[str]:
        return [message for found, message in self.cluster.reasons() if found == reason]


@pytest.fixture
def world(cluster, tmp_path):
    """Node a runs one small worker of two cards; b has room for it; c is empty."""
    found = Pool(cluster, tmp_path)
    found.nodes(a=2, b=2, c=2)
    found.start()
    found.replica_set("small", "a")
    found.replica_set("big", "b", tflops=200)
    found.replica_set("other", "b", tflops=200)
    return found


def test_asked_once_it_empties_a_node_and_ends(world):
    world.configure(defrag={"timezone": "UTC", "utilizationThresholdPercent": 50})
    world.ask(names.MANUAL_DEFRAG)
    world.settle(20)
    assert world.where("small") == ["b"]
    assert world.healthy()
    assert world.marks("a") == {"defrag-source"}
    (moved,) = world.said("DefragPodMoved")
    assert "runs on node b" in moved
    assert len(world.said("DefragFinished")) == 1
    status = world.store.get(GPU_POOLS, "shared")["status"]
    assert status["lastDefragTime"]
    world.pod("new", tflops=300)
    world.settle(3)
    assert world.node_of("new") == "c", "an emptied node stays free while it is marked"
    world.settle(1900)
    assert world.marks("a") == {"should-delete"}, "free for all again, and not needed"
    assert len(world.said("DefragFinished")) == 1, "asked once, done once"


def test_successor_goes_to_the_planned_node_whatever_the_policy_prefers(world):
    policy = load.low_load_first()
    world.placer.set_policy("shared", policy)
    world.ask(names.MANUAL_DEFRAG)
    world.configure(defrag={"timezone": "UTC", "utilizationThresholdPercent": 50})
    world.settle(20)
    assert world.where("small") == ["b"], "low load first would have taken the empty node c"


def test_worker_that_finds_no_place_ends_the_attempt_and_returns(world):
    world.configure(defrag={"timezone": "UTC", "utilizationThresholdPercent": 50})
    world.ask(names.MANUAL_DEFRAG)
    world.cordoned_on_eviction = ("b", "c")
    world.settle(LAND_SECONDS / 2)
    assert world.marks("a") == {"defrag-source"}
    assert world.where("small") == [""], "evicted, and no other node takes it"
    world.settle(LAND_SECONDS)
    assert world.where("small") == ["a"], "its own node does, once the attempt is over"
    assert "does not run again" in world.said("DefragAborted")[0]
    assert world.healthy()
    world.settle(60)
    assert "defrag-evict-skip" not in world.marks("a"), "passed over until the run is over"


@pytest.mark.parametrize("seconds", range(5))
def test_goes_on_after_a_crash_at_any_step(world, seconds):
    world.configure(defrag={"timezone": "UTC", "utilizationThresholdPercent": 50})
    world.ask(names.MANUAL_DEFRAG)
    world.cluster.settle(seconds / 2)
    world.restart()
    world.settle(30)
    assert world.where("small") == ["b"]
    assert len(world.said("DefragFinished")) == 1
    assert world.healthy()


def test_eviction_that_a_crash_swallowed_is_made_up_for(world):
    pod = next(o for o in world.cluster.all(PODS, "default") if "small" in o["metadata"]["name"])
    owner = pod["metadata"]["ownerReferences"][0]["uid"]
    moving = {
        "pod": f"default/{pod['metadata']['name']}",
        "uid": pod["metadata"]["uid"],
        "owner": owner,
        "others": [],
        "target": "b",
        "since": world.clock.now(),
    }
    marks = {
        "labels": {names.DEFRAG_SOURCE: "shared"},
        "annotations": {
            names.DEFRAG_MOVING: json.dumps(moving),
            names.DEFRAG_SOURCE_SINCE: format_timestamp(world.clock.now()),
        },
    }
    world.store.patch(NODES, "a", {"metadata": marks})
    world.ask(names.MANUAL_DEFRAG)
    world.settle(10)
    assert world.where("small") == ["b"]


def test_budget_that_allows_nothing_is_respected(world):
    world.budget("keep", {"app": "small"}, minAvailable=1)
    world.configure(defrag={"timezone": "UTC", "utilizationThresholdPercent": 50})
    world.ask(names.MANUAL_DEFRAG)
    world.settle(20)
    assert world.where("small") == ["a"]
    assert world.said("DefragStarted") == []
    assert len(world.said("DefragFinished")) == 1


def test_schedule_starts_it_once_a_day(world):
    world.configure(
        defrag={
            "enabled": True,
            "schedule": "0 3 * * *",
            "timezone": "Europe/Berlin",
            "utilizationThresholdPercent": 50,
        }
    )
    world.settle(2)
    before = len(world.said("DefragFinished"))
    day = 86_400
    into = (world.clock.now() + 3600) % day  # Berlin is an hour ahead of UTC in winter
    world.clock.advance((3 * 3600 - into) % day + 60)
    world.settle(60)
    assert len(world.said("DefragFinished")) == before + 1
    assert world.where("small") == ["b"]


def test_bad_schedule_is_named_on_the_pool(world):
    world.configure(defrag={"enabled": True, "timezone": "Mars/Olympus"})
    world.settle(2)
    (message,) = world.said("DefragConfigInvalid")
    assert "timezone is 'Mars/Olympus'" in message


def test_empty_nodes_are_marked_and_unmarked(world):
    world.clock.advance(600)
    world.ask(names.MANUAL_COMPACTION)
    world.settle(2)
    assert world.marks("c") == {"should-delete"}
    assert world.marks("a") == world.marks("b") == set()
    world.configure(period="1m")
    world.pod("new", tflops=300, annotations={"gpu-count": "2"})
    world.settle(70)
    assert world.node_of("new") == "c"
    assert world.marks("c") == set(), "a node that is used again is not to be deleted"
    assert world.said("CompactionReverted") == ["node c is needed again"]


def test_warm_resources_keep_an_empty_node(world):
    warm = {"capacityConfig": {"warmResources": {"tflops": "900", "vram": "100Gi"}}}
    world.store.patch(GPU_POOLS, "shared", {"spec": warm})
    world.clock.advance(600)
    world.ask(names.MANUAL_COMPACTION)
    world.settle(2)
    assert world.marks("c") == set()
    assert world.store.get(GPU_POOLS, "shared")["status"]["lastCompactionTime"]


@pytest.fixture
def shown(world, tmp_path):
    """`tensorfusion plan` on a snapshot of the world."""
    file = tmp_path / "cluster.json"

    def invoke(*arguments, code=0):
        body = {"apiVersion": "v1", "kind": "List", "items": read_objects(world.store)}
        file.write_text(json.dumps(body))
        result = CliRunner().invoke(plan, [*arguments, "--snapshot", str(file)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def test_plan_shows_what_moves_and_why_others_stay(world, shown):
    (found,) = json.loads(shown("defrag", "--threshold", "50", "-o", "json"))
    (node,) = found["empties"]
    assert (node["node"], node["gpus"], node["tflops"]) == ("a", 2, 624)
    assert [(m["worker"].split("-")[0], m["to"]) for m in node["moves"]] == [("default/small", "b")]
    assert found["stays"] == [
        {"node": "b", "usedPercent": 100, "because": found["stays"][0]["because"]}
    ]
    assert found["idleNodes"] == 1
    text = shown("defrag", "--threshold", "50")
    assert "1 moves empty 1 nodes with 2 GPUs; 1 are empty already" in text
    assert "workers of another node move here" in text
    assert "more than 40 %" in shown("defrag"), "the pool's own threshold"
    assert world.where("small") == ["a"], "a plan does nothing"


def test_plan_shows_which_empty_nodes_can_go(world, shown):
    (found,) = json.loads(shown("compact", "-o", "json"))
    (node,) = found["nodes"]
    assert (node["node"], node["gpus"], node["goes"]) == ("c", 2, True)
    assert found["tflopsBefore"] - found["tflopsAfter"] == node["tflops"] == 624
    assert "goes" in shown("compact", "--pool", "shared")


def test_plan_refuses_what_makes_no_sense(shown):
    assert "needs a server" in shown("defrag", "--apply", code=2)
    result = CliRunner().invoke(plan, ["defrag", "--threshold", "101"])
    assert result.exit_code == 2
    assert "0<=x<=100" in result.output
