"""Request bodies in Kubernetes' protobuf form, for what kubectl sends in no other form.

``kubectl create namespace``, ``configmap``, ``secret``, ``deployment``, ``priorityclass`` and
``kubectl auth can-i`` use typed clients that encode as protobuf and do not fall back. The tables
below name the fields these commands can set, with their numbers in the published ``.proto`` files;
a field that is not in them is refused rather than lost.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import BadRequest, UnsupportedMediaType

MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"
_MAGIC: Final = b"k8s\x00"
_MAX_DEPTH: Final = 30


@dataclass(frozen=True, slots=True)
class _Field:
    """One field: its JSON name, how its value reads, and how often it occurs.

    ``keeps_zero`` marks optional scalars, whose zero is a value and not an absence.
    """

    name: str
    kind: "str | Mapping[int, _Field]" = "text"
    repeated: bool = False
    is_map: bool = False
    keeps_zero: bool = False


_Message = Mapping[int, _Field]
_IGNORED: Final = _Field("", "ignored")
_METADATA: Final[_Message] = {
    1: _Field("name"),
    2: _Field("generateName"),
    3: _Field("namespace"),
    4: _IGNORED,
    5: _Field("uid"),
    6: _Field("resourceVersion"),
    7: _IGNORED,
    8: _IGNORED,
    11: _Field("labels", is_map=True),
    12: _Field("annotations", is_map=True),
    14: _Field("finalizers", repeated=True),
}
_SELECTOR: Final[_Message] = {1: _Field("matchLabels", is_map=True)}
_PORT: Final[_Message] = {
    1: _Field("name"),
    2: _Field("hostPort", "integer"),
    3: _Field("containerPort", "integer"),
    4: _Field("protocol"),
    5: _Field("hostIP"),
}
_ENV: Final[_Message] = {1: _Field("name"), 2: _Field("value")}
_CONTAINER: Final[_Message] = {
    1: _Field("name"),
    2: _Field("image"),
    3: _Field("command", repeated=True),
    4: _Field("args", repeated=True),
    5: _Field("workingDir"),
    6: _Field("ports", _PORT, repeated=True),
    7: _Field("env", _ENV, repeated=True),
    8: _Field("resources", {}),
    13: _Field("terminationMessagePath"),
    14: _Field("imagePullPolicy"),
    16: _Field("stdin", "boolean"),
    17: _Field("stdinOnce", "boolean"),
    18: _Field("tty", "boolean"),
    20: _Field("terminationMessagePolicy"),
}
_POD_SPEC: Final[_Message] = {
    2: _Field("containers", _CONTAINER, repeated=True),
    3: _Field("restartPolicy"),
    6: _Field("dnsPolicy"),
    7: _Field("nodeSelector", is_map=True),
    8: _Field("serviceAccountName"),
    9: _Field("serviceAccount"),
    10: _Field("nodeName"),
    11: _Field("hostNetwork", "boolean"),
    12: _Field("hostPID", "boolean"),
    13: _Field("hostIPC", "boolean"),
    16: _Field("hostname"),
    17: _Field("subdomain"),
    19: _Field("schedulerName"),
    24: _Field("priorityClassName"),
}
_TEMPLATE: Final[_Message] = {1: _Field("metadata", _METADATA), 2: _Field("spec", _POD_SPEC)}
_DEPLOYMENT_SPEC: Final[_Message] = {
    1: _Field("replicas", "integer", keeps_zero=True),
    2: _Field("selector", _SELECTOR),
    3: _Field("template", _TEMPLATE),
    4: _Field("strategy", {1: _Field("type")}),
    5: _Field("minReadySeconds", "integer"),
    6: _Field("revisionHistoryLimit", "integer", keeps_zero=True),
    7: _Field("paused", "boolean"),
    9: _Field("progressDeadlineSeconds", "integer", keeps_zero=True),
}
_REVIEW_SPEC: Final[_Message] = {
    1: _Field(
        "resourceAttributes",
        {
            1: _Field("namespace"),
            2: _Field("verb"),
            3: _Field("group"),
            4: _Field("version"),
            5: _Field("resource"),
            6: _Field("subresource"),
            7: _Field("name"),
        },
    ),
    2: _Field("nonResourceAttributes", {1: _Field("path"), 2: _Field("verb")}),
}
_OBJECT: Final = _Field("metadata", _METADATA)
_KINDS: Final[dict[tuple[str, str], _Message]] = {
    ("v1", "Namespace"): {1: _OBJECT, 2: _IGNORED, 3: _IGNORED},
    ("v1", "ConfigMap"): {
        1: _OBJECT,
        2: _Field("data", is_map=True),
        3: _Field("binaryData", "bytes", is_map=True),
        4: _Field("immutable", "boolean", keeps_zero=True),
    },
    ("v1", "Secret"): {
        1: _OBJECT,
        2: _Field("data", "bytes", is_map=True),
        3: _Field("type"),
        4: _Field("stringData", is_map=True),
        5: _Field("immutable", "boolean", keeps_zero=True),
    },
    ("apps/v1", "Deployment"): {1: _OBJECT, 2: _Field("spec", _DEPLOYMENT_SPEC), 3: _IGNORED},
    ("scheduling.k8s.io/v1", "PriorityClass"): {
        1: _OBJECT,
        2: _Field("value", "integer"),
        3: _Field("globalDefault", "boolean"),
        4: _Field("description"),
        5: _Field("preemptionPolicy"),
    },
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): {
        1: _OBJECT,
        2: _Field("spec", _REVIEW_SPEC),
        3: _IGNORED,
    },
    ("v1", "DeleteOptions"): {
        1: _Field("gracePeriodSeconds", "integer", keeps_zero=True),
        2: _Field("preconditions", {1: _Field("uid"), 2: _Field("resourceVersion")}),
        3: _Field("orphanDependents", "boolean", keeps_zero=True),
        4: _Field("propagationPolicy"),
        5: _Field("dryRun", repeated=True),
    },
}


def parse_protobuf(body: bytes) -> JsonObject:
    """Decode a body into the JSON form of its object.

    Raises:
        BadRequest: The bytes are no such message.
        UnsupportedMediaType: The kind, or a field that is set, has no entry in the tables.
    """
    if not body.startswith(_MAGIC):
        raise BadRequest("the body is not in Kubernetes' protobuf form: its first bytes differ")
    entries = _entries(body[len(_MAGIC) :])
    unknown = {1: b"", 2: b""}
    unknown.update({number: value for number, value in entries if isinstance(value, bytes)})
    names = _message(unknown[1], {1: _Field("apiVersion"), 2: _Field("kind")}, "", 0)
    version, kind = names.get("apiVersion", ""), names.get("kind", "")
    fields = _KINDS.get((version, kind))
    if fields is None and kind == "DeleteOptions":
        fields = _KINDS["v1", kind]
    if fields is None:
        raise UnsupportedMediaType(
            f"{kind or 'this object'} is not accepted as protobuf; send application/json"
        )
    return {"apiVersion": version, "kind": kind, **_message(unknown[2], fields, "", 0)}


def _entries(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and raw value of each field."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise BadRequest("the protobuf body is malformed: unknown wire type")
        end = position + length
        if end > len(data):
            raise BadRequest("the protobuf body is malformed: it ends too early")
        yield number, data[position:end]
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise BadRequest("the protobuf body is malformed: a number does not end")


def _message(data: bytes, fields: _Message, path: str, depth: int) -> JsonObject:
    if depth > _MAX_DEPTH:
        raise BadRequest("the protobuf body is nested too deeply")
    result: JsonObject = {}
    for number, raw in _entries(data):
        field = fields.get(number)
        if field is None:
            if raw in (b"", 0):
                continue
            raise UnsupportedMediaType(
                f"field number {number} of {path or 'the object'} is not accepted as protobuf; "
                "send application/json"
            )
        if field.kind == "ignored":
            continue
        where = f"{path}.{field.name}" if path else field.name
        if field.is_map:
            entry = _Field("value", field.kind, keeps_zero=True)
            pair = _message(_need_bytes(raw), {1: _Field("key"), 2: entry}, where, depth + 1)
            result.setdefault(field.name, {})[pair.get("key", "")] = pair.get("value", "")
            continue
        value = _value(raw, field, where, depth)
        if field.repeated:
            result.setdefault(field.name, []).append(value)
        elif field.keeps_zero or value not in ("", 0, {}) or field.name in ("metadata", "spec"):
            result[field.name] = value
    return result


def _need_bytes(raw: int | bytes) -> bytes:
    if not isinstance(raw, bytes):
        raise BadRequest("the protobuf body is malformed: a number stands where text belongs")
    return raw


def _value(raw: int | bytes, field: _Field, path: str, depth: int) -> Any:
    if isinstance(field.kind, str) and field.kind in ("integer", "boolean"):
        if not isinstance(raw, int):
            raise BadRequest("the protobuf body is malformed: text stands where a number belongs")
        if field.kind == "boolean":
            return raw != 0
        return raw - 2**64 if raw >= 2**63 else raw
    data = _need_bytes(raw)
    if not isinstance(field.kind, str):
        return _message(data, field.kind, path, depth + 1)
    if field.kind == "bytes":
        return base64.b64encode(data).decode()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is not valid UTF-8") from error
