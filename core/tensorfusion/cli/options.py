"""Options that commands share, and how they find the server."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tensorfusion.errors import ConfigError

if TYPE_CHECKING:
    from tensorfusion.kube import HttpStore

F = TypeVar("F", bound=Callable[..., Any])
DATA_VARIABLE = "TENSORFUSION_DATA"


def default_data() -> Path:
    """The data folder when none is given."""
    return Path(os.environ.get(DATA_VARIABLE) or Path.home() / ".tensorfusion")


def data_option(command: F) -> F:
    """Add ``--data``."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_data,
        show_default="~/.tensorfusion, or TENSORFUSION_DATA",
        help="Data folder of the control plane; its kubeconfig lies there.",
    )(command)


def server_options(command: F) -> F:
    """Add ``--data``, ``--kubeconfig`` and ``--context``; the command gets ``store``."""

    @functools.wraps(command)
    def wrapped(*args: Any, data: Path, kubeconfig: Path | None, context: str, **rest: Any) -> Any:
        return command(*args, store=connect(data, kubeconfig, context), **rest)

    return data_option(_kubeconfig_options(wrapped))  # type: ignore[return-value]


def _kubeconfig_options(command: F) -> F:
    command = click.option(
        "--context", default="", help="Context of the kubeconfig; its current one by default."
    )(command)
    return click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="Talk to the cluster of this file instead of the data folder's control plane.",
    )(command)


def reader_options(command: F) -> F:
    """Add what `server_options` adds; a command with ``--snapshot`` reads its file instead."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        data: Path,
        kubeconfig: Path | None,
        context: str,
        snapshot: str | None,
        **rest: Any,
    ) -> Any:
        if snapshot is None:
            return command(*args, store=connect(data, kubeconfig, context), **rest)
        from tensorfusion.app.snapshot import Snapshot
        from tensorfusion.cli.render import read_objects

        objects = read_objects(snapshot, rest.get("namespace", "default"), snapshot=True)
        return command(*args, store=Snapshot(objects, snapshot), **rest)

    return data_option(_kubeconfig_options(wrapped))  # type: ignore[return-value]


def namespace_option(command: F) -> F:
    """Add ``-n``."""
    return click.option(
        "-n", "--namespace", default="default", show_default=True, help="Namespace."
    )(command)


def output_option(*choices: str) -> Callable[[F], F]:
    """Add ``-o`` with these choices; the first is the default."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="Output format.",
    )


def connect(data: Path, kubeconfig: Path | None = None, context: str = "") -> "HttpStore":
    """Connect to a server.

    Raises:
        ConfigError: There is no kubeconfig; says how to get one.
    """
    # The Kubernetes client takes a while to import: only commands that talk to a server pay.
    from tensorfusion.kube import HttpStore
    from tensorfusion.kube.transport import Transport

    path = kubeconfig
    if path is None:
        path = data / "kubeconfig"
        if not path.exists():
            raise ConfigError(
                f"no control plane in {data}: start one with `tensorfusion up --detach --data"
                f" {data}`, or name a cluster with --kubeconfig"
            )
    elif not path.exists():
        raise ConfigError(f"kubeconfig {path}: no such file")
    return HttpStore(Transport(path, context))
