"""The server process part: a loopback socket, TLS, one thread with an event loop."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import uvicorn

from tensorfusion.apiserver.app import Application, Seams
from tensorfusion.apiserver.listening import HOST, bind_loopback
from tensorfusion.apiserver.security import (
    Credentials,
    ensure_credentials,
    kubeconfig,
    write_private,
)
from tensorfusion.clock import Clock, SystemClock
from tensorfusion.errors import Unavailable
from tensorfusion.sqlite import SQLiteStore

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 10.0
_SHUTDOWN_SECONDS: Final = 1
_KEEP_ALIVE_SECONDS: Final = 120


class ApiServer:
    """Serves a store on 127.0.0.1 over TLS, for holders of the token in the data folder.

    ``data_dir`` gets, all of mode 0600: ``ca.crt``, ``tls.crt``, ``tls.key``, ``token``, ``port``
    and ``kubeconfig``. They are reused over restarts, and so is the port.

    Args:
        store: The store to serve; the caller closes it after `stop`.
        data_dir: Folder for credentials and kubeconfig; created when missing.
        clock: For certificate dates.
        port: The port; 0 takes the one of the last run, or a free one.
        seams: What else is served; see `Seams`.

    Raises:
        ConfigError: The folder cannot be written, or the port is in use.
    """

    def __init__(
        self,
        store: SQLiteStore,
        *,
        data_dir: str | Path,
        clock: Clock | None = None,
        port: int = 0,
        seams: Seams | None = None,
    ) -> None:
        self._store = store
        self._folder = Path(data_dir)
        self._port = port
        self._clock = clock or SystemClock()
        self._seams = seams or Seams()
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self.credentials: Credentials = ensure_credentials(self._folder, self._clock)
        self.url = ""

    @property
    def kubeconfig_path(self) -> Path:
        """Where the kubeconfig is written."""
        return self._folder / "kubeconfig"

    def start(self) -> None:
        """Bind the port, write the kubeconfig and serve on a thread of its own.

        Raises:
            ConfigError: The port is in use.
            Unavailable: The server does not come up.
        """
        listener = bind_loopback(self._port, self._folder / "port")
        listener.setblocking(False)
        port = listener.getsockname()[1]
        self.url = f"https://{HOST}:{port}"
        write_private(self._folder / "port", f"{port}\n".encode())
        write_private(self.kubeconfig_path, kubeconfig(self.url, self.credentials))
        application = Application(self._store, self.credentials, self.url, self._seams)
        config = uvicorn.Config(
            application,
            http="httptools",
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=str(self.credentials.certificate_path),
            ssl_keyfile=str(self.credentials.key_path),
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        self._server = _EmbeddedServer(config, self._started, application.close_streams)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="apiserver", daemon=True
        )
        self._thread.start()
        if not self._started.wait(_START_SECONDS) or self._failure is not None:
            raise Unavailable(f"the API server did not start on {self.url}") from self._failure

    def _run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:
            self._failure = error
            logger.error("the API server ended", exc_info=error)
        finally:
            listener.close()
            self._started.set()

    def stop(self) -> None:
        """End all streams and the thread; idempotent."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        server.should_exit = True
        thread.join(_STOP_SECONDS)
        self._server = self._thread = None


class _EmbeddedServer(uvicorn.Server):
    """A uvicorn server for one thread of a larger program: it installs no signal handlers.

    Args:
        config: See uvicorn.
        listening: Set once connections are accepted.
        close_streams: Ends what would keep a shutdown waiting.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listening: threading.Event,
        close_streams: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._listening = listening
        self._close_streams = close_streams

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: signals belong to the program."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then report."""
        await super().startup(sockets=sockets)
        self._listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams, let requests finish, then drop connections that clients keep open."""
        self._close_streams()
        await super().shutdown(sockets=sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # Aborted transports close in the next turns of the loop; it must not end before.
        for _ in range(3):
            await asyncio.sleep(0)
