"""The contract of `Store`: the four kinds of patches, server-side apply among them."""

import pytest
from tests.contract.conftest import apply, config_map, deployment, profile, version

from tensorfusion.api.registry import CONFIG_MAPS, DEPLOYMENTS, PROFILES
from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import Conflict, Invalid, NotFound, UnsupportedMediaType
from tensorfusion.store import PatchType, Store

# Patches.


def test_merge_patch_merges_and_deletes(store: Store, namespace: str) -> None:
    store.create(CONFIG_MAPS, config_map("a", x="1", y="2"), namespace)
    patched = store.patch(CONFIG_MAPS, "a", {"data": {"x": None, "z": "3"}}, namespace)
    assert patched["data"] == {"y": "2", "z": "3"}


def test_merge_patch_with_a_stale_version_conflicts(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    store.patch(CONFIG_MAPS, "a", {"data": {"x": "2"}}, namespace)
    patch = {"metadata": {"resourceVersion": version(created)}, "data": {"x": "3"}}
    with pytest.raises(Conflict):
        store.patch(CONFIG_MAPS, "a", patch, namespace)


def test_patch_that_changes_nothing_keeps_the_version(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    patched = store.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, namespace)
    assert version(patched) == version(created)


def test_json_patch_applies_operations_in_order(store: Store, namespace: str) -> None:
    store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    operations = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "add", "path": "/data/y", "value": "2"},
        {"op": "move", "from": "/data/x", "path": "/data/z"},
    ]
    patched = store.patch(CONFIG_MAPS, "a", operations, namespace, patch_type=PatchType.JSON)
    assert patched["data"] == {"y": "2", "z": "1"}


def test_json_patch_with_a_failed_test_changes_nothing(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    operations = [
        {"op": "replace", "path": "/data/x", "value": "2"},
        {"op": "test", "path": "/data/x", "value": "nope"},
    ]
    with pytest.raises(Invalid):
        store.patch(CONFIG_MAPS, "a", operations, namespace, patch_type=PatchType.JSON)
    assert store.get(CONFIG_MAPS, "a", namespace) == created


def containers(obj: JsonObject) -> list[JsonObject]:
    found = obj["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, list)
    return found


def test_strategic_patch_merges_containers_and_env_by_name(store: Store, namespace: str) -> None:
    store.create(DEPLOYMENTS, deployment("a"), namespace)
    change = {"name": "main", "image": "three", "env": [{"name": "B", "value": "2"}]}
    patch = {"spec": {"template": {"spec": {"containers": [change]}}}}
    patched = store.patch(DEPLOYMENTS, "a", patch, namespace, patch_type=PatchType.STRATEGIC)
    assert {c["name"]: c["image"] for c in containers(patched)} == {"main": "three", "side": "two"}
    main = next(c for c in containers(patched) if c["name"] == "main")
    assert {e["name"]: e["value"] for e in main["env"]} == {"A": "1", "B": "2"}


def test_strategic_patch_deletes_by_directive(store: Store, namespace: str) -> None:
    store.create(DEPLOYMENTS, deployment("a"), namespace)
    change = {"name": "side", "$patch": "delete"}
    patch = {"spec": {"template": {"spec": {"containers": [change]}}}}
    patched = store.patch(DEPLOYMENTS, "a", patch, namespace, patch_type=PatchType.STRATEGIC)
    assert [c["name"] for c in containers(patched)] == ["main"]


def test_strategic_patch_of_a_custom_kind_is_refused(store: Store, namespace: str) -> None:
    store.create(PROFILES, profile("a"), namespace)
    with pytest.raises(UnsupportedMediaType):
        store.patch(
            PROFILES,
            "a",
            {"spec": {"gpuModel": "H100"}},
            namespace,
            patch_type=PatchType.STRATEGIC,
        )


def test_patch_of_absent_object_is_not_found(store: Store, namespace: str) -> None:
    with pytest.raises(NotFound):
        store.patch(CONFIG_MAPS, "nobody", {"data": {}}, namespace)


# Server-side apply.


def test_apply_creates_what_is_missing(store: Store, namespace: str) -> None:
    applied = apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    assert applied["data"] == {"x": "1"}
    (entry,) = applied["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("one", "Apply")
    assert entry["fieldsV1"]["f:data"]["f:x"] == {}


def test_apply_without_a_manager_is_refused(store: Store, namespace: str) -> None:
    with pytest.raises(Invalid, match="fieldManager"):
        apply(store, CONFIG_MAPS, config_map("a"), namespace, "")


def test_apply_again_changes_nothing(store: Store, namespace: str) -> None:
    first = apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    second = apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    assert version(second) == version(first)


def test_apply_removes_what_the_manager_no_longer_has(store: Store, namespace: str) -> None:
    apply(store, CONFIG_MAPS, config_map("a", x="1", y="2"), namespace, "one")
    applied = apply(store, CONFIG_MAPS, config_map("a", y="2"), namespace, "one")
    assert applied["data"] == {"y": "2"}


def test_apply_keeps_fields_of_others(store: Store, namespace: str) -> None:
    apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    applied = apply(store, CONFIG_MAPS, config_map("a", y="2"), namespace, "two")
    assert applied["data"] == {"x": "1", "y": "2"}


def test_apply_of_a_field_of_another_manager_conflicts(store: Store, namespace: str) -> None:
    apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    with pytest.raises(Conflict, match='conflict with "one"') as caught:
        apply(store, CONFIG_MAPS, config_map("a", x="2"), namespace, "two")
    (cause,) = caught.value.causes
    assert (cause.field, cause.reason) == (".data.x", "FieldManagerConflict")


def test_forced_apply_takes_the_field(store: Store, namespace: str) -> None:
    apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    applied = apply(store, CONFIG_MAPS, config_map("a", x="2"), namespace, "two", force=True)
    assert applied["data"] == {"x": "2"}
    with pytest.raises(Conflict, match='conflict with "two"'):
        apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")


def test_apply_of_the_same_value_shares_the_field(store: Store, namespace: str) -> None:
    apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "two")
    applied = apply(store, CONFIG_MAPS, config_map("a"), namespace, "one")
    assert applied["data"] == {"x": "1"}


def test_apply_conflicts_with_a_field_that_an_update_wrote(store: Store, namespace: str) -> None:
    apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")
    store.patch(CONFIG_MAPS, "a", {"data": {"x": "5"}}, namespace, field_manager="editor")
    with pytest.raises(Conflict, match='conflict with "editor"'):
        apply(store, CONFIG_MAPS, config_map("a", x="1"), namespace, "one")


def test_apply_merges_containers_by_name(store: Store, namespace: str) -> None:
    apply(store, DEPLOYMENTS, deployment("a"), namespace, "one")
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "a"},
        "spec": {
            "template": {"spec": {"containers": [{"name": "side", "workingDir": "/srv"}]}},
        },
    }
    applied = apply(store, DEPLOYMENTS, body, namespace, "two")
    side = next(c for c in containers(applied) if c["name"] == "side")
    assert (side["image"], side["workingDir"]) == ("two", "/srv")


def test_apply_status_leaves_the_spec(store: Store, namespace: str) -> None:
    store.create(PROFILES, profile("a"), namespace)
    body = {**profile("a"), "status": {"observedGeneration": 1}}
    del body["spec"]
    applied = apply(store, PROFILES, body, namespace, "one", subresource="status")
    assert applied["status"]["observedGeneration"] == 1
    assert applied["spec"]["gpuModel"] == "A100"
