"""Placer: engine, ledger and decision log as one thing with one lock.

Write-ahead: a change is in the log before the object that shows it is written. After a crash
`recover` compares the log with the pods and settles every difference, so that replay of the
log, rebuild from the pods and the state in memory have one digest.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import Unavailable
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.decision_log import LogEncoder, replay
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.gang import GangNoFit, GangPlan, GangRequest, place_gang
from tensorfusion.model.history import History, Subject, history
from tensorfusion.model.ledger import Change, Ledger
from tensorfusion.model.quota import Quota
from tensorfusion.model.relax.answer import Relaxer
from tensorfusion.model.relax.step import Answer
from tensorfusion.model.rows import Scorer
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.model.ties import Ties
from tensorfusion.scheduling.log_file import DecisionLogFile
from tensorfusion.scheduling.nomination import Nomination, place_nominated
from tensorfusion.scheduling.translate import allocation_of

COMPACT_RECORDS = 50_000
"""Records after which the log is compacted to a checkpoint; about 30 MB of JSON lines."""


class Placer:
    """Places, holds, resizes and releases workers.

    Args:
        log: The decision log; what it holds is replayed at once.
        default_policy: For pools that name none.

    Concurrency: safe from any thread; one lock guards everything.
    """

    def __init__(self, log: DecisionLogFile, default_policy: Scorer, clock: Clock) -> None:
        self.lock = threading.RLock()
        self._log = log
        self._clock = clock
        past = replay(log.lines())
        if past.torn_bytes:
            log.cut(past.torn_bytes)
        self._encoder = LogEncoder(past.last_seq)
        self._records = past.records
        self.engine = Engine(default_policy, past.ledger)
        self._relaxer = Relaxer(self.engine)
        self.dirty: set[str] = set()
        """Uuids whose usage changed since the status writer last took them."""
        self.observe: Callable[[Change, str], None] = lambda _change, _reason: None
        self._version = 0
        self._nominations: dict[str, Nomination] = {}
        """By the uid of each pod that waits, and by the uid of each pod that makes room."""
        self._reserved: dict[str, Placement] = {}
        """Places in the ledger whose pods are not bound yet, by uid."""

    @property
    def ledger(self) -> Ledger:
        """The accounts; read them under `lock`."""
        return self.engine.ledger

    def place(
        self, demand: Demand, share: bool = False, first: str = ""
    ) -> tuple[Placement, Allocation] | NoFit:
        """Decide and reserve; the reservation is in the log when this returns.

        Args:
            demand: The request.
            share: Join an existing worker of the demand's workload if there is one.
            first: Node to take if the request fits there, whatever the policy says.
        """
        with self.lock:
            if share:
                workers = self.ledger.workers_of(demand.namespace, demand.workload)
                if workers:
                    chosen = min(workers, key=lambda w: (len(w.holders), w.key))
                    self._change(
                        lambda: self.ledger.hold(chosen.key, demand.uid),
                        f"shares a worker of workload {demand.workload}",
                    )
                    placement = Placement(
                        node=chosen.node, devices=chosen.devices, score=0.0, policy="shared-worker"
                    )
                    return placement, chosen
            found = self._on_first(demand, first) or self.engine.place(demand)
            if isinstance(found, NoFit):
                return found
            reason = self._reason(demand.shape, found)
            try:
                change = self._change(
                    lambda: self.engine.reserve(demand, found),
                    reason,
                )
            except AllocationRefused as refusal:
                return NoFit(total=0, violations=refusal.violations, note=str(refusal))
            assert change is not None
            assert change.after is not None
            self._withdraw([demand.uid], "the pod found a place elsewhere")
            return found, change.after

    def _on_first(self, demand: Demand, node: str) -> Placement | None:
        if not node or self.engine.precheck(demand) is not None:
            return None
        return self.engine.find_on(demand, node)

    def _reason(self, shape: Shape, chosen: Placement) -> str:
        """Say why a place was chosen, and what else was considered."""
        nodes, others = self.engine.alternatives(shape, chosen.node)
        text = f"placed by {chosen.policy}, score {chosen.score:.2f}"
        if not others:
            return f"{text}; no other node was possible"
        listed = ", ".join(f"{node} {score:.2f}" for node, score in others)
        return f"{text}; best of {nodes} possible nodes, next {listed}"

    def relax(self, demand: Demand) -> Answer:
        """Find what would make a request fit; changes nothing."""
        with self.lock:
            return self._relaxer.answer(demand)

    def place_gang(self, request: GangRequest) -> GangPlan | GangNoFit:
        """Decide and reserve for a whole gang, or change nothing.

        Its reservations are one write to the log, so that they are there together or, after a
        torn write, are released together by `recover`, since none of its pods is bound yet.
        """
        with self.lock:
            found: GangPlan | GangNoFit | None = None

            def act() -> list[tuple[Change, str]]:
                nonlocal found
                found = place_gang(self.engine, request)
                if not isinstance(found, GangPlan):
                    return []
                reason = f"placed with {len(found.members)} members of gang {request.key}"
                return [(change, reason) for change in found.changes]

            self._record(act)
            assert found is not None
            if isinstance(found, GangPlan):
                uids = [member.demand.uid for member in found.members]
                self._withdraw(uids, "the gang found a place elsewhere")
            return found

    def release(self, uid: str, reason: str) -> Allocation | None:
        """Let a pod go; returns what it held, or None.

        What an evicted pod held is kept for the pod it was evicted for: it changes hands once
        the last victim has left, in one step.
        """
        with self.lock:
            self._reserved.pop(uid, None)
            nomination = self._nominations.get(uid)
            if nomination is not None and uid in nomination.victims:
                nomination.gone.add(uid)
                if nomination.gone == nomination.victims:
                    self._hand_over(nomination)
                return self.ledger.get(uid)
            if nomination is not None:
                self._withdraw([uid], reason)
            change = self._change(lambda: self.ledger.release(uid), reason)
            return change.before if change is not None else None

    def running(self, uid: str) -> None:
        """Let go of what a pod needed only until it runs."""
        with self.lock:
            if self.ledger.get(uid) is not None:
                self._change(lambda: self.ledger.settle(uid), "the pod runs")

    def nominate(self, nomination: Nomination) -> None:
        """Keep what the victims hold for the pods they make room for."""
        with self.lock:
            for uid in nomination.uids | nomination.victims:
                self._nominations[uid] = nomination

    def nominated(self, uid: str) -> Nomination | None:
        """What a waiting pod was promised, unless that has timed out."""
        with self.lock:
            nomination = self._nominations.get(uid)
            if nomination is None or uid not in nomination.uids:
                return None
            if nomination.deadline <= self._clock.monotonic():
                self._withdraw([uid], "the evicted pods did not leave in time")
                return None
            return nomination

    def promises(self, uid: str) -> bool:
        """Whether what this pod holds is kept for somebody else."""
        nomination = self._nominations.get(uid)
        return nomination is not None and uid in nomination.victims

    def reservation(self, uid: str) -> tuple[Placement, Allocation] | None:
        """The place that is reserved for a pod and that nobody else can take; it stays."""
        with self.lock:
            placement, allocation = self._reserved.get(uid), self.ledger.get(uid)
            if placement is None or allocation is None:
                return None
            return placement, allocation

    def bound(self, uid: str) -> None:
        """Forget a reservation whose pod is bound now."""
        with self.lock:
            self._reserved.pop(uid, None)

    def _hand_over(self, nomination: Nomination) -> None:
        """Release the victims and reserve for whom they left, in one write to the log."""
        placed: list[tuple[Placement, Change]] = []

        def act() -> list[tuple[Change, str]]:
            left = [self.ledger.release(uid) for uid in sorted(nomination.victims)]
            placed.extend(place_nominated(self.engine, nomination))
            out = f"evicted for {nomination.name}"
            into = f"takes the room that was made for {nomination.name}"
            return [
                *((change, out) for change in left if change is not None),
                *((change, into) for _, change in placed),
            ]

        self._record(act)
        self._forget(nomination)
        self._reserved.update({change.key: placement for placement, change in placed})

    def _withdraw(self, uids: Iterable[str], reason: str) -> None:
        """Give back what was kept for pods that do not need it any more."""
        for nomination in [self._nominations[uid] for uid in uids if uid in self._nominations]:
            self._forget(nomination)
            for uid in sorted(nomination.gone):
                self._change(partial(self.ledger.release, uid), reason)

    def _forget(self, nomination: Nomination) -> None:
        for uid in nomination.uids | nomination.victims:
            if self._nominations.get(uid) is nomination:
                del self._nominations[uid]

    def resize(self, key: str, request: Amount, limit: Amount, reason: str) -> Change:
        """Change a worker's amounts in the ledger and the log.

        Raises:
            AllocationRefused: It does not fit, or a quota would break; nothing changed.
        """
        with self.lock:
            change = self._change(lambda: self.engine.resize(key, request, limit), reason)
            assert change is not None
            return change

    def recover(
        self, pods: Iterable[Pod], devices: Mapping[str, Device], keep: Iterable[str] = ()
    ) -> list[str]:
        """Settle what a crash left between log and pods.

        Args:
            pods: All pods.
            devices: All devices by uuid.
            keep: Uids of pods that are not bound and keep their reservation all the same.

        Returns:
            A line per repair.
        """
        repairs: list[str] = []
        with self.lock:
            rebuilt = rebuild(pods, devices)
            for uid in keep:
                held = self.ledger.get(uid)
                if held is not None:
                    self._reserved[uid] = Placement(
                        node=held.node,
                        devices=held.devices,
                        score=0.0,
                        policy="recovery",
                        containers=held.containers,
                    )
            for key, allocation in sorted(self.ledger.allocations.items()):
                if key not in rebuilt and key not in self._reserved:
                    repairs.append(f"released {allocation.namespace}/{allocation.name}: not bound")
                    for holder in allocation.holders:
                        self.release(holder, "recovery: the pod is not bound")
            for key, allocation in sorted(rebuilt.items()):
                if self.ledger.allocations.get(key) != allocation:
                    repairs.append(
                        f"restored {allocation.namespace}/{allocation.name} from its pod"
                    )
                    self._restore(allocation)
            self.dirty.update(self.ledger.devices)
        return repairs

    def upsert_node(self, node: NodeInfo) -> None:
        """Add a node or replace what is known of it."""
        with self.lock:
            self.engine.upsert_node(node)

    def remove_node(self, name: str) -> None:
        """Remove a node with its devices."""
        with self.lock:
            self.engine.remove_node(name)

    def upsert_devices(self, devices: Sequence[Device]) -> None:
        """Add devices or replace what is known of them."""
        with self.lock:
            self.engine.upsert_devices(devices)

    def remove_device(self, uuid: str) -> None:
        """Remove a device."""
        with self.lock:
            self.engine.remove_device(uuid)

    def set_policy(self, pool: str, policy: Scorer, ties: Ties | None = None) -> None:
        """Choose the policy of a pool and its rule for ties."""
        with self.lock:
            self.engine.set_policy(pool, policy, ties)
            self._version += 1

    def put_quota(self, quota: Quota) -> None:
        """Add a quota or replace it."""
        with self.lock:
            self.ledger.quotas.put(quota)
            self._version += 1

    def remove_quota(self, namespace: str, name: str) -> None:
        """Remove a quota."""
        with self.lock:
            self.ledger.quotas.remove(namespace, name)
            self._version += 1

    def version(self) -> int:
        """A number that grows whenever something that placement looks at changes.

        What is tried and undone does not count, or two pods that wait would wake each other.
        """
        return self._version + self.engine.fleet.static_journal.version

    def history(self, subject: Subject, until: float | None = None) -> History:
        """Read the decisions about a subject from the log; takes seconds when the log is long."""
        return history(self._log.history(), subject, until)

    def take_dirty(self) -> list[str]:
        """Return the devices whose usage changed, once."""
        with self.lock:
            taken = sorted(self.dirty)
            self.dirty.clear()
            return taken

    def fingerprint(self) -> dict[str, object]:
        """Return digest, hash and size of the state, for checks."""
        with self.lock:
            return {
                "digest": f"{self.ledger.digest:032x}",
                "stateHash": self.ledger.state_hash(),
                "allocations": len(self.ledger.allocations),
                "sequence": self._encoder.last_seq,
                "findings": self.ledger.check_invariants(),
            }

    def _restore(self, allocation: Allocation) -> None:
        self._change(lambda: self.ledger.restore(allocation), "recovery: as the pod says")

    def _change(self, act: Callable[[], Change | None], reason: str) -> Change | None:
        """Make one change; see `_record`."""
        done: list[tuple[Change, str]] = []

        def one() -> list[tuple[Change, str]]:
            change = act()
            done.extend([(change, reason)] if change is not None else [])
            return done

        self._record(one)
        return done[0][0] if done else None

    def _record(self, act: Callable[[], list[tuple[Change, str]]]) -> None:
        """Change the ledger and log every change with its reason, or do neither.

        Raises:
            Unavailable: The log cannot be written, as on a full disk; the ledger is as before.
        """
        mark, sequence = self.ledger.checkpoint(), self._encoder.last_seq
        now = self._clock.now()
        try:
            changes = act()
            if changes:
                lines = [self._encoder.encode(change, now, reason) for change, reason in changes]
                self._log.append(b"".join(lines))
        except OSError as error:
            self.ledger.rollback(mark)
            self._encoder.last_seq = sequence
            raise Unavailable(f"decision log: {error.strerror}") from error
        except BaseException:
            self.ledger.rollback(mark)
            self._encoder.last_seq = sequence
            raise
        self.ledger.commit(mark)
        for change, reason in changes:
            self._settle(change, reason, now)

    def _settle(self, change: Change, reason: str, now: float) -> None:
        self._version += 1
        for side in (change.before, change.after):
            if side is not None:
                self.dirty.update(side.devices)
        self.observe(change, reason)
        self._records += 1
        if self._records >= COMPACT_RECORDS:
            self._log.compact(self._encoder.checkpoint(self.ledger, now))
            self._records = 1


def rebuild(pods: Iterable[Pod], devices: Mapping[str, Device]) -> dict[str, Allocation]:
    """Rebuild all allocations from the annotations of bound pods, by key."""
    found: dict[str, Allocation] = {}
    for pod in pods:
        allocation = allocation_of(pod, devices)
        if allocation is None:
            continue
        known = found.get(allocation.key)
        if known is not None:
            holders = tuple(sorted({*known.holders, *allocation.holders}))
            allocation = msgspec.structs.replace(known, holders=holders)
        found[allocation.key] = allocation
    return found
