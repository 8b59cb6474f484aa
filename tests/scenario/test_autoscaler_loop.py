"""The autoscaler on the embedded store: who is resized, who is only told, and what is written."""

import threading

import numpy as np
import pytest

from tensorfusion import names
from tensorfusion.api.registry import PODS, WORKLOADS
from tensorfusion.autoscale.loop import Autoscaler
from tensorfusion.errors import ConfigError, Conflict
from tensorfusion.model.demand import Amount
from tensorfusion.model.worker_annotations import format_amounts
from tensorfusion.spi.recommender import Amounts, Proposal, UsageSeries
from tensorfusion.testing import build

GIB = 1 << 30


class Recommender:
    """Proposes what the test says, for every workload it is asked about."""

    def __init__(self, name="percentile", **proposal):
        self.name = name
        self.proposal = proposal
        self.asked = []

    def propose(self, batch, history, now):
        self.asked.append([view.key for view in batch])
        self.views = {view.key: view for view in batch}
        if isinstance(self.proposal, Exception):
            raise self.proposal
        fields = {
            "request": Amounts(20_000, 8 * GIB),
            "limit": Amounts(40_000, 16 * GIB),
            "lower": Amounts(15_000, GIB),
            "upper": Amounts(50_000, 9 * GIB),
            "confidence": 0.5,
            "reason": "OutOfEstimatedBound",
            "why": "it needs more",
            **self.proposal,
        }
        return [Proposal(key=view.key, **fields) for view in batch]


class Metrics:
    def __init__(self):
        self.asked = []

    def usage_history(self, workloads, start, end):
        self.asked.append((tuple(workloads), end - start))
        one = np.array([1.0])
        return {key: UsageSeries(one, one.astype(int), one, one) for key in workloads}


class Resizer:
    """Writes the pod, as the scheduler does; refuses those that a test names."""

    def __init__(self, store):
        self.store = store
        self.full = set()
        self.calls = []

    def resize(self, pod, request, limit, reason):
        name = pod.metadata.name
        if name in self.full:
            raise ConfigError(f"pod {name}: GPU gpu-0 has 3 TFLOPS left, 10 more are needed")
        self.calls.append((name, request, limit, reason))
        patch = {"metadata": {"annotations": format_amounts(request, limit)}}
        self.store.patch(PODS, name, patch, "default")


@pytest.fixture
def world(cluster):
    cluster.recommender = Recommender()
    cluster.metrics = Metrics()
    cluster.resizer = Resizer(cluster.store)
    cluster.start()

    def make(*others):
        recommenders = {r.name: r for r in (cluster.recommender, *others)}
        cluster.scaler = Autoscaler(
            cluster.store,
            cluster.informers.workloads,
            cluster.informers.pods,
            recommenders,
            cluster.metrics,
            cluster.resizer,
            clock=cluster.clock,
            events=cluster.events("autoscaler"),
            instruments=cluster.instruments,
            default_interval_seconds=10.0,
        )
        return cluster

    cluster.make = make
    return make()


def workload(world, name="job", workers=("w1",), **block):
    scaling = {"autoScalingConfig": {"autoSetResources": block}} if block else {}
    world.store.create(WORKLOADS, build.workload(name, **scaling), "default")
    for worker in workers:
        pod = build.pod(worker, labels={"workload": name}, nodeName="n1")
        world.store.create(PODS, pod, "default")


def run(world, seconds=10.0):
    world.pump()
    found = world.scaler.run_once()
    world.clock.advance(seconds)
    world.pump()
    return found


def status(world, name="job"):
    return world.get(WORKLOADS, name, "default").get("status", {})


def annotations(world, pod="w1"):
    return world.get(PODS, pod, "default")["metadata"]["annotations"]


APPLY = {"enable": True, "targetResource": "all"}


def test_recommendation_is_applied_to_every_worker(world, conditions):
    workload(world, workers=("w1", "w2"), **APPLY)
    run(world)
    found = world.get(WORKLOADS, "job", "default")

    assert [c[:3] for c in world.resizer.calls] == [
        (name, Amount(20_000, 8 * GIB), Amount(40_000, 16 * GIB)) for name in ("w1", "w2")
    ]
    assert world.resizer.calls[0][3] == "autoscaler: it needs more"
    assert found["status"]["recommendation"] == {
        "requests": {"tflops": "20", "vram": "8Gi"},
        "limits": {"tflops": "40", "vram": "16Gi"},
    }
    assert found["status"]["appliedRecommendedReplicas"] == 2
    provided, update = (conditions(found)[t] for t in ("RecommendationProvided", "ResourceUpdate"))
    assert (provided["status"], provided["reason"]) == ("True", "OutOfEstimatedBound")
    assert provided["message"] == "it needs more (confidence 50%)"
    assert (update["status"], update["reason"]) == ("True", "Updated")
    assert (
        "ResourceScaledUp",
        "2 worker(s): it needs more",
    ) in world.reasons()


