"""``plan capacity``: which nodes to add so that tasks do not wait too long."""

from pathlib import Path

import click

from tensorfusion.cli.options import output_option
from tensorfusion.cli.printing import print_data, print_table
from tensorfusion.cli.simulate import FILE, parse_seeds, policies_of
from tensorfusion.errors import ConfigError
from tensorfusion.model.hardware import find_card
from tensorfusion.model.ties import TIE_RULES
from tensorfusion.simulate.capacity import (
    CONFIDENCE,
    Addition,
    CapacityPlan,
    CapacitySearch,
    Offer,
    parse_offer,
)
from tensorfusion.simulate.timed_report import seconds_text
from tensorfusion.simulate.timeline import TimedRun
from tensorfusion.simulate.trace import read_trace, read_visits
from tensorfusion.units import parse_duration

WAITS = ("mean", "p50", "p95", "p99", "longest")


@click.command()
@click.option("--nodes", type=FILE, required=True, help="CSV of the cluster, as `simulate` reads.")
@click.option("--pods", type=FILE, required=True, help="CSV of tasks with their times.")
@click.option(
    "--offer",
    "offers",
    multiple=True,
    required=True,
    metavar="MODEL:GPUS[@PRICE]",
    help="A kind of node that could be added, with the price of a GPU hour (that of the hardware"
    " catalogue by default); repeat it.",
)
@click.option("--target-wait", default="5m", show_default=True, help="The wait to stay below.")
@click.option(
    "--wait",
    "percentile",
    type=click.Choice(WAITS),
    default="p95",
    show_default=True,
    help="Which wait that is.",
)
@click.option("--policy", default="fgd", show_default=True, help="Placement policy.")
@click.option("--ties", type=click.Choice(TIE_RULES), default="name", show_default=True)
@click.option(
    "--load",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="2 brings the same tasks in half the time.",
)
@click.option(
    "--seeds", default="1..10", show_default=True, help="One story each, drawn from the tasks."
)
@output_option("table", "json", "yaml")
def capacity(
    nodes: Path,
    pods: Path,
    offers: tuple[str, ...],
    target_wait: str,
    percentile: str,
    policy: str,
    ties: str,
    load: float,
    seeds: str,
    output: str,
) -> None:
    """Search the cheapest nodes to add so that tasks do not wait longer than wanted.

    Each seed is another story with tasks drawn from the file at the file's own times of arrival.
    What is recommended is enough for nine stories of ten; the range says how much the stories
    differ. One seed replays the file as it is.

    \b
    Example:
      tensorfusion plan capacity --nodes nodes.csv --pods pods.csv --target-wait 5m \\
        --offer L40S:4@1.1 --offer A100-SXM4-80GB:8@2.2
    """  # noqa: D301
    target = parse_duration(target_wait)
    if target < 0:
        raise ConfigError(f"--target-wait {target_wait}: allowed are durations from 0")
    found = policies_of(policy)
    if len(found) != 1:
        raise click.UsageError(f"--policy {policy}: allowed is one policy")
    trace = read_trace(nodes, pods)
    if not trace.gpus:
        raise ConfigError(f"{nodes}: column gpu is 0 in every line; at least one GPU is needed")
    chosen = [_priced(parse_offer(text)) for text in offers]
    search = CapacitySearch(
        trace.nodes,
        read_visits(pods),
        found[0],
        ties=ties,
        percentile=percentile,
        target_seconds=target,
        load=load,
        seeds=parse_seeds(seeds),
        on_run=lambda what, run: _progress(what, run, percentile),
    )
    answer = search.plan(chosen)
    if output == "table":
        _print(answer, percentile, target_wait)
    else:
        print_data(_to_json(answer), output)


def _priced(offer: Offer) -> Offer:
    """Take the price of the hardware catalogue where none was given and the model is known."""
    if offer.gpu_hour_price:
        return offer
    try:
        return Offer(offer.model, offer.gpus, find_card(offer.model).hourly_price)
    except ConfigError:
        return offer


def _progress(what: str, run: TimedRun, percentile: str) -> None:
    wait = seconds_text(getattr(run.waits, percentile))
    never = f", {run.waits.never} never started" if run.waits.never else ""
    click.echo(f"{what}, story {run.seed}: {percentile} wait {wait}{never}", err=True)


def _print(answer: CapacityPlan, percentile: str, target: str) -> None:
    click.echo(
        f"as it is: {percentile} wait {_wait(answer.wait_seconds)}; {answer.met} of"
        f" {answer.stories} stories stay within {target}"
    )
    best = answer.best
    if best is not None:
        offer = best.offer
        price = f", {best.hour_price:.2f} an hour" if best.hour_price else ""
        click.echo(
            f"add {best.nodes} nodes with {offer.gpus} {offer.model} each{price}: enough for"
            f" {CONFIDENCE:.0%} of the stories, which need {_range(best)}"
        )
    elif answer.met < answer.stories * CONFIDENCE:
        click.echo("none of the offers helps")
    else:
        click.echo("nothing needs to be added")
    rows = [
        (
            f"{a.offer.gpus} {a.offer.model}",
            "-" if a.nodes is None else a.nodes,
            _range(a),
            f"{a.hour_price:.2f}" if a.hour_price else "-",
            a.reason or _wait(a.wait_seconds),
        )
        for a in answer.additions
    ]
    print_table(("NODE", "ADD", "STORIES NEED", "PER HOUR", f"{percentile.upper()} WAIT"), rows)


def _range(addition: Addition) -> str:
    if addition.fewest is None:
        return "more"
    most = "more" if addition.most is None else str(addition.most)
    return most if str(addition.fewest) == most else f"{addition.fewest} to {most}"


def _wait(seconds: float) -> str:
    return "no end" if seconds == float("inf") else seconds_text(seconds)


def _to_json(answer: CapacityPlan) -> dict[str, object]:
    best = answer.best
    return {
        "waitSeconds": _finite(answer.wait_seconds),
        "storiesWithin": answer.met,
        "stories": answer.stories,
        "add": _addition_json(best) if best is not None else None,
        "offers": [_addition_json(one) for one in answer.additions],
    }


def _addition_json(one: Addition) -> dict[str, object]:
    return {
        "model": one.offer.model,
        "gpusPerNode": one.offer.gpus,
        "nodes": one.nodes,
        "storiesNeed": {"fewest": one.fewest, "most": one.most},
        "hourPrice": one.hour_price,
        "waitSeconds": _finite(one.wait_seconds) if one.nodes is not None else None,
        "because": one.reason,
    }


def _finite(seconds: float) -> float | None:
    return None if seconds == float("inf") else seconds
