"""From structs to structural OpenAPI v3 schemas: the one source of CRDs, OpenAPI and validation.

A schema is plain JSON. Two forms exist: inline (CRDs, validation), and with ``$ref`` into a
dictionary of components (OpenAPI documents).
"""

import types
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from tensorfusion.api.fields import Doc, Rule, Wire
from tensorfusion.api.resource import JsonObject, Resource

Referrer = Callable[[type[Wire]], JsonObject]
"""Gives the schema of a nested struct: the struct's own, or a reference to it."""

_SCALARS: Final[dict[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
}
_WHOLE: Final = Doc()


class FieldFacts(msgspec.Struct, frozen=True):
    """A field of a struct, resolved.

    Attributes:
        name: Name on the wire.
        type: Type without annotations and without None.
        doc: Facts of all annotations; outer ones win.
        required: Whether it must be there.
        default: Schema default as JSON; msgspec.UNSET without one.
    """

    name: str
    type: Any
    doc: Doc
    required: bool
    default: Any


def _merge_docs(outer: Doc, inner: Doc) -> Doc:
    values = {}
    for item in dataclass_fields(Doc):
        own = getattr(outer, item.name)
        values[item.name] = own if own != item.default else getattr(inner, item.name)
    return Doc(**values)


def unwrap(hint: Any, doc: Doc = _WHOLE) -> tuple[Any, Doc]:
    """Strip ``Annotated`` and ``| None`` from a type and collect the facts on the way."""
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            hint, *extras = get_args(hint)
            for extra in extras:
                if isinstance(extra, Doc):
                    doc = _merge_docs(doc, extra)
        elif origin in (Union, types.UnionType):
            options = [option for option in get_args(hint) if option is not type(None)]
            if len(options) > 1:
                return tuple(options), doc
            hint = options[0]
        else:
            return hint, doc


def _default_of(info: msgspec.structs.FieldInfo) -> Any:
    """The schema default of a field: what a factory makes, unless that is an empty container."""
    if info.default_factory is msgspec.NODEFAULT or info.default_factory in (dict, list, set):
        return msgspec.UNSET
    return msgspec.to_builtins(info.default_factory())


@cache
def struct_fields(struct: type[Wire]) -> tuple[FieldFacts, ...]:
    """Resolve the fields of a struct."""
    hints = get_type_hints(struct, include_extras=True)
    result = []
    for info in msgspec.structs.fields(struct):
        kind, doc = unwrap(hints[info.name])
        result.append(
            FieldFacts(
                name=info.encode_name,
                type=kind,
                doc=doc,
                required=info.required,
                default=_default_of(info),
            )
        )
    return tuple(result)


def _union_schema(options: tuple[Any, ...], doc: Doc) -> JsonObject:
    """Int-or-string, or number-or-string, which structural schemas can only say indirectly."""
    if set(options) == {int, str}:
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
        }
    if doc.format == "quantity":
        return {"oneOf": [{"type": "string"}, {"type": "number"}]}
    # Structural schemas know no union of number and string: the type is left open, and what is
    # neither is excluded by value.
    return {
        "maxItems": 0,
        "maxProperties": 0,
        "not": {"enum": [True, False, {}, []]},
        "x-kubernetes-preserve-unknown-fields": True,
    }


def _type_schema(hint: Any, refer: Referrer, outer: Doc = _WHOLE) -> JsonObject:
    kind, doc = unwrap(hint, outer)
    schema: JsonObject
    if isinstance(kind, tuple):
        schema = _union_schema(kind, doc)
    elif kind is Any:
        schema = {"x-kubernetes-preserve-unknown-fields": True}
    elif kind in _SCALARS:
        schema = {"type": _SCALARS[kind]}
    elif isinstance(kind, type) and issubclass(kind, Wire):
        schema = refer(kind)
    else:
        schema = _container_schema(kind, refer)
    _add_facts(schema, doc)
    return schema


def _container_schema(kind: Any, refer: Referrer) -> JsonObject:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return {"type": "array", "items": _type_schema(arguments[0], refer)}
    if origin is dict and arguments[1] is Any:
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], refer)}
    raise TypeError(f"no schema for type {kind!r}")


