"""The management library: loaded on first use, its errors translated where they enter.

``pynvml`` is the module of the distribution ``nvidia-ml-py``. It is passed in, so that tests
give a fake one; nothing else in this package imports it.
"""

import importlib
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, TypeVar

from tensorfusion.errors import BackendError, DeviceLost

VENDOR = "NVIDIA"
Value = TypeVar("Value")


class Library(Protocol):
    """What is used of ``pynvml``: functions and constants by their names in NVML."""

    NVMLError: type[Exception]

    def __getattr__(self, name: str) -> Any:
        """Return a function or constant."""
        ...


class Nvml:
    """One initialised management library per process.

    Args:
        library: A stand-in for ``pynvml``; None imports the real one on first use.

    Concurrency: NVML may be called from any thread; initialisation happens once, under a lock.
    """

    def __init__(self, library: Library | ModuleType | None = None) -> None:
        self._library: Any = library
        self._lock = threading.Lock()
        self._ready = False

    def start(self) -> None:
        """Load and initialise the library; again is fine.

        Raises:
            BackendError: There is no such library or no driver; says which.
        """
        with self._lock:
            if self._ready:
                return
            if self._library is None:
                try:
                    self._library = importlib.import_module("pynvml")
                except ImportError as error:
                    raise BackendError(VENDOR, f"nvidia-ml-py is not installed: {error}") from error
            try:
                self._library.nvmlInit()
            except self._library.NVMLError as error:
                raise BackendError(VENDOR, _why(error)) from error
            self._ready = True

    def constant(self, name: str, default: int) -> int:
        """Return a constant, or ``default`` where this version of the library has none."""
        return int(getattr(self._library, name, default))

    def make(self, kind: str, *values: int) -> Any:
        """Make a struct of NVML."""
        return getattr(self._library, kind)(*values)

    def make_array(self, kind: str, length: int) -> Any:
        """Make room for as many values of a type of NVML."""
        return (getattr(self._library, kind) * length)()

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of NVML.

        Raises:
            DeviceLost: The device fell off the bus.
            BackendError: Any other error of the driver, in its own words.
        """
        try:
            return getattr(self._library, function)(*arguments)
        except self._library.NVMLError as error:
            code = int(getattr(error, "value", 0) or 0)
            kind = (
                DeviceLost if code == self.constant("NVML_ERROR_GPU_IS_LOST", 15) else BackendError
            )
            raise kind(VENDOR, f"{function}: {error}", code=str(code)) from error

    def ask(self, function: str, *arguments: Any) -> Any:
        """Call a function that the device or driver may not have; None where it cannot answer.

        Raises:
            DeviceLost: The device fell off the bus.
        """
        try:
            return self.call(function, *arguments)
        except DeviceLost:
            raise
        except (BackendError, AttributeError):
            return None


def scaled(value: Any, scale: Callable[[Any], Value]) -> Value | None:
    """Apply ``scale`` to a value that may be unknown."""
    return None if value is None else scale(value)


def text(value: str | bytes) -> str:
    """Read a string of NVML, which older versions of ``pynvml`` return as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _why(error: Exception) -> str:
    """Say what an initialisation error means for the user."""
    words = {
        "NVMLError_LibraryNotFound": "libnvidia-ml.so.1 is not found; no NVIDIA driver is installed",
        "NVMLError_DriverNotLoaded": "the NVIDIA driver is installed and not loaded",
        "NVMLError_LibRmVersionMismatch": (
            "the NVIDIA driver was updated and its old kernel module is still loaded; restart"
        ),
        "NVMLError_NoPermission": "no permission to talk to the NVIDIA driver",
    }
    return words.get(type(error).__name__, f"the NVIDIA driver cannot be used: {error}")
