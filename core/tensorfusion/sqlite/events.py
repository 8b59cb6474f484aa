"""Recent changes in memory, and the watches that read them.

The ring keeps a bounded number of changes; a watch that asks for an older version gets
``Gone``, and so does one that reads too slowly for its own bounded queue.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tensorfusion.api.resource import Resource
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, Gone
from tensorfusion.sqlite.records import Key, Record, at_version
from tensorfusion.store.interface import EventType, WatchEvent
from tensorfusion.store.selectors import Predicate

DEFAULT_RING_EVENTS: Final = 10_000
DEFAULT_RING_BYTES: Final = 64 * 1024 * 1024
DEFAULT_QUEUE_EVENTS: Final = 20_000
_DECODED_EVENTS: Final = 1_000
INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"


@dataclass(frozen=True, slots=True)
class Change:
    """One committed write.

    Attributes:
        version: Its resourceVersion.
        key: The object.
        new: The object afterwards; for a deletion its last state with the deletion's version.
        old: The object before; None when it is new.
        deleted: Whether the object is gone.
    """

    version: int
    key: Key
    new: Record
    old: Record | None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event of a watch: its type and the record that holds the object."""

    type: EventType
    record: Record


def expired(version: int, oldest: int) -> Gone:
    """Return the error for a version that is no longer kept."""
    return Gone(f"too old resource version: {version} ({oldest})")


def bookmark(resource: Resource, version: int, *, initial_end: bool = False) -> Record:
    """Return the record of a BOOKMARK event."""
    metadata: dict[str, object] = {"creationTimestamp": None}
    if initial_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    return at_version(obj, version)


@dataclass(slots=True, eq=False)
class Subscription:
    """The queue of one watch.

    Attributes:
        resource: The kind watched.
        namespace: Only this namespace; all when empty.
        predicate: The selectors, or None.
        max_pending: How many undelivered events end the watch.
        ready: Set while something can be taken.
        on_ready: Called (from the writer's thread) when the queue stops being empty.
    """

    resource: Resource
    namespace: str
    predicate: Predicate | None
    max_pending: int
    ready: threading.Event = field(default_factory=threading.Event)
    on_ready: Callable[[], None] | None = None
    error: ApiError | None = None
    closed: bool = False
    _queue: deque[Delivery] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, change: Change) -> None:
        """Queue a change if it concerns this watch."""
        delivery = self._select(change)
        with self._lock:
            if delivery is None or self.error is not None:
                return
            if len(self._queue) >= self.max_pending:
                self._queue.clear()
                self.error = Gone(
                    f"the watch fell {self.max_pending} events behind and was ended; list again"
                )
            else:
                self._queue.append(delivery)
        self._wake()

    def push(self, delivery: Delivery) -> None:
        """Queue an event as it is, without the bound (initial events)."""
        self._queue.append(delivery)
        self.ready.set()

    def _select(self, change: Change) -> Delivery | None:
        if self.namespace and change.key.namespace != self.namespace:
            return None
        predicate = self.predicate
        if predicate is None:
            if change.deleted:
                return Delivery(EventType.DELETED, change.new)
            kind = EventType.MODIFIED if change.old is not None else EventType.ADDED
            return Delivery(kind, change.new)
        matched = change.old is not None and predicate(change.old.obj)
        matches = not change.deleted and predicate(change.new.obj)
        if matches:
            return Delivery(EventType.MODIFIED if matched else EventType.ADDED, change.new)
        if matched and change.old is not None:
            return Delivery(EventType.DELETED, at_version(change.old.obj, change.version))
        return None

    def take(self) -> list[Delivery]:
        """Return everything queued; empty when there is nothing.

        Raises:
            Gone: The watch was ended for being slow.
        """
        with self._lock:
            taken = list(self._queue)
            self._queue.clear()
            if self.error is None and not self.closed:
                self.ready.clear()
        if not taken and self.error is not None:
            raise self.error
        return taken

    def close(self) -> None:
        """End the watch; whoever waits is woken."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if not self.ready.is_set():
            self.ready.set()
            if self.on_ready is not None:
                self.on_ready()


class Ring:
    """Recent changes and the watches they go to.

    Concurrency: any thread.
    """

    def __init__(self, version: int, max_events: int, max_bytes: int) -> None:
        self._changes: deque[Change] = deque()
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self._oldest = version
        self._version = version
        self._lock = threading.RLock()
        self._subscriptions: dict[str, list[Subscription]] = {}

    @property
    def version(self) -> int:
        """The newest published version."""
        return self._version

    @property
    def oldest(self) -> int:
        """The oldest version a watch can start from."""
        return self._oldest

    def publish(self, changes: list[Change]) -> None:
        """Append committed changes in order and hand them to the watches."""
        with self._lock:
            for change in changes:
                self._changes.append(change)
                self._bytes += len(change.new.raw)
                self._version = change.version
                for subscription in self._subscriptions.get(change.key.resource, ()):
                    subscription.offer(change)
            while self._changes and (
                len(self._changes) > self._max_events or self._bytes > self._max_bytes
            ):
                dropped = self._changes.popleft()
                self._bytes -= len(dropped.new.raw)
                self._oldest = dropped.version
            first = len(self._changes) - _DECODED_EVENTS - len(changes)
            for position in range(max(0, first), max(0, first + len(changes))):
                self._forget(self._changes[position])

    @staticmethod
    def _forget(change: Change) -> None:
        change.new.forget()
        if change.old is not None:
            change.old.forget()

    def subscribe(self, subscription: Subscription, since: int) -> None:
        """Start a watch after version ``since``, older changes first.

        Raises:
            Gone: The version is older than what is kept, or was never reached.
        """
        name = subscription.resource.qualified
        with self._lock:
            if since < self._oldest or since > self._version:
                raise expired(since, self._oldest)
            for change in self._changes:
                if change.version > since and change.key.resource == name:
                    subscription.offer(change)
            self._subscriptions.setdefault(name, []).append(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop handing changes to a watch."""
        with self._lock:
            watches = self._subscriptions.get(subscription.resource.qualified, [])
            if subscription in watches:
                watches.remove(subscription)

    def settled_version(self, subscription: Subscription) -> int | None:
        """Return the version up to which a watch has been told everything, for a bookmark.

        None while events wait to be taken: a bookmark must not overtake them.
        """
        with self._lock:
            return None if subscription.ready.is_set() else self._version

    def close(self) -> None:
        """End every watch."""
        with self._lock:
            for watches in self._subscriptions.values():
                for subscription in watches:
                    subscription.close()
            self._subscriptions.clear()


