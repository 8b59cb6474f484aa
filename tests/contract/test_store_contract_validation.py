"""The contract of `Store`: dry run, field validation, schema, rules and defaults."""

import uuid

import pytest
from tests.contract.conftest import config_map, deployment, profile

from tensorfusion.api.registry import CONFIG_MAPS, DEPLOYMENTS, GPU_POOLS, PROFILES
from tensorfusion.errors import BadRequest, Invalid, NotFound
from tensorfusion.store import Store


def test_dry_run_create_stores_nothing(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a"), namespace, dry_run=True)
    assert created["metadata"]["uid"]
    with pytest.raises(NotFound):
        store.get(CONFIG_MAPS, "a", namespace)


def test_dry_run_update_patch_and_delete_change_nothing(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    updated = store.update(CONFIG_MAPS, {**created, "data": {"x": "2"}}, dry_run=True)
    assert updated["data"] == {"x": "2"}
    patched = store.patch(CONFIG_MAPS, "a", {"data": {"x": "3"}}, namespace, dry_run=True)
    assert patched["data"] == {"x": "3"}
    store.delete(CONFIG_MAPS, "a", namespace, dry_run=True)
    assert store.get(CONFIG_MAPS, "a", namespace) == created


def test_dry_run_still_validates(store: Store, namespace: str) -> None:
    with pytest.raises(Invalid):
        store.create(PROFILES, profile("a", gpuCount=0), namespace, dry_run=True)


def test_unknown_field_under_strict_is_refused_and_named(store: Store, namespace: str) -> None:
    with pytest.raises(BadRequest, match=r'unknown field "spec\.gpuModle"'):
        store.create(PROFILES, profile("a", gpuModle="A100"), namespace, field_validation="Strict")


def test_unknown_field_is_pruned_otherwise(store: Store, namespace: str) -> None:
    created = store.create(PROFILES, profile("a", gpuModle="A100", replicas=2), namespace)
    assert "gpuModle" not in created["spec"]
    assert created["spec"]["replicas"] == 2


def test_unknown_field_under_strict_is_refused_in_patches(store: Store, namespace: str) -> None:
    store.create(PROFILES, profile("a"), namespace)
    with pytest.raises(Invalid, match="gpuModle"):
        store.patch(
            PROFILES,
            "a",
            {"spec": {"gpuModle": "A100"}},
            namespace,
            field_validation="Strict",
        )


def test_value_out_of_range_is_invalid_with_its_field(store: Store, namespace: str) -> None:
    with pytest.raises(Invalid) as caught:
        store.create(PROFILES, profile("a", gpuCount=1000), namespace)
    assert [cause.field for cause in caught.value.causes] == ["spec.gpuCount"]
    assert '"a" is invalid' in str(caught.value)


def test_wrong_type_is_refused_with_its_field(store: Store, namespace: str) -> None:
    with pytest.raises((Invalid, BadRequest)) as caught:
        store.create(PROFILES, profile("a", gpuCount="many"), namespace)
    assert "gpuCount" in str(caught.value)


def test_value_outside_an_enum_is_invalid(store: Store, namespace: str) -> None:
    with pytest.raises(Invalid) as caught:
        store.create(PROFILES, profile("a", qos="platinum"), namespace)
    assert "spec.qos" in [cause.field for cause in caught.value.causes]


def test_cel_rule_refuses_with_its_message(store: Store, namespace: str) -> None:
    spec = {"replicas": 2, "gangScheduling": {"minMembers": 3}}
    with pytest.raises(Invalid, match=r"gangScheduling\.minMembers must not exceed replicas"):
        store.create(PROFILES, profile("a", **spec), namespace)


def test_cel_rule_holds_for_updates_too(store: Store, namespace: str) -> None:
    spec = {"replicas": 3, "gangScheduling": {"minMembers": 3}}
    store.create(PROFILES, profile("a", **spec), namespace)
    with pytest.raises(Invalid):
        store.patch(PROFILES, "a", {"spec": {"replicas": 2}}, namespace)


def test_defaults_are_stored(store: Store, namespace: str) -> None:
    spec = {"replicas": 3, "gangScheduling": {"minMembers": 3}}
    created = store.create(PROFILES, profile("a", **spec), namespace)
    assert created["spec"]["gangScheduling"]["mode"] == "Strict"


def test_defaults_of_core_kinds_are_stored(store: Store, namespace: str) -> None:
    body = deployment("a")
    del body["spec"]["replicas"]
    created = store.create(DEPLOYMENTS, body, namespace)
    assert created["spec"]["replicas"] == 1
    assert created["spec"]["template"]["spec"]["restartPolicy"] == "Always"


def test_object_of_another_kind_is_refused(store: Store, namespace: str) -> None:
    with pytest.raises(BadRequest):
        store.create(CONFIG_MAPS, profile("a"), namespace)


def test_cluster_scoped_objects_have_no_namespace(store: Store) -> None:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    body = {
        "apiVersion": GPU_POOLS.api_version,
        "kind": "GPUPool",
        "metadata": {"name": name},
        "spec": {"nodeManagerConfig": {}},
    }
    created = store.create(GPU_POOLS, body)
    assert "namespace" not in created["metadata"]
    assert store.get(GPU_POOLS, name) == created
    store.delete(GPU_POOLS, name)
