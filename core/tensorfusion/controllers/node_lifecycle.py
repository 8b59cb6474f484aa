"""Nodes whose agent is silent: not ready and closed to new pods, until it speaks again.

As the node lifecycle controller of Kubernetes does it: a node whose Lease was not renewed for 40 s
has ``Ready`` ``Unknown`` and the taint ``node.kubernetes.io/unreachable``. Pods that run there stay:
an agent's processes outlive it. A node without a Lease is not judged.
"""

import logging
import threading
from collections.abc import Collection
from typing import Final

from tensorfusion.api.core.node import Node
from tensorfusion.api.registry import LEASES, NODES
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.controllers.status import MANAGER
from tensorfusion.controllers.taints import set_taint
from tensorfusion.errors import ApiError, Conflict
from tensorfusion.runtime.events import EventRecorder, subject
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
NAMESPACE: Final = "kube-node-lease"
LOOK_SECONDS: Final = 5.0
"""Pause between two looks: Kubernetes' ``--node-monitor-period``."""
GRACE_SECONDS: Final = 40.0
"""Silence after which a node is not ready: Kubernetes' ``--node-monitor-grace-period``."""
TAINT: Final = "node.kubernetes.io/unreachable"
UNKNOWN: Final = "NodeStatusUnknown"


class NodeLifecycle:
    """Judges the nodes that have a Lease.

    What counts is when this process saw a Lease change, so clocks of nodes need not agree with
    ours, and after a pause of our own every node has its grace anew.

    Args:
        served: Nodes that are served by this very process.

    Concurrency: one thread.
    """

    def __init__(
        self,
        store: Store,
        nodes: Informer[Node],
        *,
        served: Collection[str],
        clock: Clock,
        events: EventRecorder,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._served = served
        self._clock = clock
        self._events = events
        self._seen: dict[str, tuple[str, float]] = {}
        """Node to the last renewal, and when it was seen first."""
        self._looked_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.run_once()
            except ApiError as error:
                log.warning("leases not read", extra={"error": str(error)})
            self._clock.wait(stop, LOOK_SECONDS)

    def run_once(self) -> None:
        """Look at every Lease once."""
        leases = self._store.list(LEASES, NAMESPACE).items
        now = self._clock.monotonic()
        if now - self._looked_at > GRACE_SECONDS:
            self._seen = {}  # we were away ourselves
        self._looked_at = now
        before, self._seen = self._seen, {}
        for lease in leases:
            name = lease["metadata"]["name"]
            renewed = str((lease.get("spec") or {}).get("renewTime", ""))
            known = before.get(name, ("", 0.0))
            self._seen[name] = known if known[0] == renewed and name in before else (renewed, now)
            node = self._nodes.get(name)
            if node is None:
                continue
            silent = name not in self._served and now - self._seen[name][1] > GRACE_SECONDS
            try:
                self._judge(node, silent=silent)
            except ApiError as error:
                # Another pass follows; a conflict only says that somebody else was quicker.
                level = logging.DEBUG if isinstance(error, Conflict) else logging.WARNING
                log.log(level, "node not judged", extra={"node": name, "error": str(error)})

    def _judge(self, node: Node, *, silent: bool) -> None:
        """Bring a node in line; one that is as it should be costs nothing."""
        conditions = node.status.conditions if node.status is not None else ()
        ready = next((c for c in conditions if c.type == "Ready"), None)
        unknown = ready is not None and ready.status == "Unknown" and ready.reason == UNKNOWN
        if (unknown, is_silent(node)) == (silent, silent):
            return
        found = self._store.get(NODES, node.metadata.name)
        added = format_timestamp(self._clock.now())
        taint = {"effect": "NoSchedule", "timeAdded": added} if silent else None
        found = set_taint(self._store, found, TAINT, taint)
        self._set_ready(found, silent)
        reason, message = ("NodeReady", "the node agent renews its lease again")
        if silent:
            reason, message = "NodeNotReady", f"no renewal of its lease for {GRACE_SECONDS:.0f} s"
        log.info(reason, extra={"node": node.metadata.name})
        self._events.event(subject(NODES, node.metadata), reason, message, warning=silent)

    def _set_ready(self, node: JsonObject, silent: bool) -> None:
        conditions = (node.get("status") or {}).get("conditions") or []
        others = [c for c in conditions if c.get("type") != "Ready"]
        now = format_timestamp(self._clock.now())
        told = {
            "type": "Ready",
            "status": "Unknown" if silent else "True",
            "reason": UNKNOWN if silent else "HypervisorReady",
            "message": "the node agent stopped renewing its lease"
            if silent
            else "the hypervisor runs on this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        version = {"resourceVersion": node["metadata"]["resourceVersion"]}
        body = {"metadata": version, "status": {"conditions": [told, *others]}}
        self._store.patch(
            NODES, node["metadata"]["name"], body, subresource="status", field_manager=MANAGER
        )


def is_silent(node: Node) -> bool:
    """Whether a node bears the taint of those whose agent is silent."""
    return any(taint.key == TAINT for taint in (node.spec.taints if node.spec is not None else ()))
