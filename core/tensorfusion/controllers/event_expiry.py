"""Events go after a while, as they do on a Kubernetes API server (its ``--event-ttl``)."""

import logging
import threading

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.clock import Clock, parse_timestamp
from tensorfusion.errors import ApiError, NotFound
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
PAGE = 500
PASSES_PER_LIFE = 6
"""Passes in one lifetime of an event: none stays longer than a sixth beyond it."""


class EventExpiry:
    """Deletes events whose last occurrence is older than their lifetime.

    Args:
        ttl_seconds: Lifetime of an event since it was last seen.
    """

    def __init__(self, store: Store, events: Resource, ttl_seconds: float, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._ttl = ttl_seconds
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Clean up until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.run_once(stop)
            except ApiError as error:
                log.warning("events not cleaned up", extra={"error": str(error)})
            self._clock.wait(stop, self._ttl / PASSES_PER_LIFE)

    def run_once(self, stop: threading.Event | None = None) -> int:
        """Look at every event once, a page at a time; return how many were deleted."""
        oldest = self._clock.now() - self._ttl
        deleted = 0
        token = ""
        while stop is None or not stop.is_set():
            page = self._store.list(self._events, limit=PAGE, continue_token=token)
            for event in page.items:
                if _last_seen(event) < oldest:
                    deleted += self._delete(event)
            token = page.continue_token
            if not token:
                break
        return deleted

    def _delete(self, event: JsonObject) -> int:
        metadata = event["metadata"]
        try:
            # An event that counted up meanwhile has another version, and stays.
            self._store.delete(
                self._events,
                metadata["name"],
                metadata["namespace"],
                resource_version=metadata["resourceVersion"],
            )
        except NotFound:
            return 0
        except ApiError as error:
            log.debug("event not deleted", extra={"event": metadata["name"], "error": str(error)})
            return 0
        return 1


def _last_seen(event: JsonObject) -> float:
    """Epoch seconds of the last occurrence, of the creation when the event does not say."""
    series = event.get("series") or {}
    for text in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
    ):
        if text:
            return parse_timestamp(text)
    return parse_timestamp(event["metadata"]["creationTimestamp"])
