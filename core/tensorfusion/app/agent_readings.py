"""What a control plane reads of its node agents: one request per agent and period, on one thread.

Each agent has a connection of its own that is kept, and a deadline, so that a silent one delays
nobody. Its last reading goes when it does not answer: what is not known has no series.
"""

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Mapping
from typing import Final
from zlib import crc32

from tensorfusion.api.core.cluster import Secret
from tensorfusion.api.registry import SECRETS
from tensorfusion.app.agents import LABEL, NAMESPACE, Reached, decode_address, secret_name
from tensorfusion.app.startup import until_set
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, Unavailable
from tensorfusion.hypervisor.series import NodeReading, decode_reading
from tensorfusion.hypervisor.wire import decode_answer_head
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
PATH: Final = "/api/v1/reading"
ANSWER_SECONDS: Final = 2.0
"""How long an agent may take; as long its last reading is taken for the present one."""
AGAIN_SECONDS: Final = 1.0
"""A silent agent is asked no more often."""
MOST_ANSWER_BYTES: Final = 32 << 20
PHASES: Final = 997


class AgentReadings:
    """Reads every agent that has told where it is.

    Args:
        seconds: Period.

    Concurrency: `run` belongs to one thread; `latest` may be called from any.
    """

    def __init__(self, store: Store, seconds: float, clock: Clock) -> None:
        self.secrets: Informer[Secret] = Informer(
            store,
            SECRETS,
            Secret,
            clock=clock,
            namespace=NAMESPACE,
            label_selector=f"{LABEL}=true",
        )
        self.secrets.subscribe(lambda _change: self._wake())
        self._seconds = seconds
        self._clock = clock
        self._readings: dict[str, NodeReading | None] = {}
        self._tasks: dict[str, tuple[Reached, asyncio.Task[None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def latest(self) -> Mapping[str, NodeReading | None]:
        """The last reading of every node that has an agent; None where that does not answer."""
        return self._readings.copy()

    def run(self, stop: threading.Event) -> None:
        """Read until ``stop`` is set."""
        asyncio.run(self._run(stop))

    async def _run(self, stop: threading.Event) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
        try:
            self._adjust()
            await until_set(stop)
        finally:
            with self._lock:
                self._loop = None  # what is still running is cancelled with the loop

    def _wake(self) -> None:
        """Look at the Secrets again (called from the informer's thread)."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._adjust)

    def _adjust(self) -> None:
        """Follow the agents that there are, at the addresses that they have now."""
        wanted: dict[str, Reached] = {}
        for secret in self.secrets.values():
            try:
                agent = decode_address(secret.data)
                if secret.metadata.name != secret_name(agent.node):
                    raise ValueError(f"data: node {agent.node!r} is not the one it is named after")
            except ValueError as error:
                extra = {"secret": secret.metadata.name, "error": str(error)}
                log.warning("agent not read", extra=extra)
                continue
            wanted[agent.node] = agent
        for node, (agent, task) in list(self._tasks.items()):
            if wanted.get(node) != agent:
                task.cancel()
                del self._tasks[node]
                self._readings.pop(node, None)
        for node, agent in wanted.items():
            if node not in self._tasks:
                self._readings[node] = None
                self._tasks[node] = agent, asyncio.create_task(self._follow(agent))

    async def _follow(self, agent: Reached) -> None:
        """Read one agent again and again."""
        connection = AgentConnection(agent)
        answers = True
        try:
            # Those that were found together are not asked together.
            await asyncio.sleep(self._seconds * (crc32(agent.node.encode()) % PHASES) / PHASES)
            while True:
                started, pause = self._clock.monotonic(), self._seconds
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        self._readings[agent.node] = decode_reading(await connection.get(PATH))
                    if not answers:
                        log.info("agent answers again", extra={"node": agent.node})
                    answers = True
                except (
                    OSError,
                    EOFError,
                    ValueError,
                    asyncio.LimitOverrunError,
                    ApiError,
                ) as error:
                    self._readings[agent.node] = None
                    connection.close()
                    pause = max(pause, AGAIN_SECONDS)
                    if answers:
                        said = f"{type(error).__name__}: {error}"
                        log.warning("agent not read", extra={"node": agent.node, "error": said})
                    answers = False
                await asyncio.sleep(max(0.0, pause - (self._clock.monotonic() - started)))
        finally:
            connection.close()


class AgentConnection:
    """A kept connection with one agent; made when it is needed."""

    def __init__(self, agent: Reached) -> None:
        self._agent = agent
        self._tls: ssl.SSLContext | None = None
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        host = f"[{agent.host}]" if ":" in agent.host else agent.host
        self._tail = (
            f" HTTP/1.1\r\nhost: {host}:{agent.port}\r\nauthorization: Bearer {agent.token}\r\n"
            "connection: keep-alive\r\n\r\n"
        )

    async def get(self, path: str) -> bytes:
        """Ask; once more where the agent gave a kept connection up in the meantime.

        Raises:
            ApiError: It refuses, or its answer cannot be read.
            OSError, EOFError: It does not answer.
        """
        if self._ends is not None:
            try:
                return await self._ask(path)
            except (ConnectionError, EOFError):
                self.close()
        return await self._ask(path)

    async def _ask(self, path: str) -> bytes:
        reader, writer = await self._open()
        writer.write(f"GET {path}{self._tail}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status, length, kept = decode_answer_head(head)
        if length > MOST_ANSWER_BYTES:
            raise Unavailable(f"the answer has {length} bytes; allowed are {MOST_ANSWER_BYTES}")
        body = await reader.readexactly(length)
        if not kept:
            self.close()
        if status != 200:
            raise Unavailable(f"status {status}: {body[:200]!r}")
        return body

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._ends is None:
            if self._tls is None:
                self._tls = self._agent.tls()
            self._ends = await asyncio.open_connection(
                self._agent.host, self._agent.port, ssl=self._tls
            )
        return self._ends

    def close(self) -> None:
        """End the connection at once; the next question makes another."""
        if self._ends is not None:
            with contextlib.suppress(RuntimeError):
                self._ends[1].transport.abort()
            self._ends = None
