"""What is fuzzed: each target takes any bytes, and raises when the decoder did not answer as it promises."""

import contextlib
import json
import os
import socket
import struct
import threading
from pathlib import Path
from urllib.parse import quote

from native import offsets

from tensorfusion.apiserver.security import ensure_credentials
from tensorfusion.app.agent_door import Door
from tensorfusion.app.agent_server import AgentServer
from tensorfusion.clock import SystemClock
from tensorfusion.errors import BadRequest, NotFound, TooLarge
from tensorfusion.hypervisor.proc import decode_cgroup, decode_environment, decode_stat
from tensorfusion.hypervisor.registry import Registry, decode_peer
from tensorfusion.hypervisor.wire import decode_limits, decode_request, json_answer
from tensorfusion_native import layout
from tensorfusion_native.attestation import decode_attestation
from tensorfusion_native.freezer import RECORD as FROZEN
from tensorfusion_native.freezer import FrozenProcess, FrozenRecord, read_record, write_record
from tensorfusion_native.region import DeviceLimit, FullPolicy, WorkerRegion
from tensorfusion_native.states import decode_state
from tensorfusion_native.workers import RECORD, WorkerRecord, Workers

UUID = "GPU-00000000-0000-0000-0000-000000000000"
REQUESTS = [
    b"GET /api/v1/workers HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/v1/workers/a%20b/limits HTTP/1.1\r\nHost: x\r\nContent-Length: 23\r\n\r\n"
    b'{"vram_bytes":16777216}',
    b"GET /livez HTTP/1.0\r\nAuthorization: Bearer abc\r\nOrigin: http://a\r\n\r\n",
    b"POST /api/v1/processes HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
]
LEDGER_HEAD = offsets.LEDGER["processes"] + 4 * offsets.PROCESS_BYTES


class Files:
    """The owner's reading of a worker's limits and ledger: bytes replace the limits and the beginning of the ledger."""

    def __init__(self, folder):
        self.folder = folder / "worker"
        limits = [DeviceLimit(UUID, vram_bytes=1 << 30, compute_ratio=0.5, context_bytes=1 << 20)]
        WorkerRegion.create(self.folder, limits, full=FullPolicy("wait", 1)).close()
        self.limits = (self.folder / "limits").read_bytes()
        self.ledger = (self.folder / "ledger").read_bytes()
        used = bytearray(self.ledger[:LEDGER_HEAD])
        at = offsets.LEDGER["processes"]
        struct.pack_into("<IIQQ9Q", used, at, os.getpid(), 0, 1, 2, *range(9))
        struct.pack_into(
            "<Q", used, offsets.LEDGER["states"] + offsets.DEVICE_STATE["wanted_bytes"], 8
        )
        self.seeds = [self.limits + self.ledger[:LEDGER_HEAD], self.limits + bytes(used)]

    def run(self, data):
        limits, ledger = data[: len(self.limits)], data[len(self.limits) :]
        (self.folder / "limits").write_bytes(limits)
        rest = self.ledger[len(ledger) :] if len(ledger) >= LEDGER_HEAD else b""
        (self.folder / "ledger").write_bytes(ledger + rest)
        try:
            region = WorkerRegion.open(self.folder)
        except ValueError as error:
            if str(self.folder) not in str(error):
                raise
            return
        raw = (self.folder / "ledger").read_bytes()
        with region:
            for row in range(layout.DEVICES):
                at = offsets.LEDGER["states"] + row * offsets.DEVICE_STATE_BYTES
                use, state = (
                    region.use(row),
                    decode_state(raw[at : at + offsets.DEVICE_STATE_BYTES]),
                )
                assert use.used_bytes == state.used_bytes
                assert use.paced_ns == state.paced_ns
                assert region.wanted(row) >= 0
            assert all(region.pids())
            assert min(vars_of(region.faults())) >= 0
            region.write([DeviceLimit(UUID)])
            region.beat()


def vars_of(record):
    return [getattr(record, name) for name in record.__slots__]


