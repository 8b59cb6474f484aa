"""``demo``: the main job on a simulated pool, seen live."""

import signal
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec

from tensorfusion.api import registry
from tensorfusion.cli.demo_plane import start, stop
from tensorfusion.cli.demo_processes import show_processes
from tensorfusion.cli.objects import apply_one, read_documents
from tensorfusion.cli.observe import read_usage, worker_lines
from tensorfusion.cli.options import connect
from tensorfusion.cli.why import to_text, why_pod
from tensorfusion.clock import SystemClock
from tensorfusion.errors import ConfigError, NotFound
from tensorfusion.kube import HttpStore

CLOCK = SystemClock()
SHORTEST_SECONDS = 35.0
LONGEST_SECONDS = 80.0
STEPS = (
    ("placed", "every pod that fits is placed and runs"),
    ("gang", "a gang of four starts together"),
    ("preempted", "one pod makes room for a more important one"),
    ("unplaced", "one pod fits nowhere, and says why and what would help"),
    ("resized", "one workload is resized in place, with its reason"),
    ("fired", "one alert fires"),
    ("resolved", "the alert resolves once its cause is gone"),
)


@dataclass
class Progress:
    """What has been seen so far: step to what was seen."""

    seen: dict[str, str] = field(default_factory=dict)

    def note(self, step: str, what: str) -> None:
        """Remember the first sight of a step."""
        self.seen.setdefault(step, what)

    def complete(self) -> bool:
        """Whether every step was seen."""
        return all(step in self.seen for step, _ in STEPS)


def examples_folder() -> Path:
    """Find the examples: in the current folder, or beside the source tree.

    Raises:
        ConfigError: They are not there.
    """
    here = Path(__file__).resolve()
    for folder in (Path.cwd() / "examples", *(p / "examples" for p in here.parents[3:5])):
        if (folder / "deployment.yaml").exists():
            return folder
    raise ConfigError(
        "no examples/ folder: run the demo from a checkout, or name it with --examples"
    )


@click.command()
@click.option("--keep", is_flag=True, help="Leave the control plane running at the end.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Data folder; a temporary one by default.",
)
@click.option(
    "--examples",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="Folder of the manifests; examples/ of the checkout by default.",
)
def demo(keep: bool, data: Path | None, examples: Path | None) -> int:
    """Show the product on a simulated pool: two nodes, eight GPUs, about a minute.

    Placement, a gang that starts together, a preemption, use against limits, a resize with its
    reason, an alert that fires and resolves, a pod that fits nowhere, why, and what would help.
    Then, where the native part is built, two pods as real processes, held to their limits.
    Exits 1 when one of these was not seen.

    \b
    Example:
      tensorfusion demo --keep
    """  # noqa: D301
    # Whatever ends the demo, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    folder = data or Path(tempfile.mkdtemp(prefix="tensorfusion-demo-"))
    manifests = examples or examples_folder()
    click.echo("starting a control plane with two simulated nodes of four A100 each ...")
    process = start(folder)
    finished = False
    try:
        store = connect(folder)
        click.echo(f"ready on {store.transport.server}\n")
        for file in sorted(manifests.glob("*.yaml")):
            for name, doc in read_documents(str(file)):
                click.echo(f"  {file.name}: {apply_one(store, name, doc, 'default')}")
        progress = watch(store)
        report(store, progress)
        finished = progress.complete() and show_processes(manifests)
        if finished and keep:
            suggest(folder, kept=True)
        elif finished:
            suggest(folder, kept=False)
        return 0 if finished else 1
    finally:
        if not (keep and finished):
            stop(process, folder, remove=data is None)


