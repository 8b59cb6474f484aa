"""Decoders of the node agent: requests, bodies, and the kernel's files about a process."""

import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.errors import BadRequest, Forbidden, TooLarge
from tensorfusion.hypervisor.proc import Stat, decode_cgroup, decode_environment, decode_stat
from tensorfusion.hypervisor.registry import LEAST_KEPT, Peer, Registry, decode_peer
from tensorfusion.hypervisor.wire import (
    MOST_BODY_BYTES,
    MOST_HEAD_BYTES,
    Answer,
    decode_limits,
    decode_request,
    encode_answer,
)
from tensorfusion.testing.clock import FakeClock

UID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
GOOD = b"POST /api/v1/workers/a%20b/limits HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def test_a_request_is_read_whole():
    request = decode_request(GOOD)

    assert request is not None
    assert (request.method, request.segments) == ("POST", ("api", "v1", "workers", "a b", "limits"))
    assert (request.headers["host"], request.body) == (b"x", b"{}")


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_part_of_a_request_is_not_complete(length):
    assert decode_request(GOOD[:length]) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET http://a/ HTTP/1.1\r\n\r\n", "request line"),
        (b"get / HTTP/1.1\r\n\r\n", "request line"),
        (b"GET /a HTTP/2\r\n\r\n", "request line"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a name"),
        (b"GET /a//b HTTP/1.1\r\n\r\n", "not a name"),
        (b"GET /../etc HTTP/1.1\r\n\r\n", "not a name"),
        (b"GET /%2e%2e/etc HTTP/1.1\r\n\r\n", "not a name"),
        (b"GET /a%2fb HTTP/1.1\r\n\r\n", "not a name"),
        (b"GET /a%ff HTTP/1.1\r\n\r\n", "not UTF-8"),
        (b"GET /a?b=c HTTP/1.1\r\n\r\n", "no query"),
        (b"GET /a HTTP/1.1\r\nHost x\r\n\r\n", "header"),
        (b"GET /a HTTP/1.1\r\n folded: x\r\n\r\n", "header"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", "more than once"),
        (b"GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding"),
        (b"GET /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "content-length"),
        (b"GET /a HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n", "content-length"),
        (b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "follow the request"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(data, said):
    with pytest.raises(BadRequest, match=said):
        decode_request(data)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (MOST_HEAD_BYTES + 1),
        b"GET /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MOST_BODY_BYTES + 1),
    ],
)
def test_what_is_too_long_is_refused_before_it_is_there(data):
    with pytest.raises(TooLarge):
        decode_request(data)


@given(st.binary(max_size=300) | st.binary(max_size=80).map(lambda tail: GOOD[:40] + tail))
def test_any_bytes_are_a_request_a_part_of_one_or_one_clear_error(data):
    try:
        request = decode_request(data)
    except (BadRequest, TooLarge):
        return
    if request is not None:
        assert all(s and "/" not in s and s not in (".", "..") for s in request.segments)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)).map(lambda v: json.dumps(v).encode()))  # fmt: skip
def test_any_body_is_a_change_or_one_clear_error(body):
    try:
        change = decode_limits(body)
    except BadRequest:
        return
    assert change.compute_gflops or change.vram_bytes


def test_a_body_nested_too_deep_is_refused():
    with pytest.raises(BadRequest, match="limits: "):
        decode_limits(b"[" * 60_000)


def test_an_answer_says_how_long_it_is():
    assert encode_answer(Answer(404, b"no\n", "text/plain")).endswith(
        b"content-length: 3\r\ncache-control: no-store\r\nconnection: close\r\n\r\nno\n"
    )


def stat_line(parent, session, ticks, name="x", state="S"):
    fields = [state, str(parent), "0", str(session), *["0"] * 15, str(ticks), "0"]
    return f"7 ({name}) {' '.join(fields)}".encode()


def test_the_kernels_files_are_read():
    assert decode_stat(stat_line(5, 6, 99, name="a) S 1 2 (b")) == Stat(5, 6, 99)
    assert decode_stat(stat_line(5, 6, 99, state="Z")) is None
    assert decode_environment(b"A=1\0B\0A=2\0C=a=b\0") == {"A": "1", "C": "a=b"}
    for path in (f"/kubepods/burstable/pod{UID}/1a", f"/kubepods-pod{UID.replace('-', '_')}.slice"):
        assert decode_cgroup(f"0::{path}\n".encode()) == UID
    assert decode_cgroup(f"0::/pod{OTHER}/kubelet/pod{UID}/c\n".encode()) == UID
    assert decode_cgroup(b"0::/user.slice\n") == ""
    assert decode_peer(b"\1\0\0\0\2\0\0\0\3\0\0\0") == Peer(1, 2)
    assert decode_peer(b"\0\0\0\0\2\0\0\0\3\0\0\0") is None


