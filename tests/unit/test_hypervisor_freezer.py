"""When idle workers are frozen and thawed: rules by table and property, the loop with a made-up session."""

import threading
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion import names
from tensorfusion.api import registry
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.meta import Metadata
from tensorfusion.api.scheduling_config import (
    AutoFreeze,
    AutoFreezeAndResume,
    HypervisorScheduling,
)
from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.hypervisor.freeze_moves import Moves
from tensorfusion.hypervisor.freeze_rules import (
    NEVER,
    ORDER,
    FreezeRule,
    due_tier,
    freeze_rules,
)
from tensorfusion.hypervisor.freezer import (
    REST_SECONDS,
    TICK_SECONDS,
    WorkerFreezer,
)
from tensorfusion.hypervisor.looks import LOOK_SECONDS
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import (
    Capabilities,
    FrozenWorker,
    Share,
    Tier,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.testing.clock import FakeClock

BOTH = (Tier.WARM, Tier.COLD)
RULE = FreezeRule(to_memory=60, to_disk=600)


def template(*entries):
    return HypervisorScheduling(auto_freeze_and_resume=AutoFreezeAndResume(auto_freeze=entries))


def entry(**changes):
    return AutoFreeze(**{"qos": "low", "enable": True, "freeze_to_mem_ttl": "5m", **changes})


@pytest.mark.parametrize(
    ("scheduling", "expected"),
    [
        (None, {}),
        (HypervisorScheduling(), {}),
        (template(), {}),
        (template(entry()), {"low": FreezeRule(300, None)}),
        (template(entry(enable=False)), {}),
        (template(entry(enable=None)), {}),
        (template(entry(freeze_to_disk_ttl="1h")), {"low": FreezeRule(300, 3600)}),
        (template(entry(freeze_to_mem_ttl="")), {"low": NEVER}),
        (
            template(entry(), entry(qos="high", freeze_to_mem_ttl="500ms")),
            {"low": FreezeRule(300, None), "high": FreezeRule(0.5, None)},
        ),
    ],
)
def test_the_rules_of_a_template(scheduling, expected):
    assert freeze_rules(scheduling) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_to_mem_ttl": "soon"}, "qos 'low': freezeToMemTTL: 'soon' is not a duration"),
        ({"freeze_to_disk_ttl": "-1s"}, "freezeToDiskTTL is '-1s', allowed are durations above 0"),
        ({"freeze_to_mem_ttl": "0s"}, "freezeToMemTTL is '0s', allowed are durations above 0"),
    ],
)
def test_a_wrong_duration_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        freeze_rules(template(entry(**changes)))


@pytest.mark.parametrize(
    ("rule", "idle", "now", "offered", "expected"),
    [
        (NEVER, 1e9, Tier.HOT, BOTH, Tier.HOT),
        (RULE, 59, Tier.HOT, BOTH, Tier.HOT),
        (RULE, 60, Tier.HOT, BOTH, Tier.WARM),
        (RULE, 600, Tier.HOT, BOTH, Tier.COLD),
        (RULE, 600, Tier.WARM, BOTH, Tier.COLD),
        (RULE, 600, Tier.HOT, (Tier.WARM,), Tier.WARM),
        (RULE, 600, Tier.HOT, (), Tier.HOT),
        (RULE, 0, Tier.COLD, BOTH, Tier.COLD),
        (FreezeRule(to_disk=10), 10, Tier.HOT, BOTH, Tier.COLD),
        (FreezeRule(to_disk=10), 10, Tier.HOT, (Tier.WARM,), Tier.HOT),
    ],
)
def test_where_a_worker_belongs(rule, idle, now, offered, expected):
    assert due_tier(rule, idle, now, offered) is expected


