"""Informers: a typed, indexed, always current copy of one resource, kept by list and watch."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.clock import Backoff, Clock
from tensorfusion.errors import ApiError, Gone
from tensorfusion.store.interface import EventType, PollableWatch, Store, Watch

log = logging.getLogger(__name__)
T = TypeVar("T")
PAGE = 500


def key_of(obj: JsonObject) -> str:
    """``namespace/name``, or the bare name of a cluster-scoped object."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


def split_key(key: str) -> tuple[str, str]:
    """Take a key apart into (namespace, name); the namespace may be empty."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One change of a cached object: ``old`` is None when it is new, ``new`` when it is gone."""

    key: str
    old: T | None
    new: T | None


class Informer(Generic[T]):
    """A cache of one resource.

    Args:
        decode: The msgspec struct of the view to keep; fields it lacks are not kept.
        indexers: Index name to a function that names the values an object is found under.

    Concurrency: `run` belongs to one thread; reads are safe from any thread. Handlers run on the
    informer's thread and must be quick: put a key on a queue and return.
    """

    def __init__(
        self,
        store: Store,
        resource: Resource,
        decode: type[T],
        *,
        clock: Clock,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        indexers: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
    ) -> None:
        self.resource = resource
        self.synced = threading.Event()
        self._store = store
        self._decode = decode
        self._clock = clock
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._objects: dict[str, T] = {}
        self._versions: dict[str, str] = {}
        self._indexers = dict(indexers or {})
        self._indexes: dict[str, dict[str, dict[str, None]]] = {n: {} for n in self._indexers}
        self._handlers: list[Callable[[Change[T]], None]] = []
        self._lock = threading.Lock()
        self._backoff = Backoff(0.1, 30.0)
        self._watch: Watch | None = None
        self._polled: PollableWatch | None = None
        self._callback: Callable[[], None] = lambda: None

    def subscribe(self, handler: Callable[[Change[T]], None]) -> None:
        """Call ``handler`` for every change; subscribe before `run` starts."""
        self._handlers.append(handler)

    def get(self, key: str) -> T | None:
        """Return the object of that key, if there is one."""
        return self._objects.get(key)

    def values(self) -> list[T]:
        """Return every object, in no order."""
        with self._lock:
            return list(self._objects.values())

    def all_keys(self) -> list[str]:
        """Return every key, in no order."""
        with self._lock:
            return list(self._objects)

    def by_index(self, index: str, value: str) -> list[T]:
        """Return the objects that the indexer named ``value`` for, in the order they came."""
        with self._lock:
            return [self._objects[k] for k in self._indexes[index].get(value, ())]

    def run(self, stop: threading.Event) -> None:
        """List and watch until ``stop`` is set; errors are retried with backoff."""
        version = ""
        while not stop.is_set():
            try:
                if not version:
                    version = self._relist()
                    self.synced.set()
                version = self._follow(version, stop)
                self._backoff.reset()
            except Gone:
                version = ""
            except ApiError as error:
                seconds = self._backoff.next_seconds()
                log.warning(
                    "informer retries",
                    extra={"resource": self.resource.qualified, "error": str(error)},
                )
                self._clock.wait(stop, seconds)
                version = ""

    def attach(self, callback: Callable[[], None]) -> bool:
        """List, and watch without a thread: `pump` takes the events, ``callback`` announces them.

        Returns:
            False when the store's watches need a thread; `run` is for those.
        """
        version = self._relist()
        watch = self._store.watch(
            self.resource,
            self._namespace,
            resource_version=version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        if not isinstance(watch, PollableWatch):
            watch.stop()
            return False
        self._polled = watch
        self._callback = callback
        watch.notify(callback)
        self.synced.set()
        return True

    def pump(self) -> None:
        """Take in what has come since the last call; never waits (after `attach`)."""
        if self._polled is None:
            return
        for event in self._polled.drain():
            if event.type is EventType.ERROR:
                log.info("informer lists again", extra={"resource": self.resource.qualified})
                self.attach(self._callback)
                return
            if event.type is EventType.DELETED:
                self._remove(key_of(event.object))
            else:
                self._put(event.object)

    def interrupt(self) -> None:
        """End a blocked watch so that `run` sees its stop event."""
        for watch in (self._watch, self._polled):
            if watch is not None:
                watch.stop()

    def _relist(self) -> str:
        seen: set[str] = set()
        token, version = "", ""
        while True:
            page = self._store.list(
                self.resource,
                self._namespace,
                label_selector=self._label_selector,
                field_selector=self._field_selector,
                limit=PAGE,
                continue_token=token,
            )
            version = version or page.resource_version
            for obj in page.items:
                seen.add(key_of(obj))
                self._put(obj)
            token = page.continue_token
            if not token:
                break
        for key in [k for k in self.all_keys() if k not in seen]:
            self._remove(key)
        return version

    def _follow(self, version: str, stop: threading.Event) -> str:
        watch = self._store.watch(
            self.resource,
            self._namespace,
            resource_version=version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            bookmarks=True,
            timeout_seconds=300,
        )
        self._watch = watch
        try:
            if stop.is_set():  # `interrupt` may have come before there was a watch to end
                return version
            for event in watch:
                if event.type is EventType.ERROR:
                    raise Gone(str(event.object.get("message", "watch ended with an error")))
                version = event.object["metadata"]["resourceVersion"]
                if event.type is EventType.DELETED:
                    self._remove(key_of(event.object))
                elif event.type is not EventType.BOOKMARK:
                    self._put(event.object)
                if stop.is_set():
                    break
        finally:
            self._watch = None
            watch.stop()
        return version

    def _put(self, obj: JsonObject) -> None:
        key = key_of(obj)
        version = str(obj["metadata"].get("resourceVersion", ""))
        if version and self._versions.get(key) == version:
            return
        try:
            new = msgspec.convert(obj, self._decode, strict=False)
        except msgspec.ValidationError as error:
            log.error(
                "object cannot be decoded",
                extra={"resource": self.resource.qualified, "key": key, "error": str(error)},
            )
            return
        with self._lock:
            old = self._objects.get(key)
            self._objects[key] = new
            self._versions[key] = version
            self._reindex(key, old, new)
        self._tell(Change(key, old, new))

    def _remove(self, key: str) -> None:
        with self._lock:
            old = self._objects.pop(key, None)
            self._versions.pop(key, None)
            if old is None:
                return
            self._reindex(key, old, None)
        self._tell(Change(key, old, None))

    def _reindex(self, key: str, old: T | None, new: T | None) -> None:
        for name, function in self._indexers.items():
            index = self._indexes[name]
            before = set(function(old)) if old is not None else set()
            after = set(function(new)) if new is not None else set()
            for value in before - after:
                bucket = index.get(value)
                if bucket is not None:
                    bucket.pop(key, None)
                    if not bucket:
                        del index[value]
            for value in after - before:
                index.setdefault(value, {})[key] = None

    def _tell(self, change: Change[T]) -> None:
        for handler in self._handlers:
            handler(change)


AnyInformer = Informer[Any]
