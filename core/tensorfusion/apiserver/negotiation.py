"""In which form a client wants objects: as they are, as a ``Table``, or metadata only."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import msgspec

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.table import table_columns, table_row
from tensorfusion.errors import NotAcceptable
from tensorfusion.sqlite.records import Record

encode_json: Final = msgspec.json.Encoder().encode
Shape = Literal["object", "table", "metadata"]
_META_VERSIONS: Final = ("v1", "v1beta1")
_PLAIN: Final = frozenset(
    {"application/json", "application/*", "*/*", "application/yaml", "text/*"}
)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer.

    Attributes:
        shape: Whole objects, a table, or metadata only.
        version: Version of ``meta.k8s.io`` for the two latter.
        include: What table rows carry: ``Metadata``, ``Object`` or ``None``.
    """

    shape: Shape = "object"
    version: str = "v1"
    include: str = "Metadata"


def accepted_form(accept: str, include: str) -> Form:
    """Read an ``Accept`` header: the first entry that can be served wins.

    Raises:
        NotAcceptable: None can.
    """
    if not accept:
        return Form()
    for entry in accept.split(","):
        parts = [part.strip() for part in entry.split(";")]
        media, parameters = parts[0].lower(), dict(part.partition("=")[::2] for part in parts[1:])
        if media not in _PLAIN:
            continue
        kind = parameters.get("as", "")
        if not kind:
            return Form()
        version = parameters.get("v", "")
        if parameters.get("g") != "meta.k8s.io" or version not in _META_VERSIONS:
            continue
        if kind == "Table":
            return Form("table", version, include or "Metadata")
        if kind in ("PartialObjectMetadata", "PartialObjectMetadataList"):
            return Form("metadata", version)
    raise NotAcceptable(
        "only the following media types are accepted: application/json, "
        "application/json;as=Table;g=meta.k8s.io;v=v1, "
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    )


def wants_aggregated_discovery(accept: str) -> bool:
    """Whether the client reads the one-document form of discovery, version 2."""
    return any(
        "g=apidiscovery.k8s.io" in entry
        and "v=v2" in entry.split(";")
        and "as=APIGroupDiscoveryList" in entry
        and entry.strip().startswith("application/json")
        for entry in accept.split(",")
    )


def partial(obj: JsonObject, version: str) -> JsonObject:
    """Return the ``PartialObjectMetadata`` of an object."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj["metadata"],
    }


def table(
    resource: Resource, objects: list[JsonObject], form: Form, now: float, *, columns: bool = True
) -> JsonObject:
    """Return a ``Table`` of objects; without ``columns`` as later events of a watch have it."""
    rows = []
    for obj in objects:
        row: JsonObject = {"cells": table_row(resource, obj, now)}
        if form.include == "Object":
            row["object"] = obj
        elif form.include != "None":
            row["object"] = partial(obj, form.version)
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{form.version}",
        "metadata": {},
        "columnDefinitions": _columns(resource) if columns else None,
        "rows": rows,
    }


@cache
def _columns(resource: Resource) -> list[JsonObject]:
    return [
        {
            "name": column.name,
            "type": column.type,
            # The name column is the one clients prefix with the kind.
            "format": "name" if position == 0 else "",
            "description": column.description,
            "priority": column.priority,
        }
        for position, column in enumerate(table_columns(resource))
    ]


def render_object(resource: Resource, obj: JsonObject, form: Form, now: float) -> bytes:
    """Encode one object in the form asked for."""
    if form.shape == "table":
        document = table(resource, [obj], form, now)
        document["metadata"] = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return encode_json(document)
    if form.shape == "metadata":
        return encode_json(partial(obj, form.version))
    return encode_json(obj)


def render_record(resource: Resource, record: Record, form: Form, now: float) -> bytes:
    """Encode a stored object in the form asked for; as stored when it is the plain one."""
    if form.shape == "object":
        return record.raw
    return render_object(resource, record.obj, form, now)


def render_list(
    resource: Resource, records: list[Record], metadata: dict[str, Any], form: Form, now: float
) -> bytes:
    """Encode a list; plain objects are sent as they are stored."""
    if form.shape == "table":
        document = table(resource, [record.obj for record in records], form, now)
        document["metadata"] = metadata
        return encode_json(document)
    if form.shape == "metadata":
        return encode_json(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{form.version}",
                "metadata": metadata,
                "items": [partial(record.obj, form.version) for record in records],
            }
        )
    head = encode_json(
        {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
        }
    )
    return b'%b,"items":[%b]}' % (head[:-1], b",".join([record.raw for record in records]))
