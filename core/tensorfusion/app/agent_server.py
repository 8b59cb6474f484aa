"""The agent's two doors: TLS for holders of the token, a Unix socket for processes.

A deadline for each request: a slow client holds up nobody. A holder of the token may keep his
connection. A process may not: whose it is, the kernel says of the moment when it connected. When too many
connections wait for their clients, the one that waits longest is given up for the next.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tensorfusion.apiserver.listening import BACKLOG, bind, in_url
from tensorfusion.apiserver.security import (
    Credentials,
    host_allowed,
    origin_allowed,
    write_private,
)
from tensorfusion.app.agent_door import Door
from tensorfusion.app.startup import until_set
from tensorfusion.errors import ApiError, ConfigError, Forbidden, Unauthorized
from tensorfusion.hypervisor.api import AgentApi
from tensorfusion.hypervisor.registry import PEER, Caller, Registry, decode_peer
from tensorfusion.hypervisor.wire import (
    Answer,
    ApiRequest,
    decode_request,
    encode_answer,
    error_answer,
)

log = logging.getLogger(__name__)
REQUEST_SECONDS: Final = 10.0
MOST_WAITING: Final = 512
"""Connections whose clients have not sent all, or not taken all."""
MOST_ANSWERING: Final = 512
"""Requests that are being answered."""
CHUNK_BYTES: Final = 1 << 14
PROBES: Final = ("livez", "readyz", "healthz")
Identify = Callable[[ApiRequest], Caller]


class AgentServer:
    """Serves the routes of an agent.

    Args:
        state: The agent's folder; the port it had is kept there.
        path: Of the Unix socket.
        door: Where TCP is served, and under which names.
        port: 0 takes the one of the last run, or a free one.
        group: Who may use the socket beside the agent's user: its group (mode 0660).

    Raises:
        ConfigError: The port is in use, or the socket cannot be made.
    """

    def __init__(
        self,
        api: AgentApi,
        registry: Registry,
        credentials: Credentials,
        state: Path,
        path: Path,
        door: Door,
        *,
        port: int = 0,
        group: bool = False,
    ) -> None:
        self._api = api
        self._registry = registry
        self._credentials = credentials
        self._port_file = state / "port"
        self._waiting: dict[asyncio.StreamWriter, None] = {}
        """Connections that wait for their clients, the one that waits longest first."""
        self._answering = 0
        self.path = path
        self._unix = bind_unix(path, 0o660 if group else 0o600)
        self._tcp = bind(door.address, port, self._port_file)
        self.port: int = self._tcp.getsockname()[1]
        self.url = f"https://{in_url(door.host)}:{self.port}"
        self._hosts = frozenset(in_url(name) for name in door.names)
        write_private(self._port_file, f"{self.port}\n".encode())

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set."""
        asyncio.run(self._serve(stop))

    async def _serve(self, stop: threading.Event) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._credentials.certificate_path, self._credentials.key_path)
        tcp = await asyncio.start_server(
            self._by_token, sock=self._tcp, ssl=context, ssl_handshake_timeout=REQUEST_SECONDS
        )
        unix = await asyncio.start_unix_server(self._by_peer, sock=self._unix)
        async with tcp, unix:
            await until_set(stop)
        with contextlib.suppress(OSError):
            self.path.unlink()

    async def _by_token(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._handle(reader, writer, self._holder, keeps=True)

    async def _by_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        peer = decode_peer(raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))

        def identify(_request: ApiRequest) -> Caller:
            if peer is None:
                raise Forbidden("the kernel does not say which process asks")
            return self._registry.caller(peer)

        await self._handle(reader, writer, identify)

    def _holder(self, request: ApiRequest) -> Caller:
        """Check a request that came over TCP; who holds the token is an operator."""
        if not host_allowed(request.headers.get("host", b""), self._hosts):
            served = ", ".join(("127.0.0.1", "localhost", *sorted(self._hosts - {"127.0.0.1"})))
            raise Forbidden(f"the Host header must be one of {served}")
        origin = request.headers.get("origin")
        if origin is not None and not origin_allowed(origin, self.url):
            raise Forbidden("requests of other web origins are refused")
        if not self._credentials.accepts(request.headers.get("authorization", b"")):
            raise Unauthorized("the agent's token is needed, as Authorization: Bearer TOKEN")
        return Caller()

    async def _handle(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identify: Identify,
        *,
        keeps: bool = False,
    ) -> None:
        try:
            while await self._handle_one(reader, writer, identify, keeps=keeps):
                pass
        except ApiError as error:
            writer.write(encode_answer(error_answer(error)))
        except (TimeoutError, OSError):
            log.debug("client gone, or too slow")
            writer.transport.abort()  # or closing would wait for what it does not take
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def _handle_one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identify: Identify,
        *,
        keeps: bool,
    ) -> bool:
        """Answer the next request; whether another may follow."""
        async with asyncio.timeout(REQUEST_SECONDS):
            with self._client_is_due(writer):
                request = await _read(reader)
            if request is None:
                return False
            answer = await self._answer(request, identify)
            # Who was refused starts again, with all that a new connection is checked for.
            keep = keeps and request.wants_more() and answer.status not in (401, 403)
            writer.write(encode_answer(answer, keep=keep))
            with self._client_is_due(writer):
                await writer.drain()
            return keep

    @contextlib.contextmanager
    def _client_is_due(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Count a connection among those that may be given up."""
        if len(self._waiting) >= MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()
        self._waiting[writer] = None
        try:
            yield
        finally:
            self._waiting.pop(writer, None)

    async def _answer(self, request: ApiRequest, identify: Identify) -> Answer:
        if request.segments[0] in PROBES and len(request.segments) == 1:
            return self._api.probe(request.segments[0])
        if self._answering >= MOST_ANSWERING:
            return Answer(503, b'{"reason":"ServiceUnavailable","message":"too many requests"}')
        self._answering += 1
        try:
            return await asyncio.to_thread(self._respond, request, identify)
        except ApiError as error:
            return error_answer(error)
        except Exception as error:
            log.exception("request not answered", exc_info=error)
            return error_answer(ApiError("internal error; the agent's log has more"))
        finally:
            self._answering -= 1

    def _respond(self, request: ApiRequest, identify: Identify) -> Answer:
        return self._api.respond(request, identify(request))


async def _read(reader: asyncio.StreamReader) -> ApiRequest | None:
    data = b""
    while True:
        chunk = await reader.read(CHUNK_BYTES)
        if not chunk:
            return None
        data += chunk
        request = decode_request(data)
        if request is not None:
            return request


def bind_unix(path: Path, mode: int) -> socket.socket:
    """Make a Unix socket that nobody else could use in the meantime.

    Raises:
        ConfigError: The path is too long, its folder is missing, or something else is there.
    """
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"socket {path}: there is a file that is no socket")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            path.chmod(mode)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"socket {path}: {error.strerror or error}") from error
    return listener
