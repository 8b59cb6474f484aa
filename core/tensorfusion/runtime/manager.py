"""Manager: the only place that starts threads; runs informers and controllers, stops in order."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tensorfusion.clock import Clock
from tensorfusion.runtime.controller import Controller
from tensorfusion.runtime.health import Health
from tensorfusion.runtime.workqueue import WorkQueue
from tensorfusion.store.informer import Informer

log = logging.getLogger(__name__)
SHUTDOWN_SECONDS = 30.0


class Manager:
    """Owns the threads of a process.

    Start order: informers, then (once they are synced) controllers and loops. Stop order: the
    reverse. A thread that dies of an exception turns ``/livez`` red under its name.
    """

    def __init__(self, clock: Clock, health: Health) -> None:
        self.clock = clock
        self.health = health
        self.stopping = threading.Event()
        self._informers: list[Informer[Any]] = []
        self._controllers: list[Controller] = []
        self._loops: list[tuple[str, Callable[[threading.Event], None]]] = []
        self._threads: list[threading.Thread] = []
        self._queues: list[WorkQueue] = []

    def add_informer(self, informer: Informer[Any]) -> None:
        """Run an informer."""
        self._informers.append(informer)

    def add_controller(self, controller: Controller) -> None:
        """Run a controller once the informers are synced."""
        self._controllers.append(controller)

    def add_loop(
        self,
        name: str,
        run: Callable[[threading.Event], None],
        queues: Sequence[WorkQueue] = (),
    ) -> None:
        """Run ``run(stop)`` on a thread of its own once the informers are synced.

        Args:
            queues: What the loop may wait on; closed when the process stops.
        """
        self._loops.append((name, run))
        self._queues += queues

    def start(
        self,
        sync_timeout_seconds: float = 60.0,
        on_synced: Callable[[], None] | None = None,
    ) -> None:
        """Start everything; returns when informers are synced and controllers run.

        Args:
            on_synced: Called once caches are full, before anything works on them.

        Raises:
            TimeoutError: An informer did not sync in time; names it.
        """
        for informer in self._informers:
            self._spawn(f"informer-{informer.resource.plural}", informer.run)
        for informer in self._informers:
            if not informer.synced.wait(sync_timeout_seconds):
                raise TimeoutError(f"informer of {informer.resource.qualified} did not sync")
        self.health.ready("informers")
        if on_synced is not None:
            on_synced()
        for controller in self._controllers:
            for number in range(controller.workers):
                self._spawn(f"{controller.name}-{number}", controller.run)
        for name, run in self._loops:
            self._spawn(name, run)

    def stop(self) -> None:
        """Stop every thread; bounded by `SHUTDOWN_SECONDS`."""
        self.stopping.set()
        for queue in [*self._queues, *(c.queue for c in self._controllers)]:
            queue.close()
        for informer in self._informers:
            informer.interrupt()
        end = self.clock.monotonic() + SHUTDOWN_SECONDS
        for thread in reversed(self._threads):
            thread.join(max(0.0, end - self.clock.monotonic()))
            if thread.is_alive():
                log.error("thread did not stop", extra={"stuck_thread": thread.name})

    def _spawn(self, name: str, target: Callable[[threading.Event], None]) -> None:
        def body() -> None:
            try:
                target(self.stopping)
            except Exception:
                if not self.stopping.is_set():
                    self.health.fail(name, "the thread died; see the log")
                    log.exception("thread died", extra={"stuck_thread": name})

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
