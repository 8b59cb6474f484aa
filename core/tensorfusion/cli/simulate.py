"""``simulate``: replay a list of tasks on a cluster of a file, under several policies."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tensorfusion.cli.options import output_option
from tensorfusion.cli.printing import print_table
from tensorfusion.errors import ConfigError

if TYPE_CHECKING:
    from tensorfusion.simulate.replay import Run
    from tensorfusion.simulate.trace import Trace
    from tensorfusion.spi.policy import PlacementPolicy

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option(
    "--nodes", type=FILE, required=True, help="CSV: sn, cpu_milli, memory_mib, gpu, model."
)
@click.option(
    "--pods",
    type=FILE,
    required=True,
    help="CSV: name, cpu_milli, memory_mib, num_gpu, gpu_milli, and gpu_spec if there.",
)
@click.option(
    "--policy", default="fgd,bestfit", show_default=True, help="Policies, the baseline first."
)
@click.option("--seeds", default="42..51", show_default=True, help="Seeds: 42, 1,5 or 42..51.")
@click.option("--ties", default="name", show_default=True, help="name, pack or random, or several.")
@click.option("--gpu-hour-price", type=float, default=0.0, help="Turns GPUs into money.")
@click.option("--plot", type=FILE, help="Draw allocation against demand into this SVG file.")
@output_option("table", "json", "csv")
def simulate(
    nodes: Path,
    pods: Path,
    policy: str,
    seeds: str,
    ties: str,
    gpu_hour_price: float,
    plot: Path | None,
    output: str,
) -> None:
    """Replay tasks on a cluster until they ask for 130 % of its GPUs, under several policies.

    Prints allocation and fragmentation against the demand that has arrived, with 95 % confidence
    intervals over the seeds, beside published values when the files are a known trace. The same
    seed gives the same event log on any machine.

    \b
    Example:
      tensorfusion simulate --nodes nodes.csv --pods pods.csv --policy bestfit,fgd --seeds 42..44
    """  # noqa: D301
    from tensorfusion.simulate.plot import to_svg
    from tensorfusion.simulate.published import published_for
    from tensorfusion.simulate.report import Report
    from tensorfusion.simulate.trace import read_trace

    if plot is not None and not plot.parent.is_dir():
        raise ConfigError(f"--plot {plot}: {plot.parent} is not a folder")
    chosen = _policies(policy)
    rules = _rules(ties)
    numbers = parse_seeds(seeds)
    trace = read_trace(nodes, pods)
    if not trace.gpus:
        raise ConfigError(f"{nodes}: column gpu is 0 in every line; at least one GPU is needed")
    runs = _run_all(trace, chosen, rules, numbers)
    report = Report(trace, published_for(trace), runs, gpu_hour_price)
    if plot is not None:
        _write(plot, to_svg(report.series, report.published))
    if output == "json":
        click.echo(json.dumps(report.to_json()))
    elif output == "csv":
        click.echo(report.to_csv(), nl=False)
    else:
        for title, headings, rows in report.tables():
            click.echo(title)
            print_table(headings, rows)
            click.echo()


def parse_seeds(text: str) -> list[int]:
    """Read ``42``, ``1,5`` or ``42..51``, ends included, repeats dropped.

    Raises:
        UsageError: Names the part and what is allowed.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        try:
            start = int(first)
            end = int(last) if dots else start
        except ValueError:
            raise click.UsageError(
                f"--seeds: {part!r} is neither a number nor a range such as 42..51"
            ) from None
        if end < start:
            raise click.UsageError(f"--seeds: range {part!r} ends before it starts")
        found.update(dict.fromkeys(range(start, end + 1)))
    return list(found)


def _policies(text: str) -> "list[PlacementPolicy]":
    from tensorfusion.host import PluginHost

    host = PluginHost()
    host.load()
    installed = host.placement_policies()
    chosen = []
    for name in dict.fromkeys(part.strip() for part in text.split(",")):
        found = [p for key, p in installed.items() if name == key or name in p.aliases]
        if not found:
            raise click.UsageError(
                f"--policy: {name!r} is not installed; installed: {', '.join(sorted(installed))}"
            )
        chosen.append(found[0])
    return list(dict.fromkeys(chosen))


def _rules(text: str) -> list[str]:
    from tensorfusion.model.ties import TIE_RULES

    rules = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for rule in rules:
        if rule not in TIE_RULES:
            raise click.UsageError(f"--ties: {rule!r} is none of {', '.join(TIE_RULES)}")
    return rules


def _run_all(
    trace: "Trace", policies: "list[PlacementPolicy]", rules: list[str], seeds: list[int]
) -> "tuple[Run, ...]":
    from tensorfusion.simulate.arrivals import Arrivals
    from tensorfusion.simulate.replay import replay

    total = len(policies) * len(rules) * len(seeds)
    runs = []
    for policy in policies:
        for rule in rules:
            for seed in seeds:
                run = replay(trace.tasks, Arrivals(trace, seed), policy, rule)
                runs.append(run)
                click.echo(
                    f"run {len(runs)} of {total}: {run.policy}, ties by {rule}, seed {seed}: "
                    f"{run.points[-1].allocated_pct:.2f} % allocated",
                    err=True,
                )
    return tuple(runs)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}") from None
