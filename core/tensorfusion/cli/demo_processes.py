"""The demo's second part: two pods that are real processes, held to their shares by the limiter."""

import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from tensorfusion import names
from tensorfusion.api import registry
from tensorfusion.app.startup import load_plugins
from tensorfusion.autoscale.loop import MANAGER as AUTOSCALER
from tensorfusion.cli.demo_plane import start, stop
from tensorfusion.cli.objects import apply_one, read_documents
from tensorfusion.cli.observe import read_usage
from tensorfusion.cli.options import connect
from tensorfusion.cli.printing import bar, format_table
from tensorfusion.clock import SystemClock
from tensorfusion.errors import ApiError
from tensorfusion.kube import HttpStore
from tensorfusion.runtime import settings
from tensorfusion.units import human_bytes, parse_gflops

CLOCK = SystemClock()
LONGEST_SECONDS = 25.0
"""No step may take longer."""
SETTLE, READINGS = 2, 4
"""Readings a second apart that a share may take to settle, and that its mean is then told of."""
CLOSE_POINTS = 3.0
RESIZED, RESIZED_PERCENT = "large", 40
BAR_CELLS = 30


@dataclass(frozen=True, slots=True)
class Tenant:
    """A pod as it was metered in the last second; percent of the card's time."""

    name: str
    used_percent: float
    limit_percent: float
    used_bytes: int
    limit_bytes: int
    denials: int
    throttled_seconds: float


@dataclass
class Tenants:
    """The second part on a running control plane."""

    store: HttpStore
    done: list[tuple[bool, str, str]] = field(default_factory=list)
    """Whether a step was seen, what it is, and what was measured."""

    def show(self, manifest: Path) -> bool:
        """Run every step; True when all was seen."""
        for name, doc in read_documents(str(manifest)):
            click.echo(f"  {manifest.name}: {apply_one(self.store, name, doc, 'default')}")
        self._note(
            "two pods, as processes, are held to 30 and 70 percent of a GPU",
            self._measure(
                "each of them wants all of it",
                lambda rows: len(rows) == 2 and all(row.used_percent for row in rows),
            ),
        )
        annotations = dict.fromkeys(
            (names.COMPUTE_PERCENT_REQUEST, names.COMPUTE_PERCENT_LIMIT), str(RESIZED_PERCENT)
        )
        # As the autoscaler does it, which alone may change a running pod's share.
        self.store.patch(
            registry.PODS, RESIZED, {"metadata": {"annotations": annotations}}, "default",
            field_manager=AUTOSCALER,
        )  # fmt: skip
        self._note(
            f"one is resized to {RESIZED_PERCENT} percent while it runs",
            self._measure(
                f"{RESIZED} resized",
                lambda rows: any(round(row.limit_percent) == RESIZED_PERCENT for row in rows),
            ),
        )
        self._note("one is stopped at its VRAM limit, and runs on", self._denied())
        return all(seen for seen, _, _ in self.done)

    def end(self) -> None:
        """Delete the pods and wait until their processes are gone."""
        for pod in self.store.list(registry.PODS, "default").items:
            self.store.delete(registry.PODS, pod["metadata"]["name"], "default")
        never, deadline = threading.Event(), CLOCK.monotonic() + LONGEST_SECONDS
        while self.store.list(registry.PODS, "default").items and CLOCK.monotonic() < deadline:
            CLOCK.wait(never, 0.1)

    def read(self) -> list[Tenant]:
        """Meter the pods."""
        cards = {
            gpu["metadata"]["name"]: parse_gflops(gpu["status"]["capacity"]["tflops"])
            for gpu in self.store.list(registry.GPUS).items
        }
        return [
            Tenant(
                name=row["name"],
                used_percent=100 * row["computeGflops"] / cards[row["gpu"]],
                limit_percent=100 * row["limitGflops"] / cards[row["gpu"]],
                used_bytes=row["vramBytes"],
                limit_bytes=row["limitVramBytes"],
                denials=row["vramDenials"],
                throttled_seconds=row["throttledSeconds"],
            )
            for row in sorted(read_usage(self.store)["workers"], key=lambda row: str(row["name"]))
        ]

    def _measure(self, title: str, ready: Callable[[list[Tenant]], bool]) -> str:
        """Show readings until the mean of the last few is at the limits; empty when it never is."""
        live, never = sys.stdout.isatty(), threading.Event()
        deadline = CLOCK.monotonic() + LONGEST_SECONDS
        last: list[list[Tenant]] = []
        while CLOCK.monotonic() < deadline:
            rows = self.read()
            last = [*last, rows][-SETTLE - READINGS :] if ready(rows) else []
            if live:
                click.clear()
                click.echo("\n".join([f"{title}:", *tenant_lines(rows)]))
            if len(last) == SETTLE + READINGS and (told := mean_shares(last[SETTLE:])):
                if not live:
                    click.echo("\n".join([f"\n{title}:", *tenant_lines(rows)]))
                return told
            CLOCK.wait(never, 1.0)
        return ""

    def _denied(self) -> str:
        """Tell who was refused memory, with the line of its log that says so."""
        rows = [row for row in self.read() if row.denials]
        if not rows:
            return ""
        path = f"/api/v1/namespaces/default/pods/{rows[0].name}/log"
        log = self.store.text(path, {"tailLines": "1"}).rstrip()
        return (
            f"{rows[0].name}: {rows[0].denials} allocation(s) refused at"
            f" {human_bytes(rows[0].limit_bytes)}\n"
            f"         $ kubectl logs {rows[0].name} --tail=1\n         {log}"
        )

    def _note(self, what: str, seen: str) -> None:
        self.done.append((bool(seen), what, seen or "not seen"))


