"""Controller: a work queue, a reconcile function and the loop between them."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensorfusion.clock import Clock
from tensorfusion.errors import Conflict, NotFound, TensorFusionError, Terminal
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.runtime.workqueue import WorkQueue
from tensorfusion.store.informer import Change

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile wants next: nothing, or to be called again after some seconds."""

    requeue_seconds: float | None = None


DONE = Result()


class Controller:
    """Calls ``reconcile(key)`` for every key, level-triggered.

    Args:
        reconcile: Looks at the whole state of one object and moves it one step; idempotent.
        workers: Threads. One key is never worked on twice at a time.
        on_terminal: Called with (key, error) when a reconcile raised `Terminal`; what it raises
            is retried like an error of the reconcile.
        instruments: Where reconciles are counted; may be set until the controller runs.
    """

    def __init__(
        self,
        name: str,
        reconcile: Callable[[str], Result],
        *,
        clock: Clock,
        instruments: Instruments | None = None,
        workers: int = 1,
        on_terminal: Callable[[str, Terminal], None] | None = None,
    ) -> None:
        self.name = name
        self.workers = workers
        self.queue = WorkQueue(name, clock)
        self._reconcile = reconcile
        self._clock = clock
        self.instruments = instruments
        self._on_terminal = on_terminal

    def enqueue(self, change: Change[Any]) -> None:
        """Put the changed object's own key on the queue (an informer handler)."""
        self.queue.add(change.key)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set or the queue is closed."""
        while not stop.is_set():
            key = self.queue.get()
            if key is None:
                return
            try:
                self.step(key)
            finally:
                self.queue.done(key)

    def step(self, key: str) -> str:
        """Reconcile one key and settle its retry; say how it went.

        Returns:
            ``success``, ``requeue``, ``terminal``, ``conflict`` or ``error``.
        """
        started = self._clock.monotonic()
        try:
            outcome = self._attempt(key)
        except (Conflict, NotFound):
            # The cache lags behind the store; the next look settles it.
            outcome = "conflict"
            self.queue.retry(key)
        except Exception as error:  # noqa: BLE001 - worker loop: logged and tried again
            outcome = "error"
            self._failed(key, error, self.queue.retry(key))
        if self.instruments is not None:
            self.instruments.reconciled(self.name, outcome, self._clock.monotonic() - started)
        return outcome

    def _attempt(self, key: str) -> str:
        try:
            result = self._reconcile(key)
        except Terminal as error:
            if self._on_terminal is not None:
                self._on_terminal(key, error)
            self.queue.forget(key)
            return "terminal"
        self.queue.forget(key)
        if result.requeue_seconds is None:
            return "success"
        self.queue.add_after(key, result.requeue_seconds)
        return "requeue"

    def _failed(self, key: str, error: Exception, retry_seconds: float) -> None:
        """Log a failure: what we raise on purpose in one line, a defect with its trace."""
        expected = isinstance(error, TensorFusionError)
        log.log(
            logging.WARNING if expected else logging.ERROR,
            "reconcile failed",
            exc_info=None if expected else error,
            extra={
                "controller": self.name,
                "key": key,
                "error": str(error),
                "retry_seconds": round(retry_seconds, 3),
            },
        )
