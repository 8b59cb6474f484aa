"""The map from rules of placement to tests: whole, unique, and every test is there."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = ("9", "10", "11", "12", "13", "14", "15", "16", "17")
WEAK_POINTS = range(19, 35)
"""Known weak points of the original that are about scheduling."""


def _maps():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import placement_rules
    finally:
        sys.path.pop(0)
    return placement_rules


MAP = _maps()
FOUND = MAP.sections()
RULES = [rule for section in FOUND for rule in section.rules]


@cache
def names_in(path):
    """Names at the top of a test file that pytest would run."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if name.startswith(("test_", "Test"))}


def test_every_rule_has_its_own_id_in_its_section():
    ids = [rule.id for rule in RULES]
    assert sorted(set(ids)) == sorted(ids)
    for section in FOUND:
        number = section.name.partition("-")[0].lstrip("0")
        assert {rule.id.partition("-")[0].partition(".")[0] for rule in section.rules} == {number}


def test_every_section_has_rules():
    assert tuple(section.name.partition("-")[0].lstrip("0") for section in FOUND) == SECTIONS


def test_every_named_test_exists():
    gone = []
    for rule in RULES:
        for test in rule.tests:
            path, _, name = test.partition("::")
            if not (ROOT / path).is_file() or name not in names_in(path):
                gone.append(f"{rule.id}: {test}")
    assert gone == []


def test_every_rule_names_tests_once_and_says_what_ours_does():
    assert [rule.id for rule in RULES if not rule.tests] == []
    assert [rule.id for rule in RULES if len(set(rule.tests)) < len(rule.tests)] == []
    silent = [r.id for r in RULES if (r.defect or r.missing) and not r.instead]
    assert silent == []
    for rule in RULES:
        for text in (rule.rule, rule.instead):
            assert not text or text.endswith("."), rule.id


def test_every_weak_point_of_scheduling_is_mapped():
    assert {number for rule in RULES for number in rule.weak} >= set(WEAK_POINTS)


def test_page_has_a_row_for_every_rule():
    (page,) = MAP.pages().values()
    rows = [line for line in page.splitlines() if line.startswith(("| 9", "| 1"))]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [rule.id for rule in RULES]
    assert sum("*Missing.*" in row for row in rows) == sum(rule.missing for rule in RULES)
    assert sum("*Defect.*" in row for row in rows) == sum(rule.defect for rule in RULES)


def test_rule_with_an_unknown_field_is_named(tmp_path):
    text = 'title = "T"\n[[rule]]\nid = "9-a"\nrule = "R."\ntests = []\nowner = "x"\n'
    (tmp_path / "09-x.toml").write_text(text)
    with pytest.raises(ValueError, match=r"09-x\.toml, rule '9-a': .*owner"):
        MAP.sections(tmp_path)
