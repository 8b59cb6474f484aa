"""The core kinds have every field of the newest upstream schemas that the test package carries."""

import json
import re
from importlib import resources
from typing import Any

import pytest

from tensorfusion.api.core.volume import Volume
from tensorfusion.api.registry import CORE_RESOURCES
from tensorfusion.api.schema import component_schemas

# Sources of retired or vendor-specific storage, which are kept as they are.
OPAQUE_VOLUME_SOURCES = {
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "fc", "flexVolume",
    "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "iscsi", "photonPersistentDisk",
    "portworxVolume", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume",
}  # fmt: skip


def upstream() -> dict[str, Any]:
    root = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    versions = [
        (tuple(map(int, match.groups())), entry)
        for entry in root.iterdir()
        if (match := re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)-local", entry.name))
    ]
    _, newest = max(versions, key=lambda item: item[0])
    document = json.loads((newest / "_definitions.json").read_text(encoding="utf-8"))
    return document.get("$defs") or document["definitions"]


DEFINITIONS = upstream()


def upstream_name(resource) -> str:
    area = resource.group.split(".")[0] or "core"
    return f"io.k8s.api.{area}.{resource.version}.{resource.kind}"


def reference_of(schema):
    """The definition a property refers to, through lists and maps."""
    while True:
        if "$ref" in schema:
            return schema["$ref"].rsplit("/", 1)[-1]
        if schema.get("allOf"):
            schema = schema["allOf"][0]
        elif isinstance(schema.get("items"), dict):
            schema = schema["items"]
        elif isinstance(schema.get("additionalProperties"), dict):
            schema = schema["additionalProperties"]
        else:
            return ""


def missing_fields(ours, theirs, components, path, seen):
    """Fields upstream has and we have not, and kinds of value that differ."""
    if (ours, theirs) in seen:
        return
    seen.add((ours, theirs))
    have = components[ours].get("properties", {})
    for name, schema in DEFINITIONS[theirs].get("properties", {}).items():
        where = f"{path}.{name}"
        if name not in have:
            yield where
            continue
        if theirs.endswith(".Volume") and name in OPAQUE_VOLUME_SOURCES:
            continue
        target = reference_of(schema)
        if target and DEFINITIONS[target].get("properties"):
            own = reference_of(have[name])
            if not own:
                yield f"{where} (opaque)"
                continue
            yield from missing_fields(own, target, components, where, seen)
        wanted = schema.get("type")
        for kind in ("array", "boolean", "integer", "string"):
            if wanted and kind in wanted and have[name].get("type", kind) != kind:
                yield f"{where} (is {have[name]['type']}, not {kind})"


@pytest.mark.parametrize("resource", CORE_RESOURCES, ids=lambda item: item.kind)
def test_core_kind_has_every_upstream_field(resource):
    components: dict[str, Any] = {}
    name = component_schemas(resource.struct, components)
    assert (
        list(missing_fields(name, upstream_name(resource), components, resource.kind, set())) == []
    )


@pytest.mark.parametrize("resource", CORE_RESOURCES, ids=lambda item: item.kind)
def test_component_names_are_upstreams(resource):
    components: dict[str, Any] = {}
    component_schemas(resource.struct, components)
    assert set(components) <= set(DEFINITIONS)


def test_opaque_volume_sources_are_listed():
    components: dict[str, Any] = {}
    properties = components | {}
    name = component_schemas(Volume, components)
    properties = components[name]["properties"]
    opaque = {
        key
        for key, value in properties.items()
        if value.get("x-kubernetes-preserve-unknown-fields")
    }
    assert opaque == OPAQUE_VOLUME_SOURCES
