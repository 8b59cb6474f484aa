"""Graceful deletion of pods, binding, garbage collection in bounded steps, admission."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorfusion.api.registry import CONFIG_MAPS, NAMESPACES, PODS, PROFILES
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.errors import BadRequest, Conflict, Forbidden, NotFound
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.store.admission import (
    AdmissionRequest,
    AdmissionResult,
    FurtherWrite,
    Operation,
    collected_warnings,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    opened = SQLiteStore(tmp_path / "store.db")
    yield opened
    opened.close()


def config_map(name: str, owner: JsonObject | None = None) -> JsonObject:
    metadata: JsonObject = {"name": name}
    if owner is not None:
        reference = {key: owner["metadata"][key] for key in ("name", "uid")}
        reference.update(apiVersion=owner["apiVersion"], kind=owner["kind"])
        metadata["ownerReferences"] = [reference]
    return {"metadata": metadata}


def pod(name: str) -> JsonObject:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


def bind(store: SQLiteStore, name: str) -> JsonObject:
    binding = {"target": {"kind": "Node", "name": "n1"}, "metadata": {"annotations": {"k": "v"}}}
    return store.bind(name, "default", binding)


def test_binding_sets_node_and_annotations_once(store: SQLiteStore) -> None:
    store.create(PODS, pod("p"), "default")
    bound = bind(store, "p")
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"k": "v"}
    assert {c["type"]: c["status"] for c in bound["status"]["conditions"]}["PodScheduled"] == "True"
    with pytest.raises(Conflict, match="already assigned to node 'n1'"):
        bind(store, "p")


@pytest.mark.parametrize(
    "binding",
    [
        {},
        {"target": {}},
        {"target": {"name": ""}},
        {"target": {"kind": "Pod", "name": "x"}},
        {"target": {"name": "n"}, "metadata": {"annotations": {"k": 1}}},
        {"target": {"name": "n"}, "metadata": {"annotations": {"not a key": "1"}}},
    ],
)
def test_binding_that_cannot_be_read_is_refused(store: SQLiteStore, binding: Any) -> None:
    store.create(PODS, pod("p"), "default")
    with pytest.raises(BadRequest):
        store.bind("p", "default", binding)


def test_unbound_pod_goes_at_once(store: SQLiteStore) -> None:
    store.create(PODS, pod("p"), "default")
    store.delete(PODS, "p", "default")
    with pytest.raises(NotFound):
        store.get(PODS, "p", "default")


def test_bound_pod_waits_for_its_node(store: SQLiteStore) -> None:
    store.create(PODS, pod("p"), "default")
    bind(store, "p")
    store.delete(PODS, "p", "default")
    metadata = store.get(PODS, "p", "default")["metadata"]
    assert metadata["deletionGracePeriodSeconds"] == 30
    assert metadata["deletionTimestamp"]
    store.patch(PODS, "p", {"status": {"phase": "Running"}}, "default", subresource="status")
    store.delete(PODS, "p", "default", grace_period_seconds=0)
    with pytest.raises(NotFound):
        store.get(PODS, "p", "default")


def test_second_deletion_can_only_shorten_the_grace(store: SQLiteStore) -> None:
    store.create(PODS, pod("p"), "default")
    bind(store, "p")
    for asked, expected in ((20, 20), (60, 20), (5, 5)):
        store.delete(PODS, "p", "default", grace_period_seconds=asked)
        metadata = store.get(PODS, "p", "default")["metadata"]
        assert metadata["deletionGracePeriodSeconds"] == expected


def test_finished_pod_goes_at_once(store: SQLiteStore) -> None:
    store.create(PODS, pod("p"), "default")
    bind(store, "p")
    store.patch(PODS, "p", {"status": {"phase": "Succeeded"}}, "default", subresource="status")
    store.delete(PODS, "p", "default")
    with pytest.raises(NotFound):
        store.get(PODS, "p", "default")


def remaining(store: SQLiteStore) -> int:
    return len(store.list(CONFIG_MAPS, "default").items)


def test_many_dependents_are_collected_in_bounded_steps(store: SQLiteStore) -> None:
    owner = store.create(CONFIG_MAPS, config_map("owner"), "default")
    with store.transaction():
        for index in range(150):
            store.create(CONFIG_MAPS, config_map(f"c{index}", owner), "default")
    store.delete(CONFIG_MAPS, "owner", "default")
    after_call = remaining(store)
    assert 0 < after_call < 150
    assert store.collect(limit=50)
    assert remaining(store) == after_call - 50
    while store.collect():
        continue
    assert remaining(store) == 0


def test_chains_of_owners_are_collected(store: SQLiteStore) -> None:
    owner = None
    for index in range(5):
        owner = store.create(CONFIG_MAPS, config_map(f"c{index}", owner), "default")
    store.delete(CONFIG_MAPS, "c0", "default")
    while store.collect():
        continue
    assert remaining(store) == 0


def test_collection_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = SQLiteStore(tmp_path / "store.db")
    owner = first.create(CONFIG_MAPS, config_map("owner"), "default")
    with first.transaction():
        for index in range(50):
            first.create(CONFIG_MAPS, config_map(f"c{index}", owner), "default")
    first.delete(CONFIG_MAPS, "owner", "default")
    assert remaining(first) > 0
    first.close()
    second = SQLiteStore(tmp_path / "store.db")
    while second.collect():
        continue
    assert remaining(second) == 0
    second.close()


def test_dependent_of_an_owner_that_is_gone_is_collected(store: SQLiteStore) -> None:
    owner = store.create(CONFIG_MAPS, config_map("owner"), "default")
    store.delete(CONFIG_MAPS, "owner", "default")
    store.create(CONFIG_MAPS, config_map("late", owner), "default")
    while store.collect():
        continue
    assert remaining(store) == 0


def test_orphans_of_many_dependents_are_released_before_the_owner_goes(store: SQLiteStore) -> None:
    owner = store.create(CONFIG_MAPS, config_map("owner"), "default")
    with store.transaction():
        for index in range(50):
            store.create(CONFIG_MAPS, config_map(f"c{index}", owner), "default")
    store.delete(CONFIG_MAPS, "owner", "default", propagation="Orphan")
    assert store.get(CONFIG_MAPS, "owner", "default")["metadata"]["finalizers"] == ["orphan"]
    while store.collect():
        continue
    items = store.list(CONFIG_MAPS, "default").items
    assert len(items) == 50
    assert not any("ownerReferences" in item["metadata"] for item in items)


def test_large_namespace_goes_with_its_content(store: SQLiteStore) -> None:
    store.create(NAMESPACES, {"metadata": {"name": "doomed"}})
    with store.transaction():
        for index in range(120):
            store.create(CONFIG_MAPS, config_map(f"c{index}"), "doomed")
    deleted = store.delete(NAMESPACES, "doomed")
    assert deleted["status"]["phase"] == "Terminating"
    while store.collect():
        continue
    with pytest.raises(NotFound):
        store.get(NAMESPACES, "doomed")


class Recorder:
    """An admission that runs a function per request on workload profiles."""

    def __init__(self) -> None:
        self.requests: list[AdmissionRequest] = []
        self.result = AdmissionResult()
        self.refusal: Forbidden | None = None

    def handles(self, resource: Resource, operation: Operation) -> bool:
        return resource is PROFILES

    def admit(self, request: AdmissionRequest) -> AdmissionResult:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        return self.result


def profile(name: str, **spec: Any) -> JsonObject:
    return {"metadata": {"name": name}, "spec": spec}


def test_admission_sees_creates_updates_and_deletes(store: SQLiteStore) -> None:
    admission = Recorder()
    store.set_admission(admission)
    store.create(PROFILES, profile("a"), "default", field_manager="me")
    store.patch(PROFILES, "a", {"spec": {"gpuModel": "A100"}}, "default", dry_run=True)
    store.delete(PROFILES, "a", "default")
    assert [r.operation for r in admission.requests] == ["CREATE", "UPDATE", "DELETE"]
    assert [r.dry_run for r in admission.requests] == [False, True, False]
    assert admission.requests[0].user == "me"
    assert admission.requests[1].old is not None


def test_admission_changes_and_adds_objects_in_one_commit(store: SQLiteStore) -> None:
    admission = Recorder()
    store.set_admission(admission)
    changed = {**profile("a", gpuModel="H100")}
    changed["metadata"] = {"name": "a", "namespace": "default"}
    further = {"metadata": {"name": "companion", "namespace": "default"}}
    admission.result = AdmissionResult(
        obj=changed,
        also=(FurtherWrite("upsert", CONFIG_MAPS, further),),
        warnings=("beware",),
    )
    before = store.counters.transactions
    with collected_warnings() as warnings:
        created = store.create(PROFILES, profile("a"), "default")
    assert store.counters.transactions == before + 1
    assert created["spec"]["gpuModel"] == "H100"
    assert warnings == ["beware"]
    assert store.get(CONFIG_MAPS, "companion", "default")


def test_objects_of_admission_are_not_written_on_dry_run_or_refusal(store: SQLiteStore) -> None:
    admission = Recorder()
    store.set_admission(admission)
    further = {"metadata": {"name": "companion", "namespace": "default"}}
    admission.result = AdmissionResult(also=(FurtherWrite("create", CONFIG_MAPS, further),))
    store.create(PROFILES, profile("a"), "default", dry_run=True)
    with pytest.raises(Exception, match="gpuCount"):
        store.create(PROFILES, profile("a", gpuCount=0), "default")
    admission.refusal = Forbidden("no more")
    with pytest.raises(Forbidden, match="no more"):
        store.create(PROFILES, profile("a"), "default")
    assert remaining(store) == 0
    assert store.list(PROFILES, "default").items == []
