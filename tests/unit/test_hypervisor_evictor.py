"""Whose memory goes: by table, by property, and with made-up sessions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.evictor import (
    AGAIN_SECONDS,
    IDLE_SECONDS,
    RANKS,
    TICK_SECONDS,
    Evictor,
    Neighbour,
    Request,
    pick,
)
from tensorfusion.spi.backend import (
    DeviceInfo,
    DeviceMetrics,
    FullPolicy,
    Pressure,
    Share,
    WhenFull,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.testing.clock import FakeClock


def n(worker, held, idle=10.0, qos="low"):
    return Neighbour(worker, qos, idle, held)


@pytest.mark.parametrize(
    ("missing", "neighbours", "expected"),
    [
        pytest.param(5, [], "", id="nobody there"),
        pytest.param(0, [n("a", 9)], "", id="nothing missing"),
        pytest.param(5, [n("a", 9)], "a", id="one that is enough"),
        pytest.param(5, [n("a", 4)], "", id="not in vain"),
        pytest.param(5, [n("me", 9)], "", id="not the one that asks"),
        pytest.param(5, [n("a", 9, idle=IDLE_SECONDS - 0.1)], "", id="not one at work"),
        pytest.param(5, [n("a", 9, qos="critical")], "", id="not a better one"),
        pytest.param(5, [n("a", 9, qos="high")], "a", id="one of the same quality"),
        pytest.param(5, [n("a", 9, qos="medium"), n("b", 9)], "b", id="the lower quality"),
        pytest.param(5, [n("a", 9), n("b", 9, idle=300)], "b", id="idle longest"),
        pytest.param(5, [n("a", 9, idle=300), n("b", 6, idle=310)], "b", id="about as idle: less"),
        pytest.param(5, [n("a", 9), n("b", 6), n("c", 4)], "b", id="the smallest that is enough"),
        pytest.param(5, [n("a", 4), n("b", 6, qos="high")], "b", id="one rather than two"),
        pytest.param(5, [n("a", 2), n("b", 3), n("c", 1)], "b", id="of several the largest first"),
        pytest.param(5, [n("a", 3), n("b", 4, qos="medium")], "a", id="of several the lower first"),
        pytest.param(5, [n("a", 9, qos="?")], "a", id="an unknown quality is medium"),
        pytest.param(5, [n("b", 9), n("a", 9)], "a", id="the same every time"),
    ],
)
def test_the_choice(missing, neighbours, expected):
    assert pick(Request("me", "high", missing), neighbours) == expected


neighbours = st.lists(
    st.builds(
        Neighbour,
        st.sampled_from("abcdef"),
        st.sampled_from(sorted(RANKS)),
        st.floats(0, 1e6),
        st.integers(0, 20),
    ),
    max_size=6,
    unique_by=lambda one: one.worker,
)


@given(neighbours, st.sampled_from(sorted(RANKS)), st.integers(-3, 40))
def test_following_the_choice_makes_room_or_freezes_nobody(found, qos, missing):
    frozen, left = [], list(found)
    while victim := pick(Request("me", qos, missing), left):
        one = next(x for x in left if x.worker == victim)
        assert one.idle_seconds >= IDLE_SECONDS
        assert RANKS[one.qos] <= RANKS[qos]
        frozen.append(one)
        left.remove(one)
        missing -= one.held_bytes

    assert missing <= 0 or not frozen


class Session:
    """One card of 100 bytes."""

    def __init__(self):
        self.uses = {}
        self.frozen = []
        self.refuses = set()

    def put(self, worker, held, *, busy=0.0, wanted=0):
        self.uses[worker] = WorkerUsage(
            worker=worker,
            uuid="g",
            time=0.0,
            compute_gflops=busy,
            vram_bytes=held,
            pressure=Pressure(wanted_bytes=wanted),
        )

    def metrics(self):
        used = sum(use.vram_bytes for use in self.uses.values())
        return [DeviceMetrics(uuid="g", time=0.0, vram_used_bytes=used)]

    def freeze(self, _node, worker):
        if worker in self.refuses:
            raise BackendError("made-up", f"worker {worker!r} holds what cannot be saved")
        self.frozen.append(worker)
        self.uses[worker] = msgspec.structs.replace(self.uses[worker], vram_bytes=0)


def spec(worker, qos, policy):
    return WorkerSpec(
        worker=worker,
        namespace="n",
        name=worker,
        workload="",
        devices=("g",),
        share=Share(0, 0, 0, 0),
        qos=qos,
        when_full=WhenFull(policy, 10.0),
    )


@pytest.fixture
def scene():
    session, clock = Session(), FakeClock()
    specs = [
        spec("low", "low", FullPolicy.SPILL),
        spec("medium", "medium", FullPolicy.WAIT),
        spec("high", "high", FullPolicy.EVICT),
    ]
    card = DeviceInfo(
        uuid="g", index=0, vendor="v", model="m", full_model="m", compute_gflops=100, vram_bytes=100
    )
    evictor = Evictor(
        {"node": session},
        promised=lambda _node: specs,
        infos=lambda _node: {"g": card},
        usage=lambda _node: list(session.uses.values()),
        freeze=session.freeze,
        frozen=lambda _node: session.frozen,
        clock=clock,
    )
    session.put("low", 40)
    session.put("medium", 50)
    session.put("high", 10)
    evictor.run_once()
    clock.advance(IDLE_SECONDS)
    return session, evictor, clock


class Telling(Session):
    """One that tells by itself whether somebody waits."""

    def __init__(self):
        super().__init__()
        self.read = 0

    def beat(self):
        raise AssertionError("not the evictor's")

    attest = faults = beat

    def wants_memory(self):
        return any(use.pressure.wanted_bytes for use in self.uses.values())


def test_a_session_that_tells_who_waits_is_read_once_a_second_only():
    session, clock = Telling(), FakeClock()
    card = DeviceInfo(
        uuid="g", index=0, vendor="v", model="m", full_model="m", compute_gflops=100, vram_bytes=100
    )
    specs = [spec("low", "low", FullPolicy.SPILL), spec("high", "high", FullPolicy.EVICT)]

    def usage(_node):
        session.read += 1
        return list(session.uses.values())

    evictor = Evictor(
        {"node": session},
        promised=lambda _node: specs,
        infos=lambda _node: {"g": card},
        usage=usage,
        freeze=session.freeze,
        frozen=lambda _node: session.frozen,
        clock=clock,
    )
    session.put("low", 90)
    session.put("high", 10)
    for _ in range(12):
        evictor.run_once()
        clock.advance(TICK_SECONDS)
    assert session.read == 3

    session.put("high", 10, wanted=30)
    evictor.run_once()
    assert session.frozen == ["low"]


def test_nobody_is_frozen_while_nobody_asks(scene):
    session, evictor, clock = scene
    for _ in range(5):
        clock.advance(60)
        evictor.run_once()
    assert session.frozen == []


def test_one_is_frozen_and_when_that_is_enough_no_other(scene):
    session, evictor, _ = scene
    session.put("high", 10, wanted=30)
    for _ in range(3):
        evictor.run_once()
    assert session.frozen == ["low"]


def test_several_go_one_after_the_other_until_it_fits(scene):
    session, evictor, _ = scene
    session.put("high", 10, wanted=80)
    evictor.run_once()
    assert session.frozen == ["low"]
    evictor.run_once()
    assert session.frozen == ["low", "medium"]


def test_who_only_waits_has_nobody_frozen(scene):
    session, evictor, _ = scene
    session.put("medium", 50, wanted=30)
    evictor.run_once()
    assert session.frozen == []


def test_a_neighbour_at_work_is_left_alone_until_it_has_rested(scene):
    session, evictor, clock = scene
    session.put("low", 40, busy=50.0)
    session.put("medium", 50, wanted=1)
    session.put("high", 10, wanted=30)
    evictor.run_once()
    assert session.frozen == []

    session.put("low", 40)
    clock.advance(IDLE_SECONDS / 2)
    evictor.run_once()
    assert session.frozen == []
    clock.advance(IDLE_SECONDS / 2)
    evictor.run_once()
    assert session.frozen == ["low"]


def test_one_that_cannot_be_frozen_is_passed_over_for_a_while(scene):
    session, evictor, clock = scene
    session.refuses.add("low")
    session.put("high", 10, wanted=30)
    evictor.run_once()
    assert session.frozen == []
    evictor.run_once()
    assert session.frozen == ["medium"]

    session.put("medium", 50)
    session.frozen.clear()
    session.refuses.clear()
    clock.advance(AGAIN_SECONDS)
    evictor.run_once()
    assert session.frozen == ["low"]
