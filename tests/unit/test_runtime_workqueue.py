"""The work queue: each key once, never twice at a time, at the earliest time that was asked for."""

import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensorfusion.clock import Backoff
from tensorfusion.runtime.workqueue import WorkQueue
from tensorfusion.testing.clock import FakeClock

LOCK = threading.Condition()


def queue(**kwargs):
    clock = FakeClock(0)
    return WorkQueue("q", clock, **kwargs), clock


def take(q):
    q.share(LOCK)
    with LOCK:
        return q.take()


def take_all(q):
    taken = []
    while (key := take(q)[0]) is not None:
        taken.append(key)
    return taken


def test_key_waits_once_however_often_it_is_added():
    q, _ = queue()
    for key in "abab":
        q.add(key)

    assert take_all(q) == ["a", "b"]


def test_key_that_is_added_while_worked_on_comes_again_afterwards():
    q, _ = queue()
    q.add("a")
    assert take(q) == ("a", None)
    q.add("a")
    q.add("a")

    assert take_all(q) == []
    assert not q.idle()
    q.done("a")
    assert take_all(q) == ["a"]
    q.done("a")
    assert q.idle()


def test_delayed_key_comes_when_it_is_due():
    q, clock = queue()
    q.add_after("a", 5)

    assert take(q) == (None, 5.0)
    clock.advance(4.5)
    assert take(q) == (None, 0.5)
    clock.advance(0.5)
    assert take_all(q) == ["a"]


def test_earliest_wish_wins():
    q, clock = queue()
    q.add_after("a", 5)
    q.add_after("a", 2)
    q.add_after("a", 9)
    clock.advance(2)

    assert take_all(q) == ["a"]
    q.done("a")
    clock.advance(60)
    assert take_all(q) == []


def test_delay_of_nothing_is_now():
    q, _ = queue()
    q.add_after("a", 0)

    assert take_all(q) == ["a"]


def test_retries_back_off_until_forgotten():
    q, clock = queue(backoff=Backoff(1.0, 8.0, seed=1))
    steps = []
    for _ in range(6):
        seconds = q.retry("a")
        steps.append(seconds)
        clock.advance(seconds + 0.001)
        assert take_all(q) == ["a"]
        q.done("a")

    assert all(s / 10 <= got <= s for s, got in zip((1, 2, 4, 8, 8, 8), steps, strict=True))
    q.forget("a")
    assert q.retry("a") <= 1.0


def test_close_wakes_a_waiter_and_hands_out_nothing_more():
    q, _ = queue()
    got = []
    waiter = threading.Thread(target=lambda: got.append(q.get()))
    waiter.start()
    q.close()
    waiter.join(5)
    q.add("a")

    assert got == [None]
    assert q.get() is None


KEYS = st.sampled_from("abc")


class QueueMachine(RuleBasedStateMachine):
    """Against a model that keeps, per key, what is wanted and when."""

    def __init__(self):
        super().__init__()
        self.q, self.clock = queue()
        self.ready, self.working, self.again, self.due = set(), set(), set(), {}

    def want(self, key):
        (self.again if key in self.working else self.ready).add(key)

    def promote(self):
        for key in [k for k, at in self.due.items() if at <= self.clock.monotonic()]:
            del self.due[key]
            self.want(key)

    @rule(key=KEYS)
    def add(self, key):
        self.q.add(key)
        self.want(key)

    @rule(key=KEYS, seconds=st.integers(1, 5))
    def add_after(self, key, seconds):
        self.q.add_after(key, seconds)
        at = self.clock.monotonic() + seconds
        self.due[key] = min(at, self.due.get(key, at))

    @rule(seconds=st.integers(0, 4))
    def pass_time(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def take(self):
        key, wait = take(self.q)
        self.promote()
        if key is None:
            assert not self.ready
            soonest = min(self.due.values(), default=None)
            assert wait == (None if soonest is None else soonest - self.clock.monotonic())
        else:
            assert key in self.ready
            assert key not in self.working
            self.ready.remove(key)
            self.working.add(key)

    @rule(key=KEYS)
    def done(self, key):
        if key in self.working:
            self.q.done(key)
            self.working.remove(key)
            if key in self.again:
                self.again.remove(key)
                self.ready.add(key)

    @invariant()
    def idle_says_whether_there_is_work(self):
        self.promote()
        assert self.q.idle() == (not self.ready and not self.working)


QueueMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase
