"""``config``: the settings file, shown, checked and described."""

from pathlib import Path

import click
import msgspec

from tensorfusion.cli.printing import print_data
from tensorfusion.runtime import settings


@click.group()
def config() -> None:
    """Show or check the settings.

    \b
    Example:
      tensorfusion config show
      tensorfusion config check settings.yaml
    """  # noqa: D301


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def show(file: Path | None) -> None:
    """Print the effective settings: defaults, FILE, then TENSORFUSION_* variables."""
    print_data(msgspec.to_builtins(settings.load(file)), "yaml")


@config.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def check(file: Path) -> None:
    """Check FILE; exits 1 and names the field when a value is wrong."""
    settings.load(file)
    click.echo(f"{file} is valid")


@config.command()
def schema() -> None:
    """Print the JSON schema of the settings file."""
    print_data(msgspec.json.schema(settings.Settings), "json")
