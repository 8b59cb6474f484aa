"""The verbs on resources: list, watch, get, create, update, patch, delete."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tensorfusion.api.resource import JsonObject
from tensorfusion.apiserver.bodies import DeleteOptions, Query, delete_options, parse_object
from tensorfusion.apiserver.exchange import Request, Response, json_response
from tensorfusion.apiserver.negotiation import (
    Form,
    encode_json,
    render_list,
    render_object,
    render_record,
)
from tensorfusion.apiserver.routes import Target, no_route
from tensorfusion.apiserver.status import success
from tensorfusion.apiserver.watching import DEFAULT_TIMEOUT_SECONDS, WatchStream
from tensorfusion.errors import (
    ApiError,
    BadRequest,
    Gone,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from tensorfusion.sqlite import Record, SQLiteStore, WriteOptions
from tensorfusion.sqlite.events import Subscription
from tensorfusion.sqlite.store import parse_version
from tensorfusion.store.admission import collected_warnings, warn
from tensorfusion.store.interface import PatchType

_PATCH_TYPES: Final = {kind.value: kind for kind in PatchType}
_DELETED_PER_TRANSACTION: Final = 50
_MAX_TIMEOUT_SECONDS: Final = 86_400
_VERSION_MATCHES: Final = ("Exact", "NotOlderThan")


class Verbs:
    """Answers requests for resources from a store.

    Concurrency: methods run on the server's event loop; long lists move to a worker thread.
    """

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store
        self._watches: set[Subscription] = set()
        # One thread: the store has one writer, more would only queue there.
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="apiserver-writes")

    def close_streams(self) -> None:
        """End every watch."""
        for subscription in list(self._watches):
            subscription.close()

    async def handle(self, request: Request, target: Target) -> Response:
        """Answer a request for a resource.

        Raises:
            ApiError: The request is refused.
        """
        method = request.method
        if target.name:
            if method == "GET":
                return self._named(request, target)
            return await self._off_loop(self._named, request, target)
        if target.subresource:
            raise no_route()
        if method == "GET":
            if request.query.flag("watch"):
                return await self._watch(request, target)
            return await self._list(request, target)
        if method == "POST":
            return await self._off_loop(self._create, request, target)
        if method == "DELETE":
            return await self._delete_collection(request, target)
        raise not_allowed(method)

    async def _off_loop(
        self, answer: Callable[[Request, Target], Response], request: Request, target: Target
    ) -> Response:
        """Answer a write on the writers' thread: it may wait for others, and reads must not."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writers, answer, request, target)

    def _named(self, request: Request, target: Target) -> Response:
        if target.resource.namespaced and not target.namespace:
            raise no_route()
        known = ("", "status", "scale")
        if target.subresource not in known:
            if target.subresource == "binding" and target.resource.plural == "pods":
                return self._bind(request, target)
            raise no_route()
        if target.subresource == "status" and not target.resource.has_status:
            raise no_route()
        if target.subresource == "scale" and not target.resource.has_scale:
            raise no_route()
        method = request.method
        if method == "GET":
            return self._get(request, target)
        if method == "PUT":
            return self._update(request, target)
        if method == "PATCH":
            return self._patch(request, target)
        if method == "DELETE" and not target.subresource:
            return self._delete(request, target)
        raise not_allowed(method)

    # Reads.

    def _get(self, request: Request, target: Target) -> Response:
        form, now = request.form, self._store.clock.now()
        if target.subresource == "scale":
            scale = self._store.get_scale(target.resource, target.name, target.namespace)
            return json_response(scale)
        record = self._store.record(target.resource, target.name, target.namespace)
        return Response(body=render_record(target.resource, record, form, now))

    async def _list(self, request: Request, target: Target) -> Response:
        query, form = request.query, request.form
        selector, fields = _selectors(query)
        limit = query.integer("limit") or 0
        token = query.text("continue")
        self._check_version(request, continuing=bool(token))

        def work() -> bytes:
            page = self._store.list_records(
                target.resource,
                target.namespace,
                label_selector=selector,
                field_selector=fields,
                limit=limit,
                continue_token=token,
            )
            metadata: JsonObject = {"resourceVersion": str(page.version)}
            if page.continue_token:
                metadata["continue"] = page.continue_token
            if page.remaining is not None:
                metadata["remainingItemCount"] = page.remaining
            now = self._store.clock.now()
            return render_list(target.resource, page.records, metadata, form, now)

        return Response(body=await asyncio.to_thread(work))

    def _check_version(self, request: Request, *, continuing: bool) -> None:
        query = request.query
        match = query.choice("resourceVersionMatch", _VERSION_MATCHES, "")
        text = query.text("resourceVersion")
        version = parse_version(text)
        if match and not text:
            raise BadRequest("resourceVersionMatch is forbidden unless resourceVersion is provided")
        if continuing and version:
            raise BadRequest("specifying resource version is not allowed when using continue")
        if version > self._store.version:
            raise Gone(f"Too large resource version: {version}, current: {self._store.version}")
        if match == "Exact" and version and version < self._store.version:
            raise Gone(f"too old resource version: {version} ({self._store.version})")

    async def _watch(self, request: Request, target: Target) -> Response:
        query = request.query
        selector, fields = _selectors(query)
        timeout = query.integer("timeoutSeconds")
        version = query.text("resourceVersion")
        query.choice("resourceVersionMatch", _VERSION_MATCHES, "")
        bookmarks = query.flag("allowWatchBookmarks")
        initial = query.flag("sendInitialEvents")
        parse_version(version)
        stream = WatchStream(
            self._store,
            target.resource,
            request.form,
            bookmarks=bookmarks,
            timeout_seconds=min(timeout or DEFAULT_TIMEOUT_SECONDS, _MAX_TIMEOUT_SECONDS),
        )
        subscription = await asyncio.to_thread(
            self._store.subscribe,
            target.resource,
            target.namespace,
            resource_version=version,
            label_selector=selector,
            field_selector=fields,
            initial_events=initial,
            on_ready=stream.notify,
        )
        return Response(stream=self._tracked(stream, subscription))

    async def _tracked(
        self, stream: WatchStream, subscription: Subscription
    ) -> AsyncGenerator[bytes, None]:
        self._watches.add(subscription)
        try:
            async with contextlib.aclosing(stream.chunks(subscription)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._watches.discard(subscription)

    # Writes.

    def _create(self, request: Request, target: Target) -> Response:
        query, form = request.query, request.form
        if target.resource.namespaced and not target.namespace:
            raise not_allowed("POST")
        with collected_warnings() as warnings:
            obj = self._body(request)
            created = self._store.create(
                target.resource,
                obj,
                target.namespace,
                dry_run=query.dry_run,
                field_manager=request.field_manager,
                field_validation=query.field_validation,
            )
        return self._written(target, created, form, warnings, 201)

    def _update(self, request: Request, target: Target) -> Response:
        query, form = request.query, request.form
        with collected_warnings() as warnings:
            obj = self._body(request)
            updated = self._store.update(
                target.resource,
                _addressed(obj, target),
                subresource=target.subresource,
                dry_run=query.dry_run,
                field_manager=request.field_manager,
                field_validation=query.field_validation,
            )
        return self._written(target, updated, form, warnings, 200)

    def _patch(self, request: Request, target: Target) -> Response:
        query, form = request.query, request.form
        kind = _PATCH_TYPES.get(request.content_type)
        if kind is None:
            raise UnsupportedMediaType(
                "the body of the request was in an unknown format - accepted media types include: "
                + ", ".join(_PATCH_TYPES)
            )
        if kind is not PatchType.APPLY and query.flag("force"):
            raise BadRequest("force is only allowed for server-side apply")
        manager = request.field_manager
        if kind is PatchType.APPLY:
            manager = query.text("fieldManager")
        options = WriteOptions(query.dry_run, manager, query.field_validation, target.subresource)
        with collected_warnings() as warnings:
            patched, created = self._store.patch_or_create(
                target.resource,
                target.name,
                self._body(request),
                target.namespace,
                patch_type=kind,
                force=query.flag("force"),
                options=options,
            )
        return self._written(target, patched, form, warnings, 201 if created else 200)

    def _bind(self, request: Request, target: Target) -> Response:
        if request.method != "POST":
            raise not_allowed(request.method)
        binding = self._body(request)
        if not isinstance(binding, dict):
            raise BadRequest("a Binding must be a JSON object")
        self._store.bind(target.name, target.namespace, binding, dry_run=request.query.dry_run)
        status = success({})
        return Response(201, encode_json({**status, "code": 201}))

    def _delete(self, request: Request, target: Target) -> Response:
        options = delete_options(request.body, request.content_type, request.query)
        with collected_warnings() as warnings:
            obj, gone = self._delete_one(target, target.name, target.namespace, options)
        if not gone or target.resource.kind == "Pod":
            return self._written(target, obj, request.form, warnings, 200)
        details = {
            "name": target.name,
            "group": target.resource.group,
            "kind": target.resource.plural,
            "uid": obj["metadata"]["uid"],
        }
        return Response(
            body=encode_json(success({key: value for key, value in details.items() if value})),
            headers=warning_headers(warnings),
        )

    def _delete_one(
        self, target: Target, name: str, namespace: str, options: DeleteOptions
    ) -> tuple[JsonObject, bool]:
        return self._store.delete_reporting(
            target.resource,
            name,
            namespace,
            propagation=options.propagation,
            uid=options.uid,
            resource_version=options.resource_version,
            grace_period_seconds=options.grace_period_seconds,
            dry_run=options.dry_run,
        )

    async def _delete_collection(self, request: Request, target: Target) -> Response:
        if target.resource.kind == "Namespace" or (
            target.resource.namespaced and not target.namespace
        ):
            raise not_allowed("DELETE")
        options = delete_options(request.body, request.content_type, request.query)
        selector, fields = _selectors(request.query)

        def work() -> bytes:
            page = self._store.list_records(
                target.resource, target.namespace, label_selector=selector, field_selector=fields
            )
            for batch in _batches(page.records):
                with self._store.transaction():
                    for record in batch:
                        metadata = record.obj["metadata"]
                        try:
                            self._delete_one(
                                target, metadata["name"], metadata.get("namespace", ""), options
                            )
                        except NotFound:
                            continue
            metadata = {"resourceVersion": str(self._store.version)}
            return render_list(target.resource, page.records, metadata, request.form, 0.0)

        return Response(body=await asyncio.to_thread(work))

    def _body(self, request: Request) -> Any:
        """Decode the body; duplicate keys are refused or warned about as the client asked."""
        validation = request.query.field_validation
        duplicates: list[str] | None = None if validation == "Ignore" else []
        value = parse_object(request.body, request.content_type, duplicates)
        if duplicates:
            if validation == "Strict":
                listed = ", ".join(f'duplicate field "{name}"' for name in duplicates)
                raise BadRequest(f"strict decoding error: {listed}")
            for name in duplicates:
                warn(f'duplicate field "{name}"')
        return value

    def _written(
        self, target: Target, obj: JsonObject, form: Form, warnings: list[str], status: int
    ) -> Response:
        body = (
            encode_json(obj)
            if target.subresource == "scale"
            else render_object(target.resource, obj, form, self._store.clock.now())
        )
        return Response(status, body, headers=warning_headers(warnings))


def not_allowed(method: str) -> ApiError:
    """Return the error for a method that a path does not have."""
    return MethodNotAllowed(
        f"the server does not allow this method on the requested resource: {method}"
    )


def _batches(records: list[Record]) -> Iterator[list[Record]]:
    for start in range(0, len(records), _DELETED_PER_TRANSACTION):
        yield records[start : start + _DELETED_PER_TRANSACTION]


def _selectors(query: Query) -> tuple[str, str]:
    """Return the label and the field selector of a request."""
    return query.text("labelSelector"), query.text("fieldSelector")


def _addressed(obj: object, target: Target) -> JsonObject:
    """Return the body of a PUT with name and namespace of the URL, which it must not contradict."""
    if not isinstance(obj, dict):
        raise BadRequest(f"a {target.resource.kind} must be a JSON object")
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise BadRequest("metadata must be an object")
    for key, wanted in (("name", target.name), ("namespace", target.namespace)):
        given = metadata.get(key)
        if given not in (None, "", wanted):
            raise BadRequest(
                f"the {key} of the object ({given!r:.100}) does not match the {key} on the URL "
                f"({wanted})"
            )
    metadata = {**metadata, "name": target.name}
    if target.namespace:
        metadata["namespace"] = target.namespace
    return {**obj, "metadata": metadata}


def warning_headers(warnings: list[str]) -> tuple[tuple[bytes, bytes], ...]:
    """Return a ``Warning`` header per text, quoted as RFC 7234 wants it."""
    headers = []
    for text in warnings[:50]:
        printable = "".join(c if c.isprintable() else " " for c in text[:500])
        quoted = printable.replace("\\", "\\\\").replace('"', '\\"')
        headers.append((b"warning", f'299 - "{quoted}"'.encode("ascii", "replace")))
    return tuple(headers)