class Records:
    """JSON files of workers, frozen workers and attestations, and the fixed-size state."""

    def __init__(self, folder):
        self.workers = Workers(folder / "workers")
        self.worker = folder / "workers" / quote("a b", safe="") / RECORD
        self.frozen = folder / "frozen"
        self.worker.parent.mkdir(parents=True)
        record = WorkerRecord(name="a b", devices=[UUID], vram_bytes=1, command=["x"], full="wait")
        frozen = FrozenRecord(
            worker="a b",
            tier="warm",
            processes=[FrozenProcess(os.getpid(), 7)],
            devices=[UUID],
            vram_bytes={UUID: 1 << 30},
        )
        write_record(self.frozen, frozen)
        attested = {"pid": 1, "state": "enforced", "reason": "", "memory": True, "layout": 2}
        self.seeds = [
            json.dumps({name: getattr(record, name) for name in record.__struct_fields__}).encode(),
            (self.frozen / FROZEN).read_bytes(),
            json.dumps(attested).encode(),
            bytes(range(offsets.DEVICE_STATE_BYTES)),
        ]

    def run(self, data):
        self.worker.write_bytes(data)
        (self.frozen / FROZEN).write_bytes(data)
        for record in [self.workers.find("a b"), *self.workers.records()]:
            if record is not None:
                with contextlib.suppress(ValueError):  # a value that no worker may have, named
                    record.limits()
                    record.full_policy()
                record.over()
        frozen = read_record(self.frozen)
        if frozen is not None:
            assert all(p.alive() in (True, False) for p in frozen.processes)
        attested = decode_attestation(data)
        assert attested is None or 0 < attested.pid < 1 << 31
        if len(data) == offsets.DEVICE_STATE_BYTES:
            assert decode_state(data).paced_ns >= 0


class Requests:
    """The agent's parser, its bodies, and the kernel's files about a peer."""

    def __init__(self, folder):
        self.seeds = [
            *REQUESTS,
            b'{"compute_gflops": 100, "vram_bytes": 9223372036854775807}',
            b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 20",
            b"TENSORFUSION_WORKER=a\0B\0=\0A=\xff\0",
            b"0::/kubepods/pod0f8fad5b-d9cb-469f-a165-70867728950e/x\n",
        ]

    def run(self, data):
        with contextlib.suppress(BadRequest, TooLarge):
            request = decode_request(data)
            if request is not None:
                assert request.segments
                assert all(s and "/" not in s and s not in (".", "..") for s in request.segments)
                # What ends a request earlier would be read as two requests by somebody else.
                assert decode_request(data[:-1]) is None
                with contextlib.suppress(BadRequest):
                    decode_limits(request.body)
        with contextlib.suppress(BadRequest):
            change = decode_limits(data)
            assert change.compute_gflops or change.vram_bytes
        decode_stat(data)
        decode_peer(data[:12])
        assert isinstance(decode_environment(data), dict)
        assert isinstance(decode_cgroup(data), str)


class Api:
    """Stands for the routes: the way to them and back is what is tested."""

    def probe(self, name):
        return json_answer({"probe": name})

    def respond(self, request, caller):
        if request.segments[0] != "api":
            raise NotFound("no such path")
        return json_answer({"segments": request.segments, "worker": caller.worker})


class Socket:
    """The Unix socket of a running agent: whatever comes, it answers with one whole answer, or the client has left."""

    def __init__(self, folder):
        registry = Registry(lambda: (), lambda uid: "", folder / "pods", SystemClock())
        credentials = ensure_credentials(folder, SystemClock())
        door = Door("127.0.0.1", "127.0.0.1", ())
        self.server = AgentServer(Api(), registry, credentials, folder, folder / "s", door)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.server.run, args=(self.stop,))
        self.thread.start()
        self.seeds = REQUESTS

    def close(self):
        self.stop.set()
        self.thread.join()

    def run(self, data):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.server.path))
            answer = b""
            # An answer may come before all is sent: then the rest is refused.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                half = len(data) // 2
                client.sendall(data[:half])
                client.sendall(data[half:])
                client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while chunk := client.recv(1 << 16):
                    answer += chunk
        if not answer:
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), answer[:80]
        assert not head.startswith(b"HTTP/1.1 500"), answer
        assert b"content-length: %d\r\n" % len(body) in head, answer[:300]


def target(kind):
    @contextlib.contextmanager
    def opened(folder: Path):
        made = kind(folder)
        try:
            yield made
        finally:
            getattr(made, "close", lambda: None)()

    return opened


TARGETS = {kind.__name__.lower(): target(kind) for kind in (Files, Records, Requests, Socket)}
