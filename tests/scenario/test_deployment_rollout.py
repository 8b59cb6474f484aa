"""Deployments and replica sets on the embedded store."""

import pytest

from tensorfusion.api.registry import DEPLOYMENTS, PODS, REPLICA_SETS
from tensorfusion.controllers.deployment import REVISION, DeploymentController
from tensorfusion.controllers.replicaset import ReplicaSetController
from tensorfusion.errors import Forbidden
from tensorfusion.hypervisor.workers import running_status


@pytest.fixture
def world(cluster):
    """Both controllers; pods that appear become ready when the test says so."""
    i = cluster.informers
    cluster.replica_sets = ReplicaSetController(
        cluster.store, i.replica_sets, i.pods, clock=cluster.clock, events=cluster.events()
    )
    cluster.add(
        DeploymentController(
            cluster.store,
            i.deployments,
            i.replica_sets,
            clock=cluster.clock,
            events=cluster.events(),
        ),
        cluster.replica_sets,
    )
    cluster.start()
    return cluster


def deployment(replicas=3, image="v1", **spec):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
            **spec,
        },
    }


def pods(world):
    return world.all(PODS, "default")


def serve(world, rounds=1):
    """Let every pod become ready, as a node would."""
    for _ in range(rounds):
        for pod in pods(world):
            if pod.get("status", {}).get("phase") != "Running":
                view = world.informers.pods.get(f"default/{pod['metadata']['name']}")
                status = running_status(view, "2025-01-01T00:00:00Z")
                world.store.patch(
                    PODS,
                    pod["metadata"]["name"],
                    {"status": status},
                    "default",
                    subresource="status",
                )
        world.settle(3)


def roll(world, **kwargs):
    world.store.patch(DEPLOYMENTS, "web", {"spec": deployment(**kwargs)["spec"]}, "default")
    world.settle(3)


def images(world):
    found = [p["spec"]["containers"][0]["image"] for p in pods(world)]
    return {image: found.count(image) for image in sorted(set(found))}


def status_of(world):
    return world.get(DEPLOYMENTS, "web", "default")["status"]


def start(world, **kwargs):
    world.store.create(DEPLOYMENTS, deployment(**kwargs), "default")
    world.settle(3)
    serve(world)


def test_deployment_makes_its_pods_and_says_so(world, conditions):
    world.store.create(DEPLOYMENTS, deployment(), "default")
    world.settle(3)
    assert images(world) == {"v1": 3}
    assert status_of(world)["unavailableReplicas"] == 3
    serve(world)
    found = world.get(DEPLOYMENTS, "web", "default")
    (replica_set,) = world.all(REPLICA_SETS, "default")

    assert found["status"]["availableReplicas"] == 3
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
    assert conditions(found)["Available"]["status"] == "True"
    assert conditions(found)["Progressing"]["reason"] == "NewReplicaSetAvailable"
    assert found["metadata"]["annotations"][REVISION] == "1"
    owner = pods(world)[0]["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"]) == (replica_set["metadata"]["uid"], True)
    assert ("ScalingReplicaSet", f"Scaled up replica set {owner['name']} to 3") in world.reasons()


def test_nothing_is_written_when_nothing_changed(world):
    start(world)
    before = world.store.version
    world.controllers[0].queue.add("default/web")
    world.controllers[1].queue.add(world.informers.replica_sets.all_keys()[0])
    world.settle(3)

    assert world.store.version == before


@pytest.mark.parametrize("replicas", [0, 1, 5])
def test_scaling_reaches_the_wanted_number(world, replicas):
    start(world)
    world.store.patch(DEPLOYMENTS, "web", {"spec": {"replicas": replicas}}, "default")
    world.settle(3)

    assert len(pods(world)) == replicas


def test_new_template_replaces_the_pods_step_by_step(world):
    start(world, replicas=4)
    roll(world, replicas=4, image="v2")
    assert images(world) == {"v1": 3, "v2": 2}  # one of surge, one of unavailability
    serve(world, rounds=5)

    assert images(world) == {"v2": 4}
    assert status_of(world)["updatedReplicas"] == 4
    assert sorted(r["spec"]["replicas"] for r in world.all(REPLICA_SETS, "default")) == [0, 4]


def test_recreate_never_runs_both(world):
    start(world, strategy={"type": "Recreate"})
    roll(world, image="v2", strategy={"type": "Recreate"})

    assert images(world) in ({"v2": 3}, {})
    serve(world, rounds=2)
    assert images(world) == {"v2": 3}


def test_paused_deployment_does_not_roll_but_scales(world):
    start(world, replicas=4)
    roll(world, replicas=4, image="v2", paused=True)
    assert images(world) == {"v1": 4}
    roll(world, replicas=6, image="v2", paused=True)
    assert images(world) == {"v1": 6}
    roll(world, replicas=6, image="v2", paused=False)
    serve(world, rounds=6)

    assert images(world) == {"v2": 6}


def test_pause_in_the_middle_of_a_rollout_holds_it(world):
    start(world, replicas=4)
    roll(world, replicas=4, image="v2")
    between = images(world)
    roll(world, replicas=4, image="v2", paused=True)
    serve(world, rounds=3)

    # The surge is given back, the old pods stay.
    assert images(world)["v1"] == between["v1"]
    assert sum(images(world).values()) == 4


