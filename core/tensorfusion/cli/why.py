"""``why``: why a pod is where it is, or waits; who is on a GPU; how a workload got its size."""

from typing import TYPE_CHECKING, Any, Protocol

import click

from tensorfusion import names
from tensorfusion.api import pod_view, registry
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.cli.objects import event_rows
from tensorfusion.cli.options import namespace_option, output_option, reader_options
from tensorfusion.cli.printing import format_table, print_data
from tensorfusion.store.interface import ObjectList

if TYPE_CHECKING:
    from tensorfusion.model.relax.step import Answer, Step

ALLOWED = ("pod", "workload", "gpu")
WIDE = ("nodes", "cannotHelp")
HEADINGS = {"cannotHelp": "these alone cannot help"}


class Reader(Protocol):
    """What an explanation needs of a store: a server, or the objects of a file."""

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object."""
        ...

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> ObjectList:
        """Return objects of one kind."""
        ...


@click.command()
@click.argument("target", metavar="KIND/NAME")
@click.option(
    "--snapshot",
    metavar="FILE",
    default=None,
    help="Explain on the objects of this file instead of a server: a List as kubectl prints it,"
    " such as `tensorfusion snapshot` writes.",
)
@namespace_option
@output_option("text", "wide", "json", "yaml")
@reader_options
def why(store: Reader, target: str, namespace: str, output: str) -> None:
    """Explain why a pod is where it is or waits, who is on a GPU, how a workload got its size.

    For a pod that fits nowhere it also names the smallest change of each kind that would make it
    fit: less VRAM, another model, a higher quota, workers that leave, one more node. With -o wide
    also what excludes the GPUs of each node, and which kinds of change cannot help.

    \b
    Example:
      tensorfusion why pod/pytorch-example-7d9f-x2k4q
      tensorfusion why pod/too-big -o wide
      tensorfusion why pod/too-big --snapshot cluster.json
      tensorfusion why gpu/gpu-4d4afa21-91d2-5764-9bff-477d859e5856
    """  # noqa: D301
    kind, _, name = target.partition("/")
    if kind not in ALLOWED or not name:
        raise click.UsageError(f"{target!r} is not KIND/NAME; allowed kinds: {', '.join(ALLOWED)}")
    explain = {"pod": why_pod, "workload": why_workload, "gpu": why_gpu}[kind]
    answer = explain(store, name, namespace)
    if output in ("text", "wide"):
        click.echo("\n".join(to_text(answer, wide=output == "wide")))
    else:
        print_data(answer, output)


def why_pod(store: Reader, name: str, namespace: str) -> JsonObject:
    """Explain one pod."""
    obj = store.get(registry.PODS, name, namespace)
    pod = decode(Pod, obj)
    answer: JsonObject = {"pod": f"{namespace}/{name}", "asks": asks(pod)}
    if not pod_view.is_worker(pod):
        answer["answer"] = f"it is not a GPU worker: the label {names.ENABLED} is not true"
        return answer
    if pod_view.node_name(pod):
        ids = pod.metadata.annotations.get(names.GPU_IDS, "").split(",")
        answer["node"] = pod_view.node_name(pod)
        answer["gpus"] = [_gpu(store, uuid) for uuid in ids if uuid]
        answer["answer"] = (
            _scheduled_message(store, pod) or "it was placed before its events expired"
        )
        return answer
    return {**answer, **_why_pending(store, pod)}


def _why_pending(store: Reader, pod: Pod) -> JsonObject:
    from tensorfusion.app.snapshot import engine_from, read_objects
    from tensorfusion.host import PluginHost
    from tensorfusion.model.explain import NoFit
    from tensorfusion.model.relax.answer import failures_of, relax
    from tensorfusion.scheduling.translate import demand_of

    host = PluginHost()
    host.load()
    engine = engine_from(read_objects(store), host.placement_policies())
    demand = demand_of(pod)
    found = engine.place(demand)
    changes = relax(engine, demand)
    around = engine.surroundings(demand)
    total, remaining, exclusions = engine.explain(demand.shape, around)
    answer: JsonObject = {
        "gpus": total,
        "fitting": remaining,
        "constraints": [
            {
                "constraint": e.constraint,
                "excludes": e.removed,
                "alone": e.alone,
                "what": e.phrase,
            }
            for e in exclusions
        ],
    }
    if isinstance(found, NoFit):
        answer["answer"] = found.message
        answer["quota"] = [v.message for v in found.violations]
        answer |= changes_of(changes)
        answer["nodes"] = [
            {"node": node, "gpus": gpus, "fitting": fitting, "excluded": excluded}
            for node, gpus, fitting, excluded in failures_of(engine, demand.shape).by_node(
                around.rules if around is not None else ()
            )
        ]
    else:
        answer["answer"] = f"it fits now on node {found.node}; the scheduler will bind it"
    return answer


def changes_of(answer: "Answer") -> JsonObject:
    """Print what would make a pod fit, and what would not."""
    return {
        "changes": [step_row(step) for step in answer.alone],
        "pairs": [[step_row(step) for step in pair] for pair in answer.pairs],
        "cannotHelp": [{"kind": item.kind, "because": item.reason} for item in answer.futile],
    }


def step_row(step: "Step") -> JsonObject:
    """Print one change."""
    row: JsonObject = {"kind": step.kind, "change": step.text, "node": step.node}
    if step.evict:
        row["evict"] = list(step.evict)
    if not step.exact:
        row["change"] += " (fewer may do: the search was cut short)"
    return row


def why_workload(store: Reader, name: str, namespace: str) -> JsonObject:
    """Explain a workload's size and readiness."""
    obj = store.get(registry.WORKLOADS, name, namespace)
    status = obj.get("status", {})
    conditions = status.get("conditions", [])
    ready: JsonObject = next((c for c in conditions if c["type"] == "Ready"), {})
    return {
        "workload": f"{namespace}/{name}",
        "answer": f"{ready.get('reason', 'Unknown')}: {ready.get('message', 'not observed yet')}",
        "asked": obj.get("spec", {}).get("resources", {}),
        "has": status.get("currentResources", {}),
        "recommendation": status.get("recommendation", {}),
        "enforcement": status.get("enforcement", ""),
        "conditions": [
            {k: c.get(k, "") for k in ("type", "status", "reason", "message")} for c in conditions
        ],
        "events": [list(row) for row in event_rows(_events(store, obj, namespace))],
    }


