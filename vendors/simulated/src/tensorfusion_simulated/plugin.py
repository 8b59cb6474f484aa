"""Hooks of the simulated vendor backend. Imports stay light: the simulator loads on first use."""

from collections.abc import Sequence

from tensorfusion import hookimpl
from tensorfusion.spi.backend import Backend


@hookimpl
def tensorfusion_backends() -> Sequence[Backend]:
    """Offer the simulator."""
    from tensorfusion_simulated.backend import SimulatedBackend

    return [SimulatedBackend()]


@hookimpl
def tensorfusion_settings() -> Sequence[type]:
    """Offer the description of the simulated machines."""
    from tensorfusion_simulated.description import SimulatedSettings

    return [SimulatedSettings]


@hookimpl
def tensorfusion_commands() -> Sequence[object]:
    """Offer ``tensorfusion simulated``."""
    from tensorfusion_simulated.commands import group

    return [group]
