"""HttpStore: the Store Protocol over the Kubernetes REST wire, ours or a real kube-apiserver's."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import urllib3

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.errors import Unavailable
from tensorfusion.kube.transport import Transport
from tensorfusion.store.interface import EventType, ObjectList, PatchType, Watch, WatchEvent

log = logging.getLogger(__name__)
WATCH_SECONDS = 300.0
GRACE_SECONDS = 15.0


def path_of(resource: Resource, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Build the URL path of a collection or an object."""
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else "/api/v1"
    parts = [root]
    if resource.namespaced and namespace:
        parts += ["namespaces", namespace]
    parts.append(resource.plural)
    parts += [part for part in (name, subresource) if part]
    return "/".join(parts)


class HttpStore:
    """Objects behind an API server.

    Concurrency: every method may be called from any thread; connections are pooled.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object."""
        return self._call("GET", path_of(resource, namespace, name))

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
        """Return a page; items get the apiVersion and kind that lists leave out."""
        query = _query(
            labelSelector=label_selector,
            fieldSelector=field_selector,
            limit=str(limit) if limit else "",
            **{"continue": continue_token},
        )
        page = self._call("GET", path_of(resource, namespace), query=query)
        for item in page["items"]:
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        metadata = page["metadata"]
        return ObjectList(
            page["items"],
            metadata["resourceVersion"],
            metadata.get("continue") or "",
            metadata.get("remainingItemCount"),
        )

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
        """Stream changes; ends after the timeout, on `Watch.stop`, or when the server closes."""
        seconds = WATCH_SECONDS if timeout_seconds is None else timeout_seconds
        query = _query(
            watch="true",
            resourceVersion=resource_version,
            labelSelector=label_selector,
            fieldSelector=field_selector,
            allowWatchBookmarks="true" if bookmarks else "",
            timeoutSeconds=str(max(1, round(seconds))),
        )
        response = self.transport.request(
            "GET",
            path_of(resource, namespace),
            query=query,
            stream=True,
            read_seconds=seconds + GRACE_SECONDS,
        )
        return HttpWatch(response, resource)

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
        """Store a new object."""
        namespace = namespace or obj.get("metadata", {}).get("namespace", "")
        query = _write_query(dry_run, field_manager, field_validation)
        return self._call("POST", path_of(resource, namespace), query=query, body=obj)

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
        """Replace an object or its subresource."""
        metadata = obj["metadata"]
        path = path_of(resource, metadata.get("namespace", ""), metadata["name"], subresource)
        query = _write_query(dry_run, field_manager, field_validation)
        return self._call("PUT", path, query=query, body=obj)

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
        """Change part of an object."""
        query = _write_query(dry_run, field_manager, field_validation)
        if patch_type is PatchType.APPLY:
            query["force"] = str(force).lower()
        path = path_of(resource, namespace, name, subresource)
        return self._call("PATCH", path, query=query, body=patch, content_type=patch_type.value)

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
        """Delete an object; returns it, or the server's Status."""
        options: JsonObject = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": propagation,
        }
        preconditions = _query(uid=uid, resourceVersion=resource_version)
        if preconditions:
            options["preconditions"] = preconditions
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if dry_run:
            options["dryRun"] = ["All"]
        return self._call("DELETE", path_of(resource, namespace, name), body=options)

    def text(self, path: str, query: dict[str, str] | None = None) -> str:
        """Fetch a plain-text endpoint, such as ``/metrics`` or a pod's log."""
        response = self.transport.request("GET", path, query=query)
        return str(response.data.decode("utf-8", "replace"))

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        data = None if body is None else msgspec.json.encode(body)
        response = self.transport.request(
            method, path, query=query, body=data, content_type=content_type
        )
        decoded: JsonObject = msgspec.json.decode(response.data)
        return decoded


class HttpWatch:
    """A watch over HTTP: one JSON event a line."""

    def __init__(self, response: Any, resource: Resource) -> None:
        self._response = response
        self._resource = resource
        self._events = self._read()
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[WatchEvent]:
        return self

    def __next__(self) -> WatchEvent:
        """Block for the next event."""
        return next(self._events)

    def stop(self) -> None:
        """End the watch; a blocked reader sees the connection close."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        connection = getattr(self._response, "connection", None)
        sock = getattr(connection, "sock", None)
        if sock is not None:
            try:
                sock.shutdown(2)
            except OSError:
                log.debug("watch connection was closed already")
        self._response.close()

    def _read(self) -> Iterator[WatchEvent]:
        pending = bytearray()
        try:
            for chunk in self._response.stream(amt=None, decode_content=True):
                pending += chunk
                while (end := pending.find(b"\n")) >= 0:
                    line = bytes(pending[:end])
                    del pending[: end + 1]
                    if line.strip():
                        yield self._event(line)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # Closing the socket from `stop` surfaces in the reader in several forms.
            if not self._stopped.is_set():
                raise Unavailable(f"watch of {self._resource.qualified} broke: {error}") from error

    def _event(self, line: bytes) -> WatchEvent:
        event = msgspec.json.decode(line)
        obj = event["object"]
        if event["type"] != EventType.ERROR:
            obj.setdefault("apiVersion", self._resource.api_version)
            obj.setdefault("kind", self._resource.kind)
        return WatchEvent(EventType(event["type"]), obj)


def _query(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _write_query(dry_run: bool, field_manager: str, field_validation: str) -> dict[str, str]:
    return _query(
        dryRun="All" if dry_run else "",
        fieldManager=field_manager,
        fieldValidation=field_validation,
    )