@pytest.mark.parametrize(
    "block",
    [{"enable": True}, {"targetResource": "all"}, {"enable": False, "targetResource": "all"}],
    ids=["no target", "no switch", "off"],
)
def test_recommendation_is_only_shown_when_it_is_not_enabled(world, conditions, block):
    workload(world, **block)
    run(world)

    assert world.resizer.calls == []
    assert status(world)["recommendation"]["requests"]["tflops"] == "20"
    assert "appliedRecommendedReplicas" not in status(world)
    assert "ResourceUpdate" not in conditions(world.get(WORKLOADS, "job", "default"))
    assert 'action="recommend"' in world.instruments.exposition().decode()


@pytest.mark.parametrize(
    ("target", "request_", "limit"),
    [
        ("vram", Amount(10_000, 8 * GIB), Amount(10_000, 16 * GIB)),
        ("compute", Amount(20_000, 4 * GIB), Amount(40_000, 4 * GIB)),
        ("tflops", Amount(20_000, 4 * GIB), Amount(40_000, 4 * GIB)),
    ],
)
def test_only_the_target_resource_is_set(world, target, request_, limit):
    workload(world, enable=True, targetResource=target)
    run(world)

    assert world.resizer.calls[0][1:3] == (request_, limit)


def test_compute_that_is_a_percentage_stays_one(world):
    workload(world, **APPLY)
    patch = {
        names.TFLOPS_REQUEST: None,
        names.TFLOPS_LIMIT: None,
        names.COMPUTE_PERCENT_REQUEST: "25",
        names.COMPUTE_PERCENT_LIMIT: "50",
    }
    world.store.patch(PODS, "w1", {"metadata": {"annotations": patch}}, "default")
    world.recommender.proposal = {"request": Amounts(0, 8 * GIB), "limit": Amounts(0, 16 * GIB)}
    run(world)

    assert world.resizer.calls[0][1:3] == (
        Amount(milli_percent=25_000, vram_bytes=8 * GIB),
        Amount(milli_percent=50_000, vram_bytes=16 * GIB),
    )


def test_workload_without_a_block_or_a_worker_is_left_alone(world):
    workload(world, "plain", workers=("p1",))
    workload(world, "empty", workers=(), **APPLY)

    assert run(world) == {}
    assert status(world, "empty") == {}
    assert world.metrics.asked == []


def test_proposal_that_changes_nothing_or_is_too_early_is_not_applied(world, conditions):
    workload(world, **APPLY)
    world.recommender.proposal = {
        "request": Amounts(), "limit": Amounts(), "reason": "InsideEstimatedBound"
    }  # fmt: skip
    run(world)
    world.recommender.proposal = {"reason": "LowConfidence"}
    run(world)

    assert world.resizer.calls == []
    found = conditions(world.get(WORKLOADS, "job", "default"))
    assert found["RecommendationProvided"]["reason"] == "LowConfidence"


def test_expired_proposal_is_dropped(world):
    workload(world, **APPLY)
    world.recommender.proposal = {"expires": world.clock.now()}

    assert run(world) == {}
    assert world.resizer.calls == []


def test_what_does_not_fit_is_said_and_tried_again(world, conditions):
    workload(world, workers=("w1", "w2"), **APPLY)
    world.resizer.full = {"w2"}
    run(world)
    found = world.get(WORKLOADS, "job", "default")
    update = conditions(found)["ResourceUpdate"]

    assert (update["status"], update["reason"]) == ("False", "Blocked")
    assert "GPU gpu-0 has 3 TFLOPS left" in update["message"]
    assert found["status"]["appliedRecommendedReplicas"] == 1
    assert "ResourceScalingBlocked" in dict(world.reasons())
    assert 'action="blocked"' in world.instruments.exposition().decode()

    world.resizer.full = set()
    run(world)
    assert world.recommender.views["default/job"].request == Amounts(10_000, 4 * GIB)
    assert annotations(world, "w2")[names.TFLOPS_REQUEST] == "20"
    found = world.get(WORKLOADS, "job", "default")
    assert conditions(found)["ResourceUpdate"]["status"] == "True"
    assert found["status"]["appliedRecommendedReplicas"] == 2


def test_scaling_down_has_its_own_event(world):
    workload(world, **APPLY)
    world.recommender.proposal = {"request": Amounts(5_000, GIB), "limit": Amounts(5_000, GIB)}
    run(world)

    assert "ResourceScaledDown" in dict(world.reasons())


def test_status_is_not_written_again_when_it_says_the_same(world):
    workload(world, enable=True)
    run(world)
    before = world.store.version
    for _ in range(3):
        run(world)

    assert world.store.version == before


