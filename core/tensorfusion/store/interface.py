"""The Store Protocol: an API server's semantics without saying where the objects live.

Two implementations exist (`tensorfusion.sqlite` in process, `tensorfusion.kube` over HTTP) and
one contract suite runs on both and on a real kube-apiserver. Objects travel as decoded JSON
(`JsonObject`) and are shared: callers never change what they are handed.

Every method raises `tensorfusion.errors.ApiError` subclasses and nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from tensorfusion.api.resource import JsonObject, Resource


class PatchType(StrEnum):
    """How a patch body is read; the values are the wire's media types."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


class EventType(StrEnum):
    """What a watch event says happened."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change, as a watch delivers it.

    Attributes:
        type: What happened.
        object: The object after the change (before it, for DELETED, with the deletion's
            resourceVersion); only ``metadata.resourceVersion`` for BOOKMARK; a ``Status``
            for ERROR.
    """

    type: EventType
    object: JsonObject


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A page of a list.

    Attributes:
        items: Objects in (namespace, name) order.
        resource_version: The version the whole list is consistent with; watch from here.
        continue_token: Pass it to get the next page; empty on the last one.
        remaining: How many items follow this page, where known.
    """

    items: list[JsonObject]
    resource_version: str
    continue_token: str = ""
    remaining: int | None = None


class Watch(Protocol):
    """A running watch: an iterator of events that another thread may stop."""

    def __iter__(self) -> Iterator[WatchEvent]: ...

    def __next__(self) -> WatchEvent:
        """Block for the next event; StopIteration after ``stop`` or the timeout."""
        ...

    def stop(self) -> None:
        """End the iteration from any thread; idempotent."""
        ...


@runtime_checkable
class PollableWatch(Protocol):
    """A watch that can also be served without a thread of its own."""

    def drain(self) -> list[WatchEvent]:
        """Return what has come so far, without waiting; an ERROR event ends the watch."""
        ...

    def notify(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` (from the writer's thread) whenever `drain` has something new."""
        ...

    def stop(self) -> None:
        """End the watch."""
        ...


class Store(Protocol):
    """Objects with an API server's semantics.

    Concurrency: every method may be called from any thread.
    """

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object.

        Raises:
            NotFound: There is none of that name.
        """
        ...

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
        """Return objects of one namespace, or of all when ``namespace`` is empty.

        Raises:
            BadRequest: A selector cannot be read.
            Gone: The continue token is too old.
        """
        ...

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
    ) -> Watch:
        """Stream changes after ``resource_version``; without one, first an ADDED per object.

        An object that stops matching the selectors is delivered as DELETED, one that starts to
        match as ADDED.

        Raises:
            Gone: The version is older than what is kept (also as an ERROR event, mid-stream).
        """
        ...

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
        """Store a new object and return it with defaults, uid and resourceVersion.

        ``metadata.generateName`` is honoured. Status is dropped where it is a subresource.

        Raises:
            AlreadyExists: The name is taken.
            Invalid: The object breaks its schema or a rule.
            Forbidden: Admission refused it.
            BadRequest: Unknown fields under ``field_validation="Strict"``.
        """
        ...

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
        """Replace an object (or its ``status`` or ``scale``) by name.

        With a ``metadata.resourceVersion`` the write is conditional. ``metadata.generation``
        grows when anything but metadata and status changed. Writing what is there already
        changes nothing, not even the resourceVersion.

        Raises:
            Conflict: The object changed since that resourceVersion.
            NotFound: There is no such object.
        """
        ...

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
        """Change part of an object; server-side apply creates it when it is missing.

        ``patch`` is decoded JSON: an object, or a list of operations for JSON patch. A
        ``metadata.resourceVersion`` inside a merge patch makes it conditional.
        """
        ...

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
        """Delete an object, or mark it deleted while it has finalizers.

        Dependents by owner reference are collected (``Background``, ``Foreground``) or
        released (``Orphan``).

        Raises:
            Conflict: ``uid`` or ``resource_version`` are given and do not match.
        """
        ...
