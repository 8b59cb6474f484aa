"""Placer: engine, ledger and decision log as one thing with one lock.

Write-ahead: a change is in the log before the object that shows it is written. After a crash
`recover` compares the log with the pods and settles every difference, so that replay of the
log, rebuild from the pods and the state in memory have one digest.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import Unavailable
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.decision_log import LogEncoder, replay
from tensorfusion.model.demand import Amount, Demand
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.engine import Engine, Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.ledger import AllocationRefused, Change, Ledger
from tensorfusion.model.quota import Quota
from tensorfusion.model.rows import Scorer
from tensorfusion.scheduling.log_file import DecisionLogFile
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
        self.dirty: set[str] = set()
        """Uuids whose usage changed since the status writer last took them."""
        self.observe: Callable[[Change, str], None] = lambda _change, _reason: None

    @property
    def ledger(self) -> Ledger:
        """The accounts; read them under `lock`."""
        return self.engine.ledger

    def place(self, demand: Demand, share: bool = False) -> tuple[Placement, Allocation] | NoFit:
        """Decide and reserve; the reservation is in the log when this returns.

        Args:
            share: Join an existing worker of the demand's workload if there is one.
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
            found = self.engine.place(demand)
            if isinstance(found, NoFit):
                return found
            try:
                change = self._change(
                    lambda: self.engine.reserve(demand, found),
                    f"placed by {found.policy}, score {found.score:.2f}",
                )
            except AllocationRefused as refusal:
                return NoFit(total=0, violations=refusal.violations)
            assert change is not None
            assert change.after is not None
            return found, change.after

    def release(self, uid: str, reason: str) -> Allocation | None:
        """Let a pod go; returns what it held, or None."""
        with self.lock:
            change = self._change(lambda: self.ledger.release(uid), reason)
            return change.before if change is not None else None

    def resize(self, key: str, request: Amount, limit: Amount, reason: str) -> Change:
        """Change a worker's amounts in the ledger and the log.

        Raises:
            AllocationRefused: It does not fit, or a quota would break; nothing changed.
        """
        with self.lock:
            change = self._change(lambda: self.engine.resize(key, request, limit), reason)
            assert change is not None
            return change

    def recover(self, pods: Iterable[Pod], devices: Mapping[str, Device]) -> list[str]:
        """Settle what a crash left between log and pods; returns a line per repair."""
        repairs: list[str] = []
        with self.lock:
            rebuilt = rebuild(pods, devices)
            for key, allocation in sorted(self.ledger.allocations.items()):
                if key not in rebuilt:
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
            for device in devices:
                self.engine.upsert_device(device)

    def remove_device(self, uuid: str) -> None:
        """Remove a device."""
        with self.lock:
            self.engine.remove_device(uuid)

    def set_policy(self, pool: str, policy: Scorer) -> None:
        """Choose the policy of a pool."""
        with self.lock:
            self.engine.set_policy(pool, policy)

    def put_quota(self, quota: Quota) -> None:
        """Add a quota or replace it."""
        with self.lock:
            self.ledger.quotas.put(quota)

    def remove_quota(self, namespace: str, name: str) -> None:
        """Remove a quota."""
        with self.lock:
            self.ledger.quotas.remove(namespace, name)

    def version(self) -> int:
        """A number that grows whenever something that placement looks at changes."""
        return self.engine.fleet.journal.version

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
        """Change the ledger and log it, or neither.

        Raises:
            Unavailable: The log cannot be written, as on a full disk; the ledger is as before.
        """
        mark, sequence = self.ledger.checkpoint(), self._encoder.last_seq
        now = self._clock.now()
        try:
            change = act()
            if change is not None:
                self._log.append(self._encoder.encode(change, now, reason))
        except OSError as error:
            self.ledger.rollback(mark)
            self._encoder.last_seq = sequence
            raise Unavailable(f"decision log: {error.strerror}") from error
        except BaseException:
            self.ledger.rollback(mark)
            self._encoder.last_seq = sequence
            raise
        self.ledger.commit(mark)
        if change is not None:
            self._settle(change, reason, now)
        return change

    def _settle(self, change: Change, reason: str, now: float) -> None:
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
