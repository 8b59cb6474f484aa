"""A node whose agent is silent is not ready and takes no new pods, until the agent speaks again."""

import pytest

from tensorfusion.api.registry import EVENTS, LEASES, NODES
from tensorfusion.controllers.node_lifecycle import (
    GRACE_SECONDS,
    LOOK_SECONDS,
    TAINT,
    NodeLifecycle,
)
from tensorfusion.errors import NotFound
from tensorfusion.hypervisor.node_lease import NAMESPACE, RENEW_SECONDS, NodeLease

OTHER = {"key": "mine", "effect": "NoSchedule"}


def node(name):
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"taints": [OTHER]},
    }


@pytest.fixture
def world(cluster):
    ready = {"type": "Ready", "status": "True", "reason": "HypervisorReady"}
    healthy = {"type": "GPUsHealthy", "status": "True"}
    for name in ("n1", "plain"):
        cluster.store.create(NODES, node(name))
        status = {"status": {"conditions": [ready, healthy]}}
        cluster.store.patch(NODES, name, status, subresource="status")
    cluster.lease = NodeLease(cluster.store, "n1", cluster.clock)
    cluster.served = set()
    cluster.lifecycle = NodeLifecycle(
        cluster.store,
        cluster.informers.nodes,
        served=cluster.served,
        clock=cluster.clock,
        events=cluster.events(),
    )
    cluster.start()
    return cluster


def watch(world, seconds, renews=False):
    """Let time pass as the two loops see it."""
    for step in range(int(seconds / LOOK_SECONDS)):
        world.clock.advance(LOOK_SECONDS)
        if renews and step % int(RENEW_SECONDS / LOOK_SECONDS) == 0:
            world.lease.renew()
        world.pump()
        world.lifecycle.run_once()
        world.pump()


def state(world, name="n1"):
    found = world.get(NODES, name)
    conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
    return conditions["Ready"], [t["key"] for t in found["spec"]["taints"]], conditions


def test_a_silent_agent_makes_its_node_unknown_and_a_renewal_brings_it_back(world):
    world.lease.renew()
    watch(world, 3 * GRACE_SECONDS, renews=True)
    assert state(world)[:2] == ("True", ["mine"])

    watch(world, GRACE_SECONDS - 2 * LOOK_SECONDS)
    assert state(world)[0] == "True"
    watch(world, 4 * LOOK_SECONDS)
    assert state(world) == (
        "Unknown",
        ["mine", TAINT],
        {"Ready": "Unknown", "GPUsHealthy": "True"},
    )
    before = world.store.version
    watch(world, 2 * GRACE_SECONDS)
    assert world.store.version == before, "what is told is not told again"

    world.lease.renew()
    watch(world, LOOK_SECONDS)
    assert state(world)[:2] == ("True", ["mine"])
    assert sorted(e["reason"] for e in world.all(EVENTS)) == ["NodeNotReady", "NodeReady"]


def test_a_node_without_a_lease_is_not_judged(world):
    watch(world, 3 * GRACE_SECONDS)

    assert state(world, "plain")[:2] == ("True", ["mine"])


def test_a_node_that_this_process_serves_is_ready_whatever_an_agent_left(world):
    world.lease.renew()
    watch(world, 2 * GRACE_SECONDS)
    assert state(world)[0] == "Unknown"

    world.served.add("n1")
    watch(world, LOOK_SECONDS)

    assert state(world)[:2] == ("True", ["mine"])


def test_after_a_pause_of_the_control_plane_every_node_has_its_grace_anew(world):
    world.lease.renew()
    watch(world, LOOK_SECONDS)
    world.clock.advance(10 * GRACE_SECONDS)

    watch(world, GRACE_SECONDS - LOOK_SECONDS)
    assert state(world)[0] == "True"
    watch(world, 3 * LOOK_SECONDS)
    assert state(world)[0] == "Unknown"


def test_a_lease_is_the_nodes_and_waits_for_its_node(world):
    world.lease.renew()
    lease = world.store.get(LEASES, "n1", NAMESPACE)

    assert lease["spec"]["holderIdentity"] == "n1"
    assert lease["spec"]["leaseDurationSeconds"] == GRACE_SECONDS
    assert (
        lease["metadata"]["ownerReferences"][0]["uid"] == world.get(NODES, "n1")["metadata"]["uid"]
    )
    with pytest.raises(NotFound, match="nobody"):
        NodeLease(world.store, "nobody", world.clock).renew()
