"""Mutated requests end in a 2xx or a 4xx ``Status``; `tests/bench/fuzz_wire.py` sends more."""

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType

from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.apiserver.bodies import Query, parse_object
from tensorfusion.apiserver.routes import resource_target, split_path
from tensorfusion.errors import ApiError

REQUESTS = int(os.environ.get("TENSORFUSION_FUZZ_REQUESTS", "400"))


def load_fuzzer() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "fuzz_wire.py"
    spec = importlib.util.spec_from_file_location("fuzz_wire", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_wire"] = module
    spec.loader.exec_module(module)
    return module


def test_mutated_requests_never_fail_the_server_or_lose_data(tmp_path: Path) -> None:
    answers = load_fuzzer().run(tmp_path, REQUESTS, random.randrange(2**32))
    assert sum(answers.values()) == REQUESTS
    assert any(200 <= status < 300 for status in answers)
    assert any(400 <= status < 500 for status in answers)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["application/json", "application/yaml", "x/y"]))
def test_any_bytes_as_a_body_are_read_or_refused(body: bytes, kind: str) -> None:
    try:
        parse_object(body, kind, [])
    except ApiError as error:
        refused = error.code
        assert refused in (400, 413, 415)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_as_protobuf_are_read_or_refused(body: bytes) -> None:
    try:
        parse_object(b"k8s\x00" + body, "application/vnd.kubernetes.protobuf", None)
    except ApiError as error:
        refused = error.code
        assert refused in (400, 415)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_as_a_url_are_read_or_refused(path: bytes, query: bytes) -> None:
    try:
        Query(query)
        resource_target(split_path(b"/api/v1/" + path))
    except ApiError as error:
        refused = error.code
        assert refused in (400, 404)
