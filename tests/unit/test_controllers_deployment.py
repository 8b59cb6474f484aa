"""Sizes of a rollout, and the expectations of replica sets, as pure decisions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.api.core.apps import Deployment, ReplicaSet
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.controllers.deployment import (
    first_size,
    max_surge,
    max_unavailable,
    plan_paused,
    plan_sizes,
)
from tensorfusion.controllers.expectations import FORGET_SECONDS, Expectations
from tensorfusion.controllers.owned import safe_hash
from tensorfusion.controllers.replicaset import deletion_rank
from tensorfusion.testing.clock import FakeClock


def deployment(replicas, surge="25%", unavailable="25%", kind="RollingUpdate"):
    strategy = {"type": kind}
    if kind == "RollingUpdate":
        strategy["rollingUpdate"] = {"maxSurge": surge, "maxUnavailable": unavailable}
    spec = {"replicas": replicas, "strategy": strategy, "selector": {}, "template": {}}
    return decode(Deployment, {"metadata": {"name": "d"}, "spec": spec})


def replica_set(name, wanted, there=None, available=None):
    there = wanted if there is None else there
    status = {"replicas": there, "availableReplicas": there if available is None else available}
    return decode(
        ReplicaSet,
        {
            "metadata": {"name": name},
            "spec": {"replicas": wanted, "selector": {}},
            "status": status,
        },
    )


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "wanted"),
    [
        (10, "25%", "25%", (3, 2)),
        (4, "25%", "25%", (1, 1)),
        (1, "25%", "25%", (1, 0)),
        (10, 0, 0, (0, 1)),
        (10, "0%", "0%", (0, 1)),
        (10, 2, 3, (2, 3)),
        (0, "25%", "25%", (0, 1)),
    ],
)
def test_surge_rounds_up_and_unavailable_down(replicas, surge, unavailable, wanted):
    d = deployment(replicas, surge, unavailable)

    assert (max_surge(d), max_unavailable(d)) == wanted


@pytest.mark.parametrize(
    ("old", "kind", "size"),
    [
        (0, "RollingUpdate", 10),
        (10, "RollingUpdate", 3),
        (13, "RollingUpdate", 0),
        (10, "Recreate", 0),
        (0, "Recreate", 10),
    ],
)
def test_new_replica_set_starts_with_what_there_is_room_for(old, kind, size):
    assert first_size(deployment(10, kind=kind), old) == size


def test_status_that_lags_does_not_let_availability_fall():
    """The old set was told to shrink to 8; its status still counts the two that are going."""
    d = deployment(10, 2, 2)
    new = replica_set("new", 2, 2, 0)
    old = replica_set("old", 8, 10, 10)

    assert plan_sizes(d, new, [old])["old"] == 8


def test_recreate_waits_until_the_old_pods_are_gone():
    d = deployment(3, kind="Recreate")

    assert plan_sizes(d, replica_set("new", 0), [replica_set("old", 3)]) == {"new": 0, "old": 0}
    gone = replica_set("old", 0, 1)
    assert plan_sizes(d, replica_set("new", 0), [gone])["new"] == 0
    assert plan_sizes(d, replica_set("new", 0), [replica_set("old", 0)])["new"] == 3


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        (10, {"old": 7, "new": 3}),
        (12, {"old": 7, "new": 5}),
        (8, {"old": 7, "new": 1}),
        (5, {"old": 5, "new": 0}),
        (0, {"old": 0, "new": 0}),
    ],
)
def test_paused_rollout_is_scaled_but_not_continued(wanted, sizes):
    plan = plan_paused(deployment(wanted), replica_set("new", 3), [replica_set("old", 7)])

    assert plan == sizes


class Rollout:
    """Replica sets whose pods come and become available at any time, and statuses that lag."""

    def __init__(self, d, sizes):
        self.d = d
        self.wanted = dict(sizes)
        self.pods = {name: [True] * size for name, size in sizes.items()}
        self.shown = {}
        for name in sizes:
            self.show(name)

    def show(self, name):
        self.shown[name] = (len(self.pods[name]), sum(self.pods[name]))

    def views(self):
        sets = [replica_set(n, self.wanted[n], *self.shown[n]) for n in sorted(self.wanted)]
        return sets[0], sets[1:]

    def plan(self):
        new, old = self.views()
        self.wanted.update(plan_sizes(self.d, new, old))

    def work(self, name):
        """What the replica set's controller does: pods that do not serve go first."""
        pods = sorted(self.pods[name], reverse=True)[: self.wanted[name]]
        self.pods[name] = pods + [False] * (self.wanted[name] - len(pods))

    def ready(self, name):
        if False in self.pods[name]:
            self.pods[name][self.pods[name].index(False)] = True


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["plan", "work", "show", "ready"]), st.sampled_from(["a-new", "b", "c"])
    ),
    max_size=60,
)
LIMITS = st.sampled_from([0, 1, 2, "25%", "50%", "100%"])


@settings(max_examples=150)
@given(st.integers(1, 12), LIMITS, LIMITS, ACTIONS)
def test_rollout_keeps_its_promises_whatever_the_timing(replicas, surge, unavailable, actions):
    d = deployment(replicas, surge, unavailable)
    rollout = Rollout(d, {"a-new": 0, "b": replicas // 2, "c": replicas - replicas // 2})
    for action, name in actions:
        if action == "plan":
            rollout.plan()
        else:
            getattr(rollout, action)(name)
        assert sum(rollout.wanted.values()) <= replicas + max_surge(d)
        available = sum(sum(p) for p in rollout.pods.values())
        assert available >= replicas - max_unavailable(d)
    # Left alone it comes to its end.
    for _ in range(20 * replicas):
        rollout.plan()
        for name in rollout.wanted:
            rollout.work(name)
            rollout.ready(name)
            rollout.show(name)
    assert rollout.wanted == {"a-new": replicas, "b": 0, "c": 0}
    assert rollout.pods["a-new"] == [True] * replicas


def pod(name, node="", ready=False, created="2025-01-01T00:00:00Z"):
    status = {"conditions": [{"type": "Ready", "status": str(ready)}]}
    return decode(
        Pod,
        {
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"nodeName": node, "containers": []},
            "status": status,
        },
    )


def test_pods_that_serve_least_go_first():
    pods = [
        pod("old", "n", True),
        pod("young", "n", True, "2025-01-02T00:00:00Z"),
        pod("not ready", "n"),
        pod("waiting"),
    ]

    assert [p.metadata.name for p in sorted(pods, key=deletion_rank)] == [
        "waiting",
        "not ready",
        "young",
        "old",
    ]


def test_expectation_ends_when_it_is_seen_or_too_old():
    clock = FakeClock()
    expectations = Expectations(clock)
    expectations.expect("rs", "a")
    expectations.expect("rs", "b")

    assert expectations.settle("rs", {"a"}) == {"b"}
    assert expectations.keep("rs", {"b", "c"}) == {"b"}
    assert expectations.waits("rs")
    clock.advance(FORGET_SECONDS)
    assert expectations.settle("rs", set()) == set()
    assert not expectations.waits("rs")
    expectations.expect("rs", "c")
    assert expectations.keep("rs", set()) == set()
    expectations.expect("rs", "d")
    expectations.forget("rs")
    assert not expectations.waits("rs")


def test_hash_is_the_same_for_equal_values_and_fits_into_a_name():
    assert safe_hash({"a": 1, "b": [2]}) == safe_hash({"b": [2], "a": 1})
    assert safe_hash({"a": 1}) != safe_hash({"a": 2})
    assert len(safe_hash({})) == 10
    assert safe_hash({}).isalnum()
