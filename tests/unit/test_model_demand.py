"""Requests and the Kubernetes matching rules they carry."""

import pytest

from tensorfusion.model.demand import (
    Amount,
    Requirement,
    SelectorTerm,
    Shape,
    Toleration,
    parse_models,
)
from tensorfusion.model.device import Taint


@pytest.mark.parametrize(
    ("operator", "values", "matches"),
    [
        ("In", ("8", "9"), True),
        ("In", ("9",), False),
        ("NotIn", ("9",), True),
        ("NotIn", ("8",), False),
        ("Exists", (), True),
        ("DoesNotExist", (), False),
        ("Gt", ("7",), True),
        ("Gt", ("8",), False),
        ("Lt", ("9",), True),
        ("Lt", ("x",), False),
        ("Unknown", ("8",), False),
    ],
)
def test_requirement_operators_on_a_present_label(operator, values, matches):
    assert Requirement("cores", operator, values).matches({"cores": "8"}) is matches


@pytest.mark.parametrize(
    ("operator", "matches"),
    [("In", False), ("NotIn", True), ("Exists", False), ("DoesNotExist", True), ("Gt", False)],
)
def test_requirement_operators_on_an_absent_label(operator, matches):
    assert Requirement("cores", operator, ("8",)).matches({}) is matches


def test_selector_term_matches_name_and_labels_and_empty_matches_nothing():
    name = Requirement("metadata.name", "In", ("n1",))
    label = Requirement("a", "Exists")
    assert SelectorTerm((label,), (name,)).matches("n1", {"a": ""})
    assert not SelectorTerm((label,), (name,)).matches("n2", {"a": ""})
    assert not SelectorTerm().matches("n1", {})


@pytest.mark.parametrize(
    ("toleration", "tolerates"),
    [
        (Toleration("k", "Equal", "v"), True),
        (Toleration("k", "Equal", "w"), False),
        (Toleration("k", "Exists"), True),
        (Toleration("", "Exists"), True),
        (Toleration("", "Equal", ""), False),
        (Toleration("k", "Exists", "", "NoExecute"), False),
        (Toleration("x", "Exists"), False),
    ],
)
def test_toleration_follows_kubernetes(toleration, tolerates):
    assert toleration.tolerates(Taint("k", "v", "NoSchedule")) is tolerates


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu_count": -1}, "gpu_count is -1, allowed are 0 to 128"),
        ({"cpu_milli": -1}, "must not be negative"),
        ({"gpu_count": 129}, "gpu_count is 129"),
        ({"isolation": "weak"}, "isolation is 'weak', allowed are shared, soft"),
        ({"gpu_count": 3, "containers": (("a", 1), ("b", 1))}, "ask for 2 GPUs in sum"),
    ],
)
def test_shape_refuses_what_can_never_be_placed(fields, message):
    with pytest.raises(ValueError, match=message):
        Shape(**fields)


def test_shape_accepts_the_largest_count():
    assert Shape(gpu_count=128).gpu_count == 128


def test_amount_refuses_two_notations_and_negatives():
    with pytest.raises(ValueError, match="not both"):
        Amount(gflops=1, milli_percent=1)
    with pytest.raises(ValueError, match="negative"):
        Amount(vram_bytes=-1)


def test_shape_equality_ignores_who_asks():
    left = Shape(request=Amount(1, 2), models=("A100",))
    right = Shape(request=Amount(1, 2), models=("A100",))
    assert left == right
    assert hash(left) == hash(right)


def test_shape_deals_devices_to_containers_in_order():
    shape = Shape(gpu_count=3, containers=(("a", 1), ("b", 2)))
    assert shape.deal(("x", "y", "z")) == (("a", ("x",)), ("b", ("y", "z")))


@pytest.mark.parametrize(
    ("text", "models"),
    [("A100", ("A100",)), ("A100|H100, L4", ("A100", "H100", "L4")), (" ,|", ())],
)
def test_models_are_split_at_bars_and_commas(text, models):
    assert parse_models(text) == models
