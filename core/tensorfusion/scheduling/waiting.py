"""Pods that found no place: what they are told, and when they are tried again."""

from collections.abc import Mapping
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import to_json
from tensorfusion.api.registry import PODS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock
from tensorfusion.errors import Conflict, NotFound
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.scheduling.binding import waits
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

MANAGER = "tensorfusion-scheduler"
LOOK_SECONDS = 30.0
"""Protections against eviction end by themselves, so waiting pods are looked at this often."""


@dataclass(slots=True)
class Unplaced:
    """A pod that fits nowhere, and when that was last found."""

    version: int
    message: str
    tried: float


class Waiting:
    """The pods that wait, and their conditions and events."""

    def __init__(
        self,
        store: Store,
        pods: Informer[Pod],
        *,
        clock: Clock,
        events: EventRecorder,
        instruments: Instruments,
    ) -> None:
        self._store = store
        self._pods = pods
        self._clock = clock
        self._events = events
        self._instruments = instruments
        self._unplaced: dict[str, Unplaced] = {}

    def refuse(
        self,
        pod: Pod,
        version: int,
        reason: str,
        message: str,
        *,
        node: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Note that a pod waits and tell its users why, once per message.

        Args:
            pod: The pod.
            version: Of what placement looked at.
            reason: CamelCase, of the condition.
            message: For people.
            node: Where room is being made for it.
            annotations: What else is written on the pod.
        """
        key = pod_view.key(pod)
        known = self._unplaced.get(key)
        self._unplaced[key] = Unplaced(version, message, self._clock.monotonic())
        self._show_pending()
        if known is not None and known.message == message:
            return
        try:
            self._write(pod, reason, message, node, annotations or {})
        except (NotFound, Conflict):
            return
        self._events.event(pod_view.reference(pod), "FailedScheduling", message, warning=True)

    def _write(
        self, pod: Pod, reason: str, message: str, node: str, annotations: Mapping[str, str]
    ) -> None:
        conditions = [] if pod.status is None else [to_json(c) for c in pod.status.conditions]
        present = [c for c in conditions if c["type"] == "PodScheduled"]
        found = condition("PodScheduled", False, reason, message)
        wanted = merge(present, [found], self._clock.now())
        others = [c for c in conditions if c["type"] != "PodScheduled"]
        status: JsonObject = {"conditions": others + wanted}
        before = pod.status.nominated_node_name if pod.status is not None else ""
        if node != before:
            status["nominatedNodeName"] = node or None
        self._patch(pod, {"status": status}, "status")
        if any(pod.metadata.annotations.get(k) != v for k, v in annotations.items()):
            self._patch(pod, {"metadata": {"annotations": dict(annotations)}})

    def _patch(self, pod: Pod, patch: JsonObject, subresource: str = "") -> None:
        self._store.patch(
            PODS,
            pod.metadata.name,
            patch,
            pod.metadata.namespace,
            subresource=subresource,
            field_manager=MANAGER,
        )

    def due(self, version: int) -> list[str]:
        """Return the pods to try again: what placement looks at has changed, or time passed."""
        now = self._clock.monotonic()
        found = []
        for key, unplaced in list(self._unplaced.items()):
            pod = self._pods.get(key)
            if pod is None or not waits(pod):
                self.forget(key)
            elif unplaced.version != version or now - unplaced.tried >= LOOK_SECONDS:
                unplaced.version, unplaced.tried = version, now
                found.append(key)
        return found

    def all_keys(self) -> list[str]:
        """Return every pod that waits."""
        return list(self._unplaced)

    def forget(self, key: str) -> None:
        """Drop a pod that was placed or is gone."""
        if self._unplaced.pop(key, None) is not None:
            self._show_pending()

    def _show_pending(self) -> None:
        pending: dict[str, int] = {}
        for key in list(self._unplaced):
            pod = self._pods.get(key)
            if pod is not None and not pod_view.is_worker(pod):
                continue
            pool = pod.metadata.labels.get(names.GPU_POOL, "") if pod is not None else ""
            pending[pool] = pending.get(pool, 0) + 1
        self._instruments.replace(
            "tensorfusion_scheduler_pending_workers",
            [((pool,), float(count)) for pool, count in pending.items()],
        )
