"""How a control plane reads agents: kept connections, wrong answers, addresses, and the encoding."""

import asyncio
import base64
import contextlib
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.api.core.cluster import Secret
from tensorfusion.api.meta import ObjectMeta
from tensorfusion.apiserver.security import ensure_credentials
from tensorfusion.app.agent_readings import PATH, AgentConnection, AgentReadings
from tensorfusion.app.agents import decode_address, secret_name
from tensorfusion.clock import SystemClock
from tensorfusion.errors import ApiError, Unavailable
from tensorfusion.hypervisor.series import (
    HeldWorker,
    NodeReading,
    decode_reading,
    encode_reading,
)
from tensorfusion.hypervisor.wire import Answer, decode_answer_head, encode_answer
from tensorfusion.spi.backend import DeviceInfo, DeviceMetrics, Pressure, Share, WorkerUsage
from tensorfusion.spi.limited import LimiterFaults

INFO = DeviceInfo(
    uuid="gpu-1", index=0, vendor="NVIDIA", model="L4", full_model="NVIDIA L4",
    compute_gflops=121_000, vram_bytes=24 << 30,
)  # fmt: skip
READING = NodeReading(
    time=1_700_000_000.25,
    infos={"gpu-1": INFO},
    devices=[DeviceMetrics(uuid="gpu-1", time=1.5, utilization_ratio=0.5)],
    usage=[
        WorkerUsage(
            worker="w",
            uuid="gpu-1",
            time=1.5,
            compute_gflops=7.5,
            vram_bytes=3,
            pressure=Pressure(),
        )
    ],
    workers=[
        HeldWorker(worker="w", namespace="ns", name="p", workload="x", share=Share(1, 2, 3, 4))
    ],
    faults={"w": LimiterFaults(opened=2)},
)


def test_a_reading_survives_its_way():
    assert decode_reading(encode_reading(READING)) == READING
    nothing = NodeReading(time=1.0, infos={}, workers=[])
    assert decode_reading(encode_reading(nothing)) == nothing


@given(st.binary(max_size=200) | st.integers(0, 400).map(lambda n: encode_reading(READING)[:n]))
def test_any_body_is_a_reading_or_one_clear_error(body):
    with contextlib.suppress(ValueError):
        reading = decode_reading(body)
        assert decode_reading(encode_reading(reading)) == reading


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 60_000, b'{"time": "now"}'])
def test_what_is_no_reading_is_told(body):
    with pytest.raises(ValueError, match="reading: "):
        decode_reading(body)


def test_an_answers_head_says_status_length_and_whether_another_may_follow():
    for keep in (True, False):
        head, _, body = encode_answer(Answer(503, b"no\n"), keep=keep).partition(b"\r\n\r\n")
        assert decode_answer_head(head + b"\r\n\r\n") == (503, len(body), keep)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", "status line"),
        (b"220 mail.example ESMTP\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "content-length"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "transfer-encoding"),
    ],
)
def test_a_head_that_no_agent_sends_is_told(head, said):
    with pytest.raises(ApiError, match=said):
        decode_answer_head(head)


@given(st.binary(max_size=200))
def test_any_head_is_read_or_one_clear_error(head):
    with contextlib.suppress(ApiError):
        status, length, _ = decode_answer_head(head)
        assert 0 <= status <= 999
        assert length >= 0


def encoded(**values):
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


FIELDS = {"node": "n", "url": "https://[::1]:44", "ca.crt": "pem", "token": "secret-of-the-agent"}


def test_an_address_is_read_and_never_shows_its_token():
    agent = decode_address(encoded(**FIELDS))
    assert (agent.node, agent.host, agent.port) == ("n", "::1", 44)
    assert FIELDS["token"] not in repr(agent)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "http://n:80"}, "url must be https://HOST:PORT"),
        ({"url": "https://n"}, "url must be"),
        ({"url": "https://n:99999"}, "url must be"),
        ({"token": "two\r\nlines"}, "token must be printable ASCII"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_without_its_token(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        decode_address(encoded(**{**FIELDS, **wrong}))
    assert FIELDS["token"] not in str(error.value)
    for field in FIELDS:
        with pytest.raises(ValueError, match=f"no field '{field}'"):
            decode_address(encoded(**{k: v for k, v in FIELDS.items() if k != field}))


class ScriptedAgent:
    """Answers what it is told to, over TLS; counts its connections."""

    def __init__(self, folder, node="n"):
        self.node, self.connections, self.answers = node, 0, []
        self.credentials = ensure_credentials(folder, SystemClock())
        self.body = encode_answer(Answer(200, encode_reading(READING)), keep=True)

    @contextlib.asynccontextmanager
    async def serve(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.credentials.certificate_path, self.credentials.key_path)
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=context)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _handle(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(OSError, EOFError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                assert asked.startswith(f"GET {PATH} HTTP/1.1\r\n".encode())
                answer = self.answers.pop(0) if self.answers else self.body
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    def data(self):
        return encoded(
            **{
                "node": self.node,
                "url": f"https://127.0.0.1:{self.port}",
                "ca.crt": self.credentials.authority_pem.decode(),
                "token": self.credentials.token,
            }
        )

    def secret(self):
        return Secret(metadata=ObjectMeta(name=secret_name(self.node)), data=self.data())


def test_a_connection_is_kept_and_made_again_when_the_agent_gave_it_up(tmp_path):
    async def ask():
        async with ScriptedAgent(tmp_path).serve() as agent:
            connection = AgentConnection(decode_address(agent.data()))
            for _ in range(3):
                assert decode_reading(await connection.get(PATH)) == READING
            assert agent.connections == 1
            agent.answers = [None]
            assert decode_reading(await connection.get(PATH)) == READING
            assert agent.connections == 2
            agent.answers = [encode_answer(Answer(200, b"{}"))]
            assert await connection.get(PATH) == b"{}"
            assert decode_reading(await connection.get(PATH)) == READING
            assert agent.connections == 3
            for answer, said in (
                (encode_answer(Answer(401, b"token")), "status 401: b'token'"),
                (b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n", "bytes; allowed are"),
            ):
                agent.answers = [answer]
                with pytest.raises(Unavailable, match=said):
                    await connection.get(PATH)
                connection.close()
            agent.answers = [None, None]
            with pytest.raises((EOFError, ConnectionError)):
                await connection.get(PATH)
            connection.close()

    asyncio.run(ask())


class Secrets:
    """Stands in for the informer."""

    def __init__(self, *secrets):
        self.secrets = list(secrets)

    def values(self):
        return self.secrets


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_agents_come_and_go_and_one_that_answers_nonsense_is_no_other_ones_matter(tmp_path):
    async def follow():
        (tmp_path / "a").mkdir()
        async with (
            ScriptedAgent(tmp_path / "a", "a").serve() as good,
            ScriptedAgent(tmp_path / "b", "b").serve() as bad,
        ):
            bad.body = encode_answer(Answer(200, b'{"time": "now"}'), keep=True)
            foreign = Secret(metadata=ObjectMeta(name=secret_name("c")), data=good.data())
            readings = AgentReadings(None, 0.01, SystemClock())
            readings.secrets = Secrets(good.secret(), bad.secret(), foreign)
            stop = threading.Event()
            running = asyncio.create_task(readings._run(stop))
            await until(lambda: readings.latest().get("a") == READING and bad.connections)
            assert readings.latest() == {"a": READING, "b": None}
            readings.secrets = Secrets(bad.secret())
            readings._wake()
            await until(lambda: readings.latest() == {"b": None})
            stop.set()
            await running
            for _, task in readings._tasks.values():
                task.cancel()

    asyncio.run(follow())
