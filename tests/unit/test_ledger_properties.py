"""Random lives of a small fleet: nothing is ever given twice, and everything can be undone.

The counts here are made from the allocations alone, without the ledger's own sums.
"""

from collections import Counter

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tensorfusion.model.claims import INDEX, Claim
from tensorfusion.model.decision_log import LogEncoder, replay
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement, build_engine
from tensorfusion.model.hardware import cards
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.neighbours import (
    HOSTNAME,
    LabelCondition,
    Neighbours,
    PeerSelector,
    PeerTerm,
)
from tensorfusion.model.quota import Quota, QuotaAmount
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.model.topology import TopologyWish
from tensorfusion_plugins.policies import load

GIB = 2**30
QUOTA_GFLOPS = 1_200_000
POLICY = load.compact_first()


def fleet():
    """Two nodes: cards of static and dynamic policy, oversubscribed ones, and NPUs."""
    found = []
    for node, models in (("n1", ["A100_SXM_80G"] * 3), ("n2", ["H100_SXM", "Ascend310P3"])):
        for index, model in enumerate(models):
            card = cards()[model]
            found.append(
                Device(
                    uuid=f"{node}-g{index}",
                    node=node,
                    pool="p",
                    index=index,
                    model=model,
                    capacity_gflops=card.compute_gflops,
                    capacity_vram_bytes=card.vram_bytes,
                    virtual_gflops=card.compute_gflops * (2 if index == 1 else 1),
                    isolation_policy="dynamic" if (node, index) == ("n1", 2) else "static",
                    numa_node=index % 2,
                    geometry=card.geometry,
                )
            )
    return found


def nodes():
    return [
        NodeInfo(name=name, pool="p", labels={HOSTNAME: name}, max_workers=8, memory_bytes=64 * GIB)
        for name in ("n1", "n2")
    ]


DEVICES = {device.uuid: device for device in fleet()}
WEB = PeerSelector(("ns",), (LabelCondition("app", "In", ("web",)),))
APART = Neighbours(apart=(PeerTerm(WEB, HOSTNAME),))

templates = sorted({t.id for device in fleet() for t in device.geometry.templates})
shapes = st.one_of(
    st.builds(
        Shape,
        pool=st.just("p"),
        request=st.builds(Amount, st.integers(0, 200_000), st.integers(0, 40).map(GIB.__mul__)),
        limit=st.builds(Amount, st.integers(0, 400_000), st.integers(0, 40).map(GIB.__mul__)),
        gpu_count=st.integers(0, 3),
        isolation=st.sampled_from(["soft", "soft", "hard", "shared"]),
        topology=st.sampled_from([None, TopologyWish(), TopologyWish(required=True)]),
        neighbours=st.sampled_from([None, None, APART]),
        memory_bytes=st.sampled_from([0, 10 * GIB]),
    ),
    st.builds(
        Shape,
        pool=st.just("p"),
        request=st.builds(Amount, st.just(0), st.integers(0, 40).map(GIB.__mul__)),
        gpu_count=st.integers(1, 2),
        isolation=st.just("partitioned"),
        partition=st.sampled_from(["", "1g.10gb", "2g.20gb", "3g.40gb", *templates]),
    ),
)
claims = st.sets(
    st.one_of(
        st.builds(Claim, st.just(INDEX), st.integers(0, 2)),
        st.builds(Claim, st.just("TCP port"), st.integers(1, 3)),
        st.builds(Claim, st.just("host port"), st.integers(1, 4), st.just(True)),
    ),
    max_size=2,
).map(lambda found: tuple(sorted(found)))


