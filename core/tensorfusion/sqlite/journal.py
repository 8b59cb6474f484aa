"""The writer's side of the store: one lock, one open transaction, commit and publication."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensorfusion.api.resource import JsonObject
from tensorfusion.sqlite.database import Database, translated
from tensorfusion.sqlite.events import Change, Ring
from tensorfusion.sqlite.fair_lock import FairLock
from tensorfusion.sqlite.preparation import owner_uids
from tensorfusion.sqlite.records import Key, Record, at_version

DEFAULT_CACHED_RECORDS: Final = 4_096


class RecordCache:
    """The most recently used committed records. Concurrency: any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._records: dict[Key, Record] = {}
        self._lock = threading.Lock()
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Grows with every committed change; see `add_if_unchanged`."""
        return self._epoch

    def get(self, key: Key) -> Record | None:
        """Return a cached record."""
        return self._records.get(key)

    def add_if_unchanged(self, key: Key, record: Record, epoch: int) -> None:
        """Remember a record that was read from the file, unless a commit came in between."""
        with self._lock:
            if epoch == self._epoch:
                self._insert(key, record)

    def replace(self, changes: list[Change]) -> None:
        """Follow committed changes."""
        with self._lock:
            self._epoch += 1
            for change in changes:
                self._records.pop(change.key, None)
                if not change.deleted:
                    self._insert(change.key, change.new)

    def _insert(self, key: Key, record: Record) -> None:
        if len(self._records) >= self._capacity:
            del self._records[next(iter(self._records))]
        self._records[key] = record


class Journal:
    """Groups writes into transactions and publishes them after the commit.

    Concurrency: `transaction` serialises writers; inside it, everything is the caller's alone.
    """

    def __init__(self, database: Database, ring: Ring, cache: RecordCache) -> None:
        self._database = database
        self._ring = ring
        self._cache = cache
        self._lock = FairLock()
        self._owner = 0
        self._depth = 0
        self._version = ring.version
        self._changes: list[Change] = []
        self._overlay: dict[Key, Record | None] = {}

    @property
    def mine(self) -> bool:
        """Whether this thread is inside a transaction."""
        return self._owner == threading.get_ident()

    @property
    def depth(self) -> int:
        """How many transactions are nested; 0 outside."""
        return self._depth

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside, or nothing when the block raises.

        A nested block that raises undoes only its own writes.
        """
        with self._lock, translated(self._database.path):
            if self._depth:
                with self._nested():
                    yield
                return
            self._owner, self._depth = threading.get_ident(), 1
            try:
                yield
                self._database.commit(self._version)
            except BaseException:
                self._database.rollback()
                self._version = self._ring.version
                self._changes, self._overlay = [], {}
                raise
            finally:
                self._owner, self._depth = 0, 0
            if self._changes:
                changes, self._changes, self._overlay = self._changes, [], {}
                self._cache.replace(changes)
                self._ring.publish(changes)

    @contextmanager
    def _nested(self) -> Iterator[None]:
        name = f"level_{self._depth}"
        count, version = len(self._changes), self._version
        self._database.savepoint(name)
        self._depth += 1
        try:
            yield
        except BaseException:
            self._database.rollback_to(name)
            del self._changes[count:]
            self._version = version
            self._overlay = {
                change.key: None if change.deleted else change.new for change in self._changes
            }
            raise
        finally:
            self._depth -= 1
        self._database.release(name)

    def current(self, key: Key) -> Record | None:
        """Return an object as this transaction sees it."""
        self._database.counters.records_looked_at += 1
        if key in self._overlay:
            return self._overlay[key]
        record = self._cache.get(key)
        if record is None:
            epoch = self._cache.epoch
            record = self._database.read(key, writer=True)
            if record is not None:
                self._cache.add_if_unchanged(key, record, epoch)
        return record

    def put(self, key: Key, obj: JsonObject, old: Record | None) -> Record:
        """Write an object under the next version."""
        record = at_version(obj, self._version + 1)
        owners = owner_uids(obj["metadata"])
        if old is not None and owners == owner_uids(old.obj["metadata"]):
            self._database.write(key, record, None)
        else:
            self._database.write(key, record, owners if owners or old is not None else None)
        self._note(Change(record.version, key, record, old))
        return record

    def remove(self, key: Key, obj: JsonObject, old: Record) -> Record:
        """Delete an object; ``obj`` is its last state, for the DELETED event."""
        record = at_version(obj, self._version + 1)
        self._database.remove(key, record.uid)
        self._note(Change(record.version, key, record, old, deleted=True))
        return record

    def _note(self, change: Change) -> None:
        self._version = change.version
        self._changes.append(change)
        self._overlay[change.key] = None if change.deleted else change.new