@given(
    st.builds(FreezeRule, st.none() | st.floats(0, 100), st.none() | st.floats(0, 100)),
    st.lists(st.floats(0, 200), min_size=1),
    st.sampled_from([(), (Tier.WARM,), (Tier.COLD,), BOTH]),
)
def test_a_worker_that_idles_on_only_gets_colder(rule, idles, offered):
    tier = Tier.HOT
    for idle in sorted(idles):
        reached = due_tier(rule, idle, tier, offered)
        assert ORDER.index(reached) >= ORDER.index(tier)
        assert reached is Tier.HOT or reached in offered
        tier = reached


class Session:
    """A session whose workers are frozen in a moment, and thawed if there is room."""

    def __init__(self, clock):
        self.clock = clock
        self.tiers, self.waiting, self.busy, self.gflops = {}, {}, {}, {}
        self.room = True
        self.calls = []
        self.waits_for, self.thawed = {}, defaultdict(threading.Event)

    def usage(self):
        return [
            WorkerUsage(
                worker=worker, uuid="GPU-1", time=0.0, compute_gflops=self.gflops.get(worker, 0.0),
                vram_bytes=100, busy_seconds_total=busy,
            )
            for worker, busy in self.busy.items()
        ]  # fmt: skip

    def frozen(self):
        return [
            FrozenWorker(
                worker=worker, tier=tier, vram_bytes=100, waiting=self.waiting.get(worker, False)
            )
            for worker, tier in self.tiers.items()
        ]

    def freeze(self, worker, tier):
        self.calls.append(("freeze", worker, tier))
        if worker == "stubborn":
            raise BackendError("acme", "its work does not end")
        self.tiers[worker] = tier

    def thaw(self, worker):
        self.calls.append(("thaw", worker))
        if worker in self.waits_for and not self.thawed[self.waits_for[worker]].wait(20):
            raise BackendError("acme", "the other one did not come back meanwhile")
        if not self.room:
            raise BackendError("acme", "no room")
        del self.tiers[worker]
        self.waiting.pop(worker, None)
        self.thawed[worker].set()
        return 0.25


def spec(worker, qos="low", **annotations):
    return WorkerSpec(
        worker=worker, namespace="ns", name=worker, workload="w", devices=("GPU-1",), qos=qos,
        share=Share(10, 100, 20, 100), annotations=annotations,
    )  # fmt: skip


class World:
    def __init__(self, tmp_path, *, tells=True):
        self.clock = FakeClock(1000.0)
        self.store = SQLiteStore(tmp_path / "state.db", clock=self.clock)
        self.store.create(registry.NAMESPACES, {"metadata": {"name": "ns"}})
        self.session = Session(self.clock)
        self.specs = []
        self.annotations, self.deleted = {}, set()
        self.rules = {"low": RULE}
        self.instruments = Instruments()
        self.freezer = WorkerFreezer(
            {"n1": self.session},
            Capabilities(isolation={}, freeze=BOTH, tells_waiting=tells),
            promised=lambda _node: self.specs,
            rules=lambda _node: self.rules_of(),
            pool_of=lambda _node: "pool",
            pod_of=self.pod_of,
            store=self.store,
            events=EventRecorder(self.store, registry.EVENTS, "test", self.clock),
            instruments=self.instruments,
            clock=self.clock,
        )

    def pod_of(self, one):
        wanted = self.annotations.get(one.worker)
        return Pod(
            metadata=Metadata(
                name=one.name,
                namespace=one.namespace,
                uid=one.worker,
                annotations={names.FREEZE: wanted} if wanted else {},
                deletion_timestamp="2026-01-01T00:00:30Z" if one.worker in self.deleted else "",
            )
        )

    def rules_of(self):
        if isinstance(self.rules, Exception):
            raise self.rules
        return self.rules

    def add(self, worker, **changes):
        self.specs.append(spec(worker, **changes))
        self.session.busy[worker] = 0.0
        container = {"name": "main", "image": "none"}
        self.store.create(
            registry.PODS,
            {"metadata": {"name": worker, "namespace": "ns"}, "spec": {"containers": [container]}},
            "ns",
        )

    def annotate(self, worker, value):
        self.annotations[worker] = value

    def run(self, seconds=LOOK_SECONDS, work=()):
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            for worker in work:
                self.session.busy[worker] += 0.01
            self.freezer.run_once()
            self.clock.advance(TICK_SECONDS if seconds < 2 else LOOK_SECONDS)

    def events(self):
        items = self.store.list(registry.EVENTS, "ns").items
        return [(item["reason"], item.get("message", "")) for item in items]

    def condition(self, worker):
        status = self.store.get(registry.PODS, worker, "ns").get("status", {})
        found = [c for c in status.get("conditions", []) if c["type"] == "Frozen"]
        return (found[0]["status"], found[0]["reason"]) if found else None


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.store.close()


