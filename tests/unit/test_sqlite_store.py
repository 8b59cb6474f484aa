"""What the SQLite store promises beside the contract: durability, transactions, watches, limits."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorfusion.api.registry import CONFIG_MAPS, PODS, PROFILES
from tensorfusion.errors import ConfigError, Conflict, Gone, NotFound, Unavailable
from tensorfusion.sqlite import InsufficientStorage, SQLiteStore
from tensorfusion.sqlite.database import Database
from tensorfusion.store import EventType, PatchType
from tensorfusion.store.admission import collected_warnings


class StillClock:
    """A clock that moves only when it is told to, and while somebody waits."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if not event.is_set():
            self.seconds += seconds
        return event.is_set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    opened = SQLiteStore(tmp_path / "store.db")
    yield opened
    opened.close()


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


def test_objects_and_versions_survive_a_restart(tmp_path: Path) -> None:
    first = SQLiteStore(tmp_path / "store.db")
    created = first.create(CONFIG_MAPS, config_map("a", x="1"), "default")
    first.create(CONFIG_MAPS, config_map("b"), "default")
    first.delete(CONFIG_MAPS, "b", "default")
    version = first.version
    first.close()
    second = SQLiteStore(tmp_path / "store.db")
    assert second.get(CONFIG_MAPS, "a", "default") == created
    assert second.version == version
    later = second.create(CONFIG_MAPS, config_map("c"), "default")
    assert int(later["metadata"]["resourceVersion"]) > version
    second.close()


def test_watch_from_before_a_restart_is_gone(tmp_path: Path) -> None:
    first = SQLiteStore(tmp_path / "store.db")
    version = str(first.version)
    first.create(CONFIG_MAPS, config_map("a"), "default")
    current = str(first.version)
    first.close()
    second = SQLiteStore(tmp_path / "store.db")
    with pytest.raises(Gone):
        second.watch(CONFIG_MAPS, resource_version=version)
    second.watch(CONFIG_MAPS, resource_version=current).stop()
    second.close()


def test_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from tensorfusion.sqlite import SQLiteStore\n"
        "from tensorfusion.api.registry import CONFIG_MAPS\n"
        "store = SQLiteStore(sys.argv[1])\n"
        "for index in range(100_000):\n"
        "    store.create(CONFIG_MAPS, {'metadata': {'name': f'c{index}'}}, 'default')\n"
        "    print(index, flush=True)\n"
    )
    path = tmp_path / "store.db"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(200):
        acknowledged = int(process.stdout.readline())
    process.kill()
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.strip())])
    process.wait()
    process.stdout.close()
    store = SQLiteStore(path)
    names = {item["metadata"]["name"] for item in store.list(CONFIG_MAPS, "default").items}
    assert {f"c{index}" for index in range(acknowledged + 1)} <= names
    store.create(CONFIG_MAPS, config_map("after"), "default")
    store.close()


