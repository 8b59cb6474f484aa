"""`tensorfusion render`: what admission would make of a file, without a server."""

import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from tensorfusion.admission import Admitted, Migration, Refused, admit_pod
from tensorfusion.api import registry
from tensorfusion.api.resource import JsonObject
from tensorfusion.app.admission_context import ContextBuilder
from tensorfusion.app.admission_offline import offline_contexts, stand_in
from tensorfusion.cli.printing import dump_yaml
from tensorfusion.errors import ApiError, ConfigError, NotFound
from tensorfusion.names import ENABLED_REPLICAS

REFUSED, BAD_INPUT = 1, 2
TEMPLATES = {
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}
"""Kinds that make pods, and where their template is."""
EXAMPLE = """\b
Examples:
  tensorfusion render -f deployment.yaml
  tensorfusion render -f deployment.yaml -o diff
  kubectl get gpupools,providerconfigs,workloadprofiles -A -o yaml > cluster.yaml
  tensorfusion render -f deployment.yaml --cluster cluster.yaml -o json
"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One workload of the file and what became of it."""

    before: JsonObject
    admitted: Admitted | None
    refusal: Refused | None

    def report(self) -> JsonObject:
        """The result as data."""
        error = None
        if self.refusal is not None:
            refusal = self.refusal
            error = {
                "field": refusal.field,
                "value": refusal.value,
                "allowed": refusal.allowed,
                "message": str(refusal),
            }
        admitted = self.admitted
        return {
            "allowed": admitted is not None,
            "pod": admitted.pod if admitted is not None else None,
            "workload": admitted.workload if admitted is not None else None,
            "warnings": list(admitted.warnings) if admitted is not None else [],
            "error": error,
        }


@click.command(epilog=EXAMPLE)
@click.option(
    "-f",
    "--filename",
    "path",
    required=True,
    metavar="FILE",
    help="Manifests to render, YAML or JSON; - reads standard input.",
)
@click.option(
    "--cluster",
    "snapshot",
    metavar="SNAPSHOT",
    help="Objects of a cluster as `kubectl get ... -o yaml` prints them; a default pool"
    " stands in without one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json", "diff"]),
    default="yaml",
    show_default=True,
    help="Pod and workload, a report, or what changes on the pod.",
)
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="For objects without one."
)
@click.option("--inject", is_flag=True, help="Show what is put into containers on Kubernetes, too.")
@click.option(
    "--auto-migrate", is_flag=True, help="Take over pods that ask for GPUs the native way."
)
def render(
    path: str, snapshot: str | None, output: str, namespace: str, inject: bool, auto_migrate: bool
) -> None:
    """Show offline what admission would make of a file.

    Workloads of the file are rendered; profiles, quotas, pools and namespaces in it count as
    existing. Exits with 1 when a workload is refused, with 2 when the input cannot be read.
    """
    try:
        documents = read_objects(path, namespace)
        known = read_objects(snapshot, namespace, snapshot=True) if snapshot else []
        results = render_all(documents, known, inject=inject, auto_migrate=auto_migrate)
    except (ConfigError, ApiError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(BAD_INPUT)
    show(results, output)
    if any(result.refusal is not None for result in results):
        sys.exit(REFUSED)


def render_all(
    documents: list[JsonObject], known: list[JsonObject], *, inject: bool, auto_migrate: bool
) -> list[Rendered]:
    """Render every workload among the documents.

    Raises:
        ConfigError: There is none.
        ApiError: An object cannot be read.
    """
    workloads = [obj for obj in documents if obj["kind"] in TEMPLATES]
    if not workloads:
        raise ConfigError(f"nothing to render: no object is one of {', '.join(TEMPLATES)}")
    others = [obj for obj in documents if obj["kind"] not in TEMPLATES]
    has_pool = any(obj["kind"] == "GPUPool" for obj in (*known, *others))
    objects = [*([] if has_pool else stand_in()), *known, *others]
    contexts = offline_contexts(objects, migration=Migration(enable=auto_migrate), inject=inject)
    return [render_one(obj, contexts) for obj in workloads]


def render_one(obj: JsonObject, contexts: ContextBuilder) -> Rendered:
    """Render one object that is a pod or makes pods.

    Raises:
        ConfigError: It has no pod template.
    """
    kind, metadata = obj["kind"], obj["metadata"]
    group = obj["apiVersion"].rpartition("/")[0]
    path = TEMPLATES[kind]
    pod, replicas = pod_of(obj), 1
    if path:
        spec = obj["spec"]
        given = spec.get("replicas", spec.get("parallelism", 1))
        replicas = given if type(given) is int else 1
        annotations = pod["metadata"].get("annotations")
        canary = annotations.get(ENABLED_REPLICAS) if isinstance(annotations, dict) else None
        if isinstance(canary, str) and canary.isascii() and canary.isdigit():
            replicas = min(replicas, int(canary))
    owner = {
        "apiVersion": obj["apiVersion"],
        "kind": kind,
        "name": metadata["name"],
        "controller": True,
    }
    asked = pod
    if path:
        asked = {**pod, "metadata": {**pod["metadata"], "ownerReferences": [owner]}}
    context = contexts.build(
        metadata["namespace"],
        replicas=replicas,
        freed_workload=metadata["name"] if path else "",
        owner=obj if path else None,
    )
    try:
        admitted = admit_pod(asked, context)
    except Refused as refusal:
        prefix = "".join(f"{part}." for part in path)
        about = refusal.about(kind, metadata["name"], group=group, prefix=prefix)
        return Rendered(pod, None, about)
    if not path:
        return Rendered(pod, admitted, None)
    # The stand-in owner only told the workload's name.
    bare = {k: v for k, v in admitted.pod["metadata"].items() if k != "ownerReferences"}
    result = Admitted(
        pod={**admitted.pod, "metadata": bare},
        workload=admitted.workload,
        warnings=admitted.warnings,
        enabled=admitted.enabled,
        resolved=admitted.resolved,
    )
    return Rendered(pod, result, None)


def pod_of(obj: JsonObject) -> JsonObject:
    """The pod that an object is or makes, as admission would get it.

    Raises:
        ConfigError: It has no pod template.
    """
    kind, metadata = obj["kind"], obj["metadata"]
    path = TEMPLATES[kind]
    if not path:
        return obj
    template: Any = obj
    for part in path:
        template = template.get(part) if isinstance(template, dict) else None
    if not isinstance(template, dict):
        raise ConfigError(f"{kind} {metadata['name']}: {'.'.join(path)} must be a pod template")
    inner = template.get("metadata")
    pod: JsonObject = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            **(inner if isinstance(inner, dict) else {}),
        },
        "spec": template.get("spec") or {},
    }
    return pod


