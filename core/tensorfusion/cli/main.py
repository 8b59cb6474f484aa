"""The `tensorfusion` program: a lazy group, so that ``--help`` and completion stay fast.

Commands live in modules that are imported when they are used; their one-line helps stand here.
"""

import importlib
import os
import sys
from typing import Any

import click

from tensorfusion import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("tensorfusion.cli.lifecycle:up", "Start a control plane on this machine."),
    "down": ("tensorfusion.cli.lifecycle:down", "Stop the control plane of a data folder."),
    "status": ("tensorfusion.cli.lifecycle:status", "Show what runs: pools, workloads, alerts."),
    "hypervisor": (
        "tensorfusion.cli.hypervisor:hypervisor",
        "Run the agent of one node, against any API server.",
    ),
    "demo": ("tensorfusion.cli.demo:demo", "Show the product on a simulated pool, in a minute."),
    "apply": ("tensorfusion.cli.objects:apply", "Create or update objects from a file."),
    "get": ("tensorfusion.cli.objects:get", "List objects of a kind."),
    "describe": ("tensorfusion.cli.objects:describe", "Show one object with its events."),
    "delete": ("tensorfusion.cli.objects:delete", "Delete objects."),
    "events": ("tensorfusion.cli.observe:events", "List events, newest last."),
    "top": ("tensorfusion.cli.observe:top", "Show use against limits, by worker and by GPU."),
    "alerts": ("tensorfusion.cli.observe:alerts", "Show alerts that are pending or firing."),
    "why": ("tensorfusion.cli.why:why", "Explain why a pod is where it is, or waits."),
    "history": (
        "tensorfusion.cli.history:history",
        "Show who held what, when and why, from the decision log.",
    ),
    "snapshot": (
        "tensorfusion.cli.snapshot:snapshot",
        "Write everything that placement looks at to a file.",
    ),
    "plan": (
        "tensorfusion.cli.plan:plan",
        "Show how nodes could be emptied or given back.",
    ),
    "simulate": (
        "tensorfusion.cli.simulate:simulate",
        "Replay tasks on a cluster of a file, under several policies.",
    ),
    "plugins": ("tensorfusion.cli.diagnose:plugins", "List plugins and what is wrong with them."),
    "doctor": ("tensorfusion.cli.diagnose:doctor", "Check this machine and the control plane."),
    "render": (
        "tensorfusion.cli.render:render",
        "Show offline what admission would make of a file.",
    ),
    "config": ("tensorfusion.cli.settings:config", "Show or check the settings."),
    "completion": ("tensorfusion.cli.completion:completion", "Print a shell completion script."),
}


class LazyGroup(click.Group):
    """Commands that are imported on use; plugins may add more."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the built-in commands in their order, then those of plugins."""
        return [*COMMANDS, *sorted(set(super().list_commands(ctx)) - COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name) or plugin_commands().get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the one-line helps without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        formatter.write_text("Plugins may add commands: see `tensorfusion plugins`.")


def plugin_commands() -> dict[str, click.Command]:
    """Load the commands that plugins offer; a plugin that fails offers none."""
    from tensorfusion.host import PluginHost

    host = PluginHost()
    host.load()
    return {command.name or "": command for command in host.commands()}


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  tensorfusion up --detach && tensorfusion apply -f examples/ && tensorfusion top",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """GPU virtualization and pooling: fractional GPUs, placement, autoscaling, observability."""


def main(arguments: list[str] | None = None) -> None:
    """Run the program: errors become one line on stderr and an exit code.

    Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 130 interrupted.
    """
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    from tensorfusion.errors import TensorFusionError

    try:
        result: Any = cli.main(arguments, prog_name="tensorfusion", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TensorFusionError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0
