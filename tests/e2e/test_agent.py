"""The agent of a node in a process of its own, beside a control plane that has no backend."""

import contextlib
import json

import pytest
from rig.agents import Site, UnixConnection
from rig.program import wait

from tensorfusion.api.registry import GPU_NODES, GPUS, LEASES, NODES, PODS
from tensorfusion.app.agent_server import MOST_WAITING
from tensorfusion.errors import NotFound

NODE = {"nodes": [{"name": "n", "gpus": [{"model": "A100_SXM_80G", "count": 2}]}]}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("agent"), NODE, "n")
    site.up()
    site.start_agent()
    yield site
    site.close()


@pytest.mark.timeout(120)
def test_pods_run_on_the_agent_and_nothing_is_lost_when_it_is_killed(site):
    assert len(site.store.list(GPUS).items) == 2
    for number in range(4):
        site.create_pod(f"early-{number}", 20)
    wait(lambda: set(site.phases().values()) == {"Running"})
    before = site.get("/api/v1/workers")["workers"]
    before = sorted((w for w in before if "early" in w["name"]), key=lambda w: w["name"])
    assert {w["name"] for w in before} == {f"early-{n}" for n in range(4)}

    site.kill_agent()
    site.create_pod("late", 20)
    site.store.delete(PODS, "early-0", "default")
    wait(lambda: site.pod("late")["spec"].get("nodeName") == "n")
    assert site.phases()["late"] != "Running"
    site.start_agent()

    names = {"early-1", "early-2", "early-3", "late"}
    wait(lambda: {n for n, p in site.phases().items() if p == "Running"} >= names)
    wait(lambda: "early-0" not in site.phases())
    after = {w["name"]: w for w in site.get("/api/v1/workers")["workers"]}
    assert names <= after.keys()
    assert "early-0" not in after
    for worker in before[1:]:
        same = after[worker["name"]]
        assert all(same[key] == worker[key] for key in ("worker", "devices", "limits"))


def test_a_broken_device_is_on_the_node_and_the_last_one_taints_it(site):
    devices = [d["uuid"].lower() for d in site.get("/api/v1/devices")["devices"]]

    def condition():
        found = site.store.get(NODES, "n")["status"]["conditions"]
        return {c["type"]: (c["status"], c["message"]) for c in found}.get("GPUsHealthy")

    def taints():
        return [t["key"] for t in site.store.get(NODES, "n").get("spec", {}).get("taints") or ()]

    def set_fault(verb, *arguments):
        site.cli("simulated", verb, "n", *arguments, "--data", str(site.state))

    set_fault("fail", devices[0], "--message", "XID 79: the device fell off the bus")
    wait(lambda: condition() and condition()[0] == "False")
    assert "1 of 2 devices" in condition()[1]
    assert "XID 79" in condition()[1]
    assert taints() == []
    assert site.get("/api/v1/health")["healthy"] is False

    set_fault("fail", devices[1])
    wait(taints)
    assert taints() == ["tensor-fusion.ai/gpus-unhealthy"]
    wait(lambda: site.store.get(GPU_NODES, "n")["status"]["phase"] == "Pending")

    for device in devices:
        set_fault("restore", device)
    wait(lambda: not taints() and condition()[0] == "True")


def test_clients_that_never_finish_are_given_up_for_those_that_do(site):
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(MOST_WAITING + 50):
            connection = UnixConnection(site.socket)
            wait(lambda one=connection: connected(one))
            connection.sock.sendall(b"GET /api/v1/workers HTTP/1.1\r\nX-Slow: ")
            slow.append(stack.enter_context(contextlib.closing(connection)))
        assert site.ask("GET", "/api/v1/workers")[0] == 200
        assert gone(slow[0])  # the one that waited longest
        assert not gone(slow[-1], 0.2)


def connected(connection):
    """Try once to connect; a full backlog takes nobody for a moment."""
    try:
        connection.connect()
    except BlockingIOError:
        connection.close()
        return False
    return True


