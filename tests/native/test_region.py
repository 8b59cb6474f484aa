"""The owner's side of a worker's files, which is compiled: what it reads, and how it refuses."""

import mmap
import os
import struct

import pytest
from native import offsets

from tensorfusion.errors import ConfigError
from tensorfusion_native import layout, libraries
from tensorfusion_native.region import DeviceLimit, FullPolicy, WorkerRegion
from tensorfusion_native.states import States, decode_state

UUID = "GPU-00000000-0000-0000-0000-000000000000"
WORDS = {name: number + 1 for number, name in enumerate(offsets.DEVICE_STATE)}


@pytest.fixture
def region(build, tmp_path, monkeypatch):
    monkeypatch.setenv(libraries.BUILD_VARIABLE, str(build))
    with WorkerRegion.create(tmp_path / "w", [DeviceLimit(UUID, vram_bytes=7)] * 2) as region:
        yield region


@pytest.fixture
def ledger(region):
    """The ledger as another process has it."""
    with (region.folder / "ledger").open("r+b") as file:
        area = mmap.mmap(file.fileno(), offsets.LEDGER_BYTES)
    yield area
    area.close()


def put(ledger, row, name, value):
    at = offsets.LEDGER["states"] + row * offsets.DEVICE_STATE_BYTES + offsets.DEVICE_STATE[name]
    struct.pack_into("<I" if name in ("trim_ppm", "share_ppm") else "<Q", ledger, at, value)


def test_every_field_is_read_where_the_limiter_has_it(region, ledger):
    use = region.use(1)
    for name in use._fields:
        put(ledger, 1, name, WORDS[name])

    assert region.use(1)._asdict() == {name: WORDS[name] for name in use._fields}
    assert region.use(0) == use


def test_only_what_changed_is_copied_again(region, ledger):
    states = States([region.state(0), None, region.state(1)])
    before = states.take()
    assert before[1] == b""
    put(ledger, 1, "paced_ns", 5)
    after = states.take()

    assert after[0] is before[0]
    assert decode_state(after[2]).paced_ns == 5
    assert all(now is then for now, then in zip(states.take(), after, strict=True))


def test_waiting_is_seen_and_its_dead_are_not_counted(region, ledger):
    states = States([region.state(0)])
    assert not states.any_wants()
    put(ledger, 0, "wanted_bytes", 30)
    namespace = os.stat("/proc/self/ns/pid").st_ino
    for slot, (pid, ticks) in enumerate([(os.getpid(), 1), (1, 0)]):
        at = offsets.LEDGER["processes"] + slot * offsets.PROCESS_BYTES
        struct.pack_into("<IIQQ", ledger, at, pid, 0, ticks, namespace if ticks else namespace + 1)
        wanted = at + offsets.PROCESS["devices"] + offsets.DEVICE_USE["wanted_bytes"]
        struct.pack_into("<Q", ledger, wanted, 10)

    assert states.any_wants()
    assert region.wanted(0) == 10, (
        "one is another process than it says, one is of another namespace"
    )
    assert region.pids() == [os.getpid(), 1]


def test_limits_are_written_whole(region):
    region.write([DeviceLimit(UUID, vram_bytes=9)], closed=True, full=FullPolicy("wait", 1.5))
    raw = (region.folder / "limits").read_bytes()
    head = struct.unpack_from("<IIIII", raw, offsets.LIMITS["device_count"])
    rows = raw[offsets.LIMITS["devices"] :][: offsets.DEVICE_LIMIT_BYTES]
    digest = 0xCBF29CE484222325
    for byte in struct.pack("<IIIIII", *head, 0) + rows:
        digest = (digest ^ byte) * 0x100000001B3 % (1 << 64)

    assert head == (1, layout.POLICY_CLOSED, 0, layout.FULL_WAIT, 1500)
    assert struct.unpack_from("<Q", raw, offsets.LIMITS["checksum"]) == (digest,)
    assert struct.unpack_from("<I", raw, offsets.LIMITS["sequence"])[0] % 2 == 0


def test_what_is_closed_is_refused_and_what_reads_on_is_safe(region):
    states = States([region.state(0)])
    region.close()
    for call in (region.faults, region.pids, region.beat, lambda: region.use(0)):
        with pytest.raises(ValueError, match="its files are closed"):
            call()
    assert decode_state(states.take()[0]).used_bytes == 0


def test_a_row_that_is_none_is_refused(region):
    for call in (region.use, region.wanted, region.state):
        with pytest.raises(IndexError, match="row 16 must be 0 to 15"):
            call(layout.DEVICES)


def test_a_module_of_another_layout_is_refused(region, monkeypatch):
    monkeypatch.setattr(layout, "LAYOUT_HASH", layout.LAYOUT_HASH ^ 1)
    with pytest.raises(ConfigError, match="run `make native`"):
        libraries.compiled.__wrapped__()


def test_without_a_build_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(libraries.BUILD_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="has no complete build"):
        libraries.compiled.__wrapped__()
