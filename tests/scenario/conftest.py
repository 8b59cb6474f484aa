"""A little cluster on one thread: objects in, controllers stepped until they are idle, objects out."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tensorfusion.api import registry
from tensorfusion.app.informers import Informers
from tensorfusion.clock import Clock
from tensorfusion.runtime.controller import Controller
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.testing.clock import FakeClock


@dataclass
class Cluster:
    """Store, clock, informers and whatever controllers a test adds."""

    store: SQLiteStore
    clock: FakeClock
    informers: Informers
    instruments: Instruments = field(default_factory=Instruments)
    controllers: list[Controller] = field(default_factory=list)

    def events(self, component: str = "test") -> EventRecorder:
        return EventRecorder(self.store, registry.EVENTS, component, self.clock)

    def add(self, *parts: Any) -> Any:
        """Take controllers, or things that have one; returns the last."""
        for part in parts:
            self.controllers.append(part if isinstance(part, Controller) else part.controller)
        return parts[-1]

    def start(self) -> None:
        for informer in self.informers.all():
            assert informer.attach(lambda: None)

    def pump(self) -> None:
        for informer in self.informers.all():
            informer.pump()

    def step(self) -> int:
        """Reconcile every key that is due once; returns how many there were."""
        worked = 0
        for controller in self.controllers:
            while (key := controller.queue.get(0)) is not None:
                controller.step(key)
                controller.queue.done(key)
                worked += 1
                assert worked < 500, f"{controller.name} is never done"
        return worked

    def settle(self, seconds: float = 20.0) -> None:
        """Reconcile until nothing is left to do within so much (fake) time."""
        end = self.clock.monotonic() + seconds
        rounds = 0
        while True:
            self.pump()
            if self.step():
                rounds += 1
                assert rounds < 300, "the controllers never come to rest"
                continue
            if self.clock.monotonic() >= end:
                return
            self.clock.advance(0.5)

    def get(self, resource, name, namespace=""):
        return self.store.get(resource, name, namespace)

    def all(self, resource, namespace=""):
        return self.store.list(resource, namespace).items

    def reasons(self, namespace="default"):
        return [(e["reason"], e["message"]) for e in self.all(registry.EVENTS, namespace)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cluster(tmp_path, clock: Clock):
    store = SQLiteStore(tmp_path / "cluster.db", clock=clock)
    yield Cluster(store, clock, Informers(store, clock))
    store.close()


def conditions_of(obj):
    return {c["type"]: c for c in obj.get("status", {}).get("conditions", [])}


@pytest.fixture
def conditions():
    return conditions_of
