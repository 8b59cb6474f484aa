"""The contract of `Store`: deletion, finalizers, owner references, namespaces."""

import uuid

import pytest
from tests.contract.conftest import config_map, eventually, is_gone, profile, version, with_metadata

from tensorfusion.api.registry import CONFIG_MAPS, NAMESPACES, PROFILES
from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import Conflict, Forbidden, Invalid, NotFound
from tensorfusion.store import Store


def test_delete_removes(store: Store, namespace: str) -> None:
    store.create(CONFIG_MAPS, config_map("a"), namespace)
    store.delete(CONFIG_MAPS, "a", namespace)
    with pytest.raises(NotFound):
        store.get(CONFIG_MAPS, "a", namespace)


def test_delete_of_absent_object_is_not_found(store: Store, namespace: str) -> None:
    with pytest.raises(NotFound):
        store.delete(CONFIG_MAPS, "nobody", namespace)


def test_delete_of_another_uid_conflicts(store: Store, namespace: str) -> None:
    store.create(CONFIG_MAPS, config_map("a"), namespace)
    with pytest.raises(Conflict):
        store.delete(CONFIG_MAPS, "a", namespace, uid=str(uuid.uuid4()))
    assert store.get(CONFIG_MAPS, "a", namespace)


def test_delete_of_a_stale_version_conflicts(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a"), namespace)
    store.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, namespace)
    with pytest.raises(Conflict):
        store.delete(CONFIG_MAPS, "a", namespace, resource_version=version(created))


def test_finalizer_holds_a_deleted_object_until_it_is_removed(store: Store, namespace: str) -> None:
    body = with_metadata(config_map("a"), finalizers=["example.com/hold"])
    store.create(CONFIG_MAPS, body, namespace)
    store.delete(CONFIG_MAPS, "a", namespace)
    held = store.get(CONFIG_MAPS, "a", namespace)
    assert held["metadata"]["deletionTimestamp"]
    store.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, namespace)
    with pytest.raises(NotFound):
        store.get(CONFIG_MAPS, "a", namespace)


def test_finalizer_cannot_be_added_to_a_deleted_object(store: Store, namespace: str) -> None:
    body = with_metadata(config_map("a"), finalizers=["example.com/hold"])
    store.create(CONFIG_MAPS, body, namespace)
    store.delete(CONFIG_MAPS, "a", namespace)
    patch = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    with pytest.raises(Invalid):
        store.patch(CONFIG_MAPS, "a", patch, namespace)
    store.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, namespace)


def test_second_delete_keeps_the_deletion_time(store: Store, namespace: str) -> None:
    body = with_metadata(config_map("a"), finalizers=["example.com/hold"])
    store.create(CONFIG_MAPS, body, namespace)
    store.delete(CONFIG_MAPS, "a", namespace)
    first = store.get(CONFIG_MAPS, "a", namespace)
    store.delete(CONFIG_MAPS, "a", namespace)
    assert store.get(CONFIG_MAPS, "a", namespace) == first
    store.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, namespace)


def owned_by(owner: JsonObject, name: str, *, blocking: bool = False) -> JsonObject:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": blocking,
    }
    return with_metadata(config_map(name), ownerReferences=[reference])


@pytest.mark.usefixtures("needs_collector")
def test_dependents_go_with_their_owner(store: Store, namespace: str) -> None:
    owner = store.create(CONFIG_MAPS, config_map("owner"), namespace)
    store.create(CONFIG_MAPS, owned_by(owner, "child"), namespace)
    store.delete(CONFIG_MAPS, "owner", namespace)
    eventually(lambda: is_gone(store, CONFIG_MAPS, "child", namespace))


@pytest.mark.usefixtures("needs_collector")
def test_dependent_with_another_owner_stays(store: Store, namespace: str) -> None:
    first = store.create(CONFIG_MAPS, config_map("first"), namespace)
    second = store.create(CONFIG_MAPS, config_map("second"), namespace)
    child = owned_by(first, "child")
    child["metadata"]["ownerReferences"] += owned_by(second, "x")["metadata"]["ownerReferences"]
    store.create(CONFIG_MAPS, child, namespace)
    store.delete(CONFIG_MAPS, "first", namespace)

    def one_owner_left() -> bool:
        found = store.get(CONFIG_MAPS, "child", namespace)["metadata"]["ownerReferences"]
        return [reference["name"] for reference in found] == ["second"]

    eventually(one_owner_left)


@pytest.mark.usefixtures("needs_collector")
def test_orphan_deletion_releases_dependents(store: Store, namespace: str) -> None:
    owner = store.create(CONFIG_MAPS, config_map("owner"), namespace)
    store.create(CONFIG_MAPS, owned_by(owner, "child"), namespace)
    store.delete(CONFIG_MAPS, "owner", namespace, propagation="Orphan")
    eventually(lambda: is_gone(store, CONFIG_MAPS, "owner", namespace))
    child = store.get(CONFIG_MAPS, "child", namespace)
    assert not child["metadata"].get("ownerReferences")


@pytest.mark.usefixtures("needs_collector")
def test_foreground_deletion_waits_for_blocking_dependents(store: Store, namespace: str) -> None:
    owner = store.create(CONFIG_MAPS, config_map("owner"), namespace)
    child = owned_by(owner, "child", blocking=True)
    child["metadata"]["finalizers"] = ["example.com/hold"]
    store.create(CONFIG_MAPS, child, namespace)
    store.delete(CONFIG_MAPS, "owner", namespace, propagation="Foreground")
    eventually(
        lambda: "deletionTimestamp" in store.get(CONFIG_MAPS, "child", namespace)["metadata"]
    )
    assert (
        "foregroundDeletion" in store.get(CONFIG_MAPS, "owner", namespace)["metadata"]["finalizers"]
    )
    store.patch(CONFIG_MAPS, "child", {"metadata": {"finalizers": None}}, namespace)
    eventually(lambda: is_gone(store, CONFIG_MAPS, "owner", namespace))


@pytest.mark.usefixtures("needs_collector")
def test_namespace_deletion_takes_its_content(store: Store, namespace: str) -> None:
    doomed = store.create(NAMESPACES, {"metadata": {"generateName": "contract-"}})["metadata"][
        "name"
    ]
    store.create(CONFIG_MAPS, config_map("a"), doomed)
    store.create(PROFILES, profile("b"), doomed)
    store.delete(NAMESPACES, doomed)
    eventually(lambda: is_gone(store, NAMESPACES, doomed, ""))
    assert store.list(PROFILES, doomed).items == []


@pytest.mark.usefixtures("needs_collector")
def test_terminating_namespace_takes_no_new_content(store: Store, namespace: str) -> None:
    doomed = store.create(NAMESPACES, {"metadata": {"generateName": "contract-"}})["metadata"][
        "name"
    ]
    held = with_metadata(config_map("a"), finalizers=["example.com/hold"])
    store.create(CONFIG_MAPS, held, doomed)
    store.delete(NAMESPACES, doomed)
    with pytest.raises(Forbidden, match="being terminated"):
        store.create(CONFIG_MAPS, config_map("b"), doomed)
    store.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, doomed)
    eventually(lambda: is_gone(store, NAMESPACES, doomed, ""))
