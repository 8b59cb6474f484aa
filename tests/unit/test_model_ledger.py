"""The ledger: exact accounting, oversubscription, quotas, isolation, checkpoints."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tensorfusion.model.decision_log import LogEncoder, replay
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo, Oversubscription, with_oversubscription
from tensorfusion.model.hardware import geometry_of
from tensorfusion.model.ledger import Change, Checkpoint, Ledger
from tensorfusion.model.quota import Quota, QuotaAmount
from tensorfusion.model.takes import AllocationRefused

GIB = 2**30


def device(index=0, **fields):
    values = {
        "uuid": f"gpu-{index}",
        "node": "n1",
        "pool": "p",
        "index": index,
        "capacity_gflops": 100_000,
        "capacity_vram_bytes": 80 * GIB,
    }
    return Device(**{**values, **fields})


def demand(uid="a", request=(10_000, 10), limit=(0, 0), workload="", **shape):
    return Demand(
        namespace="ns",
        name=f"pod-{uid}",
        uid=uid,
        workload=workload,
        shape=Shape(
            request=Amount(request[0], request[1] * GIB),
            limit=Amount(limit[0], limit[1] * GIB),
            **shape,
        ),
    )


def ledger_with(*devices):
    ledger = Ledger()
    for item in devices or (device(),):
        ledger.set_device(item)
    return ledger


def refusal(call, *arguments):
    with pytest.raises(AllocationRefused) as caught:
        call(*arguments)
    return caught.value


def test_ledger_request_beyond_the_card_is_refused_with_figures():
    ledger = ledger_with()
    ledger.allocate(demand("a", (60_000, 10)), ["gpu-0"])
    error = refusal(ledger.allocate, demand("b", (60_000, 10)), ["gpu-0"])
    assert error.reason == "InsufficientCapacity"
    assert "40000 of 100000 GFLOP/s free" in str(error)
    assert list(ledger.allocations) == ["a"]


def test_ledger_bounds_the_sum_of_limits_by_virtual_capacity():
    ledger = ledger_with(device(virtual_gflops=200_000))
    ledger.allocate(demand("a", (10_000, 1), (150_000, 1)), ["gpu-0"])
    error = refusal(ledger.allocate, demand("b", (10_000, 1), (51_000, 1)), ["gpu-0"])
    assert "compute limit" in str(error)
    ledger.allocate(demand("b", (10_000, 1), (50_000, 1)), ["gpu-0"])


def test_ledger_limit_left_out_counts_as_the_request():
    ledger = ledger_with()
    change = ledger.allocate(demand("a", (10_000, 4)), ["gpu-0"])
    assert change.after.takes[0].limit_gflops == 10_000
    assert change.after.takes[0].limit_vram_bytes == 4 * GIB


def test_ledger_percent_is_exact_on_each_card():
    ledger = ledger_with(device(0, capacity_gflops=8_100), device(1, capacity_gflops=65_000))
    shape = Shape(request=Amount(0, GIB, 33_300), gpu_count=2)
    pod = Demand(namespace="ns", name="p", uid="a", shape=shape)
    change = ledger.allocate(pod, ["gpu-0", "gpu-1"])
    assert [take.gflops for take in change.after.takes] == [2_697, 21_645]


@pytest.mark.parametrize("fields", [{"isolation": "shared"}, {"dedicated": True}])
def test_ledger_exclusive_worker_takes_the_whole_idle_card(fields):
    ledger = ledger_with(device(0), device(1))
    ledger.allocate(demand("a"), ["gpu-0"])
    assert refusal(ledger.allocate, demand("b", **fields), ["gpu-0"]).reason == "DeviceBusy"
    ledger.allocate(demand("b", (1, 1), **fields), ["gpu-1"])
    assert ledger.devices["gpu-1"].free_gflops == 0
    assert refusal(ledger.allocate, demand("c", (0, 0)), ["gpu-1"]).reason == "DeviceBusy"
    ledger.release("b")
    ledger.allocate(demand("c"), ["gpu-1"])


def test_ledger_dynamic_card_is_locked_to_the_first_mode_until_idle():
    ledger = ledger_with(device(isolation_policy="dynamic"))
    ledger.allocate(demand("a", isolation="hard"), ["gpu-0"])
    assert ledger.devices["gpu-0"].active_isolation == "hard"
    error = refusal(ledger.allocate, demand("b", isolation="soft"), ["gpu-0"])
    assert error.reason == "IsolationLocked"
    ledger.release("a")
    ledger.allocate(demand("b", isolation="soft"), ["gpu-0"])


@pytest.mark.parametrize(
    ("fields", "isolation"),
    [
        ({"isolation_mode": "soft"}, "hard"),
        ({"isolation_mode": "soft", "supported_isolation": ()}, "soft"),
        ({"isolation_policy": "dynamic"}, "partitioned"),
    ],
)
def test_ledger_refuses_isolation_the_card_does_not_offer(fields, isolation):
    ledger = ledger_with(device(**fields))
    error = refusal(ledger.allocate, demand(isolation=isolation), ["gpu-0"])
    assert error.reason == "IsolationNotOffered"


@pytest.mark.parametrize(
    ("uuids", "reason"),
    [([], "WrongDevices"), (["gpu-9", "gpu-0"], "UnknownDevice"), (["gpu-0"] * 2, "WrongDevices")],
)
def test_ledger_refuses_wrong_devices(uuids, reason):
    assert refusal(ledger_with().allocate, demand(gpu_count=2), uuids).reason == reason


def test_ledger_several_gpus_must_lie_on_one_node():
    ledger = ledger_with(device(0), device(1, node="n2"))
    assert refusal(ledger.allocate, demand(gpu_count=2), ["gpu-0", "gpu-1"]).reason == (
        "WrongDevices"
    )


def test_ledger_worker_is_freed_when_its_last_holder_leaves():
    ledger = ledger_with()
    ledger.allocate(demand("a", workload="w"), ["gpu-0"])
    ledger.hold("a", "b")
    assert [worker.key for worker in ledger.workers_of("ns", "w")] == ["a"]
    assert ledger.quotas.usage("ns").workers == 1
    ledger.release("a")
    assert ledger.get("b").devices == ("gpu-0",)
    assert ledger.devices["gpu-0"].used_gflops == 10_000
    ledger.release("b")
    assert ledger.devices["gpu-0"].used_gflops == 0
    assert ledger.workers_of("ns", "w") == []
    assert ledger.release("b") is None


def test_ledger_second_allocation_of_a_pod_is_refused():
    ledger = ledger_with()
    ledger.allocate(demand("a"), ["gpu-0"])
    assert refusal(ledger.allocate, demand("a"), ["gpu-0"]).reason == "AlreadyAllocated"
    assert refusal(ledger.hold, "a", "a").reason == "AlreadyAllocated"
    assert refusal(ledger.hold, "zz", "b").reason == "NotAllocated"


def test_ledger_resize_moves_what_is_held_and_undoes_exactly():
    ledger = ledger_with()
    ledger.allocate(demand("a"), ["gpu-0"])
    before = ledger.state_hash()
    mark = ledger.checkpoint()
    ledger.resize("a", Amount(20_000, 30 * GIB), Amount())
    assert ledger.devices["gpu-0"].used_gflops == 20_000
    assert ledger.quotas.usage("ns").request_vram_bytes == 30 * GIB
    ledger.rollback(mark)
    assert ledger.state_hash() == before
    assert ledger.devices["gpu-0"].used_gflops == 10_000


def test_ledger_resize_beyond_card_or_quota_changes_nothing():
    ledger = ledger_with()
    ledger.quotas.put(
        Quota(namespace="ns", name="q", total_requests=QuotaAmount(vram_bytes=20 * GIB))
    )
    ledger.allocate(demand("a"), ["gpu-0"])
    state = ledger.state_hash()
    assert refusal(ledger.resize, "a", Amount(100_001, GIB), Amount()).reason == (
        "InsufficientCapacity"
    )
    assert refusal(ledger.resize, "a", Amount(1, 21 * GIB), Amount()).reason == "QuotaExceeded"
    assert ledger.state_hash() == state


def test_ledger_resize_dry_run_only_checks():
    ledger = ledger_with()
    ledger.allocate(demand("a"), ["gpu-0"])
    change = ledger.resize("a", Amount(20_000, GIB), Amount(), dry_run=True)
    assert change.after.request.gflops == 20_000
    assert ledger.devices["gpu-0"].used_gflops == 10_000


def test_ledger_shrinks_on_a_card_that_lost_capacity():
    ledger = ledger_with()
    ledger.allocate(demand("a", (50_000, 40)), ["gpu-0"])
    ledger.set_device(device(capacity_gflops=40_000))
    assert ledger.check_invariants() == [
        "device gpu-0: requests exceed the card",
        ("device gpu-0: limits exceed the virtual capacity"),
    ]
    ledger.resize("a", Amount(45_000, GIB), Amount())
    assert refusal(ledger.resize, "a", Amount(46_000, GIB), Amount()).reason == (
        "InsufficientCapacity"
    )


def test_ledger_partition_cannot_be_resized():
    ledger = ledger_with(device(geometry=geometry_of("A100_SXM_80G", "")))
    ledger.allocate(demand("a", isolation="partitioned"), ["gpu-0"])
    assert refusal(ledger.resize, "a", Amount(1, 1), Amount()).reason == "PartitionFixed"


def test_ledger_device_that_vanishes_keeps_its_workers_until_they_leave():
    ledger = ledger_with()
    ledger.allocate(demand("a"), ["gpu-0"])
    ledger.remove_device("gpu-0")
    assert ledger.get("a").devices == ("gpu-0",)
    ledger.set_device(device())
    assert ledger.devices["gpu-0"].used_gflops == 10_000
    ledger.remove_device("gpu-0")
    ledger.release("a")
    assert "gpu-0" not in ledger.devices


def test_ledger_recovered_workers_of_two_modes_mark_the_card():
    ledger = ledger_with(device(isolation_policy="dynamic"))
    change = ledger.allocate(demand("a", isolation="hard"), ["gpu-0"])
    other = msgspec.structs.replace(change.after, key="b", holders=("b",), isolation="soft")
    ledger.restore(other)
    assert ledger.devices["gpu-0"].conflict
    ledger.release("b")
    assert not ledger.devices["gpu-0"].conflict


def test_ledger_nested_checkpoints_commit_only_at_the_outermost():
    ledger = ledger_with()
    outer = ledger.checkpoint()
    ledger.allocate(demand("a"), ["gpu-0"])
    inner = ledger.checkpoint()
    ledger.allocate(demand("b"), ["gpu-0"])
    with pytest.raises(ValueError, match="not the innermost"):
        ledger.commit(outer)
    assert ledger.commit(inner) == []
    inner = ledger.checkpoint()
    ledger.allocate(demand("c"), ["gpu-0"])
    ledger.rollback(inner)
    assert [change.key for change in ledger.commit(outer)] == ["a", "b"]


def test_oversubscription_shares_host_memory_among_the_cards():
    node = NodeInfo(name="n1", host_memory_bytes=100, host_disk_bytes=50)
    cards = with_oversubscription(
        [device(index, capacity_vram_bytes=10) for index in range(3)],
        node,
        Oversubscription(
            compute_percent=250, vram_to_host_memory_percent=50, vram_to_host_disk_percent=100
        ),
    )
    assert [card.virtual_vram_bytes for card in cards] == [10 + 33] * 3
    assert cards[0].virtual_gflops == 250_000


class LedgerMachine(RuleBasedStateMachine):
    """Random life of a small fleet; every step is compared with a recount and the log."""

    @initialize()
    def start(self):
        self.ledger = ledger_with(
            device(0, virtual_gflops=150_000, virtual_vram_bytes=100 * GIB),
            device(1),
            device(2, isolation_policy="dynamic", capacity_gflops=33_333),
        )
        self.ledger.quotas.put(
            Quota(namespace="ns", name="q", total_requests=QuotaAmount(gflops=150_000))
        )
        self.marks: list[tuple[Checkpoint, str, int, dict]] = []
        self.encoder = LogEncoder()
        self.lines: list[bytes] = []
        self.number = 0

    def record(self, change: Change | None):
        if change is not None and not self.marks:
            self.lines.append(self.encoder.encode(change, float(self.number), "test"))

    def totals(self):
        usage = {uuid: (item.totals(), item.members) for uuid, item in self.ledger.devices.items()}
        return {uuid: (total, dict(members)) for uuid, (total, members) in usage.items()}

    def attempt(self, call, *arguments):
        before = self.ledger.state_hash()
        try:
            self.record(call(*arguments))
        except AllocationRefused:
            assert self.ledger.state_hash() == before

    @rule(
        gflops=st.integers(0, 60_000),
        gib=st.integers(0, 60),
        extra=st.integers(0, 60_000),
        uuids=st.sets(st.sampled_from(["gpu-0", "gpu-1", "gpu-2"]), min_size=1).map(sorted),
        isolation=st.sampled_from(["soft", "hard", "shared"]),
    )
    def allocate(self, gflops, gib, extra, uuids, isolation):
        self.number += 1
        pod = demand(
            f"u{self.number}",
            (gflops, gib),
            (gflops + extra, gib),
            workload=f"w{self.number % 2}",
            gpu_count=len(uuids),
            isolation=isolation,
        )
        self.attempt(self.ledger.allocate, pod, uuids)

    def some_key(self, pick):
        keys = sorted(self.ledger.allocations)
        return keys[pick % len(keys)] if keys else "none"

    @rule(pick=st.integers(0, 20))
    def release(self, pick):
        allocation = self.ledger.allocations.get(self.some_key(pick))
        holder = allocation.holders[pick % len(allocation.holders)] if allocation else "none"
        self.attempt(self.ledger.release, holder)

    @rule(pick=st.integers(0, 20))
    def hold(self, pick):
        self.number += 1
        self.attempt(self.ledger.hold, self.some_key(pick), f"u{self.number}")

    @rule(pick=st.integers(0, 20), gflops=st.integers(0, 90_000), gib=st.integers(0, 60))
    def resize(self, pick, gflops, gib):
        key = self.some_key(pick)
        self.attempt(self.ledger.resize, key, Amount(gflops, gib * GIB), Amount())

    @rule()
    def checkpoint(self):
        state = (self.ledger.state_hash(), self.ledger.digest, self.totals())
        self.marks.append((self.ledger.checkpoint(), *state))

    @rule()
    def rollback(self):
        if self.marks:
            mark, state, digest, totals = self.marks.pop()
            self.ledger.rollback(mark)
            assert (self.ledger.state_hash(), self.ledger.digest) == (state, digest)
            assert self.totals() == totals

    @rule()
    def commit(self):
        if self.marks:
            changes = self.ledger.commit(self.marks.pop()[0])
            for change in changes:
                self.record(change)

    @invariant()
    def counts_agree_and_nothing_is_overcommitted(self):
        assert self.ledger.check_invariants() == []
        assert self.ledger.quotas.usage("ns").request_gflops <= 150_000

    @invariant()
    def replay_gives_the_same_state(self):
        if not self.marks:
            again = replay(self.lines).ledger
            assert again.digest == self.ledger.digest
            assert again.state_hash() == self.ledger.state_hash()

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        while self.marks:
            self.rollback()
        for key in list(self.ledger.allocations):
            for holder in self.ledger.allocations[key].holders:
                self.ledger.release(holder)
        assert all(not any(item.totals()) for item in self.ledger.devices.values())
        assert self.ledger.digest == 0


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
