"""A control plane reads its agents: their usage is in its series, its answers and its alerts."""

import json
import re
import signal
import urllib.error

import pytest
from rig.agents import Site
from rig.program import wait

from tensorfusion.api.registry import SECRETS
from tensorfusion.app.agents import NAMESPACE, secret_name

NODE_NAMES = ("near", "far")
SIMULATED = {"nodes": [{"name": n, "gpus": [{"model": "A100_SXM_80G"}]} for n in NODE_NAMES]}
FAR_ADDRESS = "127.0.0.2"
SERIES = re.compile(r"(tensorfusion_[a-z_]+)\{(.*)\} (\S+)")
GREEDY = "constant,tflops=300,vram=1Gi"


class Fleet:
    """A control plane and two agents; that of the node ``far`` has an address of its own."""

    def __init__(self, folder):
        self.near = Site(folder / "near", SIMULATED, "near", sample_seconds=0.5)
        self.far = Site(folder / "far", SIMULATED, "far", sample_seconds=0.5)
        self.near.environment["TENSORFUSION_ALERT_SECONDS"] = "0.5"
        self.near.up()
        self.store, self.far.data = self.near.store, self.near.data
        self.far.store = self.near.store
        self.near.start_agent()
        self.far.start_agent("--listen", FAR_ADDRESS)

    def answer(self, path):
        return json.loads(self.store.text(path))

    def used(self):
        """Workers with their compute, as the control plane tells it."""
        workers = self.answer("/tensorfusion/usage")["workers"]
        return {w["name"]: w["computeGflops"] for w in workers}

    def series(self, name):
        """Label pairs and values of a metric of the control plane."""
        found = SERIES.findall(self.store.text("/metrics"))
        return [
            (dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
            for metric, labels, value in found
            if metric == name
        ]

    def workers_with_series(self):
        found = self.series("tensorfusion_worker_compute_used_flops")
        return {labels["worker"] for labels, value in found if value > 0}

    def nodes_with_series(self):
        found = self.series("tensorfusion_gpu_vram_capacity_bytes")
        return {labels["node"] for labels, _ in found}

    def heartbeats(self):
        """By node, when it was read last."""
        found = self.series("tensorfusion_hypervisor_last_heartbeat_timestamp_seconds")
        return {labels["node"]: value for labels, value in found}

    def throttled(self):
        """Workers that the control plane's alerts say to be throttled."""
        alerts = self.answer("/tensorfusion/alerts")["alerts"]
        return {
            a["labels"]["worker"]
            for a in alerts
            if a["rule"] == "TensorFusionWorkerThrottled" and a["state"] != "resolved"
        }

    def close(self):
        self.far.kill_agent(signal.SIGTERM)
        self.near.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    for name in NODE_NAMES:
        (folder / name).mkdir()
    fleet = Fleet(folder)
    yield fleet
    fleet.close()


def on_both_nodes(fleet):
    """One greedy pod per node; that each is where it is called after."""
    for node in NODE_NAMES:
        fleet.near.create_pod(f"on-{node}", 60, load=GREEDY)
    wait(lambda: set(fleet.near.phases().values()) == {"Running"})
    return {fleet.near.pod(f"on-{n}")["spec"]["nodeName"]: f"on-{n}" for n in NODE_NAMES}


@pytest.mark.timeout(150)
def test_series_alerts_and_answers_follow_the_agents(fleet):
    wait(lambda: fleet.nodes_with_series() == set(NODE_NAMES))
    pods = on_both_nodes(fleet)
    assert pods.keys() == set(NODE_NAMES)
    both = set(pods.values())

    wait(lambda: fleet.workers_with_series() == both)
    used = wait(lambda: fleet.used())
    assert used.keys() == both
    limit = 0.6 * 312_000
    assert all(0 < value <= limit * 1.01 for value in used.values())
    labels, _ = fleet.series("tensorfusion_worker_ready")[0]
    assert labels["pool"] == "tensor-fusion-shared"
    assert {v for _, v in fleet.series("tensorfusion_worker_ready")} == {1.0}
    wait(lambda: fleet.throttled() == both, 30)

    fleet.far.kill_agent()
    wait(lambda: fleet.workers_with_series() == {pods["near"]})
    assert fleet.nodes_with_series() == {"near"}
    assert fleet.used().keys() == {pods["near"]}
    wait(lambda: fleet.throttled() == {pods["near"]}, 30)

    fleet.far.start_agent("--listen", FAR_ADDRESS)
    wait(lambda: fleet.workers_with_series() == both)


@pytest.mark.timeout(60)
def test_an_agent_that_hangs_delays_nobody_and_has_no_series(fleet):
    wait(lambda: fleet.nodes_with_series() == set(NODE_NAMES))
    fleet.far.agent.send_signal(signal.SIGSTOP)
    try:
        wait(lambda: fleet.nodes_with_series() == {"near"})
        before = fleet.heartbeats()
        wait(lambda: fleet.heartbeats()["near"] > before["near"])
        assert fleet.heartbeats()["far"] == before["far"]
    finally:
        fleet.far.agent.send_signal(signal.SIGCONT)
    wait(lambda: fleet.nodes_with_series() == set(NODE_NAMES))


def by_address(fleet, address, **headers):
    """Ask the far agent over TCP with its token; status and text."""
    given = fleet.far.bearer | headers
    return fleet.far.ask_over_tcp("/api/v1/health", address, **given)


def test_a_named_address_is_the_only_one_and_has_the_certificate_host_and_token(fleet):
    wait(lambda: "far" in fleet.nodes_with_series())
    assert by_address(fleet, FAR_ADDRESS)[0] == 200
    with pytest.raises(urllib.error.URLError, match="refused"):
        by_address(fleet, "127.0.0.1")
    for host, status in (("far", 200), ("localhost", 200), ("near", 403), ("127.0.0.3", 403)):
        assert by_address(fleet, FAR_ADDRESS, Host=host)[0] == status, host
    assert by_address(fleet, FAR_ADDRESS, Authorization="Bearer other")[0] == 401
    secret = fleet.store.get(SECRETS, secret_name("far"), NAMESPACE)
    assert secret["metadata"]["ownerReferences"][0]["name"] == "far"


def test_an_address_that_is_not_the_machines_is_told(fleet, tmp_path):
    with pytest.raises(
        AssertionError, match=r"192\.0\.2\.7: no interface of this machine has that"
    ):
        fleet.near.cli(
            "hypervisor", "--data", str(fleet.near.data), "--config", str(fleet.near.settings),
            "--node", "near", "--state", str(tmp_path), "--listen", "192.0.2.7",
        )  # fmt: skip


@pytest.mark.timeout(60)
def test_a_node_without_its_secret_has_no_heartbeat_until_the_agent_tells_again(fleet):
    wait(lambda: fleet.heartbeats().keys() == set(NODE_NAMES))
    fleet.store.delete(SECRETS, secret_name("far"), NAMESPACE)
    wait(lambda: fleet.heartbeats().keys() == {"near"})
    wait(lambda: fleet.nodes_with_series() == {"near"})

    fleet.far.kill_agent(signal.SIGTERM)
    fleet.far.start_agent("--listen", FAR_ADDRESS)
    wait(lambda: fleet.nodes_with_series() == set(NODE_NAMES))
