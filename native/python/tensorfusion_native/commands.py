"""``run``, ``smi`` and ``verify-limit``: limits on this machine, without a control plane."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tensorfusion.errors import ConfigError
from tensorfusion.units import human_bytes, parse_bytes, parse_gflops
from tensorfusion_native.launch import drop_ended, run_limited
from tensorfusion_native.libraries import Libraries, libraries
from tensorfusion_native.place import (
    DEFAULT_MODEL,
    Place,
    real_management,
    real_place,
    run_folder,
    simulated_place,
)
from tensorfusion_native.show import Watcher, data_roots, to_text
from tensorfusion_native.workers import Workers

F = TypeVar("F", bound=Callable[..., Any])


def place_options(command: F) -> F:
    """Add ``--gpu`` and ``--simulated``."""
    command = click.option(
        "--simulated",
        metavar="MODEL",
        help="Use a simulated GPU of this model, such as A100_SXM_80G, also where a real one is.",
    )(command)
    return click.option(
        "--gpu", type=click.IntRange(0, 63), default=0, show_default=True, help="Ordinal."
    )(command)


def choose_place(gpu: int, simulated: str | None, found: Libraries, folder: Path) -> Place:
    """Choose the device: the simulated one that is named, else a real one, else a simulated one."""
    if simulated is not None:
        return simulated_place(folder, simulated, gpu, found)
    management, why = real_management()
    if management is not None:
        return real_place(management, gpu)
    click.echo(f"no GPU here ({why}); on a simulated {DEFAULT_MODEL}", err=True)
    return simulated_place(folder, DEFAULT_MODEL, gpu, found)


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example:  tensorfusion run --vram 4Gi --tflops 20 -- python train.py",
)
@click.option("--vram", help="Most memory, as a quantity such as 4Gi; no cap by default.")
@click.option("--tflops", help="Most compute, in TFLOPS; the model must be in the catalogue.")
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True),
    help="Most compute, in percent of the GPU's time.",
)
@click.option("--closed", is_flag=True, help="Refuse the GPU where limits cannot be enforced.")
@place_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(("none", "text", "json")),
    default="none",
    show_default=True,
    help="Summary on stderr at the end: launches, throttled time, peak memory, refusals.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    vram: str | None,
    tflops: str | None,
    percent: float | None,
    closed: bool,
    gpu: int,
    simulated: str | None,
    output: str,
    command: tuple[str, ...],
) -> int:
    """Run a program under a limit on this machine, on a real or a simulated GPU.

    Limits hold for the program and all its children together. Its exit code is passed on, and
    signals are passed to it.
    """
    found = libraries()
    folder = run_folder()
    place = choose_place(gpu, simulated, found, folder)
    summary = run_limited(
        command,
        place,
        found,
        folder,
        vram_bytes=_vram(vram, place),
        compute_ratio=_ratio(tflops, percent, place),
        closed=closed,
    )
    if output == "json":
        click.echo(json.dumps(summary.data()), err=True)
    elif output == "text":
        click.echo(
            f"{summary.wall_seconds:.1f} s, {summary.launches} launches,"
            f" held back {summary.throttled_seconds:.1f} s,"
            f" peak {human_bytes(summary.peak_vram_bytes)},"
            f" {summary.denied} allocations refused",
            err=True,
        )
    return summary.exit_code


def _vram(text: str | None, place: Place) -> int:
    if text is None:
        return 0
    amount = parse_bytes(text)
    if not 0 < amount <= place.device.memory_bytes:
        raise ConfigError(
            f"--vram {text}: must be above 0 and at most the {human_bytes(place.device.memory_bytes)}"
            f" of {place.device.name}"
        )
    if amount <= place.context_bytes:
        raise ConfigError(
            f"--vram {text}: a context alone takes {human_bytes(place.context_bytes)}, give more"
        )
    return amount


def _ratio(tflops: str | None, percent: float | None, place: Place) -> float:
    if tflops is not None and percent is not None:
        raise ConfigError("give --tflops or --percent, not both")
    if percent is not None:
        return percent / 100
    if tflops is None:
        return 1.0
    if place.card is None:
        raise ConfigError(
            f"--tflops {tflops}: {place.device.name} is not in the hardware catalogue, so its rate"
            " is not known; give --percent"
        )
    gflops, whole = parse_gflops(tflops), place.card.compute_gflops
    if not 0 < gflops <= whole:
        raise ConfigError(
            f"--tflops {tflops}: must be above 0 and at most the {whole / 1000:g} of {place.device.name}"
        )
    return gflops / whole


@click.command(epilog="Example:  tensorfusion smi --watch")
@click.option("-w", "--watch", is_flag=True, help="Show again every second until interrupted.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Data folder of a control plane, whose workers are shown too; ~/.tensorfusion by default.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "wide", "json")),
    default="table",
    show_default=True,
    help="Output format; a table has 80 columns, wide all there is to tell.",
)
def smi(watch: bool, data: Path | None, output: str) -> None:
    """Show the GPUs of this machine and who uses them: limits, use, throttling.

    Real GPUs, simulated ones, programs under `tensorfusion run` and workers of a control plane.
    """
    found = libraries()
    folder = run_folder()
    drop_ended(Workers(folder / "workers"))
    watcher = Watcher([folder, *data_roots(data)], found)
    while True:
        seen = watcher.look()
        if output == "json":
            click.echo(json.dumps(seen.data()))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            click.echo("\n".join(to_text(seen, wide=output == "wide")))
        if not watch:
            return
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            return


@click.command(
    "verify-limit",
    epilog="Example:  tensorfusion verify-limit --simulated A100_SXM_80G --plot e.svg",
)
@place_options
@click.option("--full", is_flag=True, help="All caps, kernel lengths and grids: about an hour.")
@click.option(
    "--seconds",
    type=click.IntRange(4, 600),
    default=10,
    show_default=True,
    help="Length of a measurement.",
)
@click.option(
    "--time",
    "clock",
    type=click.Choice(("wall", "virtual")),
    default="wall",
    show_default=True,
    help="Clock of a simulated GPU; the virtual one is faster and not disturbed by other programs.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the error curve into this SVG file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="Output format.",
)
def verify_limit(
    gpu: int,
    simulated: str | None,
    full: bool,
    seconds: int,
    clock: str,
    plot: Path | None,
    output: str,
) -> None:
    """Measure how exactly the limiter holds this machine's GPU, or a simulated one, to a share.

    One measurement per share, kernel length and grid. Says the mean, the share in the one-second
    window furthest from the cap after the second second, and when the share had settled.
    """
    from tensorfusion_native.verify import cells, verify
    from tensorfusion_native.verify_report import table, to_svg

    found = libraries()
    wanted = cells(full=full)
    place = choose_place(gpu, simulated, found, run_folder())
    # Ctrl-C ends the measurement under way, whatever it waits for.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def progress(done: int, text: str) -> None:
        click.echo(f"{done} of {len(wanted)}: {text}", err=True)

    report = verify(wanted, place, found, seconds=seconds, clock=clock, progress=progress)
    if plot is not None:
        try:
            plot.write_text(to_svg(report), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--plot {plot}: {error.strerror}") from error
    click.echo(json.dumps(report.data()) if output == "json" else "\n".join(table(report)))
