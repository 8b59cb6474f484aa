"""Histories from the decision log: who held what, when and why."""

import pytest

from tensorfusion.model.decision_log import LogEncoder
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device
from tensorfusion.model.history import Subject, history
from tensorfusion.model.ledger import Ledger


class Log:
    """A ledger with its log; one second per change."""

    def __init__(self):
        self.ledger = Ledger()
        for index in range(2):
            self.ledger.set_device(
                Device(uuid=f"GPU-{index}", node="a", index=index, capacity_gflops=100,
                       capacity_vram_bytes=100)
            )  # fmt: skip
        self.encoder = LogEncoder()
        self.lines = []
        self.now = 0.0

    def note(self, change, reason=""):
        self.now += 1
        self.lines.append(self.encoder.encode(change, self.now, reason))

    def place(self, name, device, namespace="team"):
        shape = Shape(request=Amount(10, 10))
        demand = Demand(namespace=namespace, name=name, uid=f"uid-{name}", shape=shape)
        self.note(self.ledger.allocate(demand, [device]), f"placed {name}")

    def release(self, name):
        self.note(self.ledger.release(f"uid-{name}"), "the pod is gone")

    def checkpoint(self):
        self.lines.append(self.encoder.checkpoint(self.ledger, self.now))


@pytest.fixture
def log():
    made = Log()
    made.place("one", "GPU-0")
    made.place("two", "GPU-1", namespace="other")
    made.place("three", "GPU-0")
    made.release("one")
    return made


def told(found):
    return [(entry.time, entry.operation, entry.reason) for entry in found.entries]


def test_gpu_history_names_holders_in_order(log):
    found = history(log.lines, Subject("gpu", "gpu-0"))
    assert told(found) == [
        (1.0, "allocate", "placed one"),
        (3.0, "allocate", "placed three"),
        (4.0, "release", "the pod is gone"),
    ]
    assert [a.name for a in found.held] == ["three"]
    assert found.since == 1.0


@pytest.mark.parametrize(
    ("until", "held"), [(0.5, []), (1.0, ["one"]), (3.5, ["one", "three"]), (9.0, ["three"])]
)
def test_held_at_a_time(log, until, held):
    found = history(log.lines, Subject("gpu", "GPU-0"), until)
    assert sorted(a.name for a in found.held) == sorted(held)


def test_pods_and_namespaces_are_told_apart(log):
    assert told(history(log.lines, Subject("pod", "two", "other"))) == [
        (2.0, "allocate", "placed two")
    ]
    assert history(log.lines, Subject("pod", "two", "team")).entries == ()
    assert len(history(log.lines, Subject("namespace", "team")).entries) == 3


def test_resize_shows_before_and_after(log):
    log.note(log.ledger.resize("uid-three", Amount(20, 20), Amount()), "scaled up")
    *_, last = history(log.lines, Subject("pod", "three", "team")).entries
    assert (last.before.takes[0].gflops, last.after.takes[0].gflops) == (10, 20)


def test_goes_on_over_a_checkpoint_and_leaves_out_a_torn_line(log):
    log.checkpoint()
    log.release("three")
    found = history([*log.lines, b'{"crc":'], Subject("gpu", "GPU-0"))
    assert told(found)[-1] == (5.0, "release", "the pod is gone")
    assert found.held == ()
