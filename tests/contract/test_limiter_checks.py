"""The list of checks: whole, unique, and every test and bench that it names is there."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IDS = [
    *(f"A{number}" for number in range(1, 11)),
    *(f"B{number}" for number in range(1, 11)),
    *(f"C{number}" for number in range(1, 10)),
    *(f"D{number}" for number in range(1, 14)),
    *(f"E{number}" for number in range(1, 3)),
]


def _tool():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import limiter_checks
    finally:
        sys.path.pop(0)
    return limiter_checks


TOOL = _tool()
CHECKS = [check for area in TOOL.areas() for check in area.checks]


@cache
def names_in(path):
    """Functions at the top of a test file that pytest would run, with whether each is for a real GPU."""
    found = {}
    tree = ast.parse((ROOT / path).read_text())
    marks = [
        n
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "pytestmark"
    ]
    everywhere = any("mark.gpu" in ast.unparse(mark.value) for mark in marks)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marked = any("mark.gpu" in ast.unparse(d) for d in node.decorator_list)
            found[node.name] = everywhere or marked
    return found


def is_there(test):
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and name in names_in(path)


def test_every_check_is_listed_once():
    assert [check.id for check in CHECKS] == IDS


def test_every_named_test_exists():
    named = [(check.id, test) for check in CHECKS for test in (*check.tests, *check.gpu)]
    assert [row for row in named if not is_there(row[1])] == []


def test_tests_for_a_real_gpu_are_told_apart():
    """What runs nowhere but on a GPU proves nothing here, and only tests/gpu runs there."""
    for check in CHECKS:
        for test in check.tests:
            path, _, name = test.partition("::")
            assert not names_in(path)[name], f"{check.id}: {test}"
        assert all(test.startswith("tests/gpu/") for test in check.gpu), check.id


def test_every_test_for_a_real_gpu_is_listed():
    written = {
        f"tests/gpu/{path.name}::{name}"
        for path in (ROOT / "tests" / "gpu").glob("test_*.py")
        for name in names_in(f"tests/gpu/{path.name}")
    }
    listed = {test for check in CHECKS for test in check.gpu}
    # These are of no check of the list: discovery, limits that change while a program runs, hardware partitions.
    beside = {
        "tests/gpu/test_nvidia_backend.py::test_discovery_says_what_the_driver_says",
        "tests/gpu/test_compute.py::test_a_share_is_changed_while_the_program_runs",
        "tests/gpu/test_mig.py::test_a_program_has_its_partition_and_nothing_else",
        "tests/gpu/test_mig.py::test_the_card_is_cut_where_the_catalogue_says",
    }
    assert written - listed == beside


def test_what_is_not_tested_says_why_and_sentences_end():
    assert [check.id for check in CHECKS if not check.tests and not check.rest] == []
    for check in CHECKS:
        assert len(set(check.tests)) == len(check.tests), check.id
        for text in (check.check, check.rest):
            assert not text or text.endswith("."), check.id
            assert "|" not in text, check.id


def test_every_bench_exists():
    makefile = (ROOT / "Makefile").read_text()
    for check in CHECKS:
        program, _, rest = check.bench.partition(" ")
        if program == "make":
            assert f"\n{rest}:" in makefile, check.id
        elif program:
            assert (ROOT / rest.split()[0]).is_file(), check.id


def test_page_has_a_row_for_every_check_and_counts_them():
    (page,) = TOOL.pages().values()
    rows = [
        line for line in page.splitlines() if line.startswith(("| A", "| B", "| C", "| D", "| E"))
    ]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == IDS
    for state in TOOL.STATES:
        count = sum(check.state == state for check in CHECKS)
        assert f"{count} {state}" in page


def test_check_with_an_unknown_field_is_named(tmp_path):
    text = 'title = "T"\n[[check]]\nid = "A1"\ncheck = "C."\nowner = "x"\n'
    (tmp_path / "1-x.toml").write_text(text)
    with pytest.raises(ValueError, match=r"1-x\.toml, check 'A1': .*owner"):
        TOOL.areas(tmp_path)
