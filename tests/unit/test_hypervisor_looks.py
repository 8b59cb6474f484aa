"""What the loops of an agent do while nothing happens: one reading a second is taken apart, for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.evictor import Evictor
from tensorfusion.hypervisor.freezer import WorkerFreezer
from tensorfusion.hypervisor.looks import look_is_due
from tensorfusion.spi.backend import (
    Capabilities,
    FullPolicy,
    Share,
    Tier,
    WhenFull,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.testing.clock import FakeClock

SPEC = WorkerSpec(
    worker="w", namespace="ns", name="w", workload="w", devices=("GPU-1",), qos="low",
    share=Share(10, 100, 20, 100), when_full=WhenFull(FullPolicy.EVICT, 5.0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (float("-inf"), 5.0, True),
        (5.0, 5.0, False),
        (5.0, 5.99, False),
        (5.99, 6.0, True),
        (5.0, 7.5, True),
    ],
)
def test_a_look_is_due_when_another_second_began(last, now, due):
    assert look_is_due(now, last) is due


@given(st.floats(0, 1e6), st.lists(st.floats(0.001, 0.3), min_size=1, max_size=60))
def test_who_comes_by_often_looks_once_a_second(start, pauses):
    now = last = start
    looks = 0
    for pause in pauses:
        now += pause
        if look_is_due(now, last):
            looks, last = looks + 1, now
    assert looks == now // 1.0 - start // 1.0


class Node:
    """A session that counts what is asked of it, with the two loops that are rung."""

    def __init__(self):
        self.clock = FakeClock(1000.0)
        self.tiers, self.wants, self.readings = {}, False, 0
        self.asked = []
        common = {"promised": lambda _node: [SPEC], "usage": self.usage, "clock": self.clock}
        self.freezer = WorkerFreezer(
            {"n": self},
            Capabilities(isolation={}, freeze=(Tier.WARM,), tells_waiting=True),
            rules=lambda _node: {},
            pool_of=lambda _node: "pool",
            pod_of=lambda _spec: None,
            store=None,
            events=None,
            instruments=Counted(),
            **common,
        )
        self.evictor = Evictor(
            {"n": self},
            infos=lambda _node: {},
            freeze=self.freezer.freeze,
            frozen=self.freezer.frozen,
            **common,
        )

    def usage(self, _node):
        self.readings += 1
        return [WorkerUsage(worker="w", uuid="GPU-1", time=0.0, compute_gflops=0, vram_bytes=1)]

    def frozen(self):
        self.asked.append("frozen")
        return []

    def freeze(self, worker, tier):
        raise BackendError("acme", f"{worker} {tier}")

    def wants_memory(self):
        self.asked.append("wants")
        return self.wants

    def beat(self):
        raise NotImplementedError

    attest = faults = beat

    def passes(self, count, seconds=0.1):
        """Ring both as a sampler does, and let the loops look when they are rung; how often they were."""
        rung = []
        for _ in range(count):
            self.clock.advance(seconds)
            for name, loop in (("freezer", self.freezer), ("evictor", self.evictor)):
                loop.ring()
                if loop._bell.is_set():
                    loop._bell.clear()
                    rung.append((name, round(self.clock.monotonic(), 3)))
                    loop.run_once()
        return rung


class Counted:
    """Instruments that nobody reads."""

    def replace(self, name, rows):
        assert all(value == 0 for _, value in rows), name


def test_both_loops_go_by_the_same_reading_and_sleep_in_between():
    node = Node()
    node.passes(10)
    node.readings = 0
    rung = node.passes(50)
    moments = {name: [at for who, at in rung if who == name] for name in ("freezer", "evictor")}
    assert moments["freezer"] == moments["evictor"]
    assert len(moments["freezer"]) == 5
    assert node.readings == 10


def test_who_waits_for_memory_is_noticed_within_a_quarter_of_a_second():
    node = Node()
    node.passes(1)
    node.wants = True
    assert [name for name, _ in node.passes(3)] == ["evictor"]


def test_nobody_asks_who_is_frozen_while_nobody_is():
    node = Node()
    node.passes(1)
    node.asked = []
    node.passes(8)
    assert "frozen" not in node.asked