def _add_facts(schema: JsonObject, doc: Doc) -> None:
    facts = {
        "description": doc.description,
        "enum": list(doc.enum),
        "format": doc.format,
        "pattern": doc.pattern,
        "x-kubernetes-list-map-keys": list(doc.map_keys),
        "x-kubernetes-patch-merge-key": doc.merge_key,
        "x-form": doc.form,
    }
    schema.update({key: value for key, value in facts.items() if value})
    bounds = {
        "minimum": doc.minimum,
        "maximum": doc.maximum,
        "minLength": doc.min_length,
        "maxLength": doc.max_length,
        "minItems": doc.min_items,
        "maxItems": doc.max_items,
    }
    schema.update({key: value for key, value in bounds.items() if value is not None})
    if doc.map_keys:
        schema["x-kubernetes-list-type"] = "map"
    elif doc.is_set:
        schema["x-kubernetes-list-type"] = "set"
    if doc.merge_key:
        schema["x-kubernetes-patch-strategy"] = "merge"
    if doc.added:
        schema["x-added"] = True


def _rule_schema(rule: Rule) -> JsonObject:
    schema = {"message": rule.message, "rule": rule.expression}
    if rule.field_path:
        schema["fieldPath"] = rule.field_path
    return schema


def _struct_body(struct: type[Wire], refer: Referrer) -> JsonObject:
    properties: JsonObject = {}
    required = []
    for facts in struct_fields(struct):
        schema = _type_schema(facts.type, refer, facts.doc)
        if facts.default is not msgspec.UNSET:
            schema["default"] = facts.default
        properties[facts.name] = schema
        if facts.required:
            required.append(facts.name)
    body: JsonObject = {"type": "object", "properties": properties}
    description = (struct.__doc__ or "").strip().split("\n")[0].replace("``", "")
    if description:
        body["description"] = description
    if required:
        body["required"] = sorted(required)
    if struct.__rules__:
        body["x-kubernetes-validations"] = [_rule_schema(rule) for rule in struct.__rules__]
    if struct.__atomic__:
        body["x-kubernetes-map-type"] = "atomic"
    return body


@cache
def _inline(struct: type[Wire]) -> JsonObject:
    return _struct_body(struct, lambda nested: dict(_inline(nested)))


def struct_schema(struct: type[Wire]) -> JsonObject:
    """The inline schema of a struct. Shared between callers: never change it.

    Besides OpenAPI it carries ``x-form`` (the allowed form in words) and ``x-added`` (the field
    is ours), which `published` removes.
    """
    return _inline(struct)


def resource_schema(resource: Resource) -> JsonObject:
    """The inline schema of a resource kind. Shared between callers: never change it."""
    if not issubclass(resource.struct, Wire):
        raise TypeError(f"{resource!r} has no schema: its struct is no Wire")
    return struct_schema(resource.struct)


def component_name(struct: type[Wire]) -> str:
    """Name of a struct among OpenAPI components, as upstream names its own."""
    module = struct.__module__
    if module.endswith(".meta"):
        return f"io.k8s.apimachinery.pkg.apis.meta.v1.{struct.__name__}"
    if ".core." not in module:
        return f"ai.tensor-fusion.v1.{struct.__name__}"
    area = "apps" if module.endswith(".apps") else "core"
    return f"io.k8s.api.{_AREAS.get(struct.__name__, area)}.v1.{struct.__name__}"


_AREAS: Final = {
    "Lease": "coordination",
    "LeaseSpec": "coordination",
    "PriorityClass": "scheduling",
    "PodDisruptionBudget": "policy",
    "PodDisruptionBudgetSpec": "policy",
    "PodDisruptionBudgetStatus": "policy",
}


def component_schemas(struct: type[Wire], components: JsonObject) -> str:
    """Add a struct and everything it refers to, to OpenAPI components.

    Returns:
        The component name of the struct.
    """
    name = component_name(struct)
    if name not in components:
        components[name] = {}  # ends a recursion before the schema is complete

        def refer(nested: type[Wire]) -> JsonObject:
            reference = component_schemas(nested, components)
            return {"allOf": [{"$ref": f"#/components/schemas/{reference}"}]}

        components[name] = published(_struct_body(struct, refer))
    return name


def published(schema: Any) -> Any:
    """Copy a schema without the marks that only we understand."""
    if isinstance(schema, dict):
        return {
            key: published(value)
            for key, value in schema.items()
            if key not in ("x-form", "x-added")
        }
    if isinstance(schema, list):
        return [published(value) for value in schema]
    return schema