def watch(store: HttpStore) -> Progress:
    """Show the live view until every step was seen."""
    progress = Progress()
    never = threading.Event()
    started = CLOCK.monotonic()
    live = sys.stdout.isatty()
    last_print = -10.0
    while True:
        elapsed = CLOCK.monotonic() - started
        alerts = msgspec.json.decode(store.text("/tensorfusion/alerts"))["alerts"]
        look(store, alerts, progress)
        lines = view(store, alerts, progress, elapsed)
        if live:
            click.clear()
            click.echo("\n".join(lines))
        elif elapsed - last_print >= 8.0:
            last_print = elapsed
            click.echo("\n" + "\n".join(lines))
        if elapsed >= LONGEST_SECONDS:
            return progress
        if progress.complete() and elapsed >= SHORTEST_SECONDS:
            return progress
        CLOCK.wait(never, 1.0)


def look(store: HttpStore, alerts: list[dict[str, Any]], progress: Progress) -> None:
    """Look for the steps in objects, events and alerts."""
    pods = store.list(registry.PODS, "default").items
    phases = {p["metadata"]["name"]: p.get("status", {}).get("phase") for p in pods}
    fitting = [name for name in phases if name != "too-big"]
    if len(fitting) >= 3 and all(phases[name] == "Running" for name in fitting):
        progress.note("placed", f"{len(fitting)} pods run")
    for event in store.list(registry.EVENTS, "default").items:
        if event["reason"] == "FailedScheduling" and event["involvedObject"]["name"] == "too-big":
            progress.note("unplaced", event["message"])
        if event["reason"] == "Preempted":
            victim = event["involvedObject"]["name"]
            progress.note("preempted", f"pod {victim} {event['message']}")
        if event["reason"] in ("ResourceScaledUp", "ResourceScaledDown"):
            progress.note("resized", event["message"])
    for workload in store.list(registry.WORKLOADS, "default").items:
        gang = workload.get("status", {}).get("gang") or {}
        if gang.get("phase") == "Running":
            progress.note("gang", f"workload {workload['metadata']['name']}: {gang['message']}")
    firing = [a for a in alerts if a["state"] == "firing"]
    if firing:
        progress.note("fired", firing[0]["description"])
        try:
            store.delete(registry.PODS, "noisy", "default")
        except NotFound:
            return
    elif "fired" in progress.seen:
        progress.note("resolved", "its pod was deleted, and no alert fires any more")


def view(
    store: HttpStore, alerts: list[dict[str, Any]], progress: Progress, elapsed: float
) -> list[str]:
    """Lines of the live view."""
    lines = [f"tensorfusion demo, {elapsed:.0f} s", ""]
    lines += worker_lines(read_usage(store))
    lines.append("")
    lines += [f"  alert {a['state']}: {a['description']}" for a in alerts]
    lines += [f"  {'done' if step in progress.seen else '... '}  {what}" for step, what in STEPS]
    return lines


def report(store: HttpStore, progress: Progress) -> None:
    """Print what was seen, and the explanation of the pod that fits nowhere."""
    click.echo("\nwhat happened:")
    for step, what in STEPS:
        mark = "ok  " if step in progress.seen else "MISSING"
        click.echo(f"  {mark} {what}\n         {progress.seen.get(step, 'not seen')}")
    click.echo("\n$ tensorfusion why pod/too-big")
    click.echo("\n".join(to_text(why_pod(store, "too-big", "default"))))


def suggest(folder: Path, *, kept: bool) -> None:
    """Print what to try next."""
    if kept:
        click.echo(f"\nit goes on running; stop it with: tensorfusion down --data {folder}")
        prefix = f"export KUBECONFIG={folder}/kubeconfig TENSORFUSION_DATA={folder}"
    else:
        click.echo(
            "\ntry it yourself:\n  tensorfusion up --detach && tensorfusion apply -f examples/"
        )
        prefix = "export KUBECONFIG=~/.tensorfusion/kubeconfig"
    click.echo(f"  {prefix}")
    for line in (
        "kubectl get gpus,gpupools,tensorfusionworkloads",
        "kubectl describe pod -l app=pytorch-example",
        "kubectl scale deployment pytorch-example --replicas 5",
        "kubectl explain gpupool.spec",
        "tensorfusion top -w",
        "tensorfusion simulated fail sim-node-0 GPU   # then: tensorfusion events",
    ):
        click.echo(f"  {line}")
