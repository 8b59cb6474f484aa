"""Host ports and indices of pods: held while they must be, through restarts."""

import pytest
from rig.scheduling import World

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.registry import PODS
from tensorfusion.model.claims import INDEX, Claim
from tensorfusion.scheduling.pod_rules import claims_of
from tensorfusion.testing import build


@pytest.fixture
def world(cluster, tmp_path):
    made = World(cluster, tmp_path)
    made.nodes(n1=2)
    made.start()
    return made


def listening(port, **more):
    ports = [{"containerPort": 80, "hostPort": port, **more}]
    return [{"name": "main", "image": "registry.example/app:1", "ports": ports}]


def test_second_pod_with_a_port_waits_until_the_first_is_gone(world, conditions):
    world.pod("a", 10, containers=listening(8080))
    world.settle()
    world.pod("b", 10, containers=listening(8080))
    world.pod("c", 10, containers=listening(8080, protocol="UDP"))
    world.settle()
    message = conditions(world.get("b"))["PodScheduled"]["message"]
    assert message.startswith("0/2 GPUs fit: 2 where TCP port 8080 of the node is taken")
    assert world.get("c")["spec"]["nodeName"] == "n1"
    world.restart()
    assert world.repairs == []
    world.store.delete(PODS, "a", "default")
    world.settle()
    assert world.get("b")["spec"]["nodeName"] == "n1"


def test_index_is_held_until_the_pod_runs(world):
    world.pod("a", 10, annotations={"index": "5"})
    world.cluster.settle(0.5)
    claim = Claim(INDEX, 5)
    assert world.placer.ledger.claims.holder(claim, "n1")
    world.settle()
    assert world.get("a")["status"]["phase"] == "Running"
    assert world.placer.ledger.claims.holder(claim, "n1") is None
    world.restart()
    assert world.repairs == []
    assert world.placer.fingerprint()["findings"] == []


def test_claims_are_read_from_ports_and_annotations():
    def read(**fields):
        return claims_of(decode(Pod, build.pod("p", tflops="1", **fields)))

    assert read() == ()
    assert read(containers=listening(8080), annotations={"port-number": "42001"}) == (
        Claim("TCP port", 8080),
        Claim("host port", 42_001, fleet_wide=True),
    )
    assert read(annotations={"index": "7"}) == (Claim(INDEX, 7),)
    assert read(annotations={"index": "7", "workload": "shared"}) == ()
    assert names.INDEX.endswith("/index")
