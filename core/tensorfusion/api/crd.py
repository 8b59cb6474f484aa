"""CustomResourceDefinitions, generated from the structs.

``python -m tensorfusion.api.crd DIR`` writes one YAML file per kind; with ``--check`` it only
says whether the files are up to date.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from tensorfusion.api.registry import CUSTOM_RESOURCES
from tensorfusion.api.resource import JsonObject, PrinterColumn, Resource
from tensorfusion.api.schema import published, resource_schema

COMMAND: Final = "python -m tensorfusion.api.crd core/tensorfusion/deploy/crds"
_HEADER: Final = f"# Generated from the structs in tensorfusion.api by: {COMMAND}\n"
_ONLY_BUILT_IN: Final = ("x-kubernetes-patch-merge-key", "x-kubernetes-patch-strategy")


def crd(resource: Resource) -> JsonObject:
    """The CustomResourceDefinition of a kind."""
    version: JsonObject = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in resource.columns],
        "schema": {"openAPIV3Schema": _root_schema(resource)},
    }
    if resource.has_status:
        version["subresources"] = {"status": {}}
    names: JsonObject = {
        "kind": resource.kind,
        "listKind": f"{resource.kind}List",
        "plural": resource.plural,
        "singular": resource.singular,
        "categories": list(resource.categories),
    }
    if resource.short_names:
        names["shortNames"] = list(resource.short_names)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.qualified},
        "spec": {
            "group": resource.group,
            "names": names,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [version],
        },
    }


def _column(column: PrinterColumn) -> JsonObject:
    printed: JsonObject = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.priority:
        printed["priority"] = column.priority
    if column.description:
        printed["description"] = column.description
    return printed


def _root_schema(resource: Resource) -> JsonObject:
    schema: JsonObject = _without(published(resource_schema(resource)), _ONLY_BUILT_IN)
    properties = schema["properties"]
    # The server owns these three: a CRD may neither default nor restrict them.
    properties["apiVersion"] = {"type": "string", "description": "Group and version of the kind."}
    properties["kind"] = {"type": "string", "description": "Name of the kind."}
    properties["metadata"] = {"type": "object"}
    schema.pop("required", None)
    return schema


def _without(schema: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(schema, dict):
        return {key: _without(value, keys) for key, value in schema.items() if key not in keys}
    if isinstance(schema, list):
        return [_without(value, keys) for value in schema]
    return schema


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: a reader of YAML should not have to resolve them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: JsonObject) -> str:
    """Print a document as YAML in a form that does not change between runs."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=True, width=100, allow_unicode=True)


def crd_yaml(resource: Resource) -> str:
    """The CustomResourceDefinition of a kind as a YAML file, header included."""
    return _HEADER + to_yaml(crd(resource))


def crd_files() -> dict[str, str]:
    """All generated files: name to content."""
    return {f"{resource.plural}.yaml": crd_yaml(resource) for resource in CUSTOM_RESOURCES}


def write_or_check(files: dict[str, str], folder: Path, *, check: bool, pattern: str) -> list[str]:
    """Write generated files, or find those that differ; files no longer generated count too.

    Returns:
        Names that were written or removed, or that differ.
    """
    present = {path.name for path in folder.glob(pattern)} if folder.is_dir() else set()
    stale = sorted(present - files.keys())
    changed = [
        name
        for name, text in files.items()
        if name not in present or (folder / name).read_text(encoding="utf-8") != text
    ]
    if not check:
        folder.mkdir(parents=True, exist_ok=True)
        for name in changed:
            (folder / name).write_text(files[name], encoding="utf-8")
        for name in stale:
            (folder / name).unlink()
    return changed + stale


def run_generator(
    arguments: Sequence[str], files: dict[str, str], *, pattern: str, command: str
) -> int:
    """Command line of a generator: ``[--check] DIR``.

    Returns:
        The exit code: 1 when ``--check`` found differences.
    """
    parser = argparse.ArgumentParser(description=f"Write or check generated files: {command}")
    parser.add_argument("--check", action="store_true", help="only say what differs")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    names = write_or_check(files, options.folder, check=options.check, pattern=pattern)
    if options.check and names:
        sys.stderr.write(f"out of date in {options.folder}: {', '.join(names)}; run: {command}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_generator(sys.argv[1:], crd_files(), pattern="*.yaml", command=COMMAND))
