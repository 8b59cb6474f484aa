"""Hooks of the simulated vendor backend. Imports stay light: the simulator loads on first use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    import click
    import msgspec

    from tensorfusion.spi.backend import Backend


@hookimpl
def tensorfusion_backends() -> "Sequence[Backend]":
    """Offer the simulator."""
    from tensorfusion_simulated.backend import SimulatedBackend

    return [SimulatedBackend()]


@hookimpl
def tensorfusion_settings() -> "Sequence[type[msgspec.Struct]]":
    """Offer the description of the simulated machines."""
    from tensorfusion_simulated.description import SimulatedSettings

    return [SimulatedSettings]


@hookimpl
def tensorfusion_commands() -> "Sequence[click.Command]":
    """Offer ``tensorfusion simulated``."""
    from tensorfusion_simulated.commands import group

    return [group]
