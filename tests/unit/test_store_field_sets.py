"""Field sets of server-side apply: algebra, and what objects set."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.api.registry import PODS
from tensorfusion.store.field_sets import (
    changed_fields,
    difference,
    fields_of,
    intersection,
    merge_applied,
    paths,
    remove_fields,
    union,
)
from tensorfusion.store.merge_rules import LEAF, merge_rules

RULES = merge_rules(PODS)
NODES = st.recursive(
    st.just({}),
    lambda inner: (
        st.dictionaries(st.sampled_from([".", "f:a", "f:b", "f:c"]), inner, min_size=1)
        .map(lambda node: {key: ({} if key == "." else value) for key, value in node.items()})
        .filter(lambda node: set(node) != {"."})
    ),
    max_leaves=8,
)
SETS = NODES.map(lambda node: {key: value for key, value in node.items() if key != "."})
OBJECTS = st.recursive(
    st.integers(0, 3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


def members(fields: dict[str, Any]) -> set[str]:
    return set(paths(fields))


@given(SETS, SETS)
def test_set_operations_agree_with_sets_of_paths(left: Any, right: Any) -> None:
    assert members(union(left, right)) == members(left) | members(right)
    assert members(difference(left, right)) == members(left) - members(right)
    assert members(intersection(left, right)) == members(left) & members(right)


@given(OBJECTS, OBJECTS)
def test_applied_configuration_is_contained_in_the_result(live: Any, config: Any) -> None:
    merged = merge_applied(live, config, LEAF)
    assert merge_applied(merged, config, LEAF) == merged
    written, _ = changed_fields(live, merged, LEAF)
    assert members(written) <= members(fields_of(merged, LEAF))


@given(OBJECTS, OBJECTS)
def test_unchanged_objects_have_no_changed_fields(live: Any, other: Any) -> None:
    assert changed_fields(live, live, LEAF) == ({}, {})
    written, removed = changed_fields(live, other, LEAF)
    assert bool(written or removed) is (live != other)


@given(OBJECTS)
def test_removing_all_fields_leaves_nothing(value: Any) -> None:
    assert remove_fields(value, fields_of(value, LEAF), {}, LEAF) == {}


def test_fields_of_a_pod_name_list_elements_by_their_keys() -> None:
    spec = {"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]}
    found = members(fields_of({"spec": spec}, RULES))
    assert '.spec.containers[name="a"].image' in found
    assert '.spec.containers[name="a"].ports[containerPort=80,protocol="TCP"]' in found


def test_changed_container_touches_only_its_own_fields() -> None:
    old = {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}
    new = {"spec": {"containers": [{"name": "b", "image": "z"}, {"name": "a", "image": "x"}]}}
    written, removed = changed_fields(old, new, RULES)
    assert members(written) == {'.spec.containers[name="b"].image'}
    assert removed == {}


def test_removed_element_goes_when_nobody_else_knows_it() -> None:
    live = {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b"}]}}
    doomed = fields_of({"spec": {"containers": [{"name": "a", "image": "x"}]}}, RULES)
    left = remove_fields(live, doomed, {}, RULES)
    assert left == {"spec": {"containers": [{"name": "b"}]}}
    kept = fields_of({"spec": {"containers": [{"name": "a"}]}}, RULES)
    left = remove_fields(live, doomed, kept, RULES)
    assert left == {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}
