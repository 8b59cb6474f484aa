"""Hooks of the native part. Imports stay light: a command's module loads when the hook is called."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def tensorfusion_commands() -> "Sequence[click.Command]":
    """Offer ``run``, ``smi`` and ``verify-limit``."""
    from tensorfusion_native.commands import run, smi, verify_limit

    return [run, smi, verify_limit]