@given(st.binary(max_size=400))
def test_any_bytes_of_the_kernel_are_read_or_not(data):
    assert isinstance(decode_environment(data), dict)
    assert isinstance(decode_cgroup(data), str)
    decode_stat(data)
    decode_peer(data)


class Machine:
    """A process folder that a test fills."""

    def __init__(self, folder):
        self.proc, self.pods = folder / "proc", folder / "pods"
        self.registry = Registry(
            lambda: {UID, OTHER},
            lambda uid: uid if uid in (UID, OTHER) else "",
            self.pods,
            FakeClock(),
            proc=self.proc,
            owner=1000,
        )

    def process(self, pid, *, parent=1, session=0, ticks=5, cgroup="", **environment):
        folder = self.proc / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_bytes(stat_line(parent, session or pid, ticks))
        (folder / "cgroup").write_text(f"0::{cgroup or '/'}\n")
        rows = [f"{name}={value}" for name, value in environment.items()]
        (folder / "environ").write_bytes("\0".join(rows).encode())

    def container(self, uid, leader):
        folder = self.pods / uid / "containers" / "c"
        folder.mkdir(parents=True)
        (folder / "0.pid").write_text(f"{leader}\n")
        return str(folder / "0")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_process_is_known_by_what_it_cannot_choose(machine):
    mark = machine.container(UID, 10)
    machine.process(10)
    machine.process(11, parent=10, TENSORFUSION_CONTAINER=mark)
    machine.process(12, parent=11, session=12, TENSORFUSION_CONTAINER=mark, TENSORFUSION_WORKER=UID)
    machine.process(13, parent=1, session=10, TENSORFUSION_CONTAINER=mark)
    machine.process(20, cgroup=f"/kubepods/pod{OTHER}/x")
    machine.process(30, TENSORFUSION_WORKER=UID)

    found = {pid: machine.registry.caller(Peer(pid, 1234)) for pid in (11, 12, 13, 20, 30)}

    assert {pid: (caller.worker, caller.evidence) for pid, caller in found.items()} == {
        11: (UID, "container"),
        12: (UID, "container"),
        13: (UID, "container"),
        20: (OTHER, "cgroup"),
        30: (UID, "environment"),
    }


def test_a_process_that_claims_another_worker_is_refused(machine):
    mark = machine.container(UID, 10)
    machine.process(10)
    machine.process(40, parent=1, TENSORFUSION_CONTAINER=mark)
    machine.process(41, parent=10, TENSORFUSION_CONTAINER=mark, TENSORFUSION_WORKER=OTHER)
    machine.process(42, cgroup=f"/kubepods/pod{UID}/x", TENSORFUSION_WORKER=OTHER)
    stranger = "/kubepods/pod11111111-2222-3333-4444-555555555555/x"
    machine.process(43, cgroup=stranger, TENSORFUSION_WORKER=UID)

    for pid, said in ((40, "not of the container"), (41, "another"), (42, "another"), (43, "pod")):
        with pytest.raises(Forbidden, match=said):
            machine.registry.caller(Peer(pid, 1000))


def test_only_root_and_the_owner_may_ask_without_a_worker(machine):
    machine.process(50)

    assert [machine.registry.caller(Peer(50, uid)).worker for uid in (0, 1000)] == ["", ""]
    with pytest.raises(Forbidden, match="belongs to no worker"):
        machine.registry.caller(Peer(50, 1001))
    with pytest.raises(Forbidden, match="is gone"):
        machine.registry.caller(Peer(51, 0))


def test_a_registered_process_is_forgotten_when_its_id_is_used_again(machine):
    machine.process(60, ticks=5, TENSORFUSION_WORKER=UID)
    first = machine.registry.register(machine.registry.caller(Peer(60, 9)))
    assert machine.registry.register(machine.registry.caller(Peer(60, 9))) == first
    assert machine.registry.processes() == [first]

    machine.process(60, ticks=6)

    assert machine.registry.processes() == []
    with pytest.raises(Forbidden, match="only a process of a worker"):
        machine.registry.register(machine.registry.caller(Peer(60, 0)))


def test_processes_that_came_and_went_are_not_kept_though_nobody_asks_for_them(machine):
    machine.process(60, ticks=5, TENSORFUSION_WORKER=UID)
    lasting = machine.registry.register(machine.registry.caller(Peer(60, 9)))
    before = sys.getallocatedblocks()
    for ticks in range(20 * LEAST_KEPT):
        machine.process(61, ticks=ticks, TENSORFUSION_WORKER=UID)
        last = machine.registry.register(machine.registry.caller(Peer(61, 9)))

    assert sys.getallocatedblocks() - before < 20 * LEAST_KEPT
    assert machine.registry.processes() == [lasting, last]


def test_this_process_is_no_workers(tmp_path):
    registry = Registry(lambda: set(), lambda _uid: "", tmp_path, FakeClock())

    assert registry.caller(Peer(os.getpid(), os.geteuid())).worker == ""