def test_an_idle_worker_goes_to_memory_then_to_disk_and_comes_back_when_it_waits(world):
    world.add("a")
    world.add("busy")
    world.run(59, work=["busy"])
    assert world.session.tiers == {}
    world.run(4, work=["busy"])
    assert world.session.tiers == {"a": Tier.WARM}
    assert world.condition("a") == ("True", "InWarmTier")
    world.run(540, work=["busy"])
    assert world.session.tiers == {"a": Tier.COLD}
    assert world.condition("a") == ("True", "InColdTier")
    text = world.instruments.exposition().decode()
    labels = 'node="n1",pool="pool",tier="cold"'
    row = next(line for line in text.splitlines() if "frozen_workers{" in line and "cold" in line)
    assert row.endswith(" 1.0")

    world.session.waiting["a"] = True
    world.run(TICK_SECONDS)
    assert world.session.tiers == {}
    assert world.condition("a") == ("False", "Thawed")
    assert ("Thawed", "100 bytes from tier cold in 0.250 s") in world.events()
    assert [reason for reason, _ in world.events()].count("Frozen") == 2
    found = world.instruments.exposition().decode()
    assert f"tensorfusion_hypervisor_thaw_seconds_sum{{{labels}}} 0.25" in found
    assert world.condition("busy") is None


def test_a_worker_with_a_partition_keeps_its_memory_which_nobody_else_could_use(world):
    world.add("a")
    world.specs[0] = replace(world.specs[0], isolation="partitioned", partitions=("MIG-1",))
    world.run(2000)
    assert world.session.calls == []
    with pytest.raises(BackendError, match="worker 'a' must not be frozen"):
        world.freezer.freeze("n1", "a")


def test_other_qualities_of_service_stay(world):
    world.add("a", qos="critical")
    world.run(2000)
    assert world.session.calls == []


def test_any_use_starts_the_time_anew(world):
    world.add("a")
    world.run(50)
    world.session.gflops["a"] = 0.5
    world.run(1)
    world.session.gflops["a"] = 0.0
    world.run(55)
    assert world.session.calls == []
    world.run(10)
    assert world.session.tiers == {"a": Tier.WARM}


def test_without_room_it_is_tried_again_until_there_is(world):
    world.add("a")
    world.run(70)
    world.session.waiting["a"] = True
    world.session.room = False
    world.run(5)
    tries = world.session.calls.count(("thaw", "a"))
    assert 3 <= tries <= 6
    assert "ThawFailed" in [reason for reason, _ in world.events()]
    assert world.condition("a") == ("True", "InWarmTier")
    world.session.room = True
    world.run(2)
    assert world.session.tiers == {}


def test_one_that_cannot_be_frozen_runs_on_and_others_are_frozen(world):
    world.add("stubborn")
    world.add("a")
    world.run(70)
    assert world.session.tiers == {"a": Tier.WARM}
    assert "FreezeFailed" in [reason for reason, _ in world.events()]


