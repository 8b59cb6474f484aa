"""The ASGI application: checks, routing, and every error as a ``Status``."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tensorfusion.apiserver.bodies import MAX_BODY_BYTES, Query, parse_object
from tensorfusion.apiserver.discovery import Discovery, version_document
from tensorfusion.apiserver.exchange import Request, Response, json_response
from tensorfusion.apiserver.logs import PodLogs, log_response
from tensorfusion.apiserver.negotiation import encode_json, wants_aggregated_discovery
from tensorfusion.apiserver.routes import no_route, resource_target, split_path
from tensorfusion.apiserver.security import Credentials, host_allowed, origin_allowed
from tensorfusion.apiserver.status import failure
from tensorfusion.apiserver.verbs import Verbs, not_allowed
from tensorfusion.errors import ApiError, BadRequest, Forbidden, TooLarge, Unauthorized
from tensorfusion.sqlite import SQLiteStore

logger = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Check = Callable[[], str]
"""A health check: an empty string when all is well, else what is wrong."""

_HEALTH_PATHS: Final = ("livez", "readyz", "healthz")
_AGGREGATED: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_TEXT: Final = "text/plain; charset=utf-8"


class ClientGone(Exception):
    """The client went away before its request was complete."""


@dataclass(slots=True)
class Seams:
    """What the rest of the program offers through the server.

    Attributes:
        pod_logs: Source of pod logs.
        liveness: Named checks of ``/livez`` and ``/healthz``.
        readiness: Named checks of ``/readyz``, beside the liveness ones.
        metrics: The exposition of ``/metrics``.
        extra_routes: Further paths (without the leading slash) to handlers; token needed.
        slow_routes: The same for handlers that may take seconds; they run on a thread.
    """

    pod_logs: PodLogs | None = None
    liveness: dict[str, Check] = field(default_factory=dict)
    readiness: dict[str, Check] = field(default_factory=dict)
    metrics: Callable[[], bytes] | None = None
    extra_routes: dict[str, Callable[[Request], Response]] = field(default_factory=dict)
    slow_routes: dict[str, Callable[[Request], Response]] = field(default_factory=dict)


class Application:
    """Serves one store on the Kubernetes REST wire.

    Args:
        store: The store.
        credentials: Whose token is accepted.
        url: Own address, for the Origin check.
        seams: See `Seams`.
    """

    def __init__(
        self, store: SQLiteStore, credentials: Credentials, url: str, seams: Seams
    ) -> None:
        self._store = store
        self._credentials = credentials
        self._url = url
        self._seams = seams
        self._verbs = Verbs(store)
        self._discovery = Discovery()

    def close_streams(self) -> None:
        """End every watch, because the server stops."""
        self._verbs.close_streams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection scope."""
        if scope["type"] != "http":
            return
        try:
            response = await self._respond(scope, receive)
        except ClientGone:
            return
        except ApiError as error:
            response = error_response(error)
        except Exception as error:
            logger.error(
                "unexpected error in %s %s", scope["method"], scope["path"], exc_info=error
            )
            response = error_response(
                ApiError("Internal error occurred; the server's log has more")
            )
        await self._send(response, scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        headers = dict(scope["headers"])
        if not host_allowed(headers.get(b"host", b"")):
            raise Forbidden("the Host header must be 127.0.0.1 or localhost")
        origin = headers.get(b"origin")
        if origin is not None and not origin_allowed(origin, self._url):
            raise Forbidden("requests of other web origins are refused")
        segments = split_path(scope["raw_path"])
        query = Query(scope["query_string"])
        if segments[0] in _HEALTH_PATHS:
            return self._health(scope["method"], segments, query)
        if not self._credentials.accepts(headers.get(b"authorization", b"")):
            raise Unauthorized("Unauthorized")
        body = await read_body(headers, receive)
        return await self._route(Request(scope["method"], segments, query, headers, body))

    async def _route(self, request: Request) -> Response:
        segments = request.segments
        if segments[0] in ("api", "apis"):
            return await self._route_api(request)
        path = "/".join(segments)
        if path in self._seams.extra_routes:
            return self._seams.extra_routes[path](request)
        if path in self._seams.slow_routes:
            return await asyncio.to_thread(self._seams.slow_routes[path], request)
        if request.method != "GET":
            raise not_allowed(request.method) if path in ("version", "metrics") else no_route()
        if path == "version":
            return json_response(version_document())
        if path == "metrics" and self._seams.metrics is not None:
            return Response(
                body=await asyncio.to_thread(self._seams.metrics),
                content_type="text/plain; version=0.0.4; charset=utf-8",
            )
        if segments[:2] == ["openapi", "v3"]:
            return await asyncio.to_thread(self._openapi, segments[2:])
        raise no_route()

    async def _route_api(self, request: Request) -> Response:
        segments = request.segments
        short = 2 if segments[0] == "api" else 3
        if len(segments) <= short:
            if request.method != "GET":
                raise not_allowed(request.method)
            return self._discover(request)
        if segments[1:] == ["authorization.k8s.io", "v1", "selfsubjectaccessreviews"]:
            return _review_access(request)
        target = resource_target(segments)
        if target.subresource == "log" and target.resource.plural == "pods" and target.namespace:
            if request.method != "GET":
                raise not_allowed(request.method)
            self._store.record(target.resource, target.name, target.namespace)
            return await asyncio.to_thread(log_response, request, target, self._seams.pod_logs)
        return await self._verbs.handle(request, target)

    def _discover(self, request: Request) -> Response:
        segments = request.segments
        core = segments[0] == "api"
        if len(segments) == 1:
            if wants_aggregated_discovery(request.accept):
                document = self._discovery.aggregated(core=core)
                return Response(body=encode_json(document), content_type=_AGGREGATED)
            plain = self._discovery.core_versions() if core else self._discovery.groups()
            return json_response(plain)
        if core:
            found = self._discovery.resources("", segments[1])
        elif len(segments) == 2:
            found = self._discovery.group(segments[1])
        else:
            found = self._discovery.resources(segments[1], segments[2])
        if found is None:
            raise no_route()
        return json_response(found)

    def _openapi(self, segments: list[str]) -> Response:
        if not segments:
            return json_response(self._discovery.openapi_index())
        body, digest = self._discovery.openapi("/".join(segments))
        headers = ((b"etag", f'"{digest}"'.encode()), (b"cache-control", b"public, immutable"))
        return Response(body=body, headers=headers)

    def _health(self, method: str, segments: list[str], query: Query) -> Response:
        if method != "GET":
            raise not_allowed(method)
        checks = dict(self._seams.liveness)
        if segments[0] == "readyz":
            checks.update(self._seams.readiness)
        if len(segments) == 2 and segments[1] in checks:
            checks = {segments[1]: checks[segments[1]]}
        elif len(segments) != 1:
            raise no_route()
        lines, healthy = ["[+]ping ok"], True
        for name, check in sorted(checks.items()):
            problem = check()
            healthy = healthy and not problem
            lines.append(f"[-]{name} failed: {problem}" if problem else f"[+]{name} ok")
        if healthy and "verbose" not in query:
            return Response(body=b"ok", content_type=_TEXT)
        verdict = "passed" if healthy else "failed"
        lines.append(f"{segments[0]} check {verdict}")
        text = "\n".join(lines) + "\n"
        return Response(200 if healthy else 500, text.encode(), content_type=_TEXT)

    async def _send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", response.content_type.encode()),
            (b"cache-control", b"no-cache, private"),
            (b"x-content-type-options", b"nosniff"),
            *response.headers,
        ]
        if response.stream is None:
            headers.append((b"content-length", str(len(response.body)).encode()))
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
            await send({"type": "http.response.body", "body": response.body})
            return
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        sender = asyncio.ensure_future(_pump(response, send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            if not sender.done():
                sender.cancel()
            await asyncio.gather(sender, watcher, return_exceptions=True)
        if sender.done() and not sender.cancelled() and sender.exception() is not None:
            logger.warning("stream of %s ended: %r", scope["path"], sender.exception())


async def _pump(response: Response, send: Send) -> None:
    assert response.stream is not None
    # Closed explicitly: a cancelled send would leave the generator waiting at its yield.
    async with contextlib.aclosing(response.stream) as chunks:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def read_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """Read a body up to the limit.

    Raises:
        TooLarge: It is longer than 3 MiB.
        ClientGone: The client went away meanwhile.
    """
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise TooLarge(f"Request entity too large: limit is {MAX_BODY_BYTES}")
    chunks, total = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            raise TooLarge(f"Request entity too large: limit is {MAX_BODY_BYTES}")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def error_response(error: ApiError) -> Response:
    """Return the answer of a refused request."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_seconds is not None:
        headers = ((b"retry-after", str(error.retry_after_seconds).encode()),)
    if error.code == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    return Response(error.code, encode_json(failure(error)), headers=headers)


def _review_access(request: Request) -> Response:
    """Answer ``kubectl auth can-i``: whoever has the token may do everything."""
    if request.method != "POST":
        raise not_allowed(request.method)
    review = parse_object(request.body, request.content_type, None)
    if not isinstance(review, dict):
        raise BadRequest("a SelfSubjectAccessReview must be a JSON object")
    return json_response({**review, "status": {"allowed": True}}, 201)
