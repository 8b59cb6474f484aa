"""The agent of a node with real processes: killed, missed, found again, and asked by its tenants."""

import json
import sys
import time

import pytest
from rig.agents import Site
from rig.program import alive, wait

from tensorfusion.api.registry import EVENTS, SECRETS
from tensorfusion.app.agents import NAMESPACE, secret_name
from tensorfusion.errors import BadRequest, NotFound

SIMULATED = {
    "fidelity": "driver",
    "nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G", "count": 2}]}],
}
ASK = """
import http.client, json, os, socket, subprocess, sys, time

def ask(method, path, body=None):
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(os.environ["TENSORFUSION_AGENT_SOCKET"])
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())

def say(**found):
    print(json.dumps(found), flush=True)
"""
TENANT = """
me, other = os.environ["TENSORFUSION_WORKER"], sys.argv[1]
say(
    registered=ask("POST", "/api/v1/processes"),
    listed=ask("GET", "/api/v1/workers"),
    own=ask("GET", f"/api/v1/workers/{me}"),
    other=ask("GET", f"/api/v1/workers/{other}"),
    nobody=ask("GET", "/api/v1/workers/nobody"),
    raised=ask("POST", f"/api/v1/workers/{me}/limits", '{"compute_gflops": 312000}'),
    devices=ask("GET", "/api/v1/devices"),
    metrics=ask("GET", "/metrics"),
)
# A child that claims to be of the other worker, by its environment or by the other's container.
lie = {**os.environ, "TENSORFUSION_WORKER": other}
forged = lie["TENSORFUSION_CONTAINER"].replace(me, other)
code = sys.argv[2] + 'say(lied=ask("GET", "/api/v1/workers"))'
subprocess.run([sys.executable, "-c", code], env=lie)
subprocess.run([sys.executable, "-c", code], env={**lie, "TENSORFUSION_CONTAINER": forged})
time.sleep(600)
"""

OPEN = "import ctypes, sys, time; ctypes.CDLL(sys.argv[1]); time.sleep(600)"
BYPASSED = "tensorfusion_worker_limiter_bypassed_processes{"


@pytest.fixture(scope="module")
def site(build, tmp_path_factory):
    site = Site(
        tmp_path_factory.mktemp("agent"),
        SIMULATED,
        "sim",
        sample_seconds=0.1,
        TENSORFUSION_NATIVE_BUILD=str(build),
    )
    site.up()
    site.start_agent()
    yield site
    site.close()


def shares(site):
    """Percent of a device by pod since the last look, by busy time."""
    rows = site.get("/api/v1/workers")["workers"]
    busy = {w["name"]: w["usage"][0]["busySeconds"] for w in rows if w["usage"]}
    now = time.monotonic()
    before, site.before = getattr(site, "before", None), (now, busy)
    if before is None:
        return {}
    return {
        name: 100 * (busy[name] - before[1][name]) / (now - before[0])
        for name in busy.keys() & before[1].keys()
    }


def settle(site, expected):
    """Wait until shares over 2 s are the expected ones."""

    def close():
        shares(site)
        time.sleep(2)
        found = shares(site)
        return {n: found.get(n) for n in expected} == {
            n: pytest.approx(share, abs=5) for n, share in expected.items()
        }

    wait(close, 40, lambda: f"{site.before}")


def faults(site, name):
    rows = site.get("/api/v1/workers")["workers"]
    worker = next(w["worker"] for w in rows if w["name"] == name)
    return site.get(f"/api/v1/workers/{worker}")


