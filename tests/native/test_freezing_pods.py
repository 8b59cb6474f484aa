"""A pod of the embedded mode goes idle, is frozen, gets work and thaws: seen from outside, as a user would."""

import json
import sys

import pytest
from native.machine import TESTS
from native.test_pods import running_plane
from rig.program import PREFIX, wait, worker_pod

TENANT = """
import hashlib, random, signal
def leave(*_):
    # What a program does in its grace period needs the device, too.
    ok(cuda.cuMemcpyDtoH_v2(host, C.c_uint64(address), C.c_size_t(size)))
    open(os.environ["LEFT"], "w").write(hashlib.sha256(host).hexdigest())
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
init()
size = 4 * MIB
code, address = alloc(size)
ok(code)
host = C.create_string_buffer(random.Random(7).randbytes(size), size)
ok(cuda.cuMemcpyHtoD_v2(C.c_uint64(address), host, C.c_size_t(size)))
saxpy, count = function("saxpy"), C.c_uint64(size // 8)
done = 0
while True:
    while not os.path.exists(f"go-{done}"): time.sleep(0.02)
    ok(launch(saxpy, count, C.c_float(0.5), C.c_uint64(address), C.c_uint64(address + size // 2)))
    ok(cuda.cuMemcpyDtoH_v2(host, C.c_uint64(address), C.c_size_t(size)))
    say(digest=hashlib.sha256(host).hexdigest())
    done += 1
"""
ROUNDS = 3
FREEZING = {"autoFreeze": [{"qos": "low", "enable": True, "freezeToMemTTL": "1s"}]}
"""For the template of the pool that ``tensorfusion up`` makes."""


class Tenant:
    """A pod that computes one round whenever it is told to, and tells a digest of its memory."""

    def __init__(self, plane, name, qos):
        self.plane, self.name = plane, name
        self.left = plane.folder / f"left-{name}"
        code = "import os, sys, time\nfrom native.actor import *\n" + TENANT
        variables = [f"PYTHONPATH={TESTS}", f"LEFT={self.left}"]
        command = ["env", *variables, sys.executable, "-c", code]
        plane.create(
            worker_pod(name, 40, command=command, qos=qos, policy="Never", grace_seconds=300)
        )
        wait(lambda: "running" in plane.state(name))
        uid = plane.pod(name)["metadata"]["uid"]
        self.work = plane.data / "nodes/sim/pods" / uid / "work"

    def go(self, number):
        """Let it compute round ``number``; the digest after it."""
        (self.work / f"go-{number}").touch()
        return wait(lambda: (self.digests() + [""] * (number + 1))[number])

    def digests(self):
        lines = self.plane.kubectl("logs", self.name).splitlines()
        return [json.loads(line)["digest"] for line in lines]

    def condition(self):
        found = self.plane.pod(self.name)["status"].get("conditions", [])
        return next(((c["status"], c["reason"]) for c in found if c["type"] == "Frozen"), None)

    def events(self):
        items = json.loads(self.plane.kubectl("get", "events", "-o", "json"))["items"]
        return [e["reason"] for e in items if e["involvedObject"]["name"] == self.name]

    def annotate(self, value):
        annotation = f"{PREFIX}freeze={value}"
        self.plane.kubectl("annotate", "--overwrite", "pod", self.name, annotation)


@pytest.fixture(scope="module")
def running(build, tmp_path_factory):
    with running_plane(tmp_path_factory.mktemp("frozen-pods"), build) as plane:
        patch = json.dumps({"spec": {"hypervisor": {"autoFreezeAndResume": FREEZING}}})
        template = "schedulingconfigtemplates.tensor-fusion.ai"
        plane.kubectl("patch", template, "default", "--type=merge", "-p", patch)
        yield plane


@pytest.fixture
def plane(running):
    yield running
    running.forget()


@pytest.mark.timeout(120)
def test_a_pod_is_frozen_when_it_idles_and_thawed_when_it_works(plane):
    kept, idle = Tenant(plane, "kept", "high"), Tenant(plane, "idle", "low")
    expected = [kept.go(number) for number in range(ROUNDS)]
    assert len(set(expected)) == ROUNDS

    seen = [idle.go(0)]
    wait(lambda: idle.condition() == ("True", "InWarmTier"))
    seen.append(idle.go(1))
    wait(lambda: idle.condition() == ("False", "Thawed"))
    seen.append(idle.go(2))

    assert seen == expected
    assert {"Frozen", "Thawed"} <= set(idle.events())
    assert kept.condition() is None


@pytest.mark.timeout(120)
def test_a_pod_that_is_deleted_while_frozen_ends_at_once_and_in_order(plane):
    tenant = Tenant(plane, "leaves", "high")
    digest = tenant.go(0)
    tenant.annotate("cold")
    wait(lambda: tenant.condition() == ("True", "InColdTier"))

    # It ends within the time that a call of kubectl may take here, and not after five minutes.
    plane.kubectl("delete", "pod", "leaves")

    assert tenant.left.read_text() == digest