def test_the_annotation_goes_before_the_rules(world):
    world.add("a", qos="high")
    world.annotate("a", "cold")
    world.run(3)
    assert world.session.tiers == {"a": Tier.COLD}
    world.session.waiting["a"] = True
    world.run(3)
    assert world.session.tiers == {"a": Tier.COLD}
    world.annotate("a", "hot")
    world.run(TICK_SECONDS)
    assert world.session.tiers == {}
    world.rules = {"high": FreezeRule(to_memory=1)}
    world.run(100)
    assert world.session.tiers == {}


def test_where_nobody_can_tell_who_waits_only_the_annotation_freezes(tmp_path):
    world = World(tmp_path, tells=False)
    world.add("a")
    world.run(2000)
    assert world.session.calls == []
    with pytest.raises(BackendError, match="nobody would know when to thaw"):
        world.freezer.freeze("n1", "a")
    world.annotate("a", "warm")
    world.run(3)
    assert world.session.tiers == {"a": Tier.WARM}
    world.annotate("a", "")
    world.run(2)
    assert world.session.tiers == {}
    world.store.close()


def test_wrong_rules_freeze_nobody_and_thaw_all_the_same(world):
    world.add("a")
    world.run(70)
    world.rules = ConfigError("freezeToMemTTL is wrong")
    world.session.waiting["a"] = True
    world.run(100)
    assert world.session.tiers == {}


def test_room_for_others_is_made_but_not_twice_in_a_moment(world):
    world.rules = {}
    world.add("a")
    world.run(2)
    world.freezer.freeze("n1", "a")
    assert set(world.freezer.frozen("n1")) == {"a"}
    world.session.waiting["a"] = True
    world.run(2)
    assert world.session.tiers == {}
    with pytest.raises(BackendError, match="thawed just now"):
        world.freezer.freeze("n1", "a")
    world.run(REST_SECONDS)
    world.freezer.freeze("n1", "a")
    world.annotate("a", "hot")
    world.run(1)
    for worker in ("a", "unknown"):
        with pytest.raises(BackendError, match="must not be frozen"):
            world.freezer.freeze("n1", worker)


def test_one_that_leaves_gets_its_devices_back_whatever_was_wanted(world):
    world.add("a")
    world.add("b")
    world.annotate("b", "cold")
    world.run(70)
    assert world.session.tiers == {"a": Tier.WARM, "b": Tier.COLD}
    world.deleted = {"a", "b"}
    world.run(TICK_SECONDS)
    assert world.session.tiers == {}
    world.run(2000)
    assert world.session.tiers == {}
    with pytest.raises(BackendError, match="must not be frozen"):
        world.freezer.freeze("n1", "a")


def test_nobody_waits_for_the_copy_of_another(world):
    for worker in ("slow", "quick"):
        world.add(worker)
    world.run(70)
    world.session.waits_for = {"slow": "quick"}
    world.session.waiting = {"slow": True, "quick": True}
    world.run(TICK_SECONDS)
    assert world.session.tiers == {}
    assert "ThawFailed" not in [reason for reason, _ in world.events()]


def test_a_worker_that_is_being_moved_is_not_moved_by_another():
    moves = Moves()
    with moves.alone(("n1", "a")):
        assert moves.under_way() == {("n1", "a")}
        with (
            pytest.raises(BackendError, match="worker 'a' is being moved"),
            moves.alone(("n1", "a")),
        ):
            pass
        moves.thaw(("n1", "a"), lambda: pytest.fail("moved twice"))
        moves.wait()
    assert moves.under_way() == frozenset()
    moves.close()


def test_a_move_that_breaks_lets_the_worker_be_moved_again(caplog):
    moves, key, done = Moves(), ("n1", "a"), []
    moves.freeze(key, lambda: 1 // 0)
    moves.wait()
    assert "not moved" in caplog.text
    moves.freeze(key, lambda: done.append(key))
    moves.wait()
    moves.close()
    assert done == [key]


def test_workers_that_are_gone_are_forgotten(world):
    world.add("a")
    world.run(70)
    world.specs.clear()
    world.session.waiting["a"] = True
    world.run(3)
    assert world.session.calls == [("freeze", "a", Tier.WARM)]
