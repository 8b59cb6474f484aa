"""EventRecorder: Kubernetes Events for the people who run ``kubectl describe``.

Events are aggregated (the same object, reason and message within ten minutes counts up) and
rate limited per object, as client-go does it. They are best effort: a failed write is logged.
"""

import logging
import threading
import uuid
from collections import OrderedDict
from typing import Any

import msgspec

from tensorfusion import names
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.clock import Clock, format_micro_timestamp, format_timestamp
from tensorfusion.errors import ApiError
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
AGGREGATE_SECONDS = 600.0
KEPT = 4096
BURST = 25


class EventRecorder:
    """Writes Events on behalf of one component.

    Concurrency: safe from any thread.
    """

    def __init__(self, store: Store, events: Resource, component: str, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._component = component
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str, str, str], tuple[str, str, int, float]] = (
            OrderedDict()
        )
        self._spent: dict[str, tuple[float, float]] = {}

    def event(self, obj: JsonObject, reason: str, message: str, *, warning: bool = False) -> None:
        """Record that something happened to ``obj`` (any object or view with kind and metadata).

        Args:
            reason: CamelCase word from our list.
            message: One sentence.
        """
        reference = reference_to(obj)
        kind = "Warning" if warning else "Normal"
        now = self._clock.now()
        key = (reference.get("uid", "") or reference["name"], kind, reason, message)
        with self._lock:
            known = self._seen.get(key)
            if known is not None and now - known[3] > AGGREGATE_SECONDS:
                known = None
            if known is None and not self._take_token(key[0], now):
                return
            count = (known[2] if known else 0) + 1
            name = known[1] if known else f"{reference['name'][:200]}.{uuid.uuid4().hex[:16]}"
            namespace = reference.get("namespace") or "default"
            self._seen[key] = (namespace, name, count, now)
            self._seen.move_to_end(key)
            while len(self._seen) > KEPT:
                self._seen.popitem(last=False)
        try:
            if known is None:
                body = self._body(reference, kind, reason, message, namespace, name, now)
                self._store.create(self._events, body, namespace, field_manager=self._component)
            else:
                patch = {"count": count, "lastTimestamp": format_timestamp(now)}
                self._store.patch(
                    self._events, name, patch, namespace, field_manager=self._component
                )
        except ApiError as error:
            log.info("event not written", extra={"reason": reason, "error": str(error)})
            with self._lock:
                self._seen.pop(key, None)

    def _take_token(self, uid: str, now: float) -> bool:
        tokens, at = self._spent.get(uid, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) / 300.0)
        if len(self._spent) > KEPT:
            self._spent.clear()
        self._spent[uid] = (tokens - 1.0, now) if tokens >= 1.0 else (tokens, now)
        return tokens >= 1.0

    def _body(
        self,
        reference: dict[str, Any],
        kind: str,
        reason: str,
        message: str,
        namespace: str,
        name: str,
        now: float,
    ) -> JsonObject:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": reference,
            "reason": reason,
            "message": message[:1024],
            "type": kind,
            "count": 1,
            "firstTimestamp": format_timestamp(now),
            "lastTimestamp": format_timestamp(now),
            "eventTime": format_micro_timestamp(now),
            "action": reason,
            "source": {"component": self._component},
            "reportingComponent": f"{names.DOMAIN}/{self._component}",
            "reportingInstance": self._component,
        }


def subject(resource: Resource, metadata: msgspec.Struct) -> JsonObject:
    """Return kind and metadata of a decoded object, which is what `EventRecorder.event` takes."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": msgspec.to_builtins(metadata),
    }


def reference_to(obj: JsonObject) -> dict[str, Any]:
    """Build an ObjectReference to an object."""
    metadata = obj["metadata"]
    reference = {
        "apiVersion": obj.get("apiVersion", ""),
        "kind": obj.get("kind", ""),
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "uid": metadata.get("uid", ""),
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    return {k: v for k, v in reference.items() if v}
