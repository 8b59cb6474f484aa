"""Pods of the embedded mode on hardware partitions of the simulated driver, as a user sees them."""

import copy
import json
import sys

import pytest
from native.machine import TESTS
from native.test_pods import SETTINGS, Plane, running_plane
from rig.program import PREFIX, wait, worker_pod

GIB = 1 << 30
CARDS = [{"model": "A100_SXM_80G"}, {"model": "A100_SXM_80G", "partitioned": True}]
TENANT = """
import os
from native.actor import *
init()
code, address = alloc(1 << 30)
ok(code)
say(seen=os.environ["CUDA_VISIBLE_DEVICES"], total=info()[1], too_much=alloc(19 << 30)[0])
spin, length = function("spin_us"), C.c_uint64(5000)
while True:
    for _ in range(20): ok(launch(spin, length, grid=1024))
    ok(cuda.cuCtxSynchronize())
"""


class CutPlane(Plane):
    """A control plane with a card of each kind."""

    def __init__(self, folder, build):
        super().__init__(folder, build)
        settings = copy.deepcopy(SETTINGS)
        settings["plugin_settings"]["simulated"]["nodes"][0]["gpus"] = CARDS
        self.settings.write_text(json.dumps(settings))

    def cut(self, name, template):
        """Make a pod that computes on a partition, and return what it says of its device."""
        command = ["env", f"PYTHONPATH={TESTS}", sys.executable, "-c", TENANT]
        pod = worker_pod(name, 10, command=command)
        pod["metadata"]["annotations"] |= {
            PREFIX + "isolation": "partitioned",
            PREFIX + "partition-id": template,
        }
        self.create(pod)
        return json.loads(wait(lambda: "running" in self.state(name) and self.said(name)))

    def said(self, name):
        return self.kubectl("logs", name)

    def partitions(self):
        """Partitions in the status of the GPUs: template, slot and pod."""
        gpus = json.loads(self.kubectl("get", "gpus.tensor-fusion.ai", "-o", "json"))["items"]
        rows = [
            row for gpu in gpus for row in gpu["status"].get("allocatedPartitions", {}).values()
        ]
        return sorted((r["templateId"], r["allocatedSlotStart"], r["podName"]) for r in rows)


@pytest.fixture
def plane(build, tmp_path):
    with running_plane(tmp_path, build, CutPlane) as plane:
        yield plane
        plane.forget()


@pytest.mark.timeout(180)
def test_pods_run_in_their_partitions_through_a_crash_and_leave_them_to_the_next(plane):
    seen = plane.cut("cut", "2g.20gb")
    assert seen["seen"].startswith("MIG-")
    assert (seen["total"], seen["too_much"]) == (20 * GIB, 2)
    [(template, slot, name)] = wait(plane.partitions)
    assert (template, name) == ("2g.20gb", "cut")

    plane.apply("soft", 30, load="constant,compute=100%,vram=1Gi")
    wait(lambda: plane.shares().get("soft", (0, {}))[0] == pytest.approx(30, abs=4))
    share, row = plane.shares()["cut"]
    assert share == pytest.approx(100 * 2 / 7, abs=4)
    assert row["vramBytes"] == GIB + (300 << 20)

    process = plane.leader("cut")
    plane.kill()
    plane.up()
    wait(lambda: plane.shares().get("cut", (0, {}))[0] == pytest.approx(100 * 2 / 7, abs=4))
    assert plane.leader("cut") == process
    wait(lambda: plane.partitions() == [(template, slot, "cut")])

    plane.kubectl("delete", "pod", "cut")
    wait(lambda: plane.partitions() == [(template, slot, "")])
    assert plane.cut("next", "2g.20gb")["seen"] == seen["seen"], "the same partition"
    wait(lambda: plane.partitions() == [(template, slot, "next")])
