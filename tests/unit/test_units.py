from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.errors import ConfigError
from tensorfusion.units import (
    canonical_quantity,
    format_bytes,
    format_duration,
    format_percent,
    format_tflops,
    human_bytes,
    human_tflops,
    parse_bytes,
    parse_duration,
    parse_fraction,
    parse_gflops,
    parse_percent,
    parse_quantity,
)

SCALES = {
    "": Fraction(1), "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18), "Ki": Fraction(2**10), "Mi": Fraction(2**20),
    "Gi": Fraction(2**30), "Ti": Fraction(2**40), "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
LARGEST = 2**63 - 1

signs = st.sampled_from(["", "+", "-"])
numbers = st.one_of(
    st.integers(0, 10**12).map(str),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**9)).map(
        lambda pair: f"{pair[0]}.{pair[1]}"
    ),
    st.integers(0, 999).map(lambda value: f".{value}"),
    st.integers(0, 999).map(lambda value: f"{value}."),
)
exponents = st.tuples(st.sampled_from("eE"), signs, st.integers(0, 15)).map(
    lambda parts: f"{parts[0]}{parts[1]}{parts[2]}"
)
quantities = st.tuples(signs, numbers, st.one_of(st.sampled_from(list(SCALES)), exponents))


def refusal_of(parse: Callable[[str], object], text: str) -> str:
    try:
        parse(text)
    except ConfigError as error:
        return str(error)
    return ""


def meaning(sign: str, number: str, suffix: str) -> Fraction:
    """What the grammar says a quantity is, without the code under test."""
    scale = SCALES.get(suffix)
    if scale is None:
        scale = Fraction(10) ** int(suffix[1:])
    exact = Fraction(number.rstrip(".") or "0") * scale * 10**9
    billionths = -(-exact.numerator // exact.denominator)
    value = min(Fraction(billionths, 10**9), Fraction(LARGEST))
    return -value if sign == "-" else value


@given(quantities)
@settings(max_examples=300)
def test_quantity_means_what_the_grammar_says(parts):
    assert parse_quantity("".join(parts)) == meaning(*parts)


@given(quantities)
@settings(max_examples=300)
def test_canonical_quantity_keeps_the_value_and_is_stable(parts):
    text = "".join(parts)
    printed = canonical_quantity(text)
    assert parse_quantity(printed) == parse_quantity(text)
    assert canonical_quantity(printed) == printed


@given(st.integers(-LARGEST, LARGEST), st.integers(-LARGEST, LARGEST))
def test_bytes_round_trip_and_keep_their_order(left, right):
    assert parse_bytes(format_bytes(left)) == left
    assert (parse_quantity(str(left)) < parse_quantity(str(right))) == (left < right)


@given(st.integers(0, 10**15))
def test_gflops_round_trip(gflops):
    assert parse_gflops(format_tflops(gflops)) == gflops


@given(st.integers(-(10**15), 10**15))
def test_duration_round_trip_to_the_nanosecond(nanoseconds):
    seconds = nanoseconds / 10**9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.text(max_size=12))
@settings(max_examples=300)
def test_any_text_is_read_or_refused_with_the_allowed_form(text):
    for parse in (parse_quantity, parse_duration, parse_percent):
        refusal = refusal_of(parse, text)
        assert refusal == "" or "expected" in refusal


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("1000", "1k"), ("1024", "1024"), ("1Ki", "1Ki"), ("1536Mi", "1536Mi"), ("2048Ki", "2Mi"),
        ("1.5Gi", "1536Mi"), ("0.5", "500m"), ("0.0625", "62500u"), ("62.5", "62500m"), ("1e3", "1e3"),
        ("12345", "12345"), ("1E", "1E"), ("0.1Ki", "102400m"), ("512Ki", "512Ki"), ("0Gi", "0"),
        ("1e-12", "1e-9"), ("-2500m", "-2500m"), ("9Ei", "9223372036854775807"), ("1.0", "1"),
        (5, "5"), (0.25, "250m"),
    ],
)  # fmt: skip
def test_canonical_quantity_prints_as_the_api_server_does(text, printed):
    assert canonical_quantity(text) == printed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1K",
        "1 Gi",
        "Gi",
        "--1",
        "1e",
        "1e1.5",
        "1ki",
        "0x10",
        "1GiB",
        "٣",
        "9" * 5000,
        True,
        float("nan"),
    ],
)
def test_quantity_refuses_what_the_grammar_does_not_have(text):
    with pytest.raises(ConfigError, match="expected a number with an optional suffix"):
        parse_quantity(text)


def test_equal_amounts_are_equal_however_they_are_written():
    assert parse_quantity("1Gi") == parse_quantity("1024Mi") == parse_quantity(str(2**30))
    assert parse_quantity("0.1") == parse_quantity("100m") == parse_quantity("1e-1")


def test_amounts_round_up_so_that_nobody_gets_less_than_asked():
    assert parse_bytes("1500m") == 2
    assert parse_gflops("0.0001") == 1
    assert parse_gflops("312.5") == 312_500
    assert parse_percent("14.2857") == 14_286


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("-2s", -2),
        ("0", 0),
        ("2m0.5s", 120.5),
    ],
)
def test_duration_reads_what_go_writes(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "1d", "h", "1h 2m", "-", "1e3s", "never"])
def test_duration_refuses_other_texts(text):
    with pytest.raises(ConfigError, match="such as"):
        parse_duration(text)


@pytest.mark.parametrize("value", ["-1", "101", "abc", "", "50%%"])
def test_percent_refuses_what_is_not_between_0_and_100(value):
    with pytest.raises(ConfigError, match="0 to 100"):
        parse_percent(value)


def test_small_formats():
    assert [format_percent(value) for value in (50_000, 14_286, 500, 0)] == [
        "50",
        "14.286",
        "0.5",
        "0",
    ]
    assert [format_duration(value) for value in (0, 90, 5400, 0.25)] == [
        "0s",
        "1m30s",
        "1h30m",
        "250ms",
    ]
    assert [human_bytes(value) for value in (0, 80 * 2**30, 1536, 512 * 2**20)] == [
        "0B",
        "80Gi",
        "1.5Ki",
        "512Mi",
    ]
    assert [human_tflops(value) for value in (312_000, 62_500, 0)] == ["312", "62.5", "0"]
    assert [parse_fraction(value) for value in (0.9, "0.9", 1)] == [0.9, 0.9, 1.0]


@pytest.mark.parametrize("value", ["x", "", True, "nan"])
def test_ratio_refuses_what_is_no_number(value):
    with pytest.raises(ConfigError, match="not a ratio"):
        parse_fraction(value)
