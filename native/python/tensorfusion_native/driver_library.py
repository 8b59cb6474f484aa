"""Opening a library of the driver: the real one, or that of a simulated machine."""

import ctypes as c
from pathlib import Path

from tensorfusion.errors import BackendError


def open_library(
    vendor: str, library: str | Path, state: Path | None, config: Path | None
) -> c.CDLL:
    """Load a library; a simulated one opens its machine.

    Args:
        vendor: Who is named in errors.
        library: Name or path.
        state: State file of a simulated machine; None for a real one.
        config: Its configuration.

    Raises:
        BackendError: The library is missing, or the state cannot be opened.
    """
    try:
        opened = c.CDLL(str(library))
    except OSError as error:
        raise BackendError(vendor, str(error)) from error
    if state is not None:
        paths = [None if p is None else str(p).encode() for p in (state, config)]
        if opened.tfSimOpen(*paths):
            raise BackendError("simulated driver", f"cannot open the state {state}")
    return opened