def read_objects(path: str, namespace: str, *, snapshot: bool = False) -> list[JsonObject]:
    """Read the objects of a file, lists taken apart.

    Args:
        path: The file; ``-`` is standard input.
        namespace: For namespaced objects that name none.
        snapshot: Skip kinds that admission does not look at instead of refusing them.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds something else than objects.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        documents = list(yaml.safe_load_all(text))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text: {error.reason}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    found: list[JsonObject] = []
    for position, document in enumerate(documents, 1):
        if document is None:
            continue
        # Dates become text, as they are on the wire.
        plain = json.loads(json.dumps(document, default=str))
        items = plain.get("items") if _is_list(plain) else [plain]
        for item in items if isinstance(items, list) else []:
            obj = _object(item, f"{path}: document {position}", namespace, snapshot)
            if obj is not None:
                found.append(obj)
    return found


def _is_list(document: Any) -> bool:
    return isinstance(document, dict) and str(document.get("kind", "")).endswith("List")


def _object(item: Any, where: str, namespace: str, snapshot: bool) -> JsonObject | None:
    if not isinstance(item, dict):
        raise ConfigError(f"{where} must be an object, got {type(item).__name__}")
    kind, version = item.get("kind"), item.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        raise ConfigError(f"{where} must have apiVersion and kind")
    metadata = item.get("metadata") or {}
    if not isinstance(metadata, dict) or not isinstance(item.get("spec") or {}, dict):
        raise ConfigError(f"{where}: metadata and spec of a {kind} must be objects")
    namespaced = True
    if snapshot or kind not in TEMPLATES:
        try:
            namespaced = registry.by_kind(version, kind).namespaced
        except NotFound as error:
            if snapshot:
                return None
            raise ConfigError(f"{where}: {error}") from error
    name = metadata.get("name") or metadata.get("generateName")
    if not isinstance(name, str) and kind not in TEMPLATES:
        raise ConfigError(f"{where}: metadata.name of a {kind} must be a name")
    metadata = {**metadata, "name": name if isinstance(name, str) else "example"}
    if namespaced:
        metadata["namespace"] = str(metadata.get("namespace") or namespace)
    return {**item, "metadata": metadata}


def show(results: list[Rendered], output: str) -> None:
    """Print results; refusals and warnings go to standard error unless the output has them."""
    if output == "json":
        reports = [result.report() for result in results]
        click.echo(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2))
        return
    documents: list[JsonObject] = []
    for result in results:
        if result.refusal is not None:
            click.echo(f"refused: {result.refusal}", err=True)
        if result.admitted is None:
            continue
        for warning in result.admitted.warnings:
            click.echo(f"Warning: {warning}", err=True)
        if output == "diff":
            click.echo(difference(result.before, result.admitted.pod), nl=False)
        else:
            documents.append(result.admitted.pod)
            if result.admitted.workload is not None:
                documents.append(result.admitted.workload)
    if documents:
        click.echo("---\n".join(dump_yaml(document) for document in documents), nl=False)


def difference(before: JsonObject, after: JsonObject) -> str:
    """A unified diff of two pods as YAML with sorted keys, so that only content differs."""
    old, new = (
        yaml.safe_dump(pod, sort_keys=True, default_flow_style=False, width=100).splitlines(True)
        for pod in (before, after)
    )
    return "".join(difflib.unified_diff(old, new, "pod", "pod, admitted"))