def test_file_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ConfigError, match="schema version 99"):
        SQLiteStore(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match="cannot open the resource store"):
        SQLiteStore(path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        SQLiteStore(tmp_path / "nowhere" / "store.db")


def test_transaction_is_one_commit(store: SQLiteStore) -> None:
    before = store.counters.transactions
    with store.transaction():
        for index in range(10):
            store.create(CONFIG_MAPS, config_map(f"c{index}"), "default")
    assert store.counters.transactions == before + 1


def test_failed_transaction_leaves_no_trace(store: SQLiteStore) -> None:
    store.create(CONFIG_MAPS, config_map("kept", x="1"), "default")
    version = store.version
    watch = store.watch(CONFIG_MAPS, resource_version=str(version), timeout_seconds=0.0)

    def write_and_fail() -> None:
        with store.transaction():
            store.create(CONFIG_MAPS, config_map("lost"), "default")
            store.patch(CONFIG_MAPS, "kept", {"data": {"x": "2"}}, "default")
            assert store.get(CONFIG_MAPS, "kept", "default")["data"] == {"x": "2"}
            assert len(store.list(CONFIG_MAPS, "default").items) == 2
            raise RuntimeError("undo")

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(watch) == []
    assert store.version == version
    assert store.get(CONFIG_MAPS, "kept", "default")["data"] == {"x": "1"}
    with pytest.raises(NotFound):
        store.get(CONFIG_MAPS, "lost", "default")


def test_failed_operation_inside_a_transaction_undoes_only_itself(store: SQLiteStore) -> None:
    def write_and_fail() -> None:
        with store.transaction():
            store.create(CONFIG_MAPS, config_map("b"), "default")
            raise RuntimeError("undo")

    with store.transaction():
        store.create(CONFIG_MAPS, config_map("a"), "default")
        with pytest.raises(RuntimeError):
            write_and_fail()
        store.create(CONFIG_MAPS, config_map("c"), "default")
    names = [item["metadata"]["name"] for item in store.list(CONFIG_MAPS, "default").items]
    assert names == ["a", "c"]


def test_readers_see_no_uncommitted_writes(store: SQLiteStore) -> None:
    seen = []

    def read() -> None:
        seen.append(len(store.list(CONFIG_MAPS, "default").items))

    with store.transaction():
        store.create(CONFIG_MAPS, config_map("a"), "default")
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
    assert seen == [0]


def test_concurrent_conditional_updates_lose_none(store: SQLiteStore) -> None:
    store.create(CONFIG_MAPS, config_map("counter", value="0"), "default")

    def add_twenty() -> None:
        done = 0
        while done < 20:
            current = store.get(CONFIG_MAPS, "counter", "default")
            value = str(int(current["data"]["value"]) + 1)
            try:
                store.update(CONFIG_MAPS, {**current, "data": {"value": value}})
            except Conflict:
                continue
            done += 1

    threads = [threading.Thread(target=add_twenty) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(CONFIG_MAPS, "counter", "default")["data"] == {"value": "80"}


def test_full_disk_is_reported_and_leaves_nothing_half_done(store: SQLiteStore) -> None:
    store.create(CONFIG_MAPS, config_map("before", x="1"), "default")
    store.database.limit_pages(1)
    version = store.version
    with pytest.raises(InsufficientStorage, match="full") as caught:
        store.create(CONFIG_MAPS, config_map("big", x="y" * 200_000), "default")
    assert isinstance(caught.value, Unavailable)
    assert store.version == version
    store.database.limit_pages(0)
    store.create(CONFIG_MAPS, config_map("big", x="y" * 200_000), "default")
    assert store.get(CONFIG_MAPS, "before", "default")["data"] == {"x": "1"}


def test_version_older_than_the_ring_is_gone(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", ring_events=5)
    start = store.version
    page = store.list(CONFIG_MAPS, limit=1)
    assert page.continue_token == ""
    for index in range(10):
        store.create(CONFIG_MAPS, config_map(f"c{index}"), "default")
    with pytest.raises(Gone, match="too old resource version"):
        store.watch(CONFIG_MAPS, resource_version=str(start))
    recent = store.watch(CONFIG_MAPS, resource_version=str(store.version - 5), timeout_seconds=0)
    assert len(list(recent)) == 5
    store.close()


def test_continue_token_older_than_the_ring_is_gone(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", ring_events=2)
    for index in range(4):
        store.create(CONFIG_MAPS, config_map(f"c{index}"), "default")
    token = store.list(CONFIG_MAPS, limit=2).continue_token
    assert len(store.list(CONFIG_MAPS, limit=2, continue_token=token).items) == 2
    for index in range(4):
        store.create(CONFIG_MAPS, config_map(f"d{index}"), "default")
    with pytest.raises(Gone):
        store.list(CONFIG_MAPS, limit=2, continue_token=token)
    store.close()


def test_watch_of_a_version_from_the_future_is_gone(store: SQLiteStore) -> None:
    with pytest.raises(Gone):
        store.watch(CONFIG_MAPS, resource_version=str(store.version + 100))


def test_slow_watch_is_ended_with_an_error_event(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", queue_events=3)
    watch = store.watch(CONFIG_MAPS, resource_version=str(store.version), timeout_seconds=1)
    for index in range(10):
        store.create(CONFIG_MAPS, config_map(f"c{index}"), "default")
    events = list(watch)
    assert [event.type for event in events] == [EventType.ERROR]
    assert events[0].object["code"] == 410
    store.close()


def test_idle_watch_gets_bookmarks_with_the_newest_version(tmp_path: Path) -> None:
    clock = StillClock()
    store = SQLiteStore(tmp_path / "store.db", clock=clock, bookmark_seconds=60)
    watch = store.watch(
        PROFILES, resource_version=str(store.version), bookmarks=True, timeout_seconds=130
    )
    store.create(CONFIG_MAPS, config_map("another-kind"), "default")
    events = list(watch)
    assert [event.type for event in events] == [EventType.BOOKMARK] * 2
    assert events[0].object["metadata"]["resourceVersion"] == str(store.version)
    assert events[0].object["kind"] == "WorkloadProfile"
    store.close()


def test_closing_the_store_ends_watches(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    watch = store.watch(CONFIG_MAPS, resource_version=str(store.version))
    store.close()
    assert list(watch) == []


def test_reads_of_recent_objects_touch_no_rows(store: SQLiteStore) -> None:
    store.create(CONFIG_MAPS, config_map("a"), "default")
    before = store.counters.rows_read
    for _ in range(10):
        store.get(CONFIG_MAPS, "a", "default")
    assert store.counters.rows_read == before


def test_rows_read_per_write_do_not_grow_with_the_number_of_objects(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", cached_records=10)

    def rows_read_by_ten_patches() -> int:
        before = store.counters.rows_read
        for index in range(10):
            store.patch(CONFIG_MAPS, f"c{index}", {"data": {"n": str(before)}}, "default")
        return store.counters.rows_read - before

    for index in range(20):
        store.create(CONFIG_MAPS, config_map(f"c{index}"), "default")
    few = rows_read_by_ten_patches()
    for index in range(20, 500):
        store.create(CONFIG_MAPS, config_map(f"c{index}"), "default")
    assert rows_read_by_ten_patches() <= max(few, 20)


def test_unknown_fields_warn_whoever_collects(store: SQLiteStore) -> None:
    body = {"metadata": {"name": "a"}, "spec": {"gpuModle": "A100"}}
    with collected_warnings() as warnings:
        store.create(PROFILES, body, "default")
    assert warnings == ['unknown field "spec.gpuModle"']


def test_count_by_resource_counts(store: SQLiteStore) -> None:
    store.create(CONFIG_MAPS, config_map("a"), "default")
    assert store.database.count_by_resource()["configmaps"] == 1


def test_apply_by_the_first_manager_takes_nothing_from_managed_fields_of_others(
    store: SQLiteStore,
) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", **config_map("a", x="1")}
    store.create(CONFIG_MAPS, config_map("a", x="1"), "default", field_manager="writer")
    applied = store.patch(
        CONFIG_MAPS, "a", body, "default", patch_type=PatchType.APPLY, field_manager="applier"
    )
    managers = {(m["manager"], m["operation"]) for m in applied["metadata"]["managedFields"]}
    assert managers == {("writer", "Update"), ("applier", "Apply")}


def test_database_closes_cleanly_twice_opened(tmp_path: Path) -> None:
    for _ in range(2):
        store = SQLiteStore(tmp_path / "store.db")
        assert isinstance(store.database, Database)
        assert store.list(PODS).items == []
        store.close()