def test_rollback_reuses_the_old_replica_set_under_a_new_revision(world):
    start(world)
    first = world.all(REPLICA_SETS, "default")[0]["metadata"]["name"]
    roll(world, image="v2")
    serve(world, rounds=4)
    roll(world, image="v1")
    serve(world, rounds=4)
    revisions = {
        r["metadata"]["name"]: r["metadata"]["annotations"][REVISION]
        for r in world.all(REPLICA_SETS, "default")
    }

    assert images(world) == {"v1": 3}
    assert revisions.pop(first) == "3"
    assert list(revisions.values()) == ["2"]
    assert world.get(DEPLOYMENTS, "web", "default")["metadata"]["annotations"][REVISION] == "3"


def test_history_is_as_long_as_asked(world):
    start(world, replicas=1, revisionHistoryLimit=2)
    for number in range(2, 7):
        roll(world, replicas=1, image=f"v{number}", revisionHistoryLimit=2)
        serve(world, rounds=3)

    kept = world.all(REPLICA_SETS, "default")
    assert sorted(r["metadata"]["annotations"][REVISION] for r in kept) == ["4", "5", "6"]


def test_pod_that_is_deleted_comes_again(world):
    start(world)
    name = pods(world)[0]["metadata"]["name"]
    world.store.delete(PODS, name, "default", grace_period_seconds=0)
    world.settle(3)

    assert len(pods(world)) == 3
    assert name not in [p["metadata"]["name"] for p in pods(world)]


def test_replica_set_makes_exactly_what_is_wanted_when_its_cache_lags(world):
    world.store.create(DEPLOYMENTS, deployment(replicas=5), "default")
    world.pump()
    world.step()
    world.informers.replica_sets.pump()
    key = world.informers.replica_sets.all_keys()[0]
    for _ in range(4):  # its pods are not in the cache yet
        world.replica_sets.reconcile(key)
    assert len(pods(world)) == 5
    world.settle(3)
    world.store.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 2}}, "default")
    world.informers.deployments.pump()
    world.step()
    world.informers.replica_sets.pump()
    for _ in range(4):  # nor are the deletions
        world.replica_sets.reconcile(key)

    assert len(pods(world)) == 2


def test_pod_that_came_and_went_unseen_is_made_again(world):
    """Nobody tells the controller about it: only its own second look does."""
    world.store.create(DEPLOYMENTS, deployment(replicas=1), "default")
    world.pump()
    world.step()
    world.informers.replica_sets.pump()
    world.step()
    (pod,) = pods(world)
    world.store.delete(PODS, pod["metadata"]["name"], "default", grace_period_seconds=0)
    # The watch of pods is new: it shows neither the creation nor the deletion.
    world.informers.pods.attach(lambda: None)
    world.settle(5)
    assert pods(world) == []
    world.settle(40)

    assert len(pods(world)) == 1


class Refusing:
    """Admission with a quota of so many pods."""

    def __init__(self, store, most):
        self.inner, self.most = store, most

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def create(self, resource, obj, namespace="", **kwargs):
        if resource is PODS and len(self.inner.list(PODS, "default").items) >= self.most:
            raise Forbidden(f"quota gpu-quota: at most {self.most} workers")
        return self.inner.create(resource, obj, namespace, **kwargs)


def test_refused_pods_are_said_and_tried_again(world, conditions):
    quota = world.replica_sets._store = Refusing(world.store, 2)
    start(world)
    replica_set = world.all(REPLICA_SETS, "default")[0]
    failure = conditions(replica_set)["ReplicaFailure"]

    assert len(pods(world)) == 2
    assert (failure["status"], failure["reason"]) == ("True", "FailedCreate")
    assert "at most 2 workers" in failure["message"]
    assert conditions(world.get(DEPLOYMENTS, "web", "default"))["ReplicaFailure"] == failure
    reasons = [r for r in world.reasons() if r[0] == "FailedCreate"]
    assert reasons == [("FailedCreate", "Error creating: quota gpu-quota: at most 2 workers")]

    before = world.store.version
    world.replica_sets.reconcile(world.informers.replica_sets.all_keys()[0])
    changed = world.store.version - before
    assert changed <= 1  # the event counts up; the condition is not written again

    quota.most = 9
    world.settle(10)
    serve(world)
    assert len(pods(world)) == 3
    assert "ReplicaFailure" not in conditions(world.all(REPLICA_SETS, "default")[0])
    assert "ReplicaFailure" not in conditions(world.get(DEPLOYMENTS, "web", "default"))


def test_deployment_that_is_deleted_takes_its_pods_along(world):
    start(world)
    world.store.delete(DEPLOYMENTS, "web", "default")
    while world.store.collect():
        pass
    for pod in pods(world):
        world.store.delete(PODS, pod["metadata"]["name"], "default", grace_period_seconds=0)
    world.settle(3)

    assert world.all(REPLICA_SETS, "default") == []
    assert pods(world) == []
