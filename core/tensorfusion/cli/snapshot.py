"""``snapshot``: everything that placement looks at, as one file."""

import contextlib
from pathlib import Path

import click

from tensorfusion.api import registry
from tensorfusion.cli.options import output_option, server_options
from tensorfusion.cli.printing import print_data
from tensorfusion.kube import HttpStore


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@output_option("json", "yaml")
@server_options
def snapshot(store: HttpStore, file: Path | None, output: str) -> None:
    """Write pools, nodes, GPUs, quotas, workloads, pods and events as one List.

    `why`, `render` and `plan` work on the file as they do on the server. Secrets are not in it.

    \b
    Example:
      tensorfusion snapshot cluster.json
      tensorfusion why pod/too-big --snapshot cluster.json
    """  # noqa: D301
    from tensorfusion.app.snapshot import KINDS

    kinds = (*KINDS, registry.WORKLOADS, registry.PROFILES, registry.EVENTS)
    items = [obj for resource in kinds for obj in store.list(resource).items]
    body = {"apiVersion": "v1", "kind": "List", "items": items}
    if file is None:
        print_data(body, output)
        return
    with file.open("w", encoding="utf-8") as target, contextlib.redirect_stdout(target):
        print_data(body, output)
    click.echo(f"{file}: {len(items)} objects")
