"""Hooks of the NVIDIA backend. Imports stay light: the backend loads when the hook is called."""

from collections.abc import Sequence

from tensorfusion import hookimpl
from tensorfusion.spi.backend import Backend


@hookimpl
def tensorfusion_backends() -> Sequence[Backend]:
    """Offer the backend."""
    from tensorfusion_nvidia.backend import NvidiaBackend

    return [NvidiaBackend()]
