"""The admission seam: what a store asks before it writes.

On a cluster the API server calls a webhook; the embedded store calls this Protocol instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

from tensorfusion.api.resource import JsonObject, Resource

Operation = Literal["CREATE", "UPDATE", "DELETE"]


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """One write that is about to happen.

    Attributes:
        operation: What kind of write.
        resource: The kind of the object.
        namespace: Empty for cluster-scoped kinds.
        name: Empty only while ``generateName`` has not been resolved; the store resolves it first.
        obj: The object to be written, before defaults; the object to be deleted for DELETE.
        old: The stored object for UPDATE and DELETE.
        dry_run: Nothing will be stored; admission must not remember anything either.
        user: The field manager of the writer.
    """

    operation: Operation
    resource: Resource
    namespace: str
    name: str
    obj: JsonObject
    old: JsonObject | None = None
    dry_run: bool = False
    user: str = ""


@dataclass(frozen=True, slots=True)
class FurtherWrite:
    """A write that is committed in the same transaction as the admitted one.

    Attributes:
        verb: ``create``, ``update`` (by name, unconditional unless it has a resourceVersion),
            ``update_status`` or ``upsert`` (create, or update when it exists).
        resource: The kind of ``obj``.
        obj: The object, with its name and namespace.
    """

    verb: Literal["create", "update", "update_status", "upsert"]
    resource: Resource
    obj: JsonObject


@dataclass(frozen=True, slots=True)
class AdmissionResult:
    """What admission made of a request it allows.

    Attributes:
        obj: The object to store instead, or None to keep the request's.
        also: Objects to write in the same transaction, before the admitted one; not written on a
            dry run and not admitted again.
        warnings: Sentences for the client's ``Warning`` headers.
    """

    obj: JsonObject | None = None
    also: tuple[FurtherWrite, ...] = ()
    warnings: tuple[str, ...] = ()


class Admission(Protocol):
    """Decides about writes.

    Concurrency: called by the store while it holds its writer lock, one call at a time; may read
    the store from the same thread, must not block otherwise.
    """

    def handles(self, resource: Resource, operation: Operation) -> bool:
        """Whether `admit` wants to see such writes."""
        ...

    def admit(self, request: AdmissionRequest) -> AdmissionResult:
        """Allow a write, perhaps with changes.

        Raises:
            ApiError: The write is refused; the error is what the client gets.
        """
        ...


_WARNINGS: ContextVar[list[str] | None] = ContextVar("tensorfusion_store_warnings", default=None)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings that store calls inside the block give on this thread."""
    warnings: list[str] = []
    token = _WARNINGS.set(warnings)
    try:
        yield warnings
    finally:
        _WARNINGS.reset(token)


def warn(text: str) -> None:
    """Give a warning to whoever collects; without a collector it is dropped."""
    warnings = _WARNINGS.get()
    if warnings is not None and text not in warnings:
        warnings.append(text)
