"""What is said of a frozen worker: events and a condition of its pod."""

import logging
from collections.abc import Callable
from typing import Final

from tensorfusion.api import pod_view, registry
from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.spi.backend import Tier, WorkerSpec
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER: Final = "tensorfusion-hypervisor"
CONDITION: Final = "Frozen"
"""Condition of a pod: its worker is off its devices."""


class FreezeReport:
    """Tells the pods of workers where these are.

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

    def frozen(self, spec: WorkerSpec, tier: Tier, vram_bytes: int) -> None:
        """Write that a worker is off its devices."""
        reason = f"In{tier.value.capitalize()}Tier"
        self._write(spec, reason, f"{vram_bytes} bytes in tier {tier}", status=True)

    def thawed(self, spec: WorkerSpec, message: str) -> None:
        """Write that a worker is on its devices."""
        self._write(spec, "Thawed", message, status=False)

    def _write(self, spec: WorkerSpec, reason: str, message: str, *, status: bool) -> None:
        """Write the condition, unless the pod has it already."""
        pod = self._pod_of(spec)
        if pod is None:
            return
        known = pod.status.conditions if pod.status is not None else ()
        if any(c.type == CONDITION and c.message == message for c in known or ()):
            return
        told = condition(CONDITION, status=status, reason=reason, message=message)
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
