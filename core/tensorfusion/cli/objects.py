"""``apply``, ``get``, ``describe``, ``delete``: conveniences over the Kubernetes wire."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from tensorfusion.api import registry
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.table import cell_text, table_columns, table_row
from tensorfusion.cli.options import namespace_option, output_option, server_options
from tensorfusion.cli.printing import dump_yaml, format_table, print_data, print_table
from tensorfusion.clock import SystemClock
from tensorfusion.errors import ConfigError, NotFound
from tensorfusion.kube import HttpStore
from tensorfusion.store.interface import EventType, PatchType

MANAGER = "tensorfusion-cli"
CLOCK = SystemClock()
GONE_SECONDS = 60.0


def read_documents(path: str) -> list[tuple[str, JsonObject]]:
    """Read the YAML or JSON documents of a file, a folder or ``-``; lists are taken apart.

    Returns:
        Where each came from, and the document.

    Raises:
        ConfigError: The file is missing or cannot be read; names the line.
    """
    if path == "-":
        sources = [("stdin", sys.stdin.read())]
    else:
        root = Path(path)
        if not root.exists():
            raise ConfigError(f"{path}: no such file or folder")
        files = (
            sorted(root.glob("*.y*ml")) + sorted(root.glob("*.json")) if root.is_dir() else [root]
        )
        if not files:
            raise ConfigError(f"{path}: the folder has no .yaml, .yml or .json file")
        try:
            sources = [(str(file), file.read_text()) for file in files]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
    return [(name, doc) for name, text in sources for doc in _documents(name, text)]


def _documents(name: str, text: str) -> Iterator[JsonObject]:
    try:
        loaded = [doc for doc in yaml.safe_load_all(text) if doc is not None]
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{name}:{where} is not YAML: {problem}") from error
    for doc in loaded:
        if not isinstance(doc, dict) or "kind" not in doc or "apiVersion" not in doc:
            raise ConfigError(f"{name}: expected an object with apiVersion and kind")
        if str(doc["kind"]).endswith("List") and isinstance(doc.get("items"), list):
            yield from doc["items"]
        else:
            yield doc


def resource_of(name: str, doc: JsonObject) -> Resource:
    """Find the kind of a document.

    Raises:
        ConfigError: It is not served here.
    """
    try:
        return registry.by_kind(str(doc["apiVersion"]), str(doc["kind"]))
    except NotFound as error:
        raise ConfigError(f"{name}: {error}") from error


@click.command()
@click.option("-f", "--filename", required=True, help="File, folder, or - for stdin.")
@click.option("--dry-run", is_flag=True, help="Validate on the server, store nothing.")
@namespace_option
@server_options
def apply(store: HttpStore, filename: str, dry_run: bool, namespace: str) -> None:
    """Create or update objects from a file (server-side apply).

    \b
    Example:
      tensorfusion apply -f examples/deployment.yaml
    """  # noqa: D301
    for name, doc in read_documents(filename):
        click.echo(apply_one(store, name, doc, namespace, dry_run=dry_run))


def apply_one(
    store: HttpStore, name: str, doc: JsonObject, namespace: str, *, dry_run: bool = False
) -> str:
    """Apply one document; returns the line to print."""
    resource = resource_of(name, doc)
    metadata = doc.get("metadata") or {}
    if not metadata.get("name"):
        raise ConfigError(f"{name}: {doc['kind']} has no metadata.name")
    where = (metadata.get("namespace") or namespace) if resource.namespaced else ""
    try:
        before = store.get(resource, metadata["name"], where)["metadata"]["resourceVersion"]
    except NotFound:
        before = ""
    after = store.patch(
        resource,
        metadata["name"],
        doc,
        where,
        patch_type=PatchType.APPLY,
        field_manager=MANAGER,
        force=True,
        dry_run=dry_run,
        field_validation="Strict",
    )
    version = after["metadata"].get("resourceVersion", "")
    verb = "created" if not before else ("unchanged" if version == before else "configured")
    suffix = " (dry run)" if dry_run else ""
    return f"{resource.singular}/{metadata['name']} {verb}{suffix}"


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="List across namespaces.")
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("-w", "--watch", is_flag=True, help="Go on with changes.")
@namespace_option
@output_option("table", "wide", "yaml", "json")
@server_options
def get(
    store: HttpStore,
    kind: str,
    name: str | None,
    all_namespaces: bool,
    selector: str,
    watch: bool,
    namespace: str,
    output: str,
) -> None:
    """List objects of KIND, or show one by NAME.

    \b
    Example:
      tensorfusion get gpus -o wide
      tensorfusion get tensorfusionworkloads -A -w
    """  # noqa: D301
    resource = registry.lookup(kind)
    where = "" if all_namespaces or not resource.namespaced else namespace
    if name:
        items, version = [store.get(resource, name, where)], ""
    else:
        page = store.list(resource, where, label_selector=selector)
        items, version = page.items, page.resource_version
    if output in ("yaml", "json"):
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
        print_data(items[0] if name else listed, output)
        return
    wide = output == "wide"
    if items or watch:
        print_table(*table(resource, items, wide=wide, namespaced=all_namespaces))
    else:
        click.echo(f"no {resource.plural} found" + (f" in namespace {where}" if where else ""))
    if watch:
        follow(store, resource, where, selector, version, wide)


def table(
    resource: Resource, items: list[JsonObject], *, wide: bool, namespaced: bool
) -> tuple[list[str], list[list[Any]]]:
    """Return headings and rows of a listing."""
    columns = table_columns(resource)
    shown = [i for i, c in enumerate(columns) if wide or not c.priority]
    headings = [columns[i].name.upper() for i in shown]
    now = CLOCK.now()
    rows = []
    for item in items:
        cells = table_row(resource, item, now)
        row = [cell_text(cells[i]) for i in shown]
        rows.append([item["metadata"].get("namespace", ""), *row] if namespaced else row)
    return (["NAMESPACE", *headings] if namespaced else headings), rows


def follow(
    store: HttpStore, resource: Resource, namespace: str, selector: str, version: str, wide: bool
) -> None:
    """Print a row per change until interrupted."""
    watch = store.watch(
        resource, namespace, resource_version=version, label_selector=selector, bookmarks=True
    )
    for event in watch:
        if event.type in (EventType.BOOKMARK, EventType.ERROR):
            continue
        _, rows = table(resource, [event.object], wide=wide, namespaced=False)
        click.echo("   ".join(str(c) for c in [event.type.value, *rows[0]]))


@click.command()
@click.argument("kind")
@click.argument("name")
@namespace_option
@server_options
def describe(store: HttpStore, kind: str, name: str, namespace: str) -> None:
    """Show one object with its events.

    \b
    Example:
      tensorfusion describe gpupool tensor-fusion-shared
    """  # noqa: D301
    resource = registry.lookup(kind)
    where = namespace if resource.namespaced else ""
    obj = store.get(resource, name, where)
    metadata = dict(obj["metadata"])
    metadata.pop("managedFields", None)
    click.echo(dump_yaml({**obj, "metadata": metadata}), nl=False)
    selector = f"involvedObject.uid={obj['metadata']['uid']}"
    found = store.list(registry.EVENTS, where or "default", field_selector=selector).items
    click.echo("events:" if found else "events: none")
    for line in format_table(("TYPE", "REASON", "COUNT", "MESSAGE"), event_rows(found)):
        if found:
            click.echo(f"  {line}")


def event_rows(events: list[JsonObject]) -> list[tuple[Any, ...]]:
    """Return rows of events, oldest first."""
    ordered = sorted(events, key=lambda e: (e.get("lastTimestamp") or "", e.get("eventTime") or ""))
    return [(e.get("type"), e.get("reason"), e.get("count", 1), e.get("message")) for e in ordered]


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@click.option("-f", "--filename", default="", help="Delete what a file or folder names.")
@click.option("--wait/--no-wait", default=True, help="Return when the objects are gone.")
@namespace_option
@server_options
def delete(
    store: HttpStore, kind: str | None, name: str | None, filename: str, wait: bool, namespace: str
) -> None:
    """Delete an object by KIND and NAME, or the objects of a file.

    \b
    Example:
      tensorfusion delete deployment pytorch-example
    """  # noqa: D301
    targets: list[tuple[Resource, str, str]] = []
    if filename:
        for source, doc in read_documents(filename):
            resource = resource_of(source, doc)
            where = doc["metadata"].get("namespace") or namespace
            targets.append((resource, doc["metadata"]["name"], where))
    elif kind and name:
        targets.append((registry.lookup(kind), name, namespace))
    else:
        raise click.UsageError("name a kind and an object, or a file with -f")
    for resource, found, where in targets:
        place = where if resource.namespaced else ""
        store.delete(resource, found, place)
        if wait:
            _wait_gone(store, resource, found, place)
        click.echo(f"{resource.singular}/{found} deleted")


def _wait_gone(store: HttpStore, resource: Resource, name: str, namespace: str) -> None:
    never = threading.Event()
    deadline = CLOCK.monotonic() + GONE_SECONDS
    while CLOCK.monotonic() < deadline:
        try:
            store.get(resource, name, namespace)
        except NotFound:
            return
        CLOCK.wait(never, 0.1)
    raise ConfigError(
        f"{resource.singular}/{name} is still there after {GONE_SECONDS:.0f} s;"
        " it waits for its finalizers"
    )
