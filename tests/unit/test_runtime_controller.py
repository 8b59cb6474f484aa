"""Controllers, their manager and health: retries, endings, threads that die."""

import logging
import threading

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.errors import Conflict, NotFound, Terminal, Unavailable
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.health import Health
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.runtime.manager import Manager
from tensorfusion.testing.clock import FakeClock


class Script:
    """A reconcile function that does what the next entry says."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.seen = []

    def __call__(self, key):
        self.seen.append(key)
        outcome = self.outcomes.pop(0) if self.outcomes else DONE
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def make(*outcomes, **kwargs):
    clock = FakeClock()
    return Controller("things", Script(*outcomes), clock=clock, **kwargs), clock


@pytest.mark.parametrize(
    ("outcome", "name", "comes_again"),
    [
        (DONE, "success", False),
        (Result(requeue_seconds=3), "requeue", True),
        (Conflict("changed"), "conflict", True),
        (NotFound("gone"), "conflict", True),
        (Unavailable("down"), "error", True),
        (ValueError("a defect"), "error", True),
        (Terminal("BadSpec", "never"), "terminal", False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_step_settles_a_key_by_its_outcome(outcome, name, comes_again):
    controller, clock = make(outcome)

    assert controller.step("a") == name
    clock.advance(10)
    assert (controller.queue.get(0) == "a") == comes_again


def test_step_logs_our_errors_in_one_line_and_defects_with_a_trace(caplog):
    controller, _ = make(Unavailable("down"), ValueError("a defect"))
    with caplog.at_level(logging.WARNING):
        controller.step("a")
        controller.step("a")

    ours, defect = caplog.records
    assert (ours.levelname, ours.exc_info) == ("WARNING", None)
    assert defect.levelname == "ERROR"
    assert defect.exc_info[0] is ValueError


def test_failures_back_off_and_success_resets():
    controller, _ = make(*[Unavailable("down")] * 12, DONE, Unavailable("down"))
    for _ in range(12):
        controller.step("a")

    assert controller.queue._backoff.failures("a") == 12
    controller.step("a")
    assert controller.queue._backoff.failures("a") == 0


def test_terminal_error_is_told_and_not_retried():
    told = []
    controller, clock = make(
        Terminal("BadSpec", "never"),
        on_terminal=lambda key, error: told.append((key, error.reason)),
    )
    controller.step("a")
    clock.advance(3600)

    assert told == [("a", "BadSpec")]
    assert controller.queue.get(0) is None


def test_handler_of_a_terminal_error_that_fails_is_retried():
    def handler(key, error):
        raise Conflict("the status changed meanwhile")

    controller, clock = make(Terminal("BadSpec", "never"), on_terminal=handler)

    assert controller.step("a") == "conflict"
    clock.advance(10)
    assert controller.queue.get(0) == "a"


def test_reconciles_are_counted_by_result():
    instruments = Instruments()
    controller, _ = make(DONE, Unavailable("down"), instruments=instruments)
    controller.step("a")
    controller.step("a")
    text = instruments.exposition().decode()

    assert 'tensorfusion_reconcile_total{controller="things",result="success"} 1.0' in text
    assert 'tensorfusion_reconcile_total{controller="things",result="error"} 1.0' in text
    assert 'tensorfusion_reconcile_duration_seconds_count{controller="things"} 2.0' in text


class StubInformer:
    """What the manager needs of an informer: run, a sign that it is synced, an interrupt."""

    def __init__(self, log, *, syncs=True):
        self.log = log
        self.syncs = syncs
        self.synced = threading.Event()
        self.wake = threading.Event()
        self.resource = type("R", (), {"plural": "things", "qualified": "things.example"})()

    def run(self, stop):
        self.log.append("informer starts")
        if self.syncs:
            self.synced.set()
        self.wake.wait(10)
        self.log.append("informer ends")

    def interrupt(self):
        self.wake.set()


def test_manager_starts_controllers_after_the_caches_and_stops_everything():
    log = []
    manager = Manager(SystemClock(), Health())
    worked = threading.Event()

    def reconcile(key):
        log.append(f"reconciles {key}")
        worked.set()
        return DONE

    controller = Controller("things", reconcile, clock=manager.clock)
    controller.queue.add("a")
    manager.add_informer(StubInformer(log))
    manager.add_controller(controller)
    ended = threading.Event()
    manager.add_loop("loop", lambda stop: (stop.wait(10), ended.set()))
    manager.start(on_synced=lambda: log.append("synced"))

    assert worked.wait(5)
    manager.stop()
    assert ended.is_set()
    assert log == ["informer starts", "synced", "reconciles a", "informer ends"]
    assert not any(t.is_alive() for t in manager._threads)


def test_manager_names_an_informer_that_does_not_sync():
    manager = Manager(SystemClock(), Health())
    manager.add_informer(StubInformer([], syncs=False))

    with pytest.raises(TimeoutError, match=r"things\.example did not sync"):
        manager.start(sync_timeout_seconds=0.05)
    manager.stop()


def test_thread_that_dies_turns_liveness_red(caplog):
    health = Health()
    manager = Manager(SystemClock(), health)
    died = threading.Event()

    def run(stop):
        died.set()
        raise ValueError("a defect")

    with caplog.at_level(logging.CRITICAL):
        manager.add_loop("sampling", run)
        manager.start()
        assert died.wait(5)
        for thread in manager._threads:
            thread.join(5)

    assert health.live() == (False, ["[-]sampling failed: the thread died; see the log"])
    assert health.readiness()[0] is False
    manager.stop()


def test_readiness_waits_for_what_is_expected():
    health = Health()
    health.expect("informers", "recovery")
    health.ready("informers")

    assert health.readiness() == (False, ["[-]recovery not ready yet"])
    assert health.live() == (True, [])
    health.ready("recovery")
    assert health.readiness() == (True, [])
    health.fail("disk", "full")
    assert health.readiness() == (False, ["[-]disk failed: full"])
    health.ready("disk")
    assert health.readiness() == (True, [])
