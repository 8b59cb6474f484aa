"""``simulate``: replay a list of tasks on a cluster of a file, under several policies."""

import json
import time
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


def _write_example(ctx: click.Context, _option: click.Parameter, folder: Path | None) -> None:
    if folder is None:
        return
    from tensorfusion.simulate.synthetic import write_trace

    if not folder.is_dir():
        raise ConfigError(f"--example {folder}: not a folder")
    nodes, pods = write_trace(folder)
    click.echo(f"tensorfusion simulate --nodes {nodes} --pods {pods} --policy bestfit,fgd")
    ctx.exit()


@click.command()
@click.option(
    "--example",
    type=click.Path(path_type=Path, file_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_write_example,
    help="Write a small made-up cluster with tasks into this folder, print the command that"
    " replays them, and end.",
)
@click.option("--nodes", type=FILE, help="CSV: sn, cpu_milli, memory_mib, gpu, model.")
@click.option(
    "--pods",
    type=FILE,
    help="CSV: name, cpu_milli, memory_mib, num_gpu, gpu_milli, and gpu_spec if there.",
)
@click.option(
    "--snapshot",
    metavar="FILE",
    help="Instead of CSV files: the cluster that `tensorfusion snapshot` wrote, with what waits.",
)
@click.option(
    "--manifests",
    type=click.Path(path_type=Path, exists=True),
    help="Kubernetes manifests, a file or a folder, whose pods come to that cluster.",
)
@click.option(
    "--add",
    "added",
    multiple=True,
    metavar="MODEL:GPUS",
    help="A node to add to that cluster; repeat it.",
)
@click.option("--anew", is_flag=True, help="With --snapshot: place the pods that run anew, too.")
@click.option(
    "--policy",
    default="",
    show_default="fgd,bestfit; with --snapshot what each pool says",
    help="Policies, the baseline first.",
)
@click.option("--seeds", default="42..51", show_default=True, help="Seeds: 42, 1,5 or 42..51.")
@click.option("--ties", default="name", show_default=True, help="name, pack or random, or several.")
@click.option(
    "--replay",
    "mode",
    type=click.Choice(["demand", "times"]),
    default="demand",
    show_default=True,
    help="demand: tasks arrive and none leaves; times: they arrive, wait, run and leave by the"
    " clock of the file (columns creation_time, scheduled_time, deletion_time).",
)
@click.option(
    "--load",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="With --replay times: 2 brings the same tasks in half the time.",
)
@click.option(
    "--resample",
    is_flag=True,
    help="With --replay times: each seed draws the task of every arrival anew from the file.",
)
@click.option("--gpu-hour-price", type=float, default=0.0, help="Turns GPUs into money.")
@click.option("--plot", type=FILE, help="Draw allocation against demand into this SVG file.")
@output_option("table", "json", "csv")
def simulate(
    nodes: Path | None,
    pods: Path | None,
    snapshot: str | None,
    manifests: Path | None,
    added: tuple[str, ...],
    anew: bool,
    policy: str,
    seeds: str,
    ties: str,
    mode: str,
    load: float,
    resample: bool,
    gpu_hour_price: float,
    plot: Path | None,
    output: str,
) -> None:
    """Replay tasks on a cluster until they ask for 130 % of its GPUs, under several policies.

    Prints allocation and fragmentation against the demand that has arrived, with 95 % confidence
    intervals over the seeds, beside published values when the files are a known trace. The same
    seed gives the same event log on any machine. With --replay times tasks also leave, and what
    is printed is how long they wait and how much of the cluster they use.

    With --snapshot or --manifests it answers what would become of pods on a cluster of objects:
    with nodes added, or under another policy.

    \b
    Example:
      tensorfusion simulate --nodes nodes.csv --pods pods.csv --policy bestfit,fgd --seeds 42..44
      tensorfusion simulate --nodes nodes.csv --pods pods.csv --replay times --load 3 --seeds 1..5
      tensorfusion simulate --snapshot cluster.json --add L40S:4 --manifests deploy/
      tensorfusion simulate --snapshot cluster.json --anew --policy compact-first,fgd
    """  # noqa: D301
    from tensorfusion.simulate.plot import to_svg
    from tensorfusion.simulate.published import published_for
    from tensorfusion.simulate.report import Report
    from tensorfusion.simulate.trace import read_trace

    if snapshot is not None or manifests is not None or added:
        _on_objects(snapshot, manifests, added, policy, anew=anew, output=output)
        return
    if nodes is None or pods is None:
        raise click.UsageError(
            "needs --nodes and --pods, or --snapshot, or --manifests with --add; --example DIR"
            " writes files to try"
        )
    if plot is not None and not plot.parent.is_dir():
        raise ConfigError(f"--plot {plot}: {plot.parent} is not a folder")
    chosen = policies_of(policy or "fgd,bestfit")
    rules = _rules(ties)
    numbers = parse_seeds(seeds)
    trace = read_trace(nodes, pods)
    if not trace.gpus:
        raise ConfigError(f"{nodes}: column gpu is 0 in every line; at least one GPU is needed")
    if mode == "times":
        _by_the_clock(trace, pods, chosen, rules, numbers, load, resample, plot, output)
        return
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


def _on_objects(
    snapshot: str | None,
    manifests: Path | None,
    added: tuple[str, ...],
    policy: str,
    *,
    anew: bool,
    output: str,
) -> None:
    from tensorfusion.cli.what_if import simulate_objects

    policies = installed_policies()
    chosen = policies_of(policy, policies) if policy else [None]
    simulate_objects(snapshot, manifests, added, chosen, policies, anew=anew, output=output)


def _by_the_clock(
    trace: "Trace",
    pods: Path,
    policies: "list[PlacementPolicy]",
    rules: list[str],
    seeds: list[int],
    load: float,
    resample: bool,
    plot: Path | None,
    output: str,
) -> None:
    from tensorfusion.simulate import timed_report
    from tensorfusion.simulate.timeline import replay_times, story_of
    from tensorfusion.simulate.trace import read_visits

    visits = read_visits(pods)
    total = len(policies) * len(rules) * len(seeds)
    runs = []
    for policy in policies:
        for rule in rules:
            for seed in seeds:
                start = time.perf_counter()
                story = story_of(visits, seed, load, resample=resample)
                run = replay_times(trace.nodes, story, policy, rule, seed)
                runs.append(run)
                click.echo(
                    f"run {len(runs)} of {total}: {run.policy}, ties by {rule}, seed {seed}: "
                    f"{run.utilization_pct:.2f} % used, {run.waits.waited} of {run.waits.tasks}"
                    f" waited, {time.perf_counter() - start:.2f} s",
                    err=True,
                )
    if plot is not None:
        _write(plot, timed_report.to_svg(runs))
    if output == "json":
        click.echo(json.dumps(timed_report.to_json(runs)))
    elif output == "csv":
        click.echo(timed_report.to_csv(runs), nl=False)
    else:
        for title, headings, rows in timed_report.tables(runs):
            click.echo(title)
            print_table(headings, rows)


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


def installed_policies() -> "dict[str, PlacementPolicy]":
    """Load the plugins and return their placement policies by name."""
    from tensorfusion.host import PluginHost

    host = PluginHost()
    host.load()
    return dict(host.placement_policies())


def policies_of(
    text: str, installed: "dict[str, PlacementPolicy] | None" = None
) -> "list[PlacementPolicy]":
    """Find installed policies by a list of names or aliases.

    Args:
        text: Names, separated by commas.
        installed: What `installed_policies` returned; loaded when not given.

    Raises:
        UsageError: One is not installed; names those that are.
    """
    installed = installed_policies() if installed is None else installed
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
                start = time.perf_counter()
                run = replay(trace.tasks, Arrivals(trace, seed), policy, rule)
                seconds = time.perf_counter() - start
                runs.append(run)
                click.echo(
                    f"run {len(runs)} of {total}: {run.policy}, ties by {rule}, seed {seed}: "
                    f"{run.points[-1].allocated_pct:.2f} % allocated, {seconds:.2f} s",
                    err=True,
                )
    return tuple(runs)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}") from None