class SQLiteWatch:
    """The blocking form of a watch."""

    def __init__(
        self,
        ring: Ring,
        subscription: Subscription,
        clock: Clock,
        *,
        timeout_seconds: float | None,
        bookmark_seconds: float | None,
    ) -> None:
        self._ring = ring
        self._subscription = subscription
        self._clock = clock
        self._pending: deque[Delivery] = deque()
        self._bookmark_seconds = bookmark_seconds
        now = clock.monotonic()
        self._deadline = None if timeout_seconds is None else now + timeout_seconds
        self._next_bookmark = None if bookmark_seconds is None else now + bookmark_seconds

    def __iter__(self) -> Iterator[WatchEvent]:
        return self

    def __next__(self) -> WatchEvent:
        """Block for the next event."""
        subscription = self._subscription
        while True:
            if self._pending:
                delivery = self._pending.popleft()
                return WatchEvent(delivery.type, delivery.record.obj)
            if subscription.closed:
                raise StopIteration
            try:
                self._pending.extend(subscription.take())
            except Gone as error:
                self.stop()
                return WatchEvent(EventType.ERROR, error_status(error))
            if self._pending:
                continue
            wait_seconds = self._seconds_to_wait()
            if wait_seconds is None:
                version = self._ring.settled_version(subscription)
                if version is None:
                    continue
                return WatchEvent(EventType.BOOKMARK, bookmark(subscription.resource, version).obj)
            if wait_seconds <= 0:
                self.stop()
                raise StopIteration
            self._clock.wait(subscription.ready, wait_seconds)

    def drain(self) -> list[WatchEvent]:
        """Return what has come so far, without waiting; an ERROR event ends the watch."""
        try:
            self._pending.extend(self._subscription.take())
        except Gone as error:
            self.stop()
            return [WatchEvent(EventType.ERROR, error_status(error))]
        events = [WatchEvent(d.type, d.record.obj) for d in self._pending]
        self._pending.clear()
        return events

    def notify(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever `drain` has something new."""
        self._subscription.on_ready = callback
        if self._subscription.ready.is_set():
            callback()

    def _seconds_to_wait(self) -> float | None:
        """Return how long to wait; None when a bookmark is due, 0 at the end."""
        now = self._clock.monotonic()
        until = now + 3600.0
        if self._deadline is not None:
            if now >= self._deadline:
                return 0.0
            until = min(until, self._deadline)
        if self._next_bookmark is not None and self._bookmark_seconds is not None:
            if now >= self._next_bookmark:
                self._next_bookmark = now + self._bookmark_seconds
                return None
            until = min(until, self._next_bookmark)
        return until - now

    def stop(self) -> None:
        """End the iteration."""
        self._ring.unsubscribe(self._subscription)
        self._subscription.close()


def error_status(error: ApiError) -> dict[str, object]:
    """Return the ``Status`` of an ERROR event."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
        "code": error.code,
    }
