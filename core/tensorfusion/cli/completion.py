"""``completion``: shell completion scripts."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Example:
      source <(tensorfusion completion bash)
    """  # noqa: D301
    from tensorfusion.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell!r}")
    click.echo(kind(cli, {}, "tensorfusion", "_TENSORFUSION_COMPLETE").source())
