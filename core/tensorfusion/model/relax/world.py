"""Changes of everything but the request: quotas, nodes, cards, and workers that leave."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final

import msgspec

from tensorfusion.model.device import RUNNING, Device, NodeInfo
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.bits import BIT, LOAD
from tensorfusion.model.relax.evict import Evictions
from tensorfusion.model.relax.failures import Failures
from tensorfusion.model.relax.holdings import Holdings
from tensorfusion.model.relax.step import Addition, Raise, Step
from tensorfusion.model.rows import Bools
from tensorfusion.model.takes import take_of

HOSTNAME: Final = "kubernetes.io/hostname"
SHOWN: Final = 3
"""Names listed in a text before the rest is counted."""

_RESET: Final = LOAD | BIT["cordoned"] | BIT["phase"] | BIT["owner"]
"""Rules that a new node of the same kind satisfies: it is empty, in service, and ours."""
_AROUND: Final = BIT["neighbours"] | BIT["claims"]
"""Rules about other pods, which judge a new node apart from the one it is like."""

_replace = msgspec.structs.replace


class WorldChanges:
    """Finds the smallest change of one kind while other rules are lifted.

    Attributes:
        kinds: Kind of change to the method that finds it.
    """

    def __init__(
        self,
        failures: Failures,
        holdings: Holdings,
        violations: Sequence[Violation] = (),
        allows: Callable[[int], bool] | None = None,
    ) -> None:
        """Look at one request.

        Args:
            failures: Of the request.
            holdings: Who holds what.
            violations: Quotas that refuse it as things are.
            allows: Whether the quotas let it pass when its smallest card has so much compute; None
                when they do whatever it has.
        """
        self._allows = allows
        self._violations = violations
        self._failures = failures
        self._fleet = failures.fleet
        self._shape = failures.shape
        self._holdings = holdings
        self._ledger = holdings.ledger
        self.kinds: dict[str, Callable[[int, int | None], Step | None]] = {
            "worker-cap": self._worker_cap,
            "cordoned": self._cordoned,
            "phase": lambda lifted, slot: self._cards("phase", lifted, slot),
            "owner": lambda lifted, slot: self._cards("owner", lifted, slot),
            "evict": self._evict,
            "add-node": self._add_node,
        }

    def _worker_cap(self, lifted: int, slot: int | None) -> Step | None:
        best: tuple[int, int, NodeInfo] | None = None
        for found in self._failures.nodes(lifted | BIT["worker-cap"], slot):
            node = self._fleet.nodes[found]
            if node is None or not self._fleet.full[found]:
                continue
            needed = self._ledger.workers_on(node.name) + 1
            if best is None or needed - node.max_workers < best[0]:
                best = (needed - node.max_workers, needed, node)
        if best is None:
            return None
        _, needed, node = best
        text = f"allow {needed} workers on node {node.name}, not {node.max_workers}"
        return Step(kind="worker-cap", text=text, node=node.name, max_workers=needed)

    def _cordoned(self, lifted: int, slot: int | None) -> Step | None:
        for found in self._failures.nodes(lifted | BIT["cordoned"], slot):
            node = self._fleet.nodes[found]
            lifts = lifted | BIT["cordoned"]
            if node is not None and not node.schedulable and self._passes(lifts, found):
                text = f"uncordon node {node.name}"
                return Step(kind="cordoned", text=text, node=node.name)
        return None

    def _cards(self, kind: str, lifted: int, slot: int | None) -> Step | None:
        """Bring as few cards of one node into service as possible."""
        failures = self._failures
        with_it, without = failures.usable(lifted | BIT[kind]), failures.usable(lifted)
        best: tuple[list[int], int] | None = None
        for found in failures.nodes(lifted | BIT[kind], slot):
            ready = without[found].nonzero()[0].tolist()
            idle = (with_it[found] & ~without[found]).nonzero()[0].tolist()
            most = len(idle) if best is None else len(best[0]) - 1
            fewest = self._fewest_cards(found, ready, idle, most)
            if fewest and self._passes(lifted | BIT[kind], found):
                best = (fewest, found)
        if best is None:
            return None
        places, found = best
        uuids = tuple(self._fleet.blocks[found][place].uuid for place in places)
        verb = "get {} to run" if kind == "phase" else "take {} back from the other system"
        text = verb.format("GPU " + _names(uuids)) + f" on node {self._name(found)}"
        return Step(kind=kind, text=text, node=self._name(found), devices=uuids)

    def _fewest_cards(self, slot: int, ready: list[int], idle: list[int], most: int) -> list[int]:
        """Return the fewest of the idle cards that make enough, connected as they must be."""
        missing = max(self._shape.gpu_count - len(ready), 0)
        for count in range(missing, most + 1):
            for chosen in combinations(idle, count):
                if self._failures.connects(slot, sorted([*ready, *chosen])):
                    return list(chosen)
        return []

    def _evict(self, lifted: int, slot: int | None) -> Step | None:
        found = Evictions(self._failures, self._holdings, self._violations).fewest(lifted, slot)
        if found is None or not found.keys:
            return None
        return evict_step(self._ledger, found.keys, self._name(found.slot), exact=found.exact)

    def _add_node(self, lifted: int, slot: int | None) -> Step | None:
        """Add a node like one that is there: with the fewest GPUs, then the least compute."""
        if slot is not None:
            return None
        failures, fleet = self._failures, self._fleet
        usable = failures.usable(lifted | _RESET | _AROUND) & failures.large
        enough = (usable.sum(axis=1) >= self._shape.gpu_count).nonzero()[0].tolist()
        around = failures.around if not lifted & BIT["neighbours"] else None
        best: tuple[tuple[int, int, str], int] | None = None
        for found in enough:
            node, block = fleet.nodes[found], fleet.blocks[found]
            if best is not None and len(block) > best[0][0]:
                continue
            compute = sum([usage.device.capacity_gflops for usage in block if usage.device])
            size = (len(block), compute, node.name if node else "")
            smaller = best is None or size < best[0]
            if not smaller or (around is not None and not around.allows_like(found)):
                continue
            if not self._fits_empty(found, usable[found]):
                continue
            if self._passes(lifted | _RESET | _AROUND, found):
                best = (size, found)
        if best is None:
            return None
        addition = self._like(best[1])
        if addition is None or not self._suits(addition.node, lifted):
            return None
        models = sorted({device.model or device.full_model for device in addition.devices})
        text = f"add a node like {addition.like} ({len(addition.devices)} x {'/'.join(models)})"
        return Step(kind="add-node", text=text, node=addition.node.name, addition=addition)

    def _passes(self, lifted: int, slot: int) -> bool:
        allows = self._allows
        return allows is None or allows(self._failures.smallest_card(lifted, slot))

    def _like(self, slot: int) -> Addition | None:
        """Describe a new node like one that is there: empty, in service, with its own name."""
        node = self._fleet.nodes[slot]
        if node is None:
            return None
        name = f"{node.name}-new"
        while self._fleet.slot_of(name) is not None:
            name += "-new"
        labels = dict(node.labels)
        if HOSTNAME in labels:
            labels[HOSTNAME] = name
        devices = tuple(
            _replace(usage.device, uuid=f"{name}-{place}", node=name, phase=RUNNING, used_by="")
            for place, usage in enumerate(self._fleet.blocks[slot])
            if usage.device is not None
        )
        new = _replace(node, name=name, labels=labels, schedulable=True)
        return Addition(node.name, new, devices)

    def _suits(self, node: NodeInfo, lifted: int) -> bool:
        """Tell whether rules that look at a node's own name would accept a new one."""
        shape = self._shape
        if shape.node_name and not lifted & BIT["node-name"]:
            return False
        selector = dict(shape.node_selector)
        if HOSTNAME in selector and not lifted & BIT["node-selector"]:
            return False
        return bool(
            lifted & BIT["node-affinity"]
            or not shape.affinity
            or any(term.matches(node.name, node.labels) for term in shape.affinity)
        )

    def _fits_empty(self, slot: int, usable: Bools) -> bool:
        """Tell whether enough of the usable cards hold the request when empty."""
        shape = self._shape
        node = self._fleet.nodes[slot]
        if node is None or node.max_workers < 1:
            return False
        if (node.cpu_milli and node.cpu_milli < shape.cpu_milli) or (
            node.memory_bytes and node.memory_bytes < shape.memory_bytes
        ):
            return False
        fitting = [
            place
            for place, usage in enumerate(self._fleet.blocks[slot])
            if usage.device is not None and usable[place] and self._holds(usage.device)
        ]
        return len(fitting) >= shape.gpu_count and self._failures.connects(slot, fitting)

    def _holds(self, device: Device) -> bool:
        """Tell whether a card that is empty has enough for the request."""
        shape = self._shape
        if shape.wish is not None:
            return any(kind.covers(shape.wish) for kind in device.partition_kinds)
        take = take_of(device, shape.request, shape.limit, exclusive=shape.exclusive)
        return (
            take.limit_gflops <= device.limit_gflops
            and take.limit_vram_bytes <= device.limit_vram_bytes
        )

    def _name(self, slot: int) -> str:
        node = self._fleet.nodes[slot]
        return node.name if node is not None else ""


def evict_step(ledger: Ledger, keys: tuple[str, ...], node: str, *, exact: bool) -> Step:
    """Return the eviction of workers, which makes room on a node."""
    workers = [ledger.allocations[key] for key in keys]
    who = _names([f"{worker.namespace}/{worker.name}" for worker in workers])
    plural = "worker" if len(workers) == 1 else f"{len(workers)} workers"
    text = f"evict the {plural} {who}"
    places = {worker.node for worker in workers}
    if len(places) == 1:
        text += f" from node {places.pop()}"
    return Step(kind="evict", text=text, node=node, evict=keys, exact=exact)


def quota_step(violations: Sequence[Violation]) -> Step:
    """Return the quota figures that have to go up."""
    raises = tuple(Raise(v.quota, v.resource, v.limit, v.used + v.requested) for v in violations)
    return Step(kind="quota", text="; ".join(v.remedy for v in violations), raises=raises)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
