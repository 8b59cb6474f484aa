"""The public test kit: the clock that is moved by hand, the builders, the suite's own tools."""

import json
import subprocess
import sys
import threading

import pytest

from tensorfusion.api import registry
from tensorfusion.errors import BackendError
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.testing import build
from tensorfusion.testing.clock import START_SECONDS, FakeClock
from tensorfusion.testing.conformance.calls import call, refused, works
from tensorfusion.testing.conformance.matrix import Outcome, page, read_report, row
from tensorfusion_simulated.backend import SimulatedBackend


def test_fake_clock_stands_still_until_it_is_moved():
    clock = FakeClock()
    assert (clock.now(), clock.monotonic()) == (START_SECONDS, 0)
    assert clock.advance(2.5) == START_SECONDS + 2.5
    assert (clock.now(), clock.monotonic()) == (START_SECONDS + 2.5, 2.5)
    with pytest.raises(ValueError, match="never goes backwards"):
        clock.advance(-1)


def start_waiting(clock, event, seconds):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(clock.wait(event, seconds)))
    thread.start()
    while not clock.waiting():
        assert thread.is_alive()
    return thread, answers


def test_wait_ends_when_the_time_has_moved_far_enough():
    clock = FakeClock()
    thread, answers = start_waiting(clock, threading.Event(), 10)
    clock.advance(9)
    assert clock.waiting() == 1
    clock.advance(1)
    thread.join(10)
    assert answers == [False]


def test_wait_ends_when_the_event_is_set():
    clock, event = FakeClock(), threading.Event()
    thread, answers = start_waiting(clock, event, 3600)
    event.set()
    thread.join(10)
    assert answers == [True]
    assert clock.monotonic() == 0


def test_auto_advancing_clock_never_blocks():
    clock = FakeClock(auto_advance=True)
    assert clock.wait(threading.Event(), 3600) is False
    assert clock.monotonic() == 3600
    done = threading.Event()
    done.set()
    assert clock.wait(done, 3600) is True
    assert clock.monotonic() == 3600


@pytest.mark.parametrize(
    ("resource", "obj"),
    [
        (registry.PODS, build.pod()),
        (registry.PODS, build.pod("plain", tflops="", nodeName="node")),
        (registry.NODES, build.node()),
        (registry.GPUS, build.gpu(labels={"gpupool": "shared"})),
        (registry.GPU_POOLS, build.pool()),
        (registry.WORKLOADS, build.workload()),
        (registry.QUOTAS, build.quota(workers=3, single={"maxGPUCount": 2})),
    ],
)
def test_built_object_is_taken_by_a_store(tmp_path, resource, obj):
    json.dumps(obj)
    store = SQLiteStore(tmp_path / "store.db")
    try:
        namespace = obj["metadata"].get("namespace", "")
        created = store.create(resource, obj, field_validation="Strict")
        status = obj.get("status")
        if status:
            patch = {"status": status}
            created = store.patch(
                resource, created["metadata"]["name"], patch, namespace, subresource="status"
            )
            assert {key: created["status"].get(key) for key in status} == status
    finally:
        store.close()


def test_builders_take_what_differs():
    pod = build.pod("p", tflops="3", annotations={"qos": "high", "other.io/x": "1"})
    annotations = pod["metadata"]["annotations"]
    assert annotations["tensor-fusion.ai/tflops-request"] == "3"
    assert annotations["tensor-fusion.ai/qos"] == "high"
    assert annotations["other.io/x"] == "1"
    assert build.gpu(model="T4")["status"]["capacity"] == {"tflops": "65", "vram": "15Gi"}
    assert [o["kind"] for o in build.items(build.node(), build.gpu())["items"]] == ["Node", "GPU"]


def test_pytest_plugin_imports_nothing_heavy():
    code = (
        "import sys, pytest; before = set(sys.modules);"
        "import tensorfusion.testing.pytest_plugin;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "assert not new & {'numpy', 'kubernetes', 'msgspec', 'yaml', 'click'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_core_does_not_need_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None;"
        "import tensorfusion.testing.clock, tensorfusion.testing.build, tensorfusion.app"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_call_that_hangs_is_reported():
    with pytest.raises(AssertionError, match=r"longer than 0.05 s: usage\(\) has not returned"):
        call(0.05, "usage()", threading.Event().wait)


def test_call_carries_results_and_errors():
    assert call(10, "f()", lambda: 3) == 3
    with pytest.raises(BackendError, match="no"):
        call(10, "f()", lambda: fail(BackendError("v", "no")))


def fail(error):
    raise error


def test_refused_wants_a_backend_error():
    with refused("x must be refused"):
        fail(BackendError("v", "no"))
    accepted = "x must be refused with a BackendError; it was accepted"
    with pytest.raises(AssertionError, match=accepted), refused("x must be refused"):
        pass
    with pytest.raises(AssertionError, match="it raised KeyError"), refused("x must be refused"):
        fail(KeyError("a"))
    with (
        pytest.raises(AssertionError, match="y must work; it raised BackendError"),
        works("y must work"),
    ):
        fail(BackendError("v", "no"))


def test_matrix_row_says_claims_and_result(tmp_path):
    backend = SimulatedBackend()
    passed = row(backend, "0.1.0", Outcome(47, ()))
    isolation = "shared (none), soft (simulated), partitioned (simulated)"
    assert passed[:4] == ("simulated", "0.1.0", "simulator", isolation)
    assert passed[-1] == "47 of 47 passed"
    failed = row(backend, "0.1.0", Outcome(47, ("test_x: units | bytes",)))
    assert failed[-1] == "1 of 47 failed: test_x: units | bytes"
    assert "units \\| bytes" in page([failed])
    assert read_report(tmp_path / "none.xml").failures == ("the suite did not run",)


def test_matrix_reads_failures_from_the_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="test_a"/><testcase name="test_b">'
        '<failure message="AssertionError: vram must be in bytes&#10;more">trace</failure>'
        "</testcase></testsuite></testsuites>"
    )
    assert read_report(report) == Outcome(2, ("test_b: AssertionError: vram must be in bytes",))
