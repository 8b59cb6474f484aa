"""What a node's agent says of a worker to its pod: events, and conditions of the pod's status."""

import logging
from collections.abc import Callable
from typing import Final

from tensorfusion.api import pod_view, registry
from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError
from tensorfusion.runtime.conditions import Condition, merge
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.spi.backend import WorkerSpec
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER: Final = "tensorfusion-hypervisor"


class PodReport:
    """Writes to the pods of workers.

    Args:
        pod_of: Finds the pod of a worker.

    Concurrency: any thread.
    """

    def __init__(
        self,
        pod_of: Callable[[WorkerSpec], Pod | None],
        store: Store,
        events: EventRecorder,
        clock: Clock,
    ) -> None:
        self._pod_of = pod_of
        self._store = store
        self._events = events
        self._clock = clock

    def event(self, spec: WorkerSpec, reason: str, message: str, *, warning: bool = False) -> None:
        """Log it, and write an event of the pod if there is one."""
        pod = self._pod_of(spec)
        log.info(reason, extra={"worker": f"{spec.namespace}/{spec.name}", "detail": message})
        if pod is not None:
            self._events.event(pod_view.reference(pod), reason, message, warning=warning)

    def status_of(self, spec: WorkerSpec, kind: str) -> str:
        """The status of a condition of the pod; empty when it has none of that type."""
        pod = self._pod_of(spec)
        known = pod.status.conditions if pod is not None and pod.status is not None else ()
        return next((c.status for c in known or () if c.type == kind), "")

    def write(self, spec: WorkerSpec, told: Condition) -> bool:
        """Write a condition, unless the pod has it already with the same message.

        Returns:
            False when the server did not take it.
        """
        pod = self._pod_of(spec)
        if pod is None:
            return True
        known = pod.status.conditions if pod.status is not None else ()
        if any(c.type == told["type"] and c.message == told["message"] for c in known or ()):
            return True
        name, namespace = pod.metadata.name, pod.metadata.namespace
        try:
            present = self._store.get(registry.PODS, name, namespace).get("status", {})
            conditions = merge(present.get("conditions", []), [told], self._clock.now())
            self._store.patch(
                registry.PODS,
                name,
                {"status": {"conditions": conditions}},
                namespace,
                subresource="status",
                field_manager=MANAGER,
            )
        except ApiError as error:
            log.info("condition not written", extra={"error": str(error)})
            return False
        return True
