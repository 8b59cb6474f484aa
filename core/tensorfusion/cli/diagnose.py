"""``plugins`` and ``doctor``: what is installed, what works, what is in the way."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from tensorfusion import __version__
from tensorfusion.cli.options import connect, data_option, output_option
from tensorfusion.cli.printing import print_data, print_table
from tensorfusion.errors import TensorFusionError
from tensorfusion.host import PluginHost
from tensorfusion.spi.backend import Enforcement


@click.command()
@click.option("--trace", is_flag=True, help="Print the whole traceback of failed plugins.")
@output_option("table", "wide", "json", "yaml")
def plugins(trace: bool, output: str) -> None:
    """List plugins: where they come from, what they offer, why one failed.

    \b
    Example:
      tensorfusion plugins -o wide
    """  # noqa: D301
    host = PluginHost()
    host.load()
    records = host.records()
    if output in ("json", "yaml"):
        from tensorfusion.app.routes import plugin_rows

        print_data(plugin_rows(records), output)
        return
    rows = []
    for r in records:
        offers = "; ".join(f"{k}: {', '.join(v)}" for k, v in r.offers.items())
        row: list[Any] = [r.name, r.distribution, r.version, ", ".join(r.kinds), r.state, r.error]
        rows.append([*row, offers, f"{r.load_seconds * 1000:.0f} ms"] if output == "wide" else row)
    headings = ["NAME", "DISTRIBUTION", "VERSION", "KINDS", "STATE", "WHY"]
    print_table([*headings, "OFFERS", "LOADED IN"] if output == "wide" else headings, rows)
    for record in records:
        if trace and record.trace:
            click.echo(f"\n{record.name}:\n{record.trace}")


@click.command()
@data_option
@output_option("table", "json", "yaml")
def doctor(data: Path, output: str) -> int:
    """Check this machine and the control plane; exits 1 when something is wrong.

    \b
    Example:
      tensorfusion doctor
    """  # noqa: D301
    checks = [*check_machine(), *check_plugins(), *check_control_plane(data)]
    if output != "table":
        rows = [{"check": c, "result": r, "detail": d} for c, r, d in checks]
        print_data(rows, output)
    else:
        print_table(("CHECK", "RESULT", "DETAIL"), checks)
    return 1 if any(result == "failed" for _, result, _ in checks) else 0


Check = tuple[str, str, str]
"""Name, ``ok``, ``note`` or ``failed``, and a sentence."""


def check_machine() -> list[Check]:
    """Check what the program runs on."""
    version = ".".join(str(v) for v in sys.version_info[:3])
    kubectl = shutil.which("kubectl")
    return [
        ("tensorfusion", "ok", __version__),
        ("python", "ok" if sys.version_info >= (3, 11) else "failed", version),
        (
            "kubectl",
            "ok" if kubectl else "note",
            kubectl or "not installed; `tensorfusion get` and its kin work without it",
        ),
    ]


def check_plugins() -> list[Check]:
    """Check every plugin, and whether a backend finds devices."""
    host = PluginHost()
    host.load()
    found: list[Check] = [
        (
            f"plugin {r.name}",
            {"loaded": "ok", "denied": "note", "failed": "failed"}[r.state],
            r.error or ", ".join(r.kinds),
        )
        for r in host.records()
    ]
    for name, backend in host.backends().items():
        works, why = backend.available()
        modes = ", ".join(f"{k}: {v.value}" for k, v in backend.capabilities().isolation.items())
        found.append((f"backend {name}", "ok" if works else "note", modes if works else why))
    return [*found, *check_processes()]


def check_processes() -> list[Check]:
    """Check whether the simulator could run pods as processes, which needs the native part."""
    host = PluginHost(settings={"simulated": {"fidelity": "driver"}})
    host.load()
    backend = host.backends().get("simulated")
    if backend is None:
        return []
    works, why = backend.available()
    detail = "the simulated driver and the limiter are built" if works else why
    return [("fidelity driver", "ok" if works else "note", detail)]


HELD_BY = {
    Enforcement.NONE: "by nothing",
    Enforcement.SIMULATED: "by the model of the card; load profiles stand in for pods",
    Enforcement.COOPERATIVE: "by the limiter in each of their processes",
    Enforcement.DRIVER: "by the vendor's driver",
}


def check_backend(backend: dict[str, Any]) -> Check:
    """Say which backend a control plane uses, and what holds its workers to their limits."""
    enforced = Enforcement(backend["isolation"].get("soft", Enforcement.NONE))
    held = f"soft workers are held {HELD_BY[enforced]}"
    return ("backend in use", "ok", f"{backend['name']}, {backend['nodes']} node(s); {held}")


def check_control_plane(data: Path) -> list[Check]:
    """Check a running control plane, its files and its ledger."""
    import msgspec

    if not (data / "kubeconfig").exists():
        return [("control plane", "note", f"none was started in {data}")]
    found: list[Check] = []
    for name in ("kubeconfig", "decisions.log"):
        mode = (data / name).stat().st_mode & 0o777 if (data / name).exists() else 0o600
        private = mode & 0o077 == 0
        detail = f"mode {mode:o}" + ("" if private else "; others can read it")
        found.append((name, "ok" if private else "failed", detail))
    free = os.statvfs(data).f_bavail * os.statvfs(data).f_frsize
    found.append(("disk", "ok" if free > 1 << 28 else "failed", f"{free >> 20} MiB free in {data}"))
    try:
        store = connect(data)
        found.append(("server", "ok", store.transport.server))
        store.text("/readyz")
        found.append(check_backend(msgspec.json.decode(store.text("/tensorfusion/backend"))))
        ledger = msgspec.json.decode(store.text("/tensorfusion/ledger"))
    except TensorFusionError as error:
        return [*found, ("server", "note", str(error))]
    findings = ledger["findings"]
    detail = "; ".join(findings) or f"{ledger['allocations']} allocations, {ledger['digest'][:12]}"
    return [*found, ("ledger", "failed" if findings else "ok", detail)]
