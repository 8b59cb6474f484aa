"""``plan``: what defragmentation and compaction would do, and asking for it to be done."""

from typing import Any

import click

from tensorfusion import names
from tensorfusion.api import registry
from tensorfusion.api.resource import JsonObject
from tensorfusion.app.planning import PoolPlanner
from tensorfusion.app.snapshot import Snapshot
from tensorfusion.cli.capacity import capacity
from tensorfusion.cli.options import output_option, reader_options
from tensorfusion.cli.printing import print_data, print_table
from tensorfusion.cli.simulate import installed_policies
from tensorfusion.clock import SystemClock, format_timestamp
from tensorfusion.errors import ConfigError
from tensorfusion.kube import HttpStore
from tensorfusion.model.compaction import CompactionPlan
from tensorfusion.model.defrag import DefragPlan
from tensorfusion.units import human_bytes, human_tflops

CLOCK = SystemClock()
POOL = click.option("--pool", default="", help="Name of the pool; all of them by default.")
APPLY = click.option("--apply", "do", is_flag=True, help="Ask the control plane to do it, once.")
SNAPSHOT = click.option(
    "--snapshot",
    metavar="FILE",
    default=None,
    help="Plan on the objects of this file instead of a server.",
)


@click.group()
def plan() -> None:
    """Show what would be done to nodes, and what it frees and disturbs.

    \b
    Example:
      tensorfusion plan defrag
      tensorfusion plan compact --pool shared -o json
    """  # noqa: D301


@plan.command()
@POOL
@click.option(
    "--threshold",
    type=click.IntRange(0, 100),
    help="Empty nodes with at most this percentage of their GPUs in use; the pool's own by"
    " default, 40 where it says nothing.",
)
@APPLY
@SNAPSHOT
@output_option("table", "json", "yaml")
@reader_options
def defrag(
    store: HttpStore | Snapshot, pool: str, threshold: int | None, do: bool, output: str
) -> None:
    """Show which little-used nodes can be emptied, and where their workers go.

    Nodes are emptied as a whole, onto nodes in use. Workers that are protected, members of gangs,
    shared, without a controller that makes them anew, or covered by a disruption budget that
    allows nothing stay, and so does their node. A moved worker restarts: what it loses is shown
    as GPU-time since its start.

    With --apply the control plane does it step by step, planning anew before each: a worker that
    does not run again within two minutes ends the attempt, and its node takes work again.

    \b
    Example:
      tensorfusion plan defrag
      tensorfusion plan defrag --pool shared --threshold 60 -o json
      tensorfusion plan defrag --snapshot cluster.json
      tensorfusion plan defrag --pool shared --apply
    """  # noqa: D301
    planner = _planner(store)
    found = {p: planner.defrag(p, CLOCK.now(), threshold) for p in _pools(planner, pool)}
    if do and threshold is not None:
        raise click.UsageError(
            "--threshold is for plans only: what --apply does follows the pool's"
            " utilizationThresholdPercent"
        )
    if output != "table":
        print_data([_defrag_json(name, p) for name, p in found.items()], output)
    else:
        for name, one in found.items():
            _print_defrag(name, one)
    if do:
        _ask(store, list(found), names.MANUAL_DEFRAG)


@plan.command()
@POOL
@APPLY
@SNAPSHOT
@output_option("table", "json", "yaml")
@reader_options
def compact(store: HttpStore | Snapshot, pool: str, do: bool, output: str) -> None:
    """Show which empty nodes a pool can give back.

    A pool keeps its warm resources free and never falls below its least ones. With --apply the
    nodes that can go get the label tensor-fusion.ai/should-delete, which a cluster's autoscaler or
    an operator acts on; nodes that are needed again lose it.

    \b
    Example:
      tensorfusion plan compact
      tensorfusion plan compact --pool shared --apply
    """  # noqa: D301
    planner = _planner(store)
    found = {p: planner.compaction(p, CLOCK.now()) for p in _pools(planner, pool)}
    if output != "table":
        print_data([_compact_json(name, p) for name, p in found.items()], output)
    else:
        for name, one in found.items():
            _print_compact(name, one)
    if do:
        _ask(store, list(found), names.MANUAL_COMPACTION)


