"""``simulate`` on objects: a snapshot, manifests, nodes that are not there yet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.resource import JsonObject
from tensorfusion.app.what_if import AddedNode, Outcome, what_if
from tensorfusion.cli.printing import print_data, print_table
from tensorfusion.cli.render import TEMPLATES, read_objects, render_all
from tensorfusion.errors import ConfigError
from tensorfusion.spi.policy import PlacementPolicy


def simulate_objects(
    snapshot: str | None,
    manifests: Path | None,
    added: Sequence[str],
    chosen: Sequence[PlacementPolicy | None],
    policies: dict[str, PlacementPolicy],
    *,
    anew: bool,
    output: str,
) -> None:
    """Place what waits and what comes, once per policy, and print what becomes of it."""
    objects = read_objects(snapshot, "default", snapshot=True) if snapshot else []
    nodes = [parse_node(text) for text in added]
    if not objects and not nodes:
        raise click.UsageError("--manifests needs a cluster: --snapshot FILE, or --add MODEL:GPUS")
    documents = _read_folder(manifests) if manifests is not None else []
    if not any(obj["kind"] == "GPUPool" for obj in (*objects, *documents)):
        from tensorfusion.app.admission_offline import stand_in

        objects = [*stand_in(), *objects]
    coming, refused = _admitted(documents, objects) if documents else ([], [])
    for line in refused:
        click.echo(f"refused: {line}", err=True)
    objects += [obj for obj in documents if obj["kind"] not in TEMPLATES]
    outcomes = [
        what_if(objects, policies, coming=coming, added=nodes, policy=policy, anew=anew)
        for policy in chosen
    ]
    if output == "table":
        _print(outcomes)
    elif output == "json":
        print_data({"outcomes": [_to_json(one) for one in outcomes], "refused": refused}, output)
    else:
        raise click.UsageError("-o csv is for --nodes and --pods; allowed here: table, json")


def parse_node(text: str) -> AddedNode:
    """Read ``MODEL:GPUS``.

    Raises:
        ConfigError: Says what is allowed.
    """
    model, colon, count = text.partition(":")
    if not colon or not count.isascii() or not count.isdigit() or not 1 <= int(count) <= 16:
        raise ConfigError(f"--add {text!r}: allowed is MODEL:GPUS with 1 to 16 GPUs, as L40S:4")
    return AddedNode(model, int(count))


def _read_folder(folder: Path) -> list[JsonObject]:
    files = [folder]
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml", ".json"))
    if not files:
        raise ConfigError(f"--manifests {folder}: no .yaml, .yml or .json file in it")
    return [obj for file in files for obj in read_objects(str(file), "default")]


def _admitted(
    documents: list[JsonObject], cluster: list[JsonObject]
) -> tuple[list[Pod], list[str]]:
    """Return the GPU workers that manifests make, a pod per replica, and who was refused."""
    workloads = [obj for obj in documents if obj["kind"] in TEMPLATES]
    pods: list[Pod] = []
    refused = []
    for obj, result in zip(
        workloads, render_all(documents, cluster, inject=False, auto_migrate=False), strict=True
    ):
        name = obj["metadata"]["name"]
        if result.refusal is not None:
            refused.append(f"{obj['kind']} {name}: {result.refusal}")
            continue
        if result.admitted is None or not result.admitted.enabled:
            continue
        for number in range(_replicas(obj)):
            metadata: dict[str, Any] = {
                **result.admitted.pod["metadata"],
                "name": f"{name}-{number}" if TEMPLATES[obj["kind"]] else name,
                "uid": f"coming/{obj['kind']}/{obj['metadata']['namespace']}/{name}/{number}",
            }
            labels = metadata.get("labels") or {}
            metadata["labels"] = {**labels, names.COMPONENT: "worker"}
            pods.append(decode(Pod, {**result.admitted.pod, "metadata": metadata}))
    return pods, refused


def _replicas(obj: JsonObject) -> int:
    if not TEMPLATES[obj["kind"]]:
        return 1
    given = obj["spec"].get("replicas", obj["spec"].get("parallelism", 1))
    return given if type(given) is int else 1


def _print(outcomes: Sequence[Outcome]) -> None:
    print_table(
        ("POLICY", "PLACED", "WAIT", "GPUS IN USE", "EMPTY NODES", "COMPUTE %", "VRAM %"),
        [
            (
                one.policy or "as the pool says",
                one.placed,
                len(one.answers) - one.placed,
                f"{one.used_gpus} of {one.gpus}",
                f"{one.empty_nodes} of {one.nodes}",
                f"{one.allocated_compute_pct:.1f}",
                f"{one.allocated_vram_pct:.1f}",
            )
            for one in outcomes
        ],
    )
    for one in outcomes:
        if not one.answers:
            continue
        click.echo()
        if len(outcomes) > 1:
            click.echo(f"{one.policy}:")
        rows = [(a.pod, a.node or "-", ",".join(a.devices) or "-", a.reason) for a in one.answers]
        print_table(("POD", "NODE", "GPUS", "WHY"), rows)


def _to_json(one: Outcome) -> JsonObject:
    return {
        "policy": one.policy or None,
        "placed": one.placed,
        "waiting": len(one.answers) - one.placed,
        "gpus": one.gpus,
        "usedGpus": one.used_gpus,
        "nodes": one.nodes,
        "emptyNodes": one.empty_nodes,
        "allocatedComputePercent": one.allocated_compute_pct,
        "allocatedVramPercent": one.allocated_vram_pct,
        "pods": [
            {"pod": a.pod, "node": a.node or None, "gpus": list(a.devices), "why": a.reason}
            for a in one.answers
        ],
    }
