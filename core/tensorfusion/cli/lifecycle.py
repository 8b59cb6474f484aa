"""``up``, ``down`` and ``status``: the life of an embedded control plane."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click

from tensorfusion.cli.options import connect, data_option, output_option
from tensorfusion.cli.printing import print_data, print_table
from tensorfusion.clock import SystemClock
from tensorfusion.errors import ApiError, ConfigError, Unavailable

START_SECONDS = 60.0
STOP_SECONDS = 40.0
CLOCK = SystemClock()


@click.command()
@data_option
@click.option("--detach", is_flag=True, help="Run in the background; return when it is ready.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Settings file (YAML); see `tensorfusion config schema`.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on 127.0.0.1; 0 keeps the folder's last one, or takes a free one.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default=None)
@click.option(
    "--log-format", type=click.Choice(["auto", "json", "text"]), default="auto", show_default=True
)
def up(
    data: Path,
    detach: bool,
    config: Path | None,
    port: int,
    log_level: str | None,
    log_format: str,
) -> None:
    """Start a control plane on this machine.

    Without a GPU and without settings it simulates a pool of two nodes with four A100 each.
    kubectl works with the kubeconfig in the data folder.

    \b
    Example:
      tensorfusion up --detach
      export KUBECONFIG=~/.tensorfusion/kubeconfig
      kubectl get gpupools
    """  # noqa: D301 - \b is click's mark for a paragraph it must not wrap
    if detach:
        _detach(data, config, port, log_level)
        return
    serve(data, config, port, log_level, log_format)


def serve(
    data: Path, config: Path | None, port: int, log_level: str | None, log_format: str
) -> None:
    """Run a control plane until a signal asks it to stop."""
    from tensorfusion.app.control_plane import ControlPlane
    from tensorfusion.runtime import garbage, logs, settings

    loaded = settings.load(config)
    # Whatever is written from here on is for this user alone.
    os.umask(0o077)
    logs.configure(log_level or loaded.log_level, log_format)
    # Shorter than the default of 5 ms: a request waits less for a busy controller thread.
    sys.setswitchinterval(0.0005)
    garbage.configure()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    plane = ControlPlane(data, loaded, port=port)
    plane.start()
    click.echo(f"ready: {plane.server.url}", err=True)
    click.echo(f"  export KUBECONFIG={plane.server.kubeconfig_path}", err=True)
    while not stop.is_set():
        CLOCK.wait(stop, 3600)
    plane.stop()
    garbage.skip_last_walk()


def _detach(data: Path, config: Path | None, port: int, log_level: str | None) -> None:
    holder = running(data)
    if holder:
        raise ConfigError(
            f"data folder {data} is in use by process {holder}; stop it with"
            f" `tensorfusion down --data {data}`, or choose another folder"
        )
    data.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tensorfusion", "up", "--data", str(data), "--port", str(port)]
    command += ["--config", str(config)] if config else []
    command += ["--log-level", log_level] if log_level else []
    with (data / "log").open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    wait_ready(data, process)
    store = connect(data)
    click.echo(f"ready: {store.transport.server} (process {process.pid}, log {data / 'log'})")
    click.echo(f"  export KUBECONFIG={data / 'kubeconfig'}")


def wait_ready(data: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a control plane that was just started is ready.

    Raises:
        ConfigError: It ended at once; carries the last line of its log.
    """
    never = threading.Event()
    deadline = CLOCK.monotonic() + START_SECONDS
    while CLOCK.monotonic() < deadline:
        if process.poll() is not None:
            lines = (data / "log").read_text(errors="replace").strip().splitlines()
            last = lines[-1].removeprefix("error: ") if lines else "it wrote no log"
            raise ConfigError(f"control plane did not start: {last}")
        with contextlib.suppress(ApiError, ConfigError):
            if running(data) == process.pid:
                connect(data).text("/readyz")
                return
        CLOCK.wait(never, 0.1)
    raise Unavailable(
        f"control plane was not ready after {START_SECONDS:.0f} s; see {data / 'log'}"
    )


def running(data: Path) -> int:
    """Return the process that holds a data folder; 0 when none does."""
    import fcntl

    try:
        with (data / "lock").open("r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(handle.read().strip() or "0")
    except (OSError, ValueError):
        return 0
    return 0


@click.command()
@data_option
def down(data: Path) -> None:
    """Stop the control plane of a data folder; its state stays on disk.

    \b
    Example:
      tensorfusion down
    """  # noqa: D301
    process = running(data)
    if not process:
        raise ConfigError(f"no control plane runs in {data}")
    os.kill(process, signal.SIGTERM)
    never = threading.Event()
    deadline = CLOCK.monotonic() + STOP_SECONDS
    while running(data) == process:
        if CLOCK.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            click.echo(f"process {process} did not stop in time and was killed", err=True)
            return
        CLOCK.wait(never, 0.05)
    click.echo(f"stopped process {process}")


@click.command()
@data_option
@output_option("table", "json", "yaml")
def status(data: Path, output: str) -> None:
    """Show what runs: pools, workloads, waiting pods, alerts.

    \b
    Example:
      tensorfusion status -o json
    """  # noqa: D301
    summary = summarize(data)
    if output != "table":
        print_data(summary, output)
        return
    click.echo(f"server     {summary['server']} (process {summary['process']})")
    click.echo(f"kubeconfig {data / 'kubeconfig'}")
    click.echo(
        f"workers    {summary['pods']['running']} running, {summary['pods']['waiting']} waiting"
    )
    click.echo(f"alerts     {summary['alerts']['firing']} firing\n")
    print_table(
        ("POOL", "PHASE", "NODES", "GPUS", "FREE TFLOPS", "TFLOPS", "FREE VRAM", "VRAM"),
        [tuple(pool.values()) for pool in summary["pools"]],
    )


def summarize(data: Path) -> dict[str, Any]:
    """Collect what `status` shows."""
    import msgspec

    from tensorfusion.api.registry import GPU_POOLS, PODS

    store = connect(data)
    pools = store.list(GPU_POOLS).items
    pods = store.list(PODS).items
    alerts = msgspec.json.decode(store.text("/tensorfusion/alerts"))["alerts"]
    return {
        "server": store.transport.server,
        "process": running(data),
        "pods": {
            "running": sum(p.get("status", {}).get("phase") == "Running" for p in pods),
            "waiting": sum(not p["spec"].get("nodeName") for p in pods),
        },
        "alerts": {"firing": sum(a["state"] == "firing" for a in alerts)},
        "pools": [_pool_row(p) for p in pools],
    }


def _pool_row(pool: dict[str, Any]) -> dict[str, Any]:
    found = pool.get("status", {})
    return {
        "name": pool["metadata"]["name"],
        "phase": found.get("phase", "Pending"),
        "nodes": found.get("totalNodes", 0),
        "gpus": found.get("totalGPUs", 0),
        "freeTFlops": found.get("availableTFlops", "0"),
        "tflops": found.get("totalTFlops", "0"),
        "freeVRAM": found.get("availableVRAM", "0"),
        "vram": found.get("totalVRAM", "0"),
    }
