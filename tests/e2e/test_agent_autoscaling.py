"""A vertical recommendation from an agent's samples, and what it changes on the agent."""

import json
import re

import pytest
from rig.agents import Site
from rig.program import PREFIX, wait

from tensorfusion.api.registry import DEPLOYMENTS, PODS, PROFILES, WORKLOADS
from tensorfusion.units import parse_gflops

NODE = "sim"
SIMULATED = {"nodes": [{"name": NODE, "gpus": [{"model": "A100_SXM_80G"}]}]}
REQUEST, LIMIT, LOAD, MARGIN = 10.0, 20.0, 35.0, 0.15
"""TFLOPS; the margin as a ratio of the use."""
GIGA = 1000.0
PASSES = "tensorfusion_autoscaler_loop_duration_seconds_count"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"), SIMULATED, NODE, sample_seconds=0.25)
    site.environment["TENSORFUSION_AUTOSCALE_SECONDS"] = "0.5"
    site.up()
    site.start_agent()
    yield site
    for deployment in site.store.list(DEPLOYMENTS, "default").items:
        site.store.delete(DEPLOYMENTS, deployment["metadata"]["name"], "default")
    wait(lambda: not site.phases(), 40)
    site.close()


def deploy(site, name, **scaling):
    """A deployment of one worker that would use more than it may, and a profile that scales it."""
    profile = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "WorkloadProfile",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "resources": {
                "requests": {"tflops": str(REQUEST), "vram": "2Gi"},
                "limits": {"tflops": str(LIMIT), "vram": "4Gi"},
            },
            "autoScalingConfig": {
                "autoSetResources": {
                    "marginFraction": str(MARGIN),
                    "interval": "1s",
                    "initialDelayPeriod": "1s",
                    "historyDataPeriod": "5m",
                    "confidenceInterval": "2s",
                    **scaling,
                }
            },
        },
    }
    labels = {"app": name}
    template = {
        "metadata": {
            "labels": {**labels, PREFIX + "enabled": "true"},
            "annotations": {
                PREFIX + "workload-profile": name,
                PREFIX + "simulated-load": f"constant,tflops={LOAD:g},vram=1800Mi",
            },
        },
        "spec": {"containers": [{"name": "c", "image": "none"}]},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    site.store.create(PROFILES, profile, "default")
    site.store.create(DEPLOYMENTS, deployment, "default")


def pod_of(site, name):
    found = (p for p in site.store.list(PODS, "default").items if name in p["metadata"]["name"])
    return next(found, None)


def of_agent(site, name):
    """Limit and use of a deployment's worker as its agent has them, TFLOPS; None before it runs."""
    for worker in site.get("/api/v1/workers")["workers"]:
        if name in worker["name"] and worker["usage"]:
            limit, used = worker["limits"]["computeGflops"], worker["usage"][0]["computeGflops"]
            return limit / GIGA, used / GIGA
    return None


def status(site, name):
    found = site.store.list(WORKLOADS, "default").items
    return next((w.get("status", {}) for w in found if w["metadata"]["name"] == name), {})


def recommended(site, name):
    """The recommended request, TFLOPS; 0 before there is one."""
    found = status(site, name).get("recommendation", {}).get("requests", {})
    return parse_gflops(found.get("tflops", 0)) / GIGA


def used(site):
    """Names of the workers of which the control plane has samples."""
    return [w["name"] for w in json.loads(site.store.text("/tensorfusion/usage"))["workers"]]


def passes(site):
    """How often the control plane's autoscaler has looked."""
    found = re.search(PASSES + r" (\S+)", site.store.text("/metrics"))
    return float(found[1])


@pytest.mark.timeout(120)
def test_a_worker_is_raised_by_its_agents_samples_until_its_load_fits(site):
    deploy(site, "grows", enable=True, targetResource="compute")
    wait(lambda: of_agent(site, "grows"))

    wait(lambda: of_agent(site, "grows")[0] > LIMIT, 30, lambda: status(site, "grows"))
    # Only an agent that holds the worker to more lets it use more than its first limit.
    wait(lambda: of_agent(site, "grows")[1] == pytest.approx(LOAD, rel=0.1), 30)
    pod = pod_of(site, "grows")
    limit, _ = of_agent(site, "grows")
    assert parse_gflops(pod["metadata"]["annotations"][PREFIX + "tflops-limit"]) == limit * GIGA
    said = {c["type"]: c for c in status(site, "grows")["conditions"]}
    assert said["RecommendationProvided"]["status"] == "True"
    assert said["ResourceUpdate"]["reason"] == "Updated"
    assert recommended(site, "grows") > REQUEST


@pytest.mark.timeout(60)
def test_without_enable_it_is_told_only(site):
    deploy(site, "told")
    # It is held to its limit, and that much it is seen to need.
    wanted = LIMIT * (1 + MARGIN)
    wait(lambda: recommended(site, "told") == pytest.approx(wanted, rel=0.1), 30)
    limit, used = of_agent(site, "told")
    assert limit == LIMIT
    assert used <= LIMIT * 1.05


@pytest.mark.timeout(60)
def test_while_the_agent_is_away_what_it_told_before_is_recommended(site):
    deploy(site, "stays")
    wait(lambda: recommended(site, "stays") > REQUEST, 30)
    before = recommended(site, "stays")
    site.kill_agent()
    wait(lambda: not any("stays" in name for name in used(site)))
    seen = passes(site)
    wait(lambda: passes(site) >= seen + 3)
    assert recommended(site, "stays") == pytest.approx(before, rel=0.1)

    site.start_agent()
    wait(lambda: any("stays" in name for name in used(site)))
    seen = passes(site)
    wait(lambda: passes(site) >= seen + 3)
    assert recommended(site, "stays") == pytest.approx(before, rel=0.1)
