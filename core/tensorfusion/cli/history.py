"""``history``: who held what, when and why."""

from typing import Any

import click
import msgspec

from tensorfusion.cli.options import namespace_option, output_option, server_options
from tensorfusion.cli.printing import print_data, print_table
from tensorfusion.clock import format_timestamp
from tensorfusion.kube import HttpStore
from tensorfusion.units import human_bytes, human_tflops


@click.command()
@click.argument("kind", type=click.Choice(["gpu", "pod", "namespace"]))
@click.argument("name")
@click.option(
    "--at",
    default="",
    metavar="TIME",
    help="Show who held what at this time, such as 2026-01-31T12:00:00Z.",
)
@namespace_option
@output_option("table", "wide", "json", "yaml")
@server_options
def history(store: HttpStore, kind: str, name: str, at: str, namespace: str, output: str) -> None:
    """Show who held what, when, why, and what else was considered.

    The decision log has it: every placement, resize and release with its reason. With -o wide
    also the number of each decision and its GPUs in full. With --at only what was held then.

    \b
    Example:
      tensorfusion history gpu gpu-4d4afa21-91d2-5764-9bff-477d859e5856
      tensorfusion history pod pytorch-example-7d9f-x2k4q -n default
      tensorfusion history namespace default --at 2026-01-31T12:00:00Z
    """  # noqa: D301
    query = {"kind": kind, "name": name, "namespace": namespace}
    if at:
        query["at"] = at
    found: dict[str, Any] = msgspec.json.decode(store.text("/tensorfusion/history", query))
    if output in ("json", "yaml"):
        print_data(found, output)
    elif at:
        _print_held(found, wide=output == "wide")
    else:
        _print_entries(found, wide=output == "wide")
    if output in ("table", "wide") and found["since"]:
        click.echo(f"the log begins at {format_timestamp(found['since'])}")


def _print_held(found: dict[str, Any], *, wide: bool) -> None:
    rows = [_holder(allocation, wide=wide) for allocation in found["held"]]
    print_table(("POD", "NODE", "GPUS", "COMPUTE", "VRAM"), rows)


def _print_entries(found: dict[str, Any], *, wide: bool) -> None:
    rows = []
    for entry in found["entries"]:
        holder = _holder(entry["after"] or entry["before"], wide=wide)
        number = (str(entry["seq"]),) if wide else ()
        time = format_timestamp(entry["time"])
        rows.append((*number, time, entry["operation"], *holder, entry["reason"]))
    headings = ("TIME", "WHAT", "POD", "NODE", "GPUS", "COMPUTE", "VRAM", "WHY")
    print_table((*(("NUMBER",) if wide else ()), *headings), rows)


def _holder(allocation: dict[str, Any], *, wide: bool) -> tuple[str, ...]:
    takes = allocation["takes"]
    uuids = [take["uuid"] if wide else take["uuid"][-12:] for take in takes]
    return (
        f"{allocation['namespace']}/{allocation['name']}",
        allocation["node"],
        ",".join(uuids),
        human_tflops(sum(take["gflops"] for take in takes)),
        human_bytes(sum(take["vram_bytes"] for take in takes)),
    )