def mean_shares(readings: list[list[Tenant]]) -> str:
    """Say the mean share of each tenant; empty where one is not at its limit."""
    told = []
    for rows in zip(*readings, strict=True):
        mean = sum(row.used_percent for row in rows) / len(rows)
        if abs(mean - rows[-1].limit_percent) > CLOSE_POINTS:
            return ""
        told.append(f"{rows[0].name} {mean:.1f}%")
    return f"measured over {len(readings)} s: {', '.join(told)}"


def tenant_lines(rows: list[Tenant]) -> list[str]:
    """Lines of the table: bars are of the whole card, the tick is the limit."""
    headings = ("POD", "OF THE GPU", "USED", "LIMIT", "VRAM", "OF LIMIT", "HELD BACK", "REFUSED")
    cells = [
        (
            row.name,
            bar(row.used_percent / 100, BAR_CELLS, row.limit_percent / 100),
            f"{row.used_percent:.1f}%",
            f"{row.limit_percent:.0f}%",
            human_bytes(row.used_bytes),
            human_bytes(row.limit_bytes),
            f"{row.throttled_seconds:.0f} s",
            row.denials or "",
        )
        for row in rows
    ]
    return format_table(headings, cells) if cells else ["no pod runs yet"]


def missing(file: Path) -> str:
    """Say why pods cannot run as processes under the settings of a file; empty when they can."""
    if not file.exists():
        return f"there is no {file}"
    loaded = settings.load(file)
    backend = load_plugins(loaded).backends().get("simulated")
    if backend is None:
        return "tensorfusion-simulated is not installed"
    works, why = backend.available()
    return "" if works else why


def show_processes(manifests: Path) -> bool:
    """Run the second part; False when something was not seen. Without the native part, say so."""
    folder = manifests / "processes"
    why = missing(folder / "settings.yaml")
    if why:
        click.echo(f"\nleft out, pods as processes under the limiter: {why}")
        return True
    click.echo("\nand pods as real processes under the limiter, on a simulated driver:")
    data = Path(tempfile.mkdtemp(prefix="tensorfusion-demo-"))
    process = start(data, folder / "settings.yaml")
    try:
        tenants = Tenants(connect(data))
        try:
            complete = tenants.show(folder / "tenants.yaml")
        finally:
            with suppress(ApiError):  # what is left then is ended with the control plane
                tenants.end()
    finally:
        stop(process, data, remove=True)
    click.echo("")
    for seen, what, told in tenants.done:
        click.echo(f"  {'ok  ' if seen else 'MISSING'} {what}\n         {told}")
    return complete
