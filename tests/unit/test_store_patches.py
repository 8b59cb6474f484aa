"""Merge, JSON and strategic merge patches."""

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.api.registry import PODS
from tensorfusion.errors import ApiError, BadRequest, Invalid
from tensorfusion.store.merge_rules import merge_rules
from tensorfusion.store.patches import json_patch, merge_patch, strategic_merge

RULES = merge_rules(PODS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        (["a", "b"], ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_follows_the_rfc(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(target, patch) == expected


@given(JSON, JSON)
def test_merge_patch_is_idempotent_and_changes_no_argument(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert (target, patch) == before


# After RFC 6902, appendix A.
@pytest.mark.parametrize(
    ("document", "operations", "expected"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"a": [1, 3]}, [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": [2]}], {"a": [1, [2]]}),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
        ({"a": [1, 2, 3]}, [{"op": "remove", "path": "/a/1"}], {"a": [1, 3]}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": None}], {"a": None}),
        (
            {"a": {"x": 1}, "b": {}},
            [{"op": "move", "from": "/a/x", "path": "/b/y"}],
            {"a": {}, "b": {"y": 1}},
        ),
        ({"a": [1, 2]}, [{"op": "move", "from": "/a/0", "path": "/a/1"}], {"a": [2, 1]}),
        (
            {"a": {"x": 1}},
            [{"op": "copy", "from": "/a", "path": "/b"}],
            {"a": {"x": 1}, "b": {"x": 1}},
        ),
        (
            {"a/b": {"m~n": 1}},
            [{"op": "test", "path": "/a~1b/m~0n", "value": 1}],
            {"a/b": {"m~n": 1}},
        ),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    ],
)
def test_json_patch_follows_the_rfc(document: Any, operations: Any, expected: Any) -> None:
    before = copy.deepcopy(document)
    assert json_patch(document, operations) == expected
    assert document == before


@pytest.mark.parametrize(
    ("operations", "error"),
    [
        ({"op": "add"}, BadRequest),
        ([1], BadRequest),
        ([{"op": "jump", "path": "/a"}], BadRequest),
        ([{"op": "add", "path": "a", "value": 1}], BadRequest),
        ([{"op": "add", "path": "/a"}], BadRequest),
        ([{"op": "copy", "path": "/a"}], BadRequest),
        ([{"op": "remove", "path": "/nope"}], Invalid),
        ([{"op": "replace", "path": "/nope", "value": 1}], Invalid),
        ([{"op": "add", "path": "/list/7", "value": 1}], Invalid),
        ([{"op": "add", "path": "/list/01", "value": 1}], Invalid),
        ([{"op": "remove", "path": "/list/-"}], Invalid),
        ([{"op": "test", "path": "/one", "value": True}], Invalid),
        ([{"op": "move", "from": "/map", "path": "/map/in"}], Invalid),
        ([{"op": "add", "path": "/one/x", "value": 1}], Invalid),
    ],
)
def test_json_patch_that_cannot_be_applied_is_refused(
    operations: Any, error: type[ApiError]
) -> None:
    with pytest.raises(error):
        json_patch({"list": [1], "map": {}, "one": 1}, operations)


def test_json_patch_that_multiplies_by_copying_is_refused() -> None:
    operations = [{"op": "add", "path": "/a", "value": ["x" * 1000]}]
    operations += [{"op": "copy", "from": "/a", "path": "/a/-"}] * 40  # type: ignore[list-item]  # mixed
    with pytest.raises(Invalid, match="copies more than 3 MiB"):
        json_patch({}, operations)


@given(JSON, JSON)
def test_any_json_as_a_patch_is_applied_or_refused(document: Any, patch: Any) -> None:
    with contextlib.suppress(BadRequest, Invalid):
        json_patch(document, patch)


def pod(**spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "a", "image": "one"}, {"name": "b"}], **spec}}


def test_strategic_merge_adds_and_changes_by_merge_key() -> None:
    patch = {"spec": {"containers": [{"name": "c"}, {"name": "a", "image": "two"}]}}
    assert strategic_merge(pod(), patch, RULES)["spec"]["containers"] == [
        {"name": "a", "image": "two"},
        {"name": "b"},
        {"name": "c"},
    ]


def test_strategic_merge_replaces_lists_without_a_key() -> None:
    old = pod(tolerations=[{"key": "x"}, {"key": "y"}])
    patched = strategic_merge(old, {"spec": {"tolerations": [{"key": "z"}]}}, RULES)
    assert patched["spec"]["tolerations"] == [{"key": "z"}]


def test_strategic_merge_replaces_a_whole_list_by_directive() -> None:
    patch = {"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}
    assert strategic_merge(pod(), patch, RULES)["spec"]["containers"] == [{"name": "z"}]


def test_strategic_merge_replaces_a_map_by_directive() -> None:
    old = {"metadata": {"labels": {"a": "1", "b": "2"}}}
    patch = {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}
    assert strategic_merge(old, patch, RULES)["metadata"]["labels"] == {"c": "3"}


def test_strategic_merge_deletes_from_primitive_lists_and_merges_finalizers() -> None:
    old = {"metadata": {"finalizers": ["x/a", "x/b"]}}
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/a"], "finalizers": ["x/c"]}}
    assert strategic_merge(old, patch, RULES)["metadata"]["finalizers"] == ["x/b", "x/c"]


def test_strategic_merge_retains_only_named_keys() -> None:
    old = pod(volumes=[{"name": "v", "emptyDir": {}}])
    change = {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}
    patched = strategic_merge(old, {"spec": {"volumes": [change]}}, RULES)
    assert patched["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}]


def test_strategic_merge_accepts_element_orders() -> None:
    patch = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}
    assert strategic_merge(pod(), patch, RULES) == pod()


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"containers": [{"image": "x"}]}},
        {"spec": {"containers": ["x"]}},
        {"spec": {"$patch": "explode"}},
        {"spec": {"$unknown": 1}},
        {"spec": {"$retainKeys": 1}},
    ],
)
def test_strategic_merge_that_cannot_be_read_is_refused(patch: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        strategic_merge(pod(), patch, RULES)
