"""How the suite calls a backend: never longer than the limit, and with the errors that are allowed."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Backend, NodeBackend

Result = TypeVar("Result")


def call(seconds: float, what: str, function: Callable[[], Result]) -> Result:
    """Call with a time limit; a call that hangs is left behind on its daemon thread.

    Raises:
        AssertionError: The call has not returned in time.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, function()))
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            answers.put((False, error))

    threading.Thread(target=run, name=f"conformance-{what}", daemon=True).start()
    try:
        worked, answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise AssertionError(
            f"no call may take longer than {seconds:g} s: {what} has not returned"
        ) from None
    if not worked:
        raise answer
    return cast("Result", answer)


class Watched:
    """An object whose methods are called with a time limit.

    Args:
        target: A backend or a session.
        label: What to call it in messages.
        seconds: The limit.
    """

    def __init__(self, target: object, label: str, seconds: float) -> None:
        self._target = target
        self._label = label
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._target, name)
        if not callable(member):
            return member

        def watched(*arguments: object, **keywords: object) -> Any:
            what = f"{self._label}{name}()"
            return call(self._seconds, what, partial(member, *arguments, **keywords))

        return watched


def watch_backend(backend: Backend, seconds: float) -> Backend:
    """Put a time limit on the calls of a backend."""
    return cast("Backend", Watched(backend, f"{backend.name}: ", seconds))


def watch_session(session: NodeBackend, seconds: float) -> NodeBackend:
    """Put a time limit on the calls of a session."""
    return cast("NodeBackend", Watched(session, "", seconds))


@contextmanager
def refused(requirement: str) -> Iterator[None]:
    """Ask that the block is refused with a `BackendError` that says something.

    Args:
        requirement: What must be refused, as a sentence without its end.
    """
    try:
        yield
    except BackendError as error:
        if not error.vendor or not str(error).strip():
            raise AssertionError(f"{requirement} with a BackendError that says why") from error
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{requirement} with a BackendError; it raised {type(error).__name__}: {error}"
        ) from error
    else:
        raise AssertionError(f"{requirement} with a BackendError; it was accepted")


@contextmanager
def works(requirement: str) -> Iterator[None]:
    """Ask that the block raises nothing.

    Args:
        requirement: What must work and why, as a sentence without its end.
    """
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{requirement}; it raised {type(error).__name__}: {error}") from error
