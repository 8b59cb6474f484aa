"""What `tensorfusion smi` reads: all workers of a folder at one moment, whatever some of their files are like."""

import msgspec
import pytest
from native.machine import GIB, uuid

from tensorfusion_native.libraries import libraries
from tensorfusion_native.show import Watcher
from tensorfusion_native.workers import RECORD, WorkerRecord, Workers


@pytest.fixture
def root(build, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(build))
    workers = Workers(tmp_path / "workers")
    for name, cards in (("a", (0, 1)), ("b", (0,)), ("c", (1,)), ("d", (1,))):
        devices = [uuid(card) for card in cards]
        workers.put(WorkerRecord(name=name, devices=devices, vram_bytes=GIB, compute_ratio=0.25))
    workers.close()
    return tmp_path


def shown(root):
    watcher = Watcher([root], libraries())
    return [[(row.worker, row.uuid) for row in watcher.look().workers] for _ in range(2)]


ALL = [("a", uuid(0)), ("a", uuid(1)), ("b", uuid(0)), ("c", uuid(1)), ("d", uuid(1))]


def short(folder):
    (folder / "ledger").write_bytes(b"short")


def gone(folder):
    (folder / "limits").unlink()


def too_many(folder):
    record = WorkerRecord(name="b", devices=[uuid(card) for card in range(17)])
    (folder / RECORD).write_bytes(msgspec.json.encode(record))


def other_layout(folder):
    (folder / "limits").write_bytes(bytes((folder / "limits").stat().st_size))


@pytest.mark.parametrize("damage", [short, gone, too_many, other_layout])
def test_one_worker_that_cannot_be_read_hides_no_other(root, damage):
    assert shown(root) == [ALL, ALL]
    damage(root / "workers" / "b")
    rest = [row for row in ALL if row[0] != "b"]
    assert shown(root) == [rest, rest]


def test_limits_and_figures_stand_in_the_row_of_their_device(root):
    workers = Workers(root / "workers")
    for row in range(2):
        state = workers.place("a", row).pointer
        state.used_bytes, state.throttled_ns, state.denied, state.full_denied = 5 + row, 10**9, 2, 1
    first = Watcher([root], libraries()).look().workers[:3]
    workers.close()

    assert [(row.worker, row.used_bytes, row.throttled_seconds, row.denied) for row in first] == [
        ("a", 5, 1.0, 3),
        ("a", 6, 1.0, 3),
        ("b", 0, 0.0, 0),
    ]
    assert {(row.limit_ratio, row.limit_bytes, row.throttled_ratio) for row in first} == {
        (0.25, GIB, None)
    }


def test_a_folder_without_workers_shows_none(root):
    assert shown(root / "nothing") == [[], []]
