"""The contract of `Store`: create, read, list, update, status and scale, on every server.

Only semantics that a real kube-apiserver has too are asked for, here and in the modules beside.
"""

import re
import uuid

import pytest
from tests.contract.conftest import (
    config_map,
    deployment,
    names,
    profile,
    version,
    with_metadata,
    without_version,
)

from tensorfusion.api.registry import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, PROFILES
from tensorfusion.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    Invalid,
    NotFound,
)
from tensorfusion.store import Store

# Create and get.


def test_create_returns_object_with_server_fields(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    metadata = created["metadata"]
    assert created["data"] == {"x": "1"}
    assert metadata["namespace"] == namespace
    assert uuid.UUID(metadata["uid"])
    assert metadata["resourceVersion"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])


def test_get_returns_what_create_returned(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    assert store.get(CONFIG_MAPS, "a", namespace) == created


def test_get_of_absent_object_is_not_found_and_names_it(store: Store, namespace: str) -> None:
    with pytest.raises(NotFound, match=r'configmaps "nobody" not found'):
        store.get(CONFIG_MAPS, "nobody", namespace)


def test_create_twice_is_already_exists(store: Store, namespace: str) -> None:
    store.create(CONFIG_MAPS, config_map("a"), namespace)
    with pytest.raises(AlreadyExists, match='"a" already exists'):
        store.create(CONFIG_MAPS, config_map("a"), namespace)


def test_create_in_absent_namespace_is_not_found(store: Store, namespace: str) -> None:
    with pytest.raises(NotFound, match="namespaces"):
        store.create(CONFIG_MAPS, config_map("a"), namespace + "-absent")


def test_generate_name_completes_the_name(store: Store, namespace: str) -> None:
    body = {"metadata": {"generateName": "job-"}}
    first = store.create(CONFIG_MAPS, body, namespace)["metadata"]["name"]
    second = store.create(CONFIG_MAPS, body, namespace)["metadata"]["name"]
    assert first != second
    assert all(re.fullmatch(r"job-[a-z0-9]{5}", name) for name in (first, second))


def test_create_ignores_client_uid_and_keeps_labels(store: Store, namespace: str) -> None:
    given = str(uuid.uuid4())
    body = with_metadata(config_map("a", {"k": "v"}), uid=given)
    metadata = store.create(CONFIG_MAPS, body, namespace)["metadata"]
    assert metadata["uid"] != given
    assert metadata["labels"] == {"k": "v"}


def test_create_refuses_a_bad_name(store: Store, namespace: str) -> None:
    with pytest.raises(Invalid) as caught:
        store.create(CONFIG_MAPS, config_map("Not_A_Name"), namespace)
    assert "metadata.name" in [cause.field for cause in caught.value.causes]


def test_create_refuses_a_bad_label_value(store: Store, namespace: str) -> None:
    with pytest.raises(Invalid) as caught:
        store.create(CONFIG_MAPS, config_map("a", {"k": "not valid!"}), namespace)
    assert caught.value.causes[0].field.startswith("metadata.labels")


def test_create_drops_status_of_kinds_with_a_status_subresource(
    store: Store, namespace: str
) -> None:
    body = {**profile("a"), "status": {"observedGeneration": 7}}
    created = store.create(PROFILES, body, namespace)
    assert created.get("status", {}).get("observedGeneration") is None


def test_create_sets_generation_one(store: Store, namespace: str) -> None:
    assert store.create(PROFILES, profile("a"), namespace)["metadata"]["generation"] == 1


# Lists.


def test_list_is_in_name_order_and_has_a_version(store: Store, namespace: str) -> None:
    for name in ("c", "a", "b"):
        store.create(CONFIG_MAPS, config_map(name, {"t": "1"}), namespace)
    page = store.list(CONFIG_MAPS, namespace, label_selector="t=1")
    assert names(page.items) == ["a", "b", "c"]
    assert int(page.resource_version) >= max(int(version(item)) for item in page.items)


def test_list_pages_cover_everything_once(store: Store, namespace: str) -> None:
    for index in range(7):
        store.create(PROFILES, profile(f"p{index}"), namespace)
    seen, token, pages = [], "", 0
    while True:
        page = store.list(PROFILES, namespace, limit=3, continue_token=token)
        seen += names(page.items)
        pages += 1
        token = page.continue_token
        if not token:
            break
        assert len(page.items) == 3
    assert seen == [f"p{index}" for index in range(7)]
    assert pages == 3


def test_list_tells_how_many_remain(store: Store, namespace: str) -> None:
    for index in range(5):
        store.create(PROFILES, profile(f"p{index}"), namespace)
    assert store.list(PROFILES, namespace, limit=2).remaining == 3


def test_list_across_namespaces_contains_all(store: Store, namespace: str) -> None:
    other = store.create(NAMESPACES, {"metadata": {"generateName": "contract-"}})["metadata"]
    mark = {"run": namespace}
    store.create(CONFIG_MAPS, config_map("a", mark), namespace)
    store.create(CONFIG_MAPS, config_map("a", mark), other["name"])
    found = store.list(CONFIG_MAPS, label_selector=f"run={namespace}").items
    assert {item["metadata"]["namespace"] for item in found} == {namespace, other["name"]}
    store.delete(NAMESPACES, other["name"])


def test_list_with_a_bad_continue_token_is_refused(store: Store, namespace: str) -> None:
    with pytest.raises(ApiError) as caught:
        store.list(CONFIG_MAPS, namespace, limit=1, continue_token="garbage")
    assert caught.value.code in (400, 410)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=web", ["a", "b"]),
        ("app==web", ["a", "b"]),
        ("app!=web", ["c", "d"]),
        ("app in (web, db)", ["a", "b", "c"]),
        ("app notin (web),tier", ["c"]),
        ("tier", ["a", "c"]),
        ("!tier", ["b", "d"]),
        ("app=web,tier=front", ["a"]),
        ("app=none", []),
    ],
)
def test_label_selectors_select(
    store: Store, namespace: str, selector: str, expected: list[str]
) -> None:
    store.create(
        PROFILES,
        with_metadata(profile("a"), labels={"app": "web", "tier": "front"}),
        namespace,
    )
    store.create(PROFILES, with_metadata(profile("b"), labels={"app": "web"}), namespace)
    store.create(
        PROFILES,
        with_metadata(profile("c"), labels={"app": "db", "tier": "back"}),
        namespace,
    )
    store.create(PROFILES, profile("d"), namespace)
    found = store.list(PROFILES, namespace, label_selector=selector).items
    assert names(found) == expected


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "=x", "a in (b", "&", "k=not valid"])
def test_bad_label_selectors_are_refused(store: Store, namespace: str, selector: str) -> None:
    with pytest.raises(BadRequest):
        store.list(CONFIG_MAPS, namespace, label_selector=selector)


