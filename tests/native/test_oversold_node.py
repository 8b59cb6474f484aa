"""A full card on a node: who waits is seen from outside, and has the memory of an idle neighbour."""

import dataclasses
import time

import pytest
from native.machine import CONTEXT, DEADLINE_S, GIB
from native.test_freezing import Node

from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.evictor import IDLE_SECONDS, Evictor
from tensorfusion.spi.backend import FullPolicy, Share, Tier, WhenFull

HOLDER = """
init()
code, address = alloc(50 << 30)
ok(code)
ok(launch(function("fill"), C.c_uint64(address), C.c_uint32(7), C.c_uint64(1024)))
ok(cuda.cuCtxSynchronize())
say(ready=1)
for line in sys.stdin:
    back = (C.c_uint32 * 1024)()
    ok(cuda.cuMemcpyDtoH_v2(back, C.c_uint64(address), C.c_size_t(4096)))
    say(same=set(back) == {7})
"""
ASKER = """
init(); say(ready=1)
for line in sys.stdin:
    code, address = alloc(40 << 30)
    say(code=code)
    if code == 0:
        sys.stdin.readline(); ok(free(address)); say(code=0)
"""


@pytest.fixture
def node(build, monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(build))
    made = Node(tmp_path / "node")
    yield made
    made.close()


def spec(node, name, qos, full):
    share = Share(1000, 30 * GIB, node.cards[0].compute_gflops, 60 * GIB)
    return node.spec(name, share=share, qos=qos, when_full=full)


def pressure(node, worker):
    return next(use.pressure for use in node.session.usage() if use.worker == worker)


def until(step):
    deadline = time.monotonic() + DEADLINE_S
    while not step():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def evictor(node, specs):
    infos = {card.uuid: card for card in node.cards}
    return Evictor(
        {"sim": node.session},
        promised=lambda _node: specs,
        infos=lambda _node: infos,
        usage=lambda _node: node.session.usage(),
        freeze=lambda _node, worker: node.session.freeze(worker, Tier.WARM),
        frozen=lambda _node: {row.worker for row in node.session.frozen()},
        clock=SystemClock(),
    )


def test_an_idle_neighbour_is_frozen_for_who_waits_and_comes_back_whole(node):
    low = spec(node, "low", "low", WhenFull())
    high = spec(node, "high", "high", WhenFull(FullPolicy.EVICT, DEADLINE_S))
    holder, asker = node.start(low, HOLDER), node.start(high, ASKER)
    loop = evictor(node, [low, high])

    asker.ask()
    until(lambda: pressure(node, "high").wanted_bytes == 40 * GIB)
    since = time.monotonic()

    def frozen():
        loop.run_once()
        return node.session.frozen()

    until(frozen)

    assert time.monotonic() - since >= IDLE_SECONDS
    assert [row.worker for row in node.session.frozen()] == ["low"]
    assert asker.hear() == {"code": 0}
    assert node.used() == 40 * GIB + CONTEXT
    found = pressure(node, "high")
    assert (found.waits_total, found.evict_requests_total, found.denied_total) == (1, 1, 0)
    assert (found.wanted_bytes, found.spilled_bytes) == (0, 0)

    asker.work()
    node.session.thaw("low")
    assert holder.work() == {"same": True}


def test_the_policy_of_a_running_worker_is_changed(node):
    low = spec(node, "low", "low", WhenFull())
    other = spec(node, "other", "low", WhenFull(FullPolicy.WAIT, DEADLINE_S))
    node.start(low, HOLDER)
    asker = node.start(other, ASKER)
    asker.ask()
    until(lambda: pressure(node, "other").wanted_bytes)

    spill = WhenFull(FullPolicy.SPILL, 0.0, 60 * GIB)
    node.session.prepare(dataclasses.replace(other, when_full=spill))

    assert asker.hear() == {"code": 0}
    assert pressure(node, "other").spilled_bytes == 40 * GIB
    assert node.session.metrics()[0].vram_used_bytes == 50 * GIB + 2 * CONTEXT
    asker.work()
    found = pressure(node, "other")
    assert (found.spilled_bytes, found.spilled_bytes_total) == (0, 40 * GIB)
