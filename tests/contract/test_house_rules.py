"""Rules of the house that no linter knows: sizes, time, names, threads, docstrings."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "plugins", "vendors", "dashboards")
FILE_LINES = 600
FUNCTION_LINES = 80

MAY_READ_TIME = {
    "core/tensorfusion/clock.py": "the one source of time",
}
MAY_NAME_THE_DOMAIN = {
    "core/tensorfusion/names.py": "where every name with our domain is declared",
}
MAY_START_THREADS = {
    "core/tensorfusion/runtime/manager.py": "owns the threads of a process",
    "core/tensorfusion/apiserver/server.py": "runs the web server's loop",
    "core/tensorfusion/apiserver/verbs.py": "keeps writes off the web server's loop",
    "core/tensorfusion/hypervisor/freeze_moves.py": "keeps long copies off the freezer's thread",
    "core/tensorfusion/testing/conformance/calls.py": "gives up on a backend that hangs",
    "core/tensorfusion/testing/conformance/concurrency.py": "calls a backend from many threads",
}


@cache
def sources():
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "/tests/" not in path.as_posix() and "/build/" not in path.as_posix()
    }


@cache
def trees():
    return {path: ast.parse(text) for path, text in sources().items()}


def test_files_fit_into_a_head():
    sizes = {path: text.count("\n") for path, text in sources().items()}

    assert {p: n for p, n in sizes.items() if n > FILE_LINES} == {}


def test_functions_fit_on_a_screen():
    long = {
        f"{path}:{node.name}": node.end_lineno - node.lineno + 1
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }

    assert long == {}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"time\.(time|sleep|monotonic)|datetime\.(now|utcnow|today)|date\.today", MAY_READ_TIME),
        (r"(threading\.)?(Thread|Timer)|(concurrent\.)?futures\.\w+Executor|\w+PoolExecutor"
         r"|multiprocessing\.\w+", MAY_START_THREADS),
    ],
    ids=["time comes from the clock", "threads are the manager's"],
)  # fmt: skip
def test_calls_are_made_where_they_belong(pattern, allowed):
    found = {
        f"{path}:{line} {name}"
        for path, tree in trees().items()
        if path not in allowed
        for line, name in calls(tree)
        if re.fullmatch(pattern, name)
    }

    assert found == set()


def test_our_domain_is_written_in_one_place():
    """In strings that the program uses; docstrings may show examples."""
    found = set()
    for path, tree in trees().items():
        if path in MAY_NAME_THE_DOMAIN:
            continue
        shown = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found |= {
            f"{path}:{node.lineno} {node.value[:60]!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "tensor-fusion.ai/" in node.value
            and id(node) not in shown
        }

    assert found == set()


def is_public(name):
    return not name.startswith("_")


def test_public_modules_classes_and_functions_say_what_they_are():
    bare = set()
    for path, tree in trees().items():
        name = Path(path).stem
        if (is_public(name) or name == "__init__") and not ast.get_docstring(tree):
            bare.add(path)
        for node in tree.body:
            documented = isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name)
            if documented and not ast.get_docstring(node):
                bare.add(f"{path}:{node.name}")

    assert bare == set()


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "misc"])
def test_no_module_is_named_after_nothing(word):
    assert [p for p in sources() if Path(p).stem == word or f"/{word}/" in p] == []


def test_exceptions_are_still_needed():
    """A file that no longer needs its exception loses it."""
    for allowed in (MAY_READ_TIME, MAY_NAME_THE_DOMAIN, MAY_START_THREADS):
        assert allowed.keys() <= sources().keys()