def test_field_selector_by_name(store: Store, namespace: str) -> None:
    for name in ("a", "b"):
        store.create(PROFILES, profile(name), namespace)
    found = store.list(PROFILES, namespace, field_selector="metadata.name=b").items
    assert names(found) == ["b"]
    found = store.list(PROFILES, namespace, field_selector="metadata.name!=b").items
    assert names(found) == ["a"]


def test_field_selector_on_other_fields_of_custom_kinds_is_refused(
    store: Store, namespace: str
) -> None:
    with pytest.raises(BadRequest):
        store.list(PROFILES, namespace, field_selector="spec.gpuModel=A100")


def test_field_selector_that_is_none_is_refused(store: Store, namespace: str) -> None:
    with pytest.raises(BadRequest):
        store.list(CONFIG_MAPS, namespace, field_selector="metadata.name")


# Update.


def test_update_replaces_and_moves_the_version(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    updated = store.update(CONFIG_MAPS, {**created, "data": {"y": "2"}})
    assert updated["data"] == {"y": "2"}
    assert int(version(updated)) > int(version(created))
    assert updated["metadata"]["uid"] == created["metadata"]["uid"]


def test_update_with_a_stale_version_conflicts(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    store.update(CONFIG_MAPS, {**created, "data": {"x": "2"}})
    with pytest.raises(Conflict, match="the object has been modified"):
        store.update(CONFIG_MAPS, {**created, "data": {"x": "3"}})
    assert store.get(CONFIG_MAPS, "a", namespace)["data"] == {"x": "2"}


def test_update_without_a_version_is_unconditional(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    store.update(CONFIG_MAPS, {**created, "data": {"x": "2"}})
    updated = store.update(CONFIG_MAPS, without_version({**created, "data": {"x": "3"}}))
    assert updated["data"] == {"x": "3"}


def test_update_of_another_uid_conflicts(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    other = with_metadata(without_version(created), uid=str(uuid.uuid4()))
    with pytest.raises(Conflict):
        store.update(CONFIG_MAPS, {**other, "data": {"x": "2"}})


def test_update_that_changes_nothing_keeps_the_version(store: Store, namespace: str) -> None:
    created = store.create(CONFIG_MAPS, config_map("a", x="1"), namespace)
    assert version(store.update(CONFIG_MAPS, created)) == version(created)
    assert version(store.get(CONFIG_MAPS, "a", namespace)) == version(created)


def test_update_of_absent_object_is_not_found(store: Store, namespace: str) -> None:
    with pytest.raises(NotFound):
        store.update(PROFILES, with_metadata(profile("nobody"), namespace=namespace))


def test_generation_follows_the_spec_only(store: Store, namespace: str) -> None:
    created = store.create(PROFILES, profile("a"), namespace)
    labelled = store.update(PROFILES, with_metadata(created, labels={"k": "v"}))
    assert labelled["metadata"]["generation"] == 1
    changed = store.update(PROFILES, {**labelled, "spec": {"gpuModel": "H100"}})
    assert changed["metadata"]["generation"] == 2
    body = {**changed, "status": {"observedGeneration": 2}}
    reported = store.update(PROFILES, body, subresource="status")
    assert reported["metadata"]["generation"] == 2


def test_generation_cannot_be_set(store: Store, namespace: str) -> None:
    created = store.create(PROFILES, profile("a"), namespace)
    updated = store.update(PROFILES, with_metadata(created, generation=99))
    assert updated["metadata"]["generation"] == 1


# Status and scale.


def test_status_write_leaves_the_spec(store: Store, namespace: str) -> None:
    created = store.create(PROFILES, profile("a", gpuModel="A100"), namespace)
    body = {**created, "spec": {"gpuModel": "H100"}, "status": {"observedGeneration": 1}}
    updated = store.update(PROFILES, body, subresource="status")
    assert updated["spec"]["gpuModel"] == "A100"
    assert updated["status"]["observedGeneration"] == 1


def test_spec_write_leaves_the_status(store: Store, namespace: str) -> None:
    created = store.create(PROFILES, profile("a"), namespace)
    reported = store.update(
        PROFILES, {**created, "status": {"observedGeneration": 1}}, subresource="status"
    )
    body = {**reported, "spec": {"gpuModel": "H100"}, "status": {"observedGeneration": 5}}
    updated = store.update(PROFILES, body)
    assert updated["status"]["observedGeneration"] == 1
    assert updated["spec"]["gpuModel"] == "H100"


def test_status_write_ignores_labels(store: Store, namespace: str) -> None:
    created = store.create(PROFILES, profile("a"), namespace)
    body = with_metadata({**created, "status": {"observedGeneration": 1}}, labels={"k": "v"})
    updated = store.update(PROFILES, body, subresource="status")
    assert "labels" not in updated["metadata"]


def test_status_patch_sets_only_the_status(store: Store, namespace: str) -> None:
    store.create(PROFILES, profile("a"), namespace)
    patch = {"spec": {"gpuModel": "H100"}, "status": {"observedGeneration": 1}}
    updated = store.patch(PROFILES, "a", patch, namespace, subresource="status")
    assert updated["spec"]["gpuModel"] == "A100"
    assert updated["status"]["observedGeneration"] == 1


def test_scale_patch_sets_replicas(store: Store, namespace: str) -> None:
    store.create(DEPLOYMENTS, deployment("a"), namespace)
    scale = store.patch(DEPLOYMENTS, "a", {"spec": {"replicas": 5}}, namespace, subresource="scale")
    assert scale["kind"] == "Scale"
    assert scale["spec"]["replicas"] == 5
    assert scale["status"]["selector"] == "app=a"
    assert store.get(DEPLOYMENTS, "a", namespace)["spec"]["replicas"] == 5


def test_scale_below_zero_is_invalid(store: Store, namespace: str) -> None:
    store.create(DEPLOYMENTS, deployment("a"), namespace)
    with pytest.raises(Invalid):
        store.patch(DEPLOYMENTS, "a", {"spec": {"replicas": -1}}, namespace, subresource="scale")
