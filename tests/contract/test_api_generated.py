"""Generated files are what the structs say, and what servers and kubectl need."""

from pathlib import Path

import pytest
import yaml

import tensorfusion
from tensorfusion.api.crd import crd, crd_files, write_or_check
from tensorfusion.api.openapi import document, group_versions
from tensorfusion.api.reference import reference_files
from tensorfusion.api.registry import CUSTOM_RESOURCES, RESOURCES

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = Path(tensorfusion.__file__).parent / "deploy" / "crds"


def test_committed_crds_are_up_to_date():
    changed = write_or_check(crd_files(), CRDS, check=True, pattern="*.yaml")
    assert changed == [], "run: python -m tensorfusion.api.crd core/tensorfusion/deploy/crds"


def test_committed_reference_pages_are_up_to_date():
    folder = REPOSITORY / "docs" / "reference" / "generated"
    changed = write_or_check(reference_files(), folder, check=True, pattern="crd-*.md")
    assert changed == [], "run: python -m tensorfusion.api.reference docs/reference/generated"


def test_check_reports_and_writing_repairs(tmp_path):
    files = {"a.yaml": "a\n", "b.yaml": "b\n"}
    (tmp_path / "b.yaml").write_text("old")
    (tmp_path / "gone.yaml").write_text("x")
    expected = ["a.yaml", "b.yaml", "gone.yaml"]
    assert write_or_check(files, tmp_path, check=True, pattern="*.yaml") == expected
    assert write_or_check(files, tmp_path, check=False, pattern="*.yaml") == expected
    assert write_or_check(files, tmp_path, check=True, pattern="*.yaml") == []


def nodes(schema, path=""):
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("resource", CUSTOM_RESOURCES, ids=lambda item: item.kind)
def test_crd_schema_is_structural(resource):
    root = crd(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, schema in nodes(root):
        open_ended = schema.get("x-kubernetes-int-or-string") or schema.get(
            "x-kubernetes-preserve-unknown-fields"
        )
        assert "type" in schema or open_ended, path
        assert "$ref" not in schema, path
        assert not {"x-form", "x-added", "x-kubernetes-patch-merge-key"} & schema.keys(), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            assert (
                key in schema["items"]["required"]
                or "default" in schema["items"]["properties"][key]
            ), path
    for name in ("apiVersion", "kind", "metadata"):
        assert "default" not in root["properties"][name]


@pytest.mark.parametrize("resource", CUSTOM_RESOURCES, ids=lambda item: item.kind)
def test_every_field_of_our_kinds_is_described(resource):
    root = crd(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    bare = [
        path
        for path, schema in nodes(root)
        if not schema.get("description") and not path.endswith("[]") and path != ".metadata"
    ]
    assert bare == []


def test_crd_files_are_yaml_with_a_header_and_without_anchors():
    for name, text in crd_files().items():
        assert text.startswith("# Generated from")
        assert "&id" not in text, name
        assert (
            yaml.safe_load(text)["metadata"]["name"]
            == name.removesuffix(".yaml") + ".tensor-fusion.ai"
        )


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


@pytest.mark.parametrize("group_version", group_versions())
def test_openapi_references_resolve(group_version):
    answer = document(group_version)
    schemas = answer["components"]["schemas"]
    for reference in references(answer):
        assert reference.removeprefix("#/components/schemas/") in schemas


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda item: item.kind)
def test_openapi_has_what_kubectl_looks_for(resource):
    root = f"{'apis' if resource.group else 'api'}/{resource.api_version}"
    answer = document(root)
    wanted = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    patches = [
        operations["patch"]
        for operations in answer["paths"].values()
        if operations.get("patch", {}).get("x-kubernetes-group-version-kind") == wanted
    ]
    assert patches
    for patch in patches:
        assert patch["x-kubernetes-action"] == "patch"
        assert {"dryRun", "fieldValidation"} <= {item["name"] for item in patch["parameters"]}
    kinds = [
        schema
        for schema in answer["components"]["schemas"].values()
        if wanted in schema.get("x-kubernetes-group-version-kind", ())
    ]
    assert len(kinds) == 1
    assert kinds[0]["description"]
    spec = kinds[0]["properties"].get("spec")
    if spec is not None:
        assert spec["description"]