def _planner(store: HttpStore | Snapshot) -> PoolPlanner:
    return PoolPlanner(store, installed_policies())


def _pools(planner: PoolPlanner, wanted: str) -> list[str]:
    known = planner.pools()
    if not wanted:
        return known
    if wanted not in known:
        raise ConfigError(
            f"--pool {wanted}: there is no such pool; known: {', '.join(known) or 'none'}"
        )
    return [wanted]


def _ask(store: HttpStore | Snapshot, pools: list[str], annotation: str) -> None:
    if isinstance(store, Snapshot):
        raise click.UsageError("--apply needs a server: leave --snapshot away")
    asked = format_timestamp(CLOCK.now())
    for pool in pools:
        patch: dict[str, Any] = {"metadata": {"annotations": {annotation: asked}}}
        store.patch(registry.GPU_POOLS, pool, patch)
        click.echo(f"pool {pool}: asked; follow it with `tensorfusion events`", err=True)


def _print_defrag(pool: str, found: DefragPlan) -> None:
    gpus = sum(node.gpus for node in found.emptied)
    click.echo(
        f"pool {pool}: {len(found.moves)} moves empty {len(found.emptied)} nodes with {gpus} GPUs;"
        f" {found.idle} are empty already"
    )
    if found.moves:
        rows = [
            (m.source, m.name, m.target, ",".join(u[-12:] for u in m.devices), _hours(m), m.budgets)
            for m in found.moves
        ]
        print_table(
            ("FREES", "WORKER", "MOVES TO", "GPUS", "LOSES", "BUDGETS"),
            [(*row[:-1], ",".join(row[-1]) or "-") for row in rows],
        )
    if found.kept:
        print_table(
            ("STAYS", "GPUS IN USE", "BECAUSE"),
            [(k.node, f"{k.used_percent} %", k.reason) for k in found.kept],
        )


def _hours(move: Any) -> str:
    return f"{move.lost_gpu_seconds / 3600:.1f} GPU hours"


def _defrag_json(pool: str, found: DefragPlan) -> JsonObject:
    return {
        "pool": pool,
        "idleNodes": found.idle,
        "empties": [
            {
                "node": node.node,
                "usedPercent": node.used_percent,
                "gpus": node.gpus,
                "tflops": node.gflops / 1000,
                "vramBytes": node.vram_bytes,
                "moves": [
                    {
                        "worker": move.name,
                        "to": move.target,
                        "gpus": list(move.devices),
                        "lostGpuSeconds": move.lost_gpu_seconds,
                        "budgets": list(move.budgets),
                    }
                    for move in node.moves
                ],
            }
            for node in found.emptied
        ],
        "stays": [
            {"node": k.node, "usedPercent": k.used_percent, "because": k.reason} for k in found.kept
        ],
    }


def _print_compact(pool: str, found: CompactionPlan) -> None:
    click.echo(
        f"pool {pool}: {len(found.goes)} of {len(found.verdicts)} empty nodes can go;"
        f" {human_tflops(found.before.gflops)} TFLOPS and {human_bytes(found.before.vram_bytes)}"
        f" become {human_tflops(found.after.gflops)} TFLOPS and"
        f" {human_bytes(found.after.vram_bytes)}"
    )
    if found.verdicts:
        rows = [
            (
                v.node,
                v.gpus,
                human_tflops(v.total.gflops),
                human_bytes(v.total.vram_bytes),
                "goes" if v.goes else f"stays: {v.reason}",
            )
            for v in found.verdicts
        ]
        print_table(("NODE", "GPUS", "TFLOPS", "VRAM", "VERDICT"), rows)


def _compact_json(pool: str, found: CompactionPlan) -> JsonObject:
    return {
        "pool": pool,
        "tflopsBefore": found.before.gflops / 1000,
        "tflopsAfter": found.after.gflops / 1000,
        "vramBytesBefore": found.before.vram_bytes,
        "vramBytesAfter": found.after.vram_bytes,
        "nodes": [
            {
                "node": v.node,
                "gpus": v.gpus,
                "tflops": v.total.gflops / 1000,
                "vramBytes": v.total.vram_bytes,
                "goes": v.goes,
                "because": v.reason,
            }
            for v in found.verdicts
        ],
    }


plan.add_command(capacity)