def why_gpu(store: Reader, name: str, namespace: str) -> JsonObject:
    """Tell who holds what of a GPU."""
    del namespace  # GPUs are cluster-scoped
    obj = store.get(registry.GPUS, name)
    status = obj.get("status", {})
    held = [
        {
            "pod": f"{pod['namespace']}/{pod['name']}",
            "workload": app.get("name", ""),
            "qos": pod.get("qos", ""),
            "requests": pod.get("requests", {}),
            "limits": pod.get("limits", {}),
        }
        for app in status.get("runningApps", [])
        for pod in app.get("pods", [])
    ]
    return {
        "gpu": name,
        "answer": f"{status.get('phase', 'Unknown')}: {status.get('message', '')}",
        "model": status.get("gpuModel", ""),
        "capacity": status.get("capacity", {}),
        "available": status.get("available", {}),
        "held": held,
    }


def asks(pod: Pod) -> dict[str, str]:
    """What the pod asks for, by the names of the annotations."""
    keys = (
        names.TFLOPS_REQUEST, names.TFLOPS_LIMIT, names.COMPUTE_PERCENT_REQUEST,
        names.COMPUTE_PERCENT_LIMIT, names.VRAM_REQUEST, names.VRAM_LIMIT, names.GPU_COUNT,
        names.GPU_MODEL, names.VENDOR, names.ISOLATION, names.QOS,
    )  # fmt: skip
    annotations = pod.metadata.annotations
    found = {k.removeprefix(names.PREFIX): annotations[k] for k in keys if k in annotations}
    return {"pool": pod.metadata.labels.get(names.GPU_POOL, ""), **found}


def _gpu(store: Reader, uuid: str) -> dict[str, Any]:
    status = store.get(registry.GPUS, uuid).get("status", {})
    others = sum(app.get("count", 0) for app in status.get("runningApps", []))
    return {"gpu": uuid, "model": status.get("gpuModel", ""), "workers": others}


def _events(store: Reader, obj: JsonObject, namespace: str) -> list[JsonObject]:
    selector = f"involvedObject.uid={obj['metadata']['uid']}"
    return store.list(registry.EVENTS, namespace, field_selector=selector).items


def _scheduled_message(store: Reader, pod: Pod) -> str:
    selector = f"involvedObject.uid={pod.metadata.uid},reason=Scheduled"
    found = store.list(registry.EVENTS, pod.metadata.namespace, field_selector=selector).items
    return str(found[-1]["message"]) if found else ""


def to_text(answer: JsonObject, *, wide: bool = False) -> list[str]:
    """Print an answer for a person.

    Args:
        answer: The answer.
        wide: With what only some people want to read: nodes, and what cannot help.
    """
    kind = next(iter(answer))
    lines = [f"{kind} {answer[kind]}: {answer.get('answer', '')}"]
    for key, value in answer.items():
        if key in (kind, "answer") or not value or (key in WIDE and not wide):
            continue
        if key == "changes":
            lines.append("it would fit if you:")
            lines += [f"  {row['change']}" for row in value]
        elif key == "pairs":
            lines.append("no single change makes it fit; two together do:")
            lines += [f"  {', and '.join(row['change'] for row in pair)}" for pair in value]
        elif isinstance(value, list) and isinstance(value[0], dict):
            lines.append(f"{HEADINGS.get(key, key)}:")
            headings = [h.upper() for h in value[0]]
            rows = [[_flat(cell) for cell in row.values()] for row in value]
            lines += [f"  {line}" for line in format_table(headings, rows)]
        elif isinstance(value, list):
            lines.append(f"{key}:")
            lines += [f"  {_flat(item)}" for item in value]
        else:
            lines.append(f"{key}: {_flat(value)}")
    return lines


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "  ".join(str(v) for v in value)
    return str(value)
