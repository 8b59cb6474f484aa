"""``events``, ``top``, ``alerts``: what happens, and how much of what is promised is used."""

import threading
from typing import Any

import click
import msgspec

from tensorfusion.api.registry import EVENTS
from tensorfusion.cli.options import namespace_option, output_option, server_options
from tensorfusion.cli.printing import bar, format_table, print_data, print_table
from tensorfusion.clock import SystemClock
from tensorfusion.kube import HttpStore
from tensorfusion.units import human_bytes, human_tflops

CLOCK = SystemClock()


@click.command()
@click.option("-A", "--all-namespaces", is_flag=True, help="List across namespaces.")
@click.option("--for", "target", default="", help="Only events of KIND/NAME.")
@namespace_option
@output_option("table", "yaml", "json")
@server_options
def events(
    store: HttpStore, all_namespaces: bool, target: str, namespace: str, output: str
) -> None:
    """List events, newest last.

    \b
    Example:
      tensorfusion events --for pod/pytorch-0
    """  # noqa: D301
    kind, _, name = target.partition("/")
    selector = f"involvedObject.name={name}" if name else ""
    found = store.list(EVENTS, "" if all_namespaces else namespace, field_selector=selector).items
    if kind and name:
        found = [e for e in found if e["involvedObject"].get("kind", "").lower() == kind.lower()]
    found.sort(key=lambda e: (e.get("lastTimestamp") or "", e.get("eventTime") or ""))
    if output != "table":
        print_data({"apiVersion": "v1", "kind": "List", "items": found}, output)
        return
    rows = [
        (
            e.get("lastTimestamp", ""),
            e.get("type", ""),
            e.get("reason", ""),
            f"{e['involvedObject'].get('kind', '').lower()}/{e['involvedObject'].get('name', '')}",
            e.get("message", ""),
        )
        for e in found
    ]
    print_table(("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), rows)


def read_usage(store: HttpStore) -> dict[str, Any]:
    """Fetch current use of workers and devices."""
    usage: dict[str, Any] = msgspec.json.decode(store.text("/tensorfusion/usage"))
    return usage


@click.command()
@click.argument("what", type=click.Choice(["workers", "gpus"]), default="workers")
@click.option("-w", "--watch", is_flag=True, help="Refresh every second until interrupted.")
@output_option("table", "json", "yaml")
@server_options
def top(store: HttpStore, what: str, watch: bool, output: str) -> None:
    """Show use against limits, by worker or by GPU.

    \b
    Example:
      tensorfusion top
      tensorfusion top gpus -w
    """  # noqa: D301
    never = threading.Event()
    while True:
        usage = read_usage(store)
        if output != "table":
            print_data(usage["workers" if what == "workers" else "devices"], output)
            return
        lines = worker_lines(usage) if what == "workers" else device_lines(usage)
        if watch:
            click.clear()
        click.echo("\n".join(lines))
        if not watch:
            return
        CLOCK.wait(never, 1.0)


def worker_lines(usage: dict[str, Any]) -> list[str]:
    """Lines of the table of workers."""
    rows = []
    for w in sorted(usage["workers"], key=lambda w: (w["namespace"], w["name"], w["gpu"])):
        limit = w["limitGflops"] or 1
        vram_limit = w["limitVramBytes"] or 1
        rows.append(
            (
                w["namespace"],
                w["name"],
                w["node"],
                w["gpu"][-12:],
                bar(w["computeGflops"] / limit, 12),
                f"{human_tflops(round(w['computeGflops']))} of {human_tflops(limit)}",
                bar(w["vramBytes"] / vram_limit, 12),
                f"{human_bytes(w['vramBytes'])} of {human_bytes(vram_limit)}",
                f"{w['throttledSeconds']:.0f} s" if w["throttledSeconds"] >= 1 else "",
                w["vramDenials"] or "",
            )
        )
    headings = (
        "NAMESPACE", "WORKER", "NODE", "GPU", "COMPUTE", "USED OF LIMIT", "VRAM", "USED OF LIMIT",
        "THROTTLED", "OOM",
    )  # fmt: skip
    return format_table(headings, rows) if rows else ["no worker runs"]


def device_lines(usage: dict[str, Any]) -> list[str]:
    """Lines of the table of devices."""
    rows = []
    for d in sorted(usage["devices"], key=lambda d: (d["node"], d["gpu"])):
        ratio = d["utilizationRatio"]
        rows.append(
            (
                d["node"],
                d["gpu"],
                bar(ratio or 0.0, 12),
                "" if ratio is None else f"{ratio:.0%}",
                "" if d["vramUsedBytes"] is None else human_bytes(d["vramUsedBytes"]),
                "" if d["temperatureCelsius"] is None else f"{d['temperatureCelsius']:.0f} C",
                "" if d["powerWatts"] is None else f"{d['powerWatts']:.0f} W",
            )
        )
    return format_table(("NODE", "GPU", "BUSY", "", "VRAM USED", "TEMP", "POWER"), rows)


@click.command()
@output_option("table", "json", "yaml")
@server_options
def alerts(store: HttpStore, output: str) -> None:
    """Show alerts that are pending or firing.

    \b
    Example:
      tensorfusion alerts
    """  # noqa: D301
    found = msgspec.json.decode(store.text("/tensorfusion/alerts"))["alerts"]
    if output != "table":
        print_data(found, output)
        return
    if not found:
        click.echo("no alert is pending or firing")
        return
    now = CLOCK.now()
    rows = [
        (a["state"], a["severity"], a["rule"], f"{now - a['starts']:.0f} s", a["description"])
        for a in found
    ]
    print_table(("STATE", "SEVERITY", "ALERT", "SINCE", "DESCRIPTION"), rows)
