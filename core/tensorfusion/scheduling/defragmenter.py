"""Carrying out defragmentation: one node at a time, one worker at a time, and back if one is lost.

Everything needed to go on after a crash is on the node that is being emptied: a label keeps new
work away, an annotation names the pod that is under way. A worker that finds no new place in time
ends the attempt: the node takes work again, so that what was evicted may return, and is passed
over until the next run.

Planning takes seconds in a large pool, so this runs on a thread of its own, where caches may lag
behind what it wrote itself: marks on nodes are read from the store.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import GPU_POOLS, NODES
from tensorfusion.clock import Clock, format_timestamp, parse_timestamp
from tensorfusion.errors import ConfigError, NotFound
from tensorfusion.model.defrag import DefragPlan, Emptied
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder, subject
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.scheduling.campaign import Campaign, campaign_of, marker_seconds
from tensorfusion.scheduling.moves import asks_anew, controller_of
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-scheduler"
LAND_SECONDS = 120.0
"""How long a moved worker may take to run again before the attempt is given up."""
ACTIVE_SECONDS = 1.0
IDLE_SECONDS = 30.0


class Moving(msgspec.Struct, frozen=True, rename="camel"):
    """The pod that is under way.

    Attributes:
        pod: ``namespace/name``.
        uid: Of the pod that was evicted.
        owner: Uid of the object that makes it anew.
        others: Uids of the pods that the owner had besides.
        target: Node where the plan puts it.
        since: Epoch seconds.
    """

    pod: str
    uid: str
    owner: str
    others: tuple[str, ...]
    target: str
    since: float


class Defragmenter:
    """Empties little-used nodes of pools whose schedule or owner asks for it.

    Args:
        pods: Indexed by ``node`` and by ``owner``.
        plan: Plans a pool anew: (name, epoch seconds) to plan.
        evict: Evicts a pod with a message.
    """

    def __init__(
        self,
        store: Store,
        pools: Informer[GPUPool],
        nodes: Informer[Node],
        pods: Informer[Pod],
        *,
        plan: Callable[[str, float], DefragPlan],
        evict: Callable[[Pod, str], None],
        clock: Clock,
        events: EventRecorder,
        instruments: Instruments,
    ) -> None:
        self._store = store
        self._pools = pools
        self._nodes = nodes
        self._pods = pods
        self._plan = plan
        self._evict = evict
        self._clock = clock
        self._events = events
        self._instruments = instruments
        self._targets: dict[str, str] = {}
        """Owner of a pod that is under way to the node it should go to."""
        self.controller = Controller("defrag", self.reconcile, clock=clock)
        pools.subscribe(self._pool_changed)

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        if asks_anew(change):
            self.controller.queue.add(change.key)

    def target_of(self, pod: Pod) -> str:
        """The node that a pod should go to first, because it replaces one that was moved."""
        return self._targets.get(controller_of(pod), "") if self._targets else ""

    def reconcile(self, key: str) -> Result:
        """Move one pool's defragmentation on by a step."""
        pool = self._pools.get(key)
        if pool is None:
            return DONE
        now = self._clock.now()
        try:
            campaign = campaign_of(pool, now)
        except ConfigError as error:
            self._event(pool, "DefragConfigInvalid", str(error), warning=True)
            return DONE
        sources = self._marked(key)
        busy = [node for node in sources if self._advance(node, pool, campaign)]
        if busy:
            return Result(requeue_seconds=ACTIVE_SECONDS)
        if campaign is None:
            self._sweep(pool, sources)
            return Result(requeue_seconds=IDLE_SECONDS)
        return self._next(pool, campaign)

    def _marked(self, pool: str) -> list[Node]:
        """Nodes of a pool that are being emptied, as the store has them now."""
        found = self._store.list(NODES, label_selector=f"{names.DEFRAG_SOURCE}={pool}").items
        return [decode(Node, item) for item in found]

    def _next(self, pool: GPUPool, campaign: Campaign) -> Result:
        """Start on the next node, or end the run when there is none."""
        name = pool.metadata.name
        plan = self._plan(name, self._clock.now())
        if plan.emptied:
            self._begin(pool, plan.emptied[0])
            return Result(requeue_seconds=ACTIVE_SECONDS)
        skipped = [
            n for n in self._nodes.values() if n.metadata.labels.get(names.DEFRAG_SKIP) == name
        ]
        done = {
            "status": {"lastDefragTime": format_timestamp(max(self._clock.now(), campaign.start))}
        }
        self._store.patch(GPU_POOLS, name, done, subresource="status", field_manager=MANAGER)
        for node in skipped:
            self._mark(node, _no_skip())
        self._event(
            pool,
            "DefragFinished",
            f"{plan.idle} nodes are empty, {len(plan.kept)} in use stay, {len(skipped)} were"
            " given up on the way",
        )
        return Result(requeue_seconds=IDLE_SECONDS)

    def _begin(self, pool: GPUPool, chosen: Emptied) -> None:
        node = self._nodes.get(chosen.node)
        if node is None:
            return
        since = format_timestamp(self._clock.now())
        labels = {names.DEFRAG_SOURCE: pool.metadata.name}
        self._mark(node, {"labels": labels, "annotations": {names.DEFRAG_SOURCE_SINCE: since}})
        targets = sorted({move.target for move in chosen.moves})
        self._event(
            node,
            "DefragStarted",
            f"{len(chosen.moves)} workers move to {', '.join(targets)} to free {chosen.gpus} GPUs",
        )

    def _advance(self, node: Node, pool: GPUPool, campaign: Campaign | None) -> bool:
        """Move one marked node on by a step; False when there was nothing left to do on it."""
        text = node.metadata.annotations.get(names.DEFRAG_MOVING, "")
        if text:
            self._follow(node, pool, msgspec.json.decode(text, type=Moving))
            return True
        workers = self._workers(node)
        if not workers:
            return False
        if campaign is None:
            self._give_up(node, pool, "the time for defragmentation is over")
            return True
        # Planned anew for every worker: what was true when the node was chosen may be no more.
        plan = self._plan_for(node, pool)
        if isinstance(plan, str):
            self._give_up(node, pool, plan)
            return True
        move = plan.moves[0]
        pod = next((p for p in workers if p.metadata.uid == move.worker), None)
        if pod is None:
            return True  # it left by itself; the next look plans again
        owner = controller_of(pod)
        others = [p.metadata.uid for p in self._pods.by_index("owner", owner)]
        moving = Moving(
            pod=pod_view.key(pod),
            uid=pod.metadata.uid,
            owner=owner,
            others=tuple(sorted(uid for uid in others if uid != pod.metadata.uid)),
            target=move.target,
            since=self._clock.now(),
        )
        self._mark(
            node, {"annotations": {names.DEFRAG_MOVING: msgspec.json.encode(moving).decode()}}
        )
        self._targets[owner] = move.target
        self._evict_for(node, pod, move.target)
        return True

    def _plan_for(self, node: Node, pool: GPUPool) -> Emptied | str:
        """Plan one marked node anew; a reason when it can no longer be emptied."""
        name = node.metadata.name
        plan = self._plan(pool.metadata.name, self._clock.now())
        found = next((e for e in plan.emptied if e.node == name), None)
        if found is not None:
            return found
        return next((k.reason for k in plan.kept if k.node == name), "it is in no plan any more")

    def _evict_for(self, node: Node, pod: Pod, target: str) -> None:
        self._evict(pod, f"moves to node {target}, so that node {node.metadata.name} becomes free")
        self._instruments.count("tensorfusion_defrag_moves_total", {"result": "evicted"})

    def _follow(self, node: Node, pool: GPUPool, moving: Moving) -> None:
        """Look after the pod that is under way."""
        self._targets[moving.owner] = moving.target  # also what a restart forgot
        siblings = list(self._pods.by_index("owner", moving.owner))
        old = next((p for p in siblings if p.metadata.uid == moving.uid), None)
        if old is not None and not pod_view.is_deleting(old):
            self._evict_for(node, old, moving.target)
            return
        known = {moving.uid, *moving.others}
        new = [p for p in siblings if p.metadata.uid not in known and not pod_view.is_deleting(p)]
        landed = next((p for p in new if pod_view.is_ready(p)), None)
        if old is None and landed is not None:
            self._landed(node, moving, landed)
            return
        if self._clock.now() - moving.since > LAND_SECONDS:
            self._instruments.count("tensorfusion_defrag_moves_total", {"result": "lost"})
            waited = round(self._clock.now() - moving.since)
            self._give_up(node, pool, f"pod {moving.pod} does not run again after {waited} s")

    def _landed(self, node: Node, moving: Moving, pod: Pod) -> None:
        self._targets.pop(moving.owner, None)
        self._mark(node, {"annotations": {names.DEFRAG_MOVING: None}})
        self._instruments.count("tensorfusion_defrag_moves_total", {"result": "landed"})
        self._event(
            node,
            "DefragPodMoved",
            f"pod {moving.pod} runs on node {pod_view.node_name(pod)} as {pod.metadata.name}",
        )
        left = len(self._workers(node))
        if not left:
            self._event(node, "DefragNodeEmptied", "every worker runs elsewhere")

    def _give_up(self, node: Node, pool: GPUPool, reason: str) -> None:
        """Let the node take work again, and pass it over until the next run."""
        text = node.metadata.annotations.get(names.DEFRAG_MOVING, "")
        if text:
            self._targets.pop(msgspec.json.decode(text, type=Moving).owner, None)
        since = format_timestamp(self._clock.now())
        marks = _no_source()
        marks["labels"][names.DEFRAG_SKIP] = pool.metadata.name
        marks["annotations"] |= {
            names.DEFRAG_SKIP_SINCE: since,
            names.DEFRAG_SKIP_REASON: reason[:256],
        }
        self._mark(node, marks)
        for about in (node, pool):
            self._event(
                about, "DefragAborted", f"node {node.metadata.name}: {reason}", warning=True
            )

    def _sweep(self, pool: GPUPool, sources: list[Node]) -> None:
        """Let emptied nodes take work again once their mark is old enough."""
        try:
            seconds = marker_seconds(pool)
        except ConfigError as error:
            self._event(pool, "DefragConfigInvalid", str(error), warning=True)
            return
        for node in sources:
            since = node.metadata.annotations.get(names.DEFRAG_SOURCE_SINCE, "")
            age = self._clock.now() - parse_timestamp(since) if since else float("inf")
            if seconds is not None and age >= seconds:
                self._mark(node, _no_source())

    def _workers(self, node: Node) -> list[Pod]:
        """Running workers of a node, by name."""
        found = [
            pod
            for pod in self._pods.by_index("node", node.metadata.name)
            if pod_view.is_worker(pod) and not pod_view.is_finished(pod)
        ]
        return sorted(found, key=pod_view.key)

    def _mark(self, node: Node, metadata: dict[str, Any]) -> None:
        try:
            self._store.patch(
                NODES, node.metadata.name, {"metadata": metadata}, field_manager=MANAGER
            )
        except NotFound:
            log.debug("node is gone", extra={"node": node.metadata.name})

    def _event(self, obj: Any, reason: str, message: str, *, warning: bool = False) -> None:
        about = subject(GPU_POOLS if isinstance(obj, GPUPool) else NODES, obj.metadata)
        self._events.event(about, reason, message, warning=warning)


def _no_source() -> dict[str, Any]:
    return {
        "labels": {names.DEFRAG_SOURCE: None},
        "annotations": {names.DEFRAG_SOURCE_SINCE: None, names.DEFRAG_MOVING: None},
    }


def _no_skip() -> dict[str, Any]:
    return {
        "labels": {names.DEFRAG_SKIP: None},
        "annotations": {names.DEFRAG_SKIP_SINCE: None, names.DEFRAG_SKIP_REASON: None},
    }
