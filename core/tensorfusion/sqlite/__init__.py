"""The resource store in one SQLite file, with the semantics of an API server."""

from tensorfusion.sqlite.database import Counters, InsufficientStorage
from tensorfusion.sqlite.records import Record
from tensorfusion.sqlite.store import RecordList, SQLiteStore
from tensorfusion.sqlite.writes import WriteOptions

__all__ = [
    "Counters",
    "InsufficientStorage",
    "Record",
    "RecordList",
    "SQLiteStore",
    "WriteOptions",
]
