"""Informers: the cache is what the store has, however the news arrives."""

import logging
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.api.core.cluster import ConfigMap
from tensorfusion.api.registry import CONFIG_MAPS
from tensorfusion.clock import SystemClock
from tensorfusion.errors import NotFound, Unavailable
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.store.informer import Informer, key_of, split_key
from tensorfusion.store.interface import ObjectList


def body(name, **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def by_colour(obj):
    return [obj.data["colour"]] if "colour" in obj.data else []


def make(store, **kwargs):
    return Informer(
        store, CONFIG_MAPS, ConfigMap, clock=store.clock, indexers={"colour": by_colour}, **kwargs
    )


@pytest.fixture
def store(tmp_path):
    made = SQLiteStore(tmp_path / "s.db")
    yield made
    made.close()


@pytest.fixture
def running():
    """Start informers on threads; they end with the test."""
    stop = threading.Event()
    started = []

    def start(informer):
        thread = threading.Thread(target=informer.run, args=(stop,))
        started.append((informer, thread))
        thread.start()
        assert informer.synced.wait(10)

    yield start
    stop.set()
    for informer, _ in started:
        informer.interrupt()
    for _, thread in started:
        thread.join(10)
        assert not thread.is_alive()


class Log:
    """Waits for changes without sleeping."""

    def __init__(self, informer):
        self.changes = []
        self._arrived = threading.Condition()
        informer.subscribe(self)

    def __call__(self, change):
        with self._arrived:
            self.changes.append(change)
            self._arrived.notify_all()

    def wait_for(self, count):
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.changes) >= count, 10)
        return self.changes


def test_informer_lists_and_then_follows(store, running):
    store.create(CONFIG_MAPS, body("a", colour="red"), "default")
    informer = make(store)
    log = Log(informer)
    running(informer)
    store.create(CONFIG_MAPS, body("b", colour="red"), "default")
    store.patch(CONFIG_MAPS, "a", {"data": {"colour": "blue"}}, "default")
    store.delete(CONFIG_MAPS, "b", "default")
    changes = log.wait_for(4)

    assert [(c.key, c.old is not None, c.new is not None) for c in changes] == [
        ("default/a", False, True),
        ("default/b", False, True),
        ("default/a", True, True),
        ("default/b", True, False),
    ]
    assert informer.all_keys() == ["default/a"]
    assert informer.get("default/a").data == {"colour": "blue"}
    assert [o.metadata.name for o in informer.by_index("colour", "blue")] == ["a"]
    assert informer.by_index("colour", "red") == []


def test_informer_without_a_thread_takes_events_when_pumped(store):
    store.create(CONFIG_MAPS, body("a"), "default")
    informer = make(store)
    news = []
    assert informer.attach(lambda: news.append(1))
    assert informer.all_keys() == ["default/a"]
    store.create(CONFIG_MAPS, body("b"), "default")

    assert news
    assert informer.all_keys() == ["default/a"]
    informer.pump()
    assert informer.all_keys() == ["default/a", "default/b"]
    informer.interrupt()


def test_selectors_limit_the_cache(store):
    store.create(CONFIG_MAPS, body("a"), "default")
    store.create(
        CONFIG_MAPS, {**body("b"), "metadata": {"name": "b", "labels": {"x": "1"}}}, "default"
    )
    informer = make(store, label_selector="x=1", namespace="default")
    informer.attach(lambda: None)
    store.patch(CONFIG_MAPS, "b", {"metadata": {"labels": {"x": "2"}}}, "default")
    assert informer.all_keys() == ["default/b"]
    informer.pump()

    assert informer.all_keys() == []


def test_informer_lists_again_when_it_fell_behind(tmp_path):
    store = SQLiteStore(tmp_path / "s.db", queue_events=3)
    store.create(CONFIG_MAPS, body("gone"), "default")
    store.create(CONFIG_MAPS, body("kept"), "default")
    informer = make(store)
    log = Log(informer)
    informer.attach(lambda: None)
    store.delete(CONFIG_MAPS, "gone", "default")
    for number in range(5):
        store.create(CONFIG_MAPS, body(f"n{number}"), "default")
    informer.pump()

    assert sorted(informer.all_keys()) == [
        "default/kept", *(f"default/n{n}" for n in range(5))
    ]  # fmt: skip
    last = {c.key: c for c in log.changes}
    assert last["default/gone"].new is None
    assert len([c for c in log.changes if c.key == "default/kept"]) == 1
    store.close()


class Views(msgspec.Struct):
    """A narrow view that refuses what has no number."""

    metadata: dict[str, object]
    data: dict[str, int]