class PlacementMachine(RuleBasedStateMachine):
    """Places, resizes, settles and releases at random, and undoes at random."""

    @initialize()
    def start(self):
        self.engine = Engine(POLICY)
        for node in nodes():
            self.engine.upsert_node(node)
        for device in DEVICES.values():
            self.engine.upsert_device(device)
        self.ledger = self.engine.ledger
        self.ledger.quotas.put(
            Quota(namespace="ns", name="q", total_requests=QuotaAmount(gflops=QUOTA_GFLOPS))
        )
        self.marks = []
        self.encoder = LogEncoder()
        self.lines = []
        self.number = 0

    def record(self, change):
        if change is not None and not self.marks:
            self.lines.append(self.encoder.encode(change, float(self.number)))

    def demand(self, shape, wanted, web):
        self.number += 1
        uid = f"u{self.number}"
        labels = (("app", "web"),) if web else ()
        return Demand(namespace="ns", name=uid, uid=uid, shape=shape, labels=labels, claims=wanted)

    def snapshot(self):
        devices = {uuid: usage.state() for uuid, usage in self.ledger.devices.items()}
        fleet = self.engine.fleet
        return msgspec.json.encode(
            (
                self.ledger.state_hash(),
                {uuid: (a, sorted(b.items()), c) for uuid, (a, b, c) in devices.items()},
                fleet.gates,
                fleet.cards,
                fleet.host[: fleet.size].tolist(),
                # Mappings and sets have no order that means anything.
                sorted(
                    (str(claim), node, sorted(keys))
                    for claim, nodes in self.ledger.claims.state().items()
                    for node, keys in nodes.items()
                ),
            )
        )

    @rule(shape=shapes, wanted=claims, web=st.booleans())
    def place(self, shape, wanted, web):
        demand = self.demand(shape, wanted, web)
        found = self.engine.place(demand)
        if isinstance(found, Placement):
            self.allow("QuotaExceeded", self.engine.reserve, demand, found)

    def allow(self, reasons, call, *arguments):
        """Do something that may be refused for these reasons only."""
        before = self.ledger.state_hash()
        reason = ""
        try:
            self.record(call(*arguments))
        except AllocationRefused as refusal:
            reason = refusal.reason
        if reason:
            assert reason in reasons
            assert self.ledger.state_hash() == before

    @rule(
        shape=shapes,
        wanted=claims,
        uuids=st.sets(st.sampled_from(sorted(DEVICES)), min_size=1, max_size=2).map(sorted),
    )
    def force(self, shape, wanted, uuids):
        """Ask the ledger itself for devices that the engine did not choose."""
        demand = self.demand(msgspec.structs.replace(shape, gpu_count=len(uuids)), wanted, False)
        before = self.ledger.state_hash()
        try:
            self.record(self.ledger.allocate(demand, uuids))
        except AllocationRefused:
            assert self.ledger.state_hash() == before

    def some_key(self, pick):
        keys = sorted(self.ledger.allocations)
        return keys[pick % len(keys)] if keys else "none"

    @rule(pick=st.integers(0, 30))
    def release(self, pick):
        self.record(self.ledger.release(self.some_key(pick)))

    @rule(pick=st.integers(0, 30))
    def settle(self, pick):
        self.record(self.ledger.settle(self.some_key(pick)))

    @rule(pick=st.integers(0, 30), gflops=st.integers(0, 300_000))
    def resize(self, pick, gflops):
        reasons = ("NotAllocated", "PartitionFixed", "InsufficientCapacity", "QuotaExceeded")
        amounts = (Amount(gflops, GIB), Amount())
        self.allow(reasons, self.ledger.resize, self.some_key(pick), *amounts)

    @rule()
    def checkpoint(self):
        self.marks.append((self.ledger.checkpoint(), self.snapshot()))

    @rule()
    def rollback(self):
        if self.marks:
            mark, state = self.marks.pop()
            self.ledger.rollback(mark)
            assert self.snapshot() == state

    @rule()
    def commit(self):
        if self.marks:
            for change in self.ledger.commit(self.marks.pop()[0]):
                self.record(change)

    @invariant()
    def nothing_is_given_twice(self):
        assert self.ledger.check_invariants() == []
        requests, limits, slots, engines = Counter(), Counter(), Counter(), Counter()
        alone, ports, workers = Counter(), Counter(), Counter()
        modes: dict[str, set[str]] = {}
        for held in self.ledger.allocations.values():
            workers[held.node] += bool(held.takes)
            for claim in held.claims or ():
                ports[claim, "" if claim.fleet_wide else held.node] += 1
            for take in held.takes:
                requests[take.uuid, "gflops"] += take.gflops
                requests[take.uuid, "vram"] += take.vram_bytes
                limits[take.uuid, "gflops"] += take.limit_gflops
                limits[take.uuid, "vram"] += take.limit_vram_bytes
                alone[take.uuid] += held.exclusive
                modes.setdefault(take.uuid, set()).add(held.isolation)
                if take.cut is not msgspec.UNSET:
                    geometry = DEVICES[take.uuid].geometry
                    template = geometry.template(take.cut.template)
                    engines[take.uuid, "slices"] += template.slices
                    for name, amount in template.engines:
                        engines[take.uuid, name] += amount
                    for slot in range(take.cut.start, take.cut.start + template.width):
                        slots[take.uuid, slot] += 1 / template.per_slot
        for uuid, device in DEVICES.items():
            assert requests[uuid, "gflops"] <= device.capacity_gflops
            assert requests[uuid, "vram"] <= device.capacity_vram_bytes
            assert limits[uuid, "gflops"] <= device.limit_gflops
            assert limits[uuid, "vram"] <= device.limit_vram_bytes
            assert alone[uuid] <= 1
            assert engines[uuid, "slices"] <= device.geometry.templates[0].total_slices
            for name, total in device.geometry.engines:
                assert engines[uuid, name] <= total
            assert "partitioned" not in modes.get(uuid, ()) or len(modes[uuid]) == 1
        assert max(slots.values(), default=0) <= 1
        assert max(ports.values(), default=0) <= 1
        assert max(workers.values(), default=0) <= 8 or self.forced_beyond_the_cap(workers)
        assert sum(amount for (_, kind), amount in requests.items() if kind == "gflops") <= (
            QUOTA_GFLOPS
        )

    def forced_beyond_the_cap(self, workers):
        """The cap on workers is the engine's rule; the ledger does what it is told."""
        return all(self.engine.fleet.full[n] for n in range(2) if workers[f"n{n + 1}"] > 8)

    @invariant()
    def replay_gives_the_same_state(self):
        if not self.marks:
            again = replay(self.lines).ledger
            assert (again.digest, again.state_hash()) == (
                self.ledger.digest,
                self.ledger.state_hash(),
            )
            assert again.claims.state() == self.ledger.claims.state()

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        while self.marks:
            self.rollback()
        twin = build_engine(POLICY, {node.name: node for node in nodes()}, DEVICES)
        for held in self.ledger.allocations.values():
            twin.ledger.restore(held)
        assert twin.fleet.gates == self.engine.fleet.gates
        assert twin.fleet.cards == self.engine.fleet.cards
        for key in list(self.ledger.allocations):
            self.ledger.release(key)
        empty = Ledger()
        assert (self.ledger.digest, self.ledger.state_hash()) == (0, empty.state_hash())
        assert not self.ledger.claims.state()
        assert not self.ledger.peers.repels
        assert all(not any(usage.totals()) for usage in self.ledger.devices.values())
        assert all(not usage.cuts for usage in self.ledger.devices.values())


PlacementMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None
)
TestPlacementMachine = PlacementMachine.TestCase
