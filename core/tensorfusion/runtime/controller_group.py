"""ControllerGroup: informers and controllers on one thread, their writes in few commits.

In the embedded mode informers, controllers, the server and SQLite share one interpreter. A
thread each would spend much of its time handing the interpreter lock around; one thread that
takes turns does the same work with a fraction of the switches.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError
from tensorfusion.runtime.controller import Controller
from tensorfusion.store.informer import Informer

log = logging.getLogger(__name__)
SLICE_SECONDS = 0.025
"""How long one commit's worth of work may take: what a request on the wire waits for at most."""


PAUSE_SECONDS = 0.010
"""Rest between two slices: the server gets the interpreter to itself for a few requests, and the
next slice finds more to do in one commit."""


class ControllerGroup:
    """Serves the queues of its controllers in turns; the first one goes before all others.

    Args:
        batch: Groups the store's writes into one commit.
    """

    def __init__(
        self,
        controllers: Sequence[Controller],
        informers: Sequence[Informer[Any]],
        clock: Clock,
        batch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._controllers = list(controllers)
        self._clock = clock
        self._batch = batch
        self._condition = threading.Condition()
        self._turn = 0
        self._informers = list(informers)
        self._has_news = False
        for controller in controllers:
            controller.queue.share(self._condition)

    def attach(self) -> None:
        """Fill the informers' caches and take their events from now on."""
        for informer in self._informers:
            if not informer.attach(self._announce):
                raise RuntimeError(f"watches of {informer.resource} cannot be polled")

    def _announce(self) -> None:
        """Wake the thread: an informer has news (called from whoever writes)."""
        with self._condition:
            self._has_news = True
            self._condition.notify()

    def _pump(self) -> None:
        if self._has_news:
            self._has_news = False
            for informer in self._informers:
                informer.pump()

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set and the queues are closed."""
        while not stop.is_set():
            self._pump()
            found = self._next(wait=True, stop=stop)
            if found is not None:
                self._work(*found, stop)
                self._clock.wait(stop, PAUSE_SECONDS)

    def _work(self, controller: Controller, key: str, stop: threading.Event) -> None:
        """Do a slice of work in one commit.

        A key is done only when the caches show what the slice wrote: until then nobody looks at
        its object again, which would end in a conflict.
        """
        end = self._clock.monotonic() + SLICE_SECONDS
        worked: list[tuple[Controller, str]] = []
        try:
            with self._batch():
                found: tuple[Controller, str] | None = (controller, key)
                while found is not None:
                    worked.append(found)
                    found[0].step(found[1])
                    found = None
                    if self._clock.monotonic() < end:
                        found = self._next(wait=False, stop=stop)
        except ApiError as error:
            # The commit itself failed, as on a full disk: nothing of the slice happened.
            log.error("commit failed", extra={"keys": len(worked), "error": str(error)})
            for owner, name in worked:
                owner.queue.retry(name)
        self._pump()
        for owner, name in worked:
            owner.queue.done(name)

    def _order(self) -> Iterator[int]:
        """The first controller first, then the others in turns."""
        yield 0
        for offset in range(len(self._controllers)):
            index = (self._turn + offset) % len(self._controllers)
            if index:
                yield index

    def _next(self, *, wait: bool, stop: threading.Event) -> tuple[Controller, str] | None:
        """Take a key from the next controller that has one."""
        with self._condition:
            soonest: float | None = None
            for index in self._order():
                key, due = self._controllers[index].queue.take()
                if key is not None:
                    self._turn = index + 1
                    return self._controllers[index], key
                if due is not None:
                    soonest = due if soonest is None else min(soonest, due)
            if wait and not self._has_news and not stop.is_set():
                self._condition.wait(soonest)
        return None