@pytest.mark.timeout(180)
def test_tenants_keep_their_shares_while_the_agent_is_dead_and_notice_it(site):
    for name, percent in (("small", 30), ("large", 60)):
        site.create_pod(name, percent, load="constant,compute=100%,vram=1Gi")
    wait(lambda: set(site.phases().values()) == {"Running"})
    leaders = {name: site.leader(name) for name in ("small", "large")}
    settle(site, {"small": 30, "large": 60})
    seen = faults(site, "small")
    assert [row["state"] for row in seen["attestation"]] == ["enforced"]
    assert seen["attestation"][0]["compute"] is True
    assert seen["faults"]["opened"] == 0

    site.kill_agent()
    time.sleep(4)  # longer than silence is taken for a pause
    site.start_agent()

    assert {name: site.leader(name) for name in leaders} == leaders
    assert all(alive(pid) for pid in leaders.values())
    missed = faults(site, "small")["faults"]
    assert missed["opened"] > 0  # the policy is open: work went on, and says so
    assert missed["closed"] == 0
    text = site.ask("GET", "/metrics")[1]
    assert "tensorfusion_worker_limiter_opened_total{" in text
    settle(site, {"small": 30, "large": 60})
    assert faults(site, "small")["faults"] == missed
    assert site.pod("small")["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.timeout(120)
def test_a_process_that_has_the_driver_without_the_limiter_is_told(site, build):
    opens = [sys.executable, "-c", OPEN, str(build / "simulated" / "libcuda.so.1")]
    site.create_pod("kept", 1, command=opens)
    site.create_pod("dropped", 1, command=["env", "-u", "LD_PRELOAD", *opens])
    site.create_pod("bare", 1, command=["env", "-i", *opens])

    def told(name):
        found = site.pod(name).get("status", {}).get("conditions", ())
        return {c["type"]: c["status"] for c in found}.get("LimiterBypassed")

    wait(lambda: (told("dropped"), told("bare")) == ("True", "True"), 30, site.phases)
    assert told("kept") is None
    events = site.store.list(EVENTS, "default").items
    named = {e["involvedObject"]["name"] for e in events if e["reason"] == "LimiterBypassed"}
    assert named == {"dropped", "bare"}
    text = site.ask("GET", "/metrics")[1]
    lines = [x for x in text.splitlines() if x.startswith(BYPASSED)]
    counts = {x.partition('worker="')[2].partition('"')[0]: x.rpartition(" ")[2] for x in lines}
    assert {n: float(counts[n]) for n in ("kept", "dropped", "bare")} == {
        "kept": 0.0,
        "dropped": 1.0,
        "bare": 1.0,
    }


@pytest.mark.timeout(120)
def test_a_process_speaks_for_its_own_worker_only(site):
    site.create_pod("other", 1, command=["sleep", "600"])
    wait(lambda: site.phases().get("other") == "Running")
    other = site.pod("other")["metadata"]["uid"]
    code = ASK + TENANT
    site.create_pod("tenant", 1, command=[sys.executable, "-c", code, other, ASK])
    lines = wait(
        lambda: (rows := site.output("tenant").splitlines()) and len(rows) == 3 and rows,
        30,
        lambda: site.output("tenant"),
    )
    said = json.loads(lines[0])
    me = site.pod("tenant")["metadata"]["uid"]

    status, registered = said["registered"]
    assert (status, registered["worker"], registered["evidence"]) == (200, me, "container")
    assert [w["worker"] for w in said["listed"][1]["workers"]] == [me]
    assert said["own"][0] == 200
    assert [p["pid"] for p in said["own"][1]["processes"]] == [registered["pid"]]
    # One who asks for another's worker does not learn whether there is one.
    assert said["other"] == said["nobody"] == [403, said["other"][1]]
    assert said["raised"][0] == said["metrics"][0] == 403
    assert len(said["devices"][1]["devices"]) == 1
    assert "workers" not in said["devices"][1]["devices"][0]
    for line in lines[1:]:
        status, answer = json.loads(line)["lied"]
        assert status == 403
        assert "that it says it is of" in answer["message"] or "another worker" in answer["message"]
    everyone = site.get("/api/v1/workers")["workers"]
    assert {me, other} <= {w["worker"] for w in everyone}
    assert [p["pid"] for p in site.get("/api/v1/processes")["processes"]] == [registered["pid"]]


def names_of(objects):
    return {obj["metadata"]["name"] for obj in objects}


def test_logs_of_a_pod_come_through_the_control_plane(site):
    path = "/api/v1/namespaces/default/pods/talks/log"
    site.create_pod("talks", 1, command=["sh", "-c", "echo one; sleep 4; seq 40000; echo two"])
    wait(lambda: site.phases().get("talks") == "Running")
    wait(lambda: site.output("talks"))
    wait(lambda: secret_name(site.node) in names_of(site.store.list(SECRETS, NAMESPACE).items))

    assert site.store.text(path) == "one\n"
    with pytest.raises(BadRequest, match="previous terminated container"):
        site.store.text(path, {"previous": "true"})
    followed = site.store.text(path, {"follow": "true"})
    assert followed == "one\n" + "".join(f"{n}\n" for n in range(1, 40001)) + "two\n"
    # It ended, so it was started again.
    wait(lambda: site.pod("talks")["status"]["containerStatuses"][0]["restartCount"] == 1)
    last = {"previous": "true", "tailLines": "2"}
    assert site.store.text(path, last) == "40000\ntwo\n"
    with pytest.raises(NotFound, match="container x is not valid"):
        site.store.text(path, {"container": "x"})
    uid = site.pod("talks")["metadata"]["uid"]
    for asked, status, said in (
        ("c/newest/x", 400, "offset"),
        ("c/9/0", 400, "allowed are newest, previous"),
        ("d/newest/0", 400, "not started"),
    ):
        found, text = site.ask("GET", f"/api/v1/pods/{uid}/logs/{asked}")
        assert (found, said in text) == (status, True), text
    assert site.ask("GET", "/api/v1/pods/nobody/logs/c/newest/0")[0] == 404
