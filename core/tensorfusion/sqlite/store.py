"""The resource store in one SQLite file, in process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensorfusion.api.registry import NAMESPACES, PODS
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.clock import Clock, SystemClock
from tensorfusion.errors import BadRequest, NotFound
from tensorfusion.sqlite.database import Counters, Database
from tensorfusion.sqlite.deletion import Collector
from tensorfusion.sqlite.events import (
    DEFAULT_QUEUE_EVENTS,
    DEFAULT_RING_BYTES,
    DEFAULT_RING_EVENTS,
    Delivery,
    Ring,
    SQLiteWatch,
    Subscription,
    bookmark,
    expired,
)
from tensorfusion.sqlite.journal import DEFAULT_CACHED_RECORDS, Journal, RecordCache
from tensorfusion.sqlite.paging import ContinueToken, decode_token
from tensorfusion.sqlite.preparation import check_preconditions, details_of
from tensorfusion.sqlite.records import Key, Record
from tensorfusion.sqlite.subresources import scale_of
from tensorfusion.sqlite.writes import WriteOptions, Writes
from tensorfusion.store.admission import Admission
from tensorfusion.store.interface import EventType, ObjectList, PatchType
from tensorfusion.store.selectors import compile_selectors

INITIAL_NAMESPACES: Final = ("default", "kube-system", "tensor-fusion-sys")
_COLLECTED_PER_CALL: Final = 20
_FILTERED_PAGE: Final = 1_000
_PROPAGATIONS: Final = ("Background", "Foreground", "Orphan")


@dataclass(frozen=True, slots=True)
class RecordList:
    """A page of a list as records; the fields are those of `ObjectList`."""

    records: list[Record]
    version: int
    continue_token: str = ""
    remaining: int | None = None


class SQLiteStore:
    """`Store` over one SQLite file, for one process.

    A commit survives ``kill -9``; see `tensorfusion.sqlite.database` for power cuts. Writes are
    serialised by one lock. A watch can start from any version that the ring of recent changes
    still has; after a restart that is the version of the restart.

    Args:
        path: The file; its folder must exist. Created when missing.
        clock: For timestamps and timeouts.
        admission: Asked before writes; see `tensorfusion.store.admission`.
        ring_events: How many changes watches can look back.
        ring_bytes: The same bound in bytes of JSON.
        queue_events: How many undelivered events end a watch.
        cached_records: How many objects are kept decoded.
        bookmark_seconds: How often an idle watch with bookmarks gets one.

    Raises:
        ConfigError: The file cannot be opened, or has another schema version.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Clock | None = None,
        admission: Admission | None = None,
        ring_events: int = DEFAULT_RING_EVENTS,
        ring_bytes: int = DEFAULT_RING_BYTES,
        queue_events: int = DEFAULT_QUEUE_EVENTS,
        cached_records: int = DEFAULT_CACHED_RECORDS,
        bookmark_seconds: float = 60.0,
    ) -> None:
        self.counters = Counters()
        self.clock: Clock = clock or SystemClock()
        self.bookmark_seconds = bookmark_seconds
        self._queue_events = queue_events
        self.database = Database(str(path), self.counters)
        self._ring = Ring(self.database.stored_version(), ring_events, ring_bytes)
        self._cache = RecordCache(cached_records)
        self._journal = Journal(self.database, self._ring, self._cache)
        self._collector = Collector(self.database, self._journal, self.clock)
        self._writes = Writes(self._journal, self._collector, self.clock, admission)
        with self._journal.transaction():
            self._collector.recover()
            for name in INITIAL_NAMESPACES:
                if self._journal.current(Key(NAMESPACES.qualified, "", name)) is None:
                    self._writes.create(
                        NAMESPACES, {"metadata": {"name": name}}, "", WriteOptions(admit=False)
                    )

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._ring.version

    @property
    def oldest_version(self) -> int:
        """The oldest resourceVersion a watch can start from."""
        return self._ring.oldest

    def set_admission(self, admission: Admission | None) -> None:
        """Ask ``admission`` from now on; for a composition in which it needs the store first."""
        self._writes.admission = admission

    def close(self) -> None:
        """End all watches and close the file."""
        self._ring.close()
        with self._journal.transaction():
            pass
        self.database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Group the writes of this thread into one commit; other writers wait meanwhile.

        When the block raises, none of them happened, and no watch saw any.
        """
        with self._journal.transaction():
            yield
            if self._journal.depth == 1:
                self._collector.settle_owners()
        self._collect_a_little()

    def collect(self, limit: int = 100) -> bool:
        """Do a bounded step of garbage collection.

        Returns:
            Whether more can be done at once; call again then.
        """
        if not self._collector.pending:
            return False
        with self._journal.transaction():
            return self._collector.step(limit)

    def _collect_a_little(self) -> None:
        if self._collector.pending and not self._journal.mine:
            self.collect(_COLLECTED_PER_CALL)

    # Reads.

    def record(self, resource: Resource, name: str, namespace: str = "") -> Record:
        """Return one object with its stored bytes.

        Raises:
            NotFound: There is none of that name.
        """
        key = Key(resource.qualified, namespace if resource.namespaced else "", name)
        if self._journal.mine:
            record = self._journal.current(key)
        else:
            self.counters.records_looked_at += 1
            record = self._cache.get(key)
            if record is None:
                epoch = self._cache.epoch
                record = self.database.read(key, writer=False)
                if record is not None:
                    self._cache.add_if_unchanged(key, record, epoch)
        if record is None:
            raise not_found(resource, name)
        return record

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object; see `Store.get`."""
        return self.record(resource, name, namespace).obj

    def get_scale(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return the ``scale`` subresource of an object."""
        _require_scale(resource)
        return scale_of(self.get(resource, name, namespace))

    def list_records(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 0,
        continue_token: str = "",
    ) -> RecordList:
        """Return a page of a list as records; arguments and errors as of `Store.list`."""
        predicate = compile_selectors(resource, label_selector, field_selector)
        namespace = namespace if resource.namespaced else ""
        after, first_version = ("", ""), 0
        if continue_token:
            token = decode_token(continue_token)
            if token.version < self._ring.oldest:
                raise expired(token.version, self._ring.oldest)
            after, first_version = (token.namespace, token.name), token.version
        found: list[tuple[str, str, Record]] = []
        # One more than asked for tells whether a page follows.
        wanted = limit + 1 if limit > 0 else 0
        version = 0
        while True:
            page = wanted if predicate is None else (max(wanted, _FILTERED_PAGE) if wanted else 0)
            seen, rows = self.database.read_page(
                resource.qualified, namespace, after, page, writer=self._journal.mine
            )
            version = version or seen
            found += rows if predicate is None else [r for r in rows if predicate(self._obj(r[2]))]
            if not page or len(rows) < page or (wanted and len(found) >= wanted):
                break
            after = rows[-1][:2]
        version = first_version or version
        token_text, remaining = "", None
        if limit > 0 and len(found) > limit:
            found = found[:limit]
            last = found[-1]
            token_text = ContinueToken(version, last[0], last[1]).encoded()
            if predicate is None:
                remaining = self.database.count_after(resource.qualified, namespace, last[:2])
        return RecordList([row[2] for row in found], version, token_text, remaining)

    @staticmethod
    def _obj(record: Record) -> JsonObject:
        return record.obj

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 0,
        continue_token: str = "",
    ) -> ObjectList:
        """Return objects; see `Store.list`.

        Later pages are read from the current state in key order and report the version of the
        first, so a watch from there converges on the truth.
        """
        page = self.list_records(
            resource,
            namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            limit=limit,
            continue_token=continue_token,
        )
        items = [record.obj for record in page.records]
        return ObjectList(items, str(page.version), page.continue_token, page.remaining)

    def subscribe(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str = "",
        label_selector: str = "",
        field_selector: str = "",
        initial_events: bool = False,
        on_ready: Callable[[], None] | None = None,
    ) -> Subscription:
        """Start a watch whose queue the caller empties; end it with `unsubscribe`.

        Args:
            resource: The kind to watch.
            namespace: Only there; everywhere when empty.
            resource_version: As of `Store.watch`.
            label_selector: As of `Store.list`.
            field_selector: As of `Store.list`.
            initial_events: Start with an ADDED per object and a bookmark that marks their end.
            on_ready: Called from the writer's thread when something can be taken.
        """
        subscription = Subscription(
            resource=resource,
            namespace=namespace if resource.namespaced else "",
            predicate=compile_selectors(resource, label_selector, field_selector),
            max_pending=self._queue_events,
            on_ready=on_ready,
        )
        since = parse_version(resource_version)
        if since == 0 or initial_events:
            page = self.list_records(
                resource, namespace, label_selector=label_selector, field_selector=field_selector
            )
            for record in page.records:
                subscription.push(Delivery(EventType.ADDED, record))
            since = page.version
            if initial_events:
                marker = bookmark(resource, since, initial_end=True)
                subscription.push(Delivery(EventType.BOOKMARK, marker))
        self._ring.subscribe(subscription, since)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a watch of `subscribe`."""
        self._ring.unsubscribe(subscription)
        subscription.close()

    def settled_version(self, subscription: Subscription) -> int | None:
        """Return the version for a bookmark, or None while events wait to be taken."""
        return self._ring.settled_version(subscription)

    def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str = "",
        label_selector: str = "",
        field_selector: str = "",
        bookmarks: bool = False,
        timeout_seconds: float | None = None,
    ) -> SQLiteWatch:
        """Stream changes; see `Store.watch`."""
        subscription = self.subscribe(
            resource,
            namespace,
            resource_version=resource_version,
            label_selector=label_selector,
            field_selector=field_selector,
        )
        return SQLiteWatch(
            self._ring,
            subscription,
            self.clock,
            timeout_seconds=timeout_seconds,
            bookmark_seconds=self.bookmark_seconds if bookmarks else None,
        )

    # Writes.

    def create(
        self,
        resource: Resource,
        obj: JsonObject,
        namespace: str = "",
        *,
        dry_run: bool = False,
        field_manager: str = "",
        field_validation: str = "Warn",
    ) -> JsonObject:
        """Store a new object; see `Store.create`."""
        options = WriteOptions(dry_run, field_manager, field_validation)
        with self.transaction():
            return self._writes.create(resource, obj, namespace, options)

    def update(
        self,
        resource: Resource,
        obj: JsonObject,
        *,
        subresource: str = "",
        dry_run: bool = False,
        field_manager: str = "",
        field_validation: str = "Warn",
    ) -> JsonObject:
        """Replace an object, its status or its scale; see `Store.update`."""
        _require_subresource(resource, subresource)
        options = WriteOptions(dry_run, field_manager, field_validation, subresource)
        with self.transaction():
            return self._writes.update(resource, obj, options)

    def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        patch_type: PatchType = PatchType.MERGE,
        subresource: str = "",
        dry_run: bool = False,
        field_manager: str = "",
        force: bool = False,
        field_validation: str = "Warn",
    ) -> JsonObject:
        """Change part of an object; see `Store.patch`."""
        return self.patch_or_create(
            resource,
            name,
            patch,
            namespace,
            patch_type=patch_type,
            force=force,
            options=WriteOptions(dry_run, field_manager, field_validation, subresource),
        )[0]

    def patch_or_create(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str,
        *,
        patch_type: PatchType,
        force: bool,
        options: WriteOptions,
    ) -> tuple[JsonObject, bool]:
        """Patch, and tell whether a server-side apply created the object."""
        _require_subresource(resource, options.subresource)
        key = Key(resource.qualified, namespace if resource.namespaced else "", name)
        with self.transaction():
            return self._writes.patch(resource, key, patch, patch_type, options, force=force)

    def bind(
        self, name: str, namespace: str, binding: JsonObject, *, dry_run: bool = False
    ) -> JsonObject:
        """Write a ``Binding``: the pod gets its node and the binding's annotations, once.

        Raises:
            NotFound: There is no such pod.
            Conflict: The pod is bound already, or is being deleted.
        """
        key = Key(PODS.qualified, namespace, name)
        with self.transaction():
            return self._writes.bind(PODS, key, binding, WriteOptions(dry_run))

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        propagation: str = "Background",
        uid: str = "",
        resource_version: str = "",
        grace_period_seconds: int | None = None,
        dry_run: bool = False,
    ) -> JsonObject:
        """Delete an object or mark it; see `Store.delete`.

        A pod that has a node is only marked; it goes when a deletion with a grace period of 0
        arrives, as the node sends it once the pod's processes have ended.
        """
        return self.delete_reporting(
            resource,
            name,
            namespace,
            propagation=propagation,
            uid=uid,
            resource_version=resource_version,
            grace_period_seconds=grace_period_seconds,
            dry_run=dry_run,
        )[0]

    def delete_reporting(
        self,
        resource: Resource,
        name: str,
        namespace: str,
        *,
        propagation: str,
        uid: str,
        resource_version: str,
        grace_period_seconds: int | None,
        dry_run: bool,
    ) -> tuple[JsonObject, bool]:
        """Delete, and tell whether the object is gone rather than marked."""
        if propagation not in _PROPAGATIONS:
            raise BadRequest(
                f"propagationPolicy is {propagation!r}; Background, Foreground and Orphan are allowed"
            )
        key = Key(resource.qualified, namespace if resource.namespaced else "", name)
        with self.transaction():
            record = self._journal.current(key)
            if record is None:
                raise not_found(resource, name)
            check_preconditions(resource, record.obj, uid=uid, resource_version=resource_version)
            options = WriteOptions(dry_run)
            return self._writes.delete(
                resource, key, record, propagation, grace_period_seconds, options
            )


def not_found(resource: Resource, name: str) -> NotFound:
    """Return the error for an object that does not exist."""
    return NotFound(f'{resource.qualified} "{name}" not found', details=details_of(resource, name))


def parse_version(text: str) -> int:
    """Read a resourceVersion; empty is 0.

    Raises:
        BadRequest: It is not a number this server gave.
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest(f"Invalid value: {text[:40]!r}: resourceVersion must be a number")
    return int(text)


def _require_subresource(resource: Resource, subresource: str) -> None:
    if subresource == "":
        return
    if subresource == "scale":
        _require_scale(resource)
    elif subresource != "status" or not resource.has_status:
        raise NotFound(
            f"{resource.qualified} has no subresource {subresource!r}",
            details=details_of(resource, ""),
        )


def _require_scale(resource: Resource) -> None:
    if not resource.has_scale:
        raise NotFound(f"{resource.qualified} has no subresource 'scale'")