def gone(connection, seconds=10):
    """Whether the other end closes a connection within some seconds."""
    connection.sock.settimeout(seconds)
    try:
        return connection.sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_tcp_needs_the_token_and_our_own_host_and_origin(site):
    token, right = (site.state / "token").read_text().strip(), site.bearer
    asked = "/api/v1/health"

    assert site.ask_over_tcp(asked, **right)[0] == 200
    assert site.ask_over_tcp("/healthz") == (200, "ok\n")
    for headers, status, said in (
        ({}, 401, "token is needed"),
        ({"Authorization": "Bearer wrong"}, 401, "token is needed"),
        ({**right, "Host": "gpu.example"}, 403, "Host header"),
        ({**right, "Origin": "https://gpu.example"}, 403, "other web origins"),
    ):
        found, text = site.ask_over_tcp(asked, **headers)
        assert found == status
        assert said in json.loads(text)["message"]
    assert token not in (site.folder / "agent.log").read_text()
    assert oct((site.state / "token").stat().st_mode & 0o777) == "0o600"
    assert oct(site.socket.stat().st_mode & 0o777) == "0o600"


def test_the_control_plane_asks_the_agent_for_usage_and_has_its_lease(site):
    site.create_pod("used", 10)

    def rows():
        found = json.loads(site.store.text("/tensorfusion/usage"))
        return [w for w in found["workers"] if w["name"] == "used"] and found

    found = wait(rows)
    worker = next(w for w in found["workers"] if w["name"] == "used")
    assert (worker["node"], worker["namespace"], worker["limitVramBytes"]) == (
        "n",
        "default",
        2 << 30,
    )
    assert [d["node"] for d in found["devices"]] == ["n", "n"]
    assert site.store.get(LEASES, "n", "kube-node-lease")["spec"]["holderIdentity"] == "n"
    token = (site.state / "token").read_text().strip()
    assert token not in (site.folder / "agent.log").read_text()
    assert not [p for p in site.data.rglob("*.log") if token.encode() in p.read_bytes()]
    with pytest.raises(NotFound, match="no process on node n"):
        site.store.text("/api/v1/namespaces/default/pods/used/log")


def test_metrics_are_those_of_the_catalogue(site):
    def metrics():
        return site.ask("GET", "/metrics")[1]

    wait(lambda: 'pool="tensor-fusion-shared"' in metrics(), 30)
    text = metrics()
    assert "tensorfusion_gpu_vram_capacity_bytes{" in text
    assert 'tensorfusion_hypervisor_last_heartbeat_timestamp_seconds{node="n"}' in text


def test_limits_are_changed_by_an_operator_and_by_nobody_else_longer_than_the_pod_says(site):
    site.create_pod("resized", 10)
    worker = wait(
        lambda: next(
            (w for w in site.get("/api/v1/workers")["workers"] if w["name"] == "resized"), None
        )
    )
    path = f"/api/v1/workers/{worker['worker']}"

    status, text = site.ask("POST", f"{path}/limits", json.dumps({"compute_gflops": 99_000}))
    assert (status, json.loads(text)["limits"]["computeGflops"]) == (200, 99_000)
    assert site.get(path)["limits"] == {"computeGflops": 99_000, "vramBytes": 2 << 30}
    for body, said in (
        ("", "limits:"),
        ("{}", "name compute_gflops, vram_bytes or both"),
        ('{"compute_gflops": -1}', "compute_gflops is -1, allowed are 1 to"),
        ('{"tflops": 3}', "tflops"),
    ):
        status, text = site.ask("POST", f"{path}/limits", body)
        assert status == 400
        assert said in json.loads(text)["message"]
    assert site.ask("POST", "/api/v1/workers/nobody/limits", '{"vram_bytes": 1}')[0] == 404
    assert site.ask("GET", f"{path}/limits")[0] == 405
    assert site.ask("GET", "/api/v2/workers")[0] == 404


def test_an_agent_that_cannot_start_says_why(site):
    for arguments, said in (
        (["--node", "other"], "--node other: an agent serves one node, allowed are: n"),
        (["--node", "n", "--state", str(site.state)], "is in use by process"),
    ):
        with pytest.raises(AssertionError, match=said):
            site.cli(
                "hypervisor", "--data", str(site.data), "--config", str(site.settings), *arguments
            )