def test_object_that_cannot_be_decoded_is_skipped_and_said(store, caplog):
    store.create(CONFIG_MAPS, body("bad", size="many"), "default")
    store.create(CONFIG_MAPS, body("good", size="1"), "default")
    informer = Informer(store, CONFIG_MAPS, Views, clock=store.clock)
    with caplog.at_level(logging.ERROR):
        informer.attach(lambda: None)

    assert informer.all_keys() == ["default/good"]
    assert caplog.records[0].key == "default/bad"
    informer.interrupt()


def test_handlers_are_called_in_the_order_they_subscribed(store):
    informer = make(store)
    order = []
    for name in ("first", "second", "third"):
        informer.subscribe(lambda change, name=name: order.append((change.key, name)))
    informer.attach(lambda: None)
    store.create(CONFIG_MAPS, body("a"), "default")
    store.create(CONFIG_MAPS, body("b"), "default")
    informer.pump()

    assert order == [
        (f"default/{key}", name) for key in "ab" for name in ("first", "second", "third")
    ]


class Flaky:
    """A store that fails to list, or to watch, the first few times."""

    def __init__(self, inner, failures):
        self.inner = inner
        self.failures = list(failures)
        self.clock = SystemClock()

    def list(self, *args, **kwargs) -> ObjectList:
        if "list" in self.failures:
            self.failures.remove("list")
            raise Unavailable("starting")
        return self.inner.list(*args, **kwargs)

    def watch(self, *args, **kwargs):
        if "watch" in self.failures:
            self.failures.remove("watch")
            raise Unavailable("restarting")
        return self.inner.watch(*args, **kwargs)


def test_informer_survives_a_store_that_is_not_there_yet(store, running, caplog):
    store.create(CONFIG_MAPS, body("a"), "default")
    flaky = Flaky(store, ["list", "watch"])
    informer = make(flaky)
    log = Log(informer)
    running(informer)
    store.create(CONFIG_MAPS, body("b"), "default")
    log.wait_for(2)

    assert informer.all_keys() == ["default/a", "default/b"]
    assert len([c for c in log.changes if c.key == "default/a"]) == 1


def test_interrupt_before_there_is_a_watch_ends_the_informer(store):
    """A stop between two watches must not leave a thread that waits for the next event."""
    stop = threading.Event()

    class Stopping(Flaky):
        def watch(self, *args, **kwargs):
            watch = self.inner.watch(*args, **kwargs)
            stop.set()
            informer.interrupt()
            return watch

    informer = make(Stopping(store, []))
    thread = threading.Thread(target=informer.run, args=(stop,), daemon=True)
    thread.start()
    thread.join(10)

    assert not thread.is_alive()


def test_keys_come_apart_as_they_went_together():
    assert key_of({"metadata": {"name": "a", "namespace": "b"}}) == "b/a"
    assert key_of({"metadata": {"name": "a"}}) == "a"
    assert split_key("b/a") == ("b", "a")
    assert split_key("a") == ("", "a")


NAMES = st.sampled_from("abc")
COLOURS = st.sampled_from(["red", "blue"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, COLOURS),
        st.tuples(st.just("delete"), NAMES, COLOURS),
        st.tuples(st.just("pump"), NAMES, COLOURS),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_cache_and_indexes_equal_the_store(tmp_path_factory, steps):
    store = SQLiteStore(tmp_path_factory.mktemp("p") / "s.db", queue_events=4)
    informer = make(store)
    shadow = {}

    def follow(change):
        assert shadow.get(change.key) == change.old
        if change.new is None:
            del shadow[change.key]
        else:
            shadow[change.key] = change.new

    informer.subscribe(follow)
    informer.attach(lambda: None)
    for action, name, colour in steps:
        if action == "pump":
            informer.pump()
        elif action == "delete":
            try:
                store.delete(CONFIG_MAPS, name, "default")
            except NotFound:
                continue
        else:
            try:
                store.patch(CONFIG_MAPS, name, {"data": {"colour": colour}}, "default")
            except NotFound:
                store.create(CONFIG_MAPS, body(name, colour=colour), "default")
    informer.pump()
    found = {key_of(o): o for o in store.list(CONFIG_MAPS).items}

    assert set(informer.all_keys()) == found.keys()
    assert {k: informer.get(k).metadata.resource_version for k in found} == {
        k: o["metadata"]["resourceVersion"] for k, o in found.items()
    }
    assert shadow == {k: informer.get(k) for k in found}
    for colour in ("red", "blue"):
        assert sorted(o.metadata.name for o in informer.by_index("colour", colour)) == sorted(
            o["metadata"]["name"] for o in found.values() if o.get("data") == {"colour": colour}
        )
    store.close()
