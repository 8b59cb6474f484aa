"""Label and field selectors as predicates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.api.registry import PODS, PROFILES
from tensorfusion.errors import BadRequest
from tensorfusion.store.selectors import (
    compile_selectors,
    field_equals,
    field_predicate,
    label_predicate,
    selector_from_labels,
)


def labelled(**labels: str) -> dict[str, object]:
    return {"metadata": {"name": "x", "labels": labels}}


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ("a=1", {"a": "1"}, True),
        ("a==1", {"a": "2"}, False),
        ("a!=1", {}, True),
        ("a in (1,2)", {"a": "2"}, True),
        ("a in (1, 2)", {"a": "3"}, False),
        ("a notin (1)", {}, True),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a=1,b", {"a": "1", "b": "x"}, True),
        ("a=", {"a": ""}, True),
        ("x.io/a=1", {"x.io/a": "1"}, True),
        (" a = 1 , b in (2) ", {"a": "1", "b": "2"}, True),
    ],
)
def test_label_selector_selects(selector: str, labels: dict[str, str], expected: bool) -> None:
    predicate = label_predicate(selector)
    assert predicate is not None
    assert predicate(labelled(**labels)) is expected


@pytest.mark.parametrize(
    "selector", ["a=b=c", "a in", "a in b", "=1", "a,,b", "a in (x", "(", "a=b c", "a!", "/a=1"]
)
def test_label_selector_that_is_none_is_refused_with_its_text(selector: str) -> None:
    with pytest.raises(BadRequest) as caught:
        label_predicate(selector)
    assert repr(selector) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_selector_or_a_bad_request(text: str) -> None:
    try:
        predicate = label_predicate(text)
    except BadRequest:
        return
    assert predicate is None or predicate(labelled(a="1")) in (True, False)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.from_regex(r"[a-z0-9]{0,8}", fullmatch=True),
        max_size=4,
    )
)
def test_selector_from_labels_selects_its_own_labels(labels: dict[str, str]) -> None:
    predicate = label_predicate(selector_from_labels(labels))
    assert predicate is None or predicate(labelled(**labels))


def test_empty_selectors_compile_to_nothing() -> None:
    assert compile_selectors(PODS, "", "") is None


def test_field_selector_reads_dotted_paths_of_core_kinds() -> None:
    predicate = field_predicate("spec.nodeName=n1,status.phase!=Failed", custom=False, kind="Pod")
    assert predicate is not None
    assert predicate({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})
    assert not predicate({"spec": {"nodeName": "n2"}, "status": {"phase": "Running"}})
    assert not predicate({"spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}})


def test_field_selector_for_nothing_matches_an_absent_field() -> None:
    predicate = field_predicate("spec.nodeName=", custom=False, kind="Pod")
    assert predicate is not None
    assert predicate({"spec": {}})


@pytest.mark.parametrize("selector", ["spec", "spec.x~1", "=1", "spec..x=1", "1=1"])
def test_field_selector_that_is_none_is_refused(selector: str) -> None:
    with pytest.raises(BadRequest):
        field_predicate(selector, custom=False, kind="Pod")


def test_custom_kinds_select_by_name_and_namespace_only() -> None:
    assert compile_selectors(PROFILES, "", "metadata.name=a") is not None
    with pytest.raises(BadRequest, match=r"field label not supported: spec\.qos"):
        compile_selectors(PROFILES, "", "spec.qos=high")


def test_field_equals_finds_the_demanded_value() -> None:
    assert field_equals("a=1,metadata.name==x", "metadata.name") == "x"
    assert field_equals("metadata.name!=x", "metadata.name") == ""