class Contended:
    """A store in which somebody else writes the workload just before we do."""

    def __init__(self, inner, times):
        self.inner, self.times = inner, times

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def patch(self, resource, name, patch, namespace="", **kwargs):
        if resource is WORKLOADS and self.times:
            self.times -= 1
            theirs = {"type": "Ready", "status": str(self.times), "reason": "R"}
            theirs["status"] = "True" if self.times % 2 else "False"
            self.inner.patch(
                WORKLOADS,
                name,
                {"status": {"conditions": [theirs]}},
                namespace,
                subresource="status",
            )
        return self.inner.patch(resource, name, patch, namespace, **kwargs)


def test_conflict_is_retried_at_once_and_keeps_what_others_wrote(world, conditions):
    workload(world, **APPLY)
    world.scaler._store = Contended(world.store, 2)
    run(world)
    found = world.get(WORKLOADS, "job", "default")

    assert found["status"]["appliedRecommendedReplicas"] == 1
    assert conditions(found).keys() == {"Ready", "RecommendationProvided", "ResourceUpdate"}
    assert conditions(found)["Ready"]["status"] == "False"


def test_endless_conflict_gives_up_until_the_next_pass(world):
    class Never(Contended):
        def patch(self, resource, name, patch, namespace="", **kwargs):
            if resource is WORKLOADS:
                raise Conflict("changed")
            return self.inner.patch(resource, name, patch, namespace, **kwargs)

    workload(world, enable=True)
    world.scaler._store = Never(world.store, 0)
    run(world)
    assert status(world) == {}
    world.scaler._store = world.store
    run(world)

    assert "recommendation" in status(world)


def test_workload_is_looked_at_in_its_own_interval(world):
    workload(world, "slow", workers=("s1",), interval="60s", **APPLY)
    workload(world, "usual", workers=("u1",), **APPLY)
    for _ in range(7):
        run(world)

    asked = [key for batch in world.recommender.asked for key in batch]
    assert asked.count("default/slow") == 2
    assert asked.count("default/usual") == 7


def test_history_is_as_long_as_the_longest_that_is_asked_for(world):
    workload(world, "a", workers=("a1",), historyDataPeriod="2h", **APPLY)
    workload(world, "b", workers=("b1",), historyDataPeriod="4h", **APPLY)
    run(world)

    assert world.metrics.asked == [(("default/a", "default/b"), 4 * 3600)]


def test_named_recommender_is_the_only_one_asked(world):
    other = Recommender("other")
    world.make(other)
    workload(world, "mine", workers=("m1",), recommender="other", **APPLY)
    workload(world, "any", workers=("a1",), **APPLY)
    run(world)

    assert world.recommender.asked == [["default/any"]]
    assert other.asked == [["default/mine", "default/any"]]


def test_unknown_recommender_is_said(world, conditions):
    workload(world, recommender="oracle", **APPLY)
    run(world)
    found = conditions(world.get(WORKLOADS, "job", "default"))["RecommendationProvided"]

    assert (found["status"], found["reason"]) == ("False", "UnknownRecommender")
    assert found["message"] == (
        "autoSetResources.recommender: 'oracle' is not installed; installed: percentile"
    )


def test_recommender_that_fails_does_not_stop_the_others(world, caplog):
    broken = Recommender("broken")
    broken.proposal = RuntimeError("a defect")
    world.make(broken)
    workload(world, **APPLY)
    run(world)

    assert len(world.resizer.calls) == 1
    assert "recommender failed" in caplog.text


def test_pass_that_fails_is_logged_and_the_loop_goes_on(world, caplog):
    workload(world, **APPLY)
    world.pump()
    stop = threading.Event()
    tries = []

    def usage_history(*args):
        tries.append(1)
        stop.set()
        raise OSError("the disk is gone")

    world.metrics.usage_history = usage_history
    world.scaler.run(stop)

    assert tries == [1]
    assert "recommendation pass failed" in caplog.text


def test_recommendations_are_exposed_until_the_workload_is_gone(world):
    name = "tensorfusion_autoscaler_recommended_compute_flops"
    workload(world, "slow", workers=("s1",), interval="60s", enable=True)
    workload(world, "job", workers=("w1",), enable=True)

    def shown():
        lines = world.instruments.exposition().decode().splitlines()
        return [line for line in lines if line.startswith(f"{name}{{")]

    run(world)
    run(world)  # only one of the two is due
    assert len(shown()) == 6
    assert (
        f'{name}{{bound="target",namespace="default",pool="shared",'
        'recommender="percentile",workload="job"} 2e+13'
    ) in shown()
    world.store.delete(WORKLOADS, "slow", "default")
    world.pump()
    run(world)

    assert len(shown()) == 3
    assert all('workload="job"' in line for line in shown())
