"""The contract of `Store`: watches."""

import threading

import pytest
from tests.contract.conftest import (
    DEADLINE_SECONDS,
    collect,
    kinds,
    profile,
    version,
    with_metadata,
)

from tensorfusion.api.registry import CONFIG_MAPS, NAMESPACES, PROFILES
from tensorfusion.errors import (
    ApiError,
    BadRequest,
)
from tensorfusion.store import EventType, Store


def test_watch_from_a_version_delivers_what_follows(store: Store, namespace: str) -> None:
    start = store.list(PROFILES, namespace).resource_version
    created = store.create(PROFILES, profile("a"), namespace)
    store.update(PROFILES, with_metadata(created, labels={"k": "v"}))
    store.delete(PROFILES, "a", namespace)
    events = collect(store, PROFILES, namespace, 3, resource_version=start)
    assert kinds(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    versions = [int(version(event.object)) for event in events]
    assert versions == sorted(set(versions))


def test_watch_without_a_version_starts_with_what_exists(store: Store, namespace: str) -> None:
    for name in ("a", "b"):
        store.create(PROFILES, profile(name), namespace)
    events = collect(store, PROFILES, namespace, 2)
    assert sorted(kinds(events)) == [("ADDED", "a"), ("ADDED", "b")]


def test_watch_delivers_changes_made_while_it_waits(store: Store, namespace: str) -> None:
    start = store.list(PROFILES, namespace).resource_version
    watch = store.watch(
        PROFILES, namespace, resource_version=start, timeout_seconds=DEADLINE_SECONDS
    )
    writer = threading.Thread(target=store.create, args=(PROFILES, profile("late"), namespace))
    writer.start()
    event = next(watch)
    writer.join()
    watch.stop()
    assert (event.type, event.object["metadata"]["name"]) == (EventType.ADDED, "late")


def test_watch_is_confined_to_its_namespace(store: Store, namespace: str) -> None:
    other = store.create(NAMESPACES, {"metadata": {"generateName": "contract-"}})["metadata"][
        "name"
    ]
    start = store.list(PROFILES, namespace).resource_version
    store.create(PROFILES, profile("elsewhere"), other)
    store.create(PROFILES, profile("here"), namespace)
    events = collect(store, PROFILES, namespace, 1, resource_version=start)
    assert kinds(events) == [("ADDED", "here")]
    store.delete(NAMESPACES, other)


def test_watch_turns_selector_transitions_into_added_and_deleted(
    store: Store, namespace: str
) -> None:
    start = store.list(PROFILES, namespace).resource_version
    store.create(PROFILES, profile("a"), namespace)
    for labels in ({"k": "v"}, {"k": "v", "more": "x"}, {"k": "other"}):
        store.patch(PROFILES, "a", {"metadata": {"labels": labels}}, namespace)
    events = collect(store, PROFILES, namespace, 3, resource_version=start, label_selector="k=v")
    assert kinds(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_watch_by_field_selector(store: Store, namespace: str) -> None:
    start = store.list(PROFILES, namespace).resource_version
    for name in ("a", "b"):
        store.create(PROFILES, profile(name), namespace)
    events = collect(
        store,
        PROFILES,
        namespace,
        1,
        resource_version=start,
        field_selector="metadata.name=b",
    )
    assert kinds(events) == [("ADDED", "b")]


def test_watch_ends_at_its_timeout(store: Store, namespace: str) -> None:
    start = store.list(PROFILES, namespace).resource_version
    watch = store.watch(PROFILES, namespace, resource_version=start, timeout_seconds=1)
    assert [event for event in watch if event.type is not EventType.BOOKMARK] == []


def test_watch_ends_when_another_thread_stops_it(store: Store, namespace: str) -> None:
    start = store.list(PROFILES, namespace).resource_version
    watch = store.watch(PROFILES, namespace, resource_version=start)
    timer = threading.Timer(0.2, watch.stop)
    timer.start()
    assert list(watch) == []
    timer.join()


def test_watch_of_a_version_that_is_no_number_is_refused(store: Store, namespace: str) -> None:
    with pytest.raises(ApiError) as caught:
        list(store.watch(CONFIG_MAPS, namespace, resource_version="abc", timeout_seconds=1))
    # The real server fails to parse it inside the storage layer and calls that a 500.
    assert caught.value.code in (400, 422, 500)
    assert "abc" in str(caught.value)


def test_watch_with_a_bad_selector_is_refused(store: Store, namespace: str) -> None:
    with pytest.raises(BadRequest):
        list(store.watch(CONFIG_MAPS, namespace, label_selector="a in b", timeout_seconds=1))
