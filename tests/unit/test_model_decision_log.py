"""The decision log: replay bit for bit, torn tails tolerated, damage named."""

import msgspec
import pytest

from tensorfusion.model.decision_log import LogCorrupt, LogEncoder, decode_line, replay
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device
from tensorfusion.model.ledger import Ledger


@pytest.fixture
def history():
    ledger = Ledger()
    ledger.set_device(Device(uuid="g", node="n", capacity_gflops=1000, capacity_vram_bytes=1000))
    encoder = LogEncoder()
    lines = []
    for number in range(3):
        pod = Demand(
            namespace="ns",
            name=f"p{number}",
            uid=f"u{number}",
            shape=Shape(request=Amount(100, 100), containers=(("main", 1),)),
        )
        lines.append(encoder.encode(ledger.allocate(pod, ["g"]), 1.5 + number, "Scheduled"))
    lines.append(encoder.encode(ledger.resize("u0", Amount(200, 50), Amount()), 9.0, "Resized"))
    lines.append(encoder.encode(ledger.hold("u1", "u9"), 9.5))
    lines.append(encoder.encode(ledger.release("u2"), 10.0, "Gone"))
    return ledger, encoder, lines


def test_log_replay_rebuilds_the_ledger_bit_for_bit(history):
    ledger, _, lines = history
    result = replay(lines)
    assert result.ledger.state_hash() == ledger.state_hash()
    assert result.ledger.allocations == ledger.allocations
    assert (result.last_seq, result.records, result.torn_bytes) == (6, 6, 0)


def test_log_record_says_who_when_and_why(history):
    record = decode_line(history[2][3])
    assert (record.seq, record.time, record.operation, record.reason) == (
        4,
        9.0,
        "resize",
        "Resized",
    )
    assert record.allocation.request == Amount(200, 50)


def test_log_tail_cut_at_every_byte_loses_only_the_last_record(history):
    _, _, lines = history
    expected = replay(lines[:-1]).ledger.state_hash()
    for length in range(1, len(lines[-1])):
        result = replay([*lines[:-1], lines[-1][:length]])
        assert result.ledger.state_hash() == expected
        assert result.torn_bytes == length


@pytest.mark.parametrize("line", [1, 3, 6])
def test_log_damage_is_an_error_that_names_the_line(history, line):
    lines = list(history[2])
    lines[line - 1] = lines[line - 1].replace(b"u", b"v", 1) if line else b""
    lines[line - 1] = lines[line - 1].replace(b"ns", b"xx", 1).replace(b"Gone", b"Lone", 1)
    with pytest.raises(LogCorrupt, match=f"line {line}:") as caught:
        replay(lines)
    assert caught.value.line == line


def test_log_missing_record_is_an_error(history):
    lines = history[2]
    with pytest.raises(LogCorrupt, match="record 3 follows record 1"):
        replay([lines[0], *lines[2:]])


def test_log_digest_that_disagrees_is_an_error(history):
    _, _, lines = history
    record = msgspec.structs.replace(decode_line(lines[1]), digest="0" * 32)
    forged = LogEncoder()._line(record)
    with pytest.raises(LogCorrupt, match="line 2: the state does not have the digest"):
        replay([lines[0], forged])


def test_log_checkpoint_replaces_what_came_before(history):
    ledger, encoder, lines = history
    checkpoint = encoder.checkpoint(ledger, 11.0)
    assert replay([checkpoint]).ledger.state_hash() == ledger.state_hash()
    lines = [checkpoint, encoder.encode(ledger.release("u0"), 12.0)]
    result = replay(lines)
    assert result.ledger.state_hash() == ledger.state_hash()
    assert result.last_seq == 7


def test_log_empty_is_an_empty_ledger():
    result = replay([])
    assert (result.last_seq, result.ledger.digest) == (0, 0)
