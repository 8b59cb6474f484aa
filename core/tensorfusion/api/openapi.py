"""OpenAPI v3 documents per group version: what ``kubectl explain``, ``apply`` and ``diff`` read."""

from functools import cache
from typing import Final

from tensorfusion.api.fields import Wire
from tensorfusion.api.meta import ListMeta
from tensorfusion.api.registry import RESOURCES
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.schema import component_name, component_schemas
from tensorfusion.errors import NotFound

_GVK: Final = "x-kubernetes-group-version-kind"
_LIST_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
_PATCH_TYPES: Final = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
_QUERY: Final = {
    "pretty": ("string", "Print the answer with indentation when true."),
    "dryRun": ("string", "All: go through every check and store nothing."),
    "fieldManager": ("string", "Who makes the change."),
    "fieldValidation": ("string", "What to do about unknown fields: Ignore, Warn or Strict."),
    "force": ("boolean", "Take over fields of other managers (apply only)."),
    "labelSelector": ("string", "Only objects with matching labels."),
    "fieldSelector": ("string", "Only objects with matching fields."),
    "limit": ("integer", "Most items of one answer."),
    "continue": ("string", "Where the next page begins."),
    "watch": ("boolean", "Stream changes instead of a list."),
    "resourceVersion": ("string", "Version to start from."),
    "allowWatchBookmarks": ("boolean", "Send progress marks in a watch."),
    "timeoutSeconds": ("integer", "Longest duration of the call."),
    "propagationPolicy": ("string", "What happens to dependents."),
    "gracePeriodSeconds": ("integer", "Seconds to stop gracefully."),
}
_LIST_QUERY: Final = (
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "timeoutSeconds",
    "watch",
)
_WRITE_QUERY: Final = ("dryRun", "fieldManager", "fieldValidation")


def group_versions() -> tuple[str, ...]:
    """The group versions that have a document, as paths: ``api/v1``, ``apis/apps/v1``."""
    return tuple(dict.fromkeys(_path_of(resource) for resource in RESOURCES))


def _path_of(resource: Resource) -> str:
    return f"{'apis' if resource.group else 'api'}/{resource.api_version}"


@cache
def document(group_version: str) -> JsonObject:
    """The OpenAPI document of a group version. Shared between callers: never change it.

    Args:
        group_version: As `group_versions` spells it.

    Raises:
        NotFound: Nothing is served there.
    """
    resources = [item for item in RESOURCES if _path_of(item) == group_version]
    if not resources:
        raise NotFound(f"there is no OpenAPI document for {group_version!r}")
    components: JsonObject = {}
    paths: JsonObject = {}
    for resource in resources:
        _add_components(resource, components)
        _add_paths(resource, paths)
    return {
        "openapi": "3.0.0",
        "info": {"title": "TensorFusion", "version": "v1"},
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def _gvk(resource: Resource, kind: str = "") -> JsonObject:
    return {
        "group": resource.group,
        "kind": kind or resource.kind,
        "version": resource.version,
    }


def _struct(resource: Resource) -> type[Wire]:
    if not issubclass(resource.struct, Wire):
        raise TypeError(f"{resource!r} has no schema: its struct is no Wire")
    return resource.struct


def _add_components(resource: Resource, components: JsonObject) -> None:
    name = component_schemas(_struct(resource), components)
    components[name][_GVK] = [_gvk(resource)]
    component_schemas(ListMeta, components)
    components[f"{name}List"] = {
        "type": "object",
        "description": f"A list of {resource.kind} objects.",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Group and version of the list."},
            "kind": {"type": "string", "description": "Name of the list kind."},
            "metadata": {"allOf": [{"$ref": f"#/components/schemas/{_LIST_META}"}]},
            "items": {
                "type": "array",
                "items": {"allOf": [{"$ref": f"#/components/schemas/{name}"}]},
            },
        },
        _GVK: [_gvk(resource, f"{resource.kind}List")],
    }


def _parameters(names: tuple[str, ...]) -> list[JsonObject]:
    return [
        {
            "name": name,
            "in": "query",
            "description": _QUERY[name][1],
            "schema": {"type": _QUERY[name][0], "uniqueItems": True},
        }
        for name in names
    ]


def _operation(
    resource: Resource, action: str, *, query: tuple[str, ...] = (), reads: bool = False
) -> JsonObject:
    name = component_name(_struct(resource)) + ("List" if action == "list" else "")
    schema = {"$ref": f"#/components/schemas/{name}"}
    operation: JsonObject = {
        "tags": [resource.qualified],
        "description": f"{action} {resource.kind}",
        "operationId": f"{action}{resource.kind}{resource.version}",
        "parameters": _parameters(query),
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": schema}}}
        },
        "x-kubernetes-action": action,
        _GVK: _gvk(resource),
    }
    if reads:
        types = _PATCH_TYPES if action == "patch" else ("application/json",)
        body = {"type": "object"} if action == "patch" else schema
        operation["requestBody"] = {"content": {kind: {"schema": body} for kind in types}}
    return operation


def _path_parameter(name: str, description: str) -> JsonObject:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "uniqueItems": True},
    }


def _add_paths(resource: Resource, paths: JsonObject) -> None:
    root = "/" + _path_of(resource)
    common: list[JsonObject] = []
    if resource.namespaced:
        paths[f"{root}/{resource.plural}"] = {
            "get": _operation(resource, "list", query=_LIST_QUERY)
        }
        root += "/namespaces/{namespace}"
        common.append(_path_parameter("namespace", "Namespace of the object."))
    collection = f"{root}/{resource.plural}"
    paths[collection] = {
        "get": _operation(resource, "list", query=_LIST_QUERY),
        "post": _operation(resource, "post", query=_WRITE_QUERY, reads=True),
        "delete": _operation(resource, "deletecollection", query=(*_LIST_QUERY, "dryRun")),
        "parameters": common,
    }
    item = {
        "get": _operation(resource, "get"),
        "put": _operation(resource, "put", query=_WRITE_QUERY, reads=True),
        "patch": _operation(resource, "patch", query=(*_WRITE_QUERY, "force"), reads=True),
        "delete": _operation(
            resource, "delete", query=("dryRun", "gracePeriodSeconds", "propagationPolicy")
        ),
        "parameters": [*common, _path_parameter("name", "Name of the object.")],
    }
    paths[collection + "/{name}"] = item
    if resource.has_status:
        paths[collection + "/{name}/status"] = {
            key: value for key, value in item.items() if key != "delete"
        }
