"""The SQLite file: connections, schema and rows. No rule of the API lives here.

Durability: WAL with ``synchronous=NORMAL``. A commit survives the death of the process at any
moment (``kill -9`` included); the last commits before a power cut or kernel crash may be lost,
never half of one.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tensorfusion.errors import ConfigError, Unavailable
from tensorfusion.sqlite.records import Key, Record

SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_MILLISECONDS: Final = 5_000

_CREATE: Final = """
BEGIN IMMEDIATE;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
  resource TEXT NOT NULL,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  uid TEXT NOT NULL,
  version INTEGER NOT NULL,
  body BLOB NOT NULL,
  UNIQUE (resource, namespace, name)
);
CREATE UNIQUE INDEX objects_uid ON objects (uid);
CREATE TABLE owners (
  owner_uid TEXT NOT NULL,
  uid TEXT NOT NULL,
  resource TEXT NOT NULL,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (owner_uid, uid)
) WITHOUT ROWID;
CREATE INDEX owners_dependent ON owners (uid);
CREATE TABLE garbage (
  uid TEXT NOT NULL,
  mode TEXT NOT NULL,
  resource TEXT NOT NULL,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (uid, mode)
) WITHOUT ROWID;
INSERT INTO meta VALUES ('version', 1);
PRAGMA user_version=1;
COMMIT;
"""


class InsufficientStorage(Unavailable):
    """The disk is full; nothing of the refused write was stored."""

    reason = "InsufficientStorage"


@dataclass(slots=True)
class Counters:
    """How much work the store did; read by tests and metrics.

    Attributes:
        rows_read: Object rows fetched from the file (cache hits do not count).
        records_looked_at: Objects fetched from the file or from the cache.
        rows_written: Object rows inserted, replaced or deleted.
        transactions: Committed write transactions.
    """

    rows_read: int = 0
    records_looked_at: int = 0
    rows_written: int = 0
    transactions: int = 0


@dataclass(frozen=True, slots=True)
class Garbage:
    """One pending job of the collector: what to do about the dependents of ``uid``.

    Attributes:
        uid: The owner; it may be gone already.
        mode: ``background``, ``foreground``, ``orphan`` or ``namespace``.
        key: Where the owner lives or lived.
    """

    uid: str
    mode: str
    key: Key


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn errors of SQLite into our own, with the file named."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            raise InsufficientStorage(
                f"cannot write {path}: {text}; free some disk space, nothing was stored",
                retry_after_seconds=5,
            ) from error
        raise Unavailable(f"cannot use {path}: {text}", retry_after_seconds=1) from error
    except sqlite3.DatabaseError as error:
        raise Unavailable(f"cannot use {path}: {error}") from error


class Database:
    """Rows of one file.

    Concurrency: methods that write, and reads with ``writer=True``, are for the thread that
    holds the store's writer lock; other reads use a connection and a lock of their own.
    """

    def __init__(self, path: str, counters: Counters) -> None:
        self.path = path
        self.counters = counters
        self._read_lock = threading.RLock()
        self._in_transaction = False
        try:
            self._writer = self._connect()
            self._prepare_schema()
            self._reader = self._connect()
        except sqlite3.Error as error:
            raise ConfigError(f"cannot open the resource store {path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MILLISECONDS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cache_size=-32768")
        return connection

    def _prepare_schema(self) -> None:
        (found,) = self._writer.execute("PRAGMA user_version").fetchone()
        if found == SCHEMA_VERSION:
            return
        if found != 0:
            raise ConfigError(
                f"{self.path} has store schema version {found}, this program reads "
                f"{SCHEMA_VERSION}; use the program that wrote it, or another data folder"
            )
        self._writer.executescript(_CREATE)

    def close(self) -> None:
        """Close both connections; the WAL is folded into the file."""
        with self._read_lock:
            self._reader.close()
            self._writer.close()

    # Transactions.

    def begin(self) -> None:
        """Open the write transaction unless it is open."""
        if not self._in_transaction:
            self._writer.execute("BEGIN IMMEDIATE")
            self._in_transaction = True

    def commit(self, version: int) -> bool:
        """Store the version counter and commit; False when nothing was written."""
        if not self._in_transaction:
            return False
        self._writer.execute("UPDATE meta SET value=? WHERE key='version'", (version,))
        self._writer.execute("COMMIT")
        self._in_transaction = False
        self.counters.transactions += 1
        return True

    def rollback(self) -> None:
        """Undo the write transaction, if one is open."""
        if self._in_transaction:
            self._in_transaction = False
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def savepoint(self, name: str) -> None:
        """Mark a point inside the transaction to return to."""
        self.begin()
        self._writer.execute(f"SAVEPOINT {name}")

    def release(self, name: str) -> None:
        """Keep what was written since the mark."""
        self._writer.execute(f"RELEASE {name}")

    def rollback_to(self, name: str) -> None:
        """Undo what was written since the mark."""
        if self._writer.in_transaction:
            self._writer.execute(f"ROLLBACK TO {name}")
            self._writer.execute(f"RELEASE {name}")

    def limit_pages(self, pages: int) -> None:
        """Let the file grow to ``pages`` pages at most (a quota; 0 lifts it)."""
        self._writer.execute(f"PRAGMA max_page_count={pages or 1_073_741_823}")

    # Rows.

    def stored_version(self) -> int:
        """Return the newest committed resourceVersion."""
        with self._read_lock:
            row = self._reader.execute("SELECT value FROM meta WHERE key='version'").fetchone()
        return int(row[0])

    def read(self, key: Key, *, writer: bool) -> Record | None:
        """Fetch one object."""
        sql = "SELECT version, uid, body FROM objects WHERE resource=? AND namespace=? AND name=?"
        if writer:
            row = self._writer.execute(sql, key).fetchone()
        else:
            with self._read_lock:
                row = self._reader.execute(sql, key).fetchone()
        if row is None:
            return None
        self.counters.rows_read += 1
        return Record(*row)

    def read_page(
        self, resource: str, namespace: str, after: tuple[str, str], limit: int, *, writer: bool
    ) -> tuple[int, list[tuple[str, str, Record]]]:
        """Fetch objects in (namespace, name) order.

        Args:
            resource: ``plural.group``.
            namespace: Only of this namespace; all when empty.
            after: Namespace and name of the last object of the page before; empty at the start.
            limit: How many rows at most; 0 is all.
            writer: Read uncommitted rows of the writer's transaction too.

        Returns:
            The version the page is consistent with, and (namespace, name, record) per row.
        """
        sql = "SELECT namespace, name, version, uid, body FROM objects WHERE resource=?"
        parameters: list[object] = [resource]
        if namespace:
            sql += " AND namespace=? AND name>?"
            parameters += [namespace, after[1]]
        elif after != ("", ""):
            sql += " AND (namespace, name) > (?, ?)"
            parameters += list(after)
        sql += " ORDER BY namespace, name LIMIT ?"
        parameters.append(limit or -1)
        connection = self._writer if writer else self._reader
        with self._read_lock:
            own = not connection.in_transaction
            if own:
                connection.execute("BEGIN")
            try:
                (version,) = connection.execute(
                    "SELECT value FROM meta WHERE key='version'"
                ).fetchone()
                rows = connection.execute(sql, parameters).fetchall()
            finally:
                if own:
                    connection.execute("COMMIT")
        self.counters.rows_read += len(rows)
        self.counters.records_looked_at += len(rows)
        return version, [(row[0], row[1], Record(*row[2:])) for row in rows]

    def count_after(self, resource: str, namespace: str, after: tuple[str, str]) -> int:
        """Count the objects that follow a page."""
        sql = "SELECT count(*) FROM objects WHERE resource=? AND (namespace, name) > (?, ?)"
        parameters = [resource, *after]
        if namespace:
            sql += " AND namespace=?"
            parameters.append(namespace)
        with self._read_lock:
            return int(self._reader.execute(sql, parameters).fetchone()[0])

    def count_by_resource(self) -> dict[str, int]:
        """Count objects per ``plural.group``."""
        with self._read_lock:
            return dict(
                self._reader.execute("SELECT resource, count(*) FROM objects GROUP BY resource")
            )

    def write(self, key: Key, record: Record, owner_uids: Sequence[str] | None) -> None:
        """Insert or replace one object; ``owner_uids`` None leaves its owners as they are."""
        self.begin()
        self._writer.execute(
            "INSERT INTO objects (resource, namespace, name, uid, version, body) "
            "VALUES (?,?,?,?,?,?) ON CONFLICT (resource, namespace, name) DO UPDATE SET "
            "uid=excluded.uid, version=excluded.version, body=excluded.body",
            (*key, record.uid, record.version, record.raw),
        )
        self.counters.rows_written += 1
        if owner_uids is not None:
            self._writer.execute("DELETE FROM owners WHERE uid=?", (record.uid,))
            self._writer.executemany(
                "INSERT OR IGNORE INTO owners VALUES (?,?,?,?,?)",
                [(owner, record.uid, *key) for owner in owner_uids],
            )

    def remove(self, key: Key, uid: str) -> None:
        """Delete one object and its entries as a dependent."""
        self.begin()
        self._writer.execute("DELETE FROM objects WHERE resource=? AND namespace=? AND name=?", key)
        self._writer.execute("DELETE FROM owners WHERE uid=?", (uid,))
        self.counters.rows_written += 1

    # Ownership and garbage; always on the writer's connection.

    def uid_exists(self, uid: str) -> bool:
        """Whether an object with this uid is stored."""
        return (
            self._writer.execute("SELECT 1 FROM objects WHERE uid=?", (uid,)).fetchone() is not None
        )

    def dependents(self, owner_uid: str, after_uid: str, limit: int) -> list[tuple[Key, str]]:
        """Return key and uid of up to ``limit`` objects that name ``owner_uid`` as an owner.

        They come in order of uid, those after ``after_uid``.
        """
        rows = self._writer.execute(
            "SELECT resource, namespace, name, uid FROM owners WHERE owner_uid=? AND uid>? "
            "ORDER BY uid LIMIT ?",
            (owner_uid, after_uid, limit),
        )
        return [(Key(*row[:3]), row[3]) for row in rows]

    def namespace_content(self, namespace: str, limit: int, after: Key | None) -> list[Key]:
        """Return keys of up to ``limit`` objects of any kind in a namespace, after ``after``."""
        rows = self._writer.execute(
            "SELECT resource, namespace, name FROM objects WHERE namespace=? "
            "AND (resource, name) > (?, ?) ORDER BY resource, name LIMIT ?",
            (namespace, after.resource if after else "", after.name if after else "", limit),
        )
        return [Key(*row) for row in rows]

    def dangling_owners(self) -> list[str]:
        """Return owner uids that dependents name and no object has."""
        rows = self._writer.execute(
            "SELECT DISTINCT owner_uid FROM owners WHERE owner_uid NOT IN (SELECT uid FROM objects)"
        )
        return [row[0] for row in rows]

    def add_garbage(self, job: Garbage) -> None:
        """Remember a job of the collector."""
        self.begin()
        self._writer.execute(
            "INSERT OR IGNORE INTO garbage VALUES (?,?,?,?,?)", (job.uid, job.mode, *job.key)
        )

    def remove_garbage(self, job: Garbage) -> None:
        """Forget a finished job."""
        self.begin()
        self._writer.execute("DELETE FROM garbage WHERE uid=? AND mode=?", (job.uid, job.mode))

    def garbage(self) -> list[Garbage]:
        """Return all pending jobs of the collector."""
        rows = self._writer.execute("SELECT uid, mode, resource, namespace, name FROM garbage")
        return [Garbage(row[0], row[1], Key(*row[2:])) for row in rows]
