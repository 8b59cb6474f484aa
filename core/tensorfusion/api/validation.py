"""Pruning, defaulting and validation of objects, as an API server does it before it stores one.

`prune_and_default` comes first, then `validate`. Custom resources follow their schema and its CEL
rules; the core kinds follow theirs and the rules of `api.core_rules`.
"""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, Final, cast

from tensorfusion.api import core_rules
from tensorfusion.api.compiled import (
    CORE,
    CUSTOM,
    Check,
    Prune,
    compile_check,
    compile_prune,
    invalid,
    required,
    show,
)
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.schema import resource_schema
from tensorfusion.errors import Cause

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LONGEST_NAME: Final = 253
_ANNOTATION_BYTES: Final = 256 * 1024
_LABEL_FORM: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', start "
    "and end with an alphanumeric character and be no longer than 63 characters"
)
_SUBDOMAIN_FORM: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', start and end with an alphanumeric character and be no longer than 253 characters"
)
_QUALIFIED_FORM: Final = (
    "a qualified name must consist of alphanumeric characters, '-', '_' or '.', be no longer than "
    "63 characters, and may have a DNS subdomain and '/' in front"
)
_LABEL_VALUE_FORM: Final = (
    "a valid label must be empty or consist of alphanumeric characters, '-', '_' or '.', start "
    "and end with an alphanumeric character and be no longer than 63 characters"
)


@cache
def _compiled(resource: Resource) -> tuple[Prune, Check]:
    schema = resource_schema(resource)
    prune = compile_prune(schema)
    assert prune is not None  # every kind has properties
    return prune, compile_check(schema, CUSTOM if resource.is_custom else CORE)


def compile_all(resources: Iterable[Resource]) -> None:
    """Compile what `validate` needs, so that no first request holds the others up for it."""
    for resource in resources:
        _compiled(resource)


def prune_and_default(resource: Resource, obj: JsonObject) -> tuple[JsonObject, list[str]]:
    """Drop unknown fields and nulls, add schema defaults.

    The argument is left as it is; parts without a schema of their own are shared with the result.

    Returns:
        The new object, and the paths of what was unknown, such as ``spec.foo``.
    """
    prune, _ = _compiled(resource)
    unknown: list[str] = []
    result = cast("JsonObject", prune(obj, unknown, ""))
    if not resource.is_custom:
        core_rules.default(resource.kind, result)
    return result, unknown


def validate(resource: Resource, obj: JsonObject, old: JsonObject | None = None) -> list[Cause]:
    """Find everything that is wrong with an object that went through `prune_and_default`.

    Args:
        resource: Its kind.
        obj: The object as it is to be stored.
        old: The stored object on an update; rules about changes need it.

    Returns:
        Findings with field paths and messages; empty when the object is fine.
    """
    _, check = _compiled(resource)
    causes = check(obj, old) or []
    metadata = obj.get("metadata")
    if isinstance(metadata, dict):
        causes += _check_metadata(resource, metadata)
    elif "metadata" not in obj:
        causes.append(required(path="metadata"))
    if not causes and not resource.is_custom:
        causes = core_rules.check(resource.kind, obj, old)
    return causes


def _check_metadata(resource: Resource, metadata: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    name = metadata.get("name")
    if isinstance(name, str) and name:
        _check_name(resource, name, causes)
    elif not metadata.get("generateName"):
        causes.append(required("name or generateName is required", "metadata.name"))
    namespace = metadata.get("namespace")
    if namespace and isinstance(namespace, str):
        if not resource.namespaced:
            causes.append(
                Cause(
                    "metadata.namespace",
                    "FieldValueForbidden",
                    f"Forbidden: {resource.kind} is cluster-scoped and has no namespace",
                )
            )
        elif not is_label(namespace):
            causes.append(invalid(namespace, _LABEL_FORM, "metadata.namespace"))
    labels = metadata.get("labels")
    if labels and isinstance(labels, dict):
        causes += check_labels(labels, "metadata.labels")
    annotations = metadata.get("annotations")
    if annotations and isinstance(annotations, dict):
        _check_annotations(annotations, causes)
    for finalizer in _strings(metadata.get("finalizers")):
        if not is_qualified(finalizer):
            causes.append(invalid(finalizer, _QUALIFIED_FORM, "metadata.finalizers"))
    return causes


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _check_name(resource: Resource, name: str, causes: list[Cause]) -> None:
    if resource.kind == "Namespace":
        if not is_label(name):
            causes.append(invalid(name, _LABEL_FORM, "metadata.name"))
    elif not is_subdomain(name):
        causes.append(invalid(name, _SUBDOMAIN_FORM, "metadata.name"))


@lru_cache(maxsize=4096)
def is_label(text: str) -> bool:
    """Whether a text is an RFC 1123 label."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Whether a text is an RFC 1123 subdomain of at most 253 characters."""
    return len(text) <= _LONGEST_NAME and _SUBDOMAIN.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def is_qualified(text: str) -> bool:
    """Whether a text is a label or annotation key."""
    prefix, slash, name = text.rpartition("/")
    return _QUALIFIED.fullmatch(name) is not None and (
        is_subdomain(prefix) if slash else not prefix
    )


@lru_cache(maxsize=4096)
def is_label_value(text: str) -> bool:
    """Whether a text is a label value."""
    return _LABEL_VALUE.fullmatch(text) is not None


def check_labels(labels: JsonObject, path: str) -> list[Cause]:
    """Find label keys and values that are not allowed."""
    causes = []
    for key, value in labels.items():
        if not is_qualified(key):
            causes.append(invalid(key, _QUALIFIED_FORM, path))
        if isinstance(value, str) and not is_label_value(value):
            causes.append(invalid(value, _LABEL_VALUE_FORM, path))
    return causes


def _check_annotations(annotations: JsonObject, causes: list[Cause]) -> None:
    total = 0
    for key, value in annotations.items():
        if not is_qualified(key.lower()):
            causes.append(invalid(key, _QUALIFIED_FORM, "metadata.annotations"))
        if isinstance(value, str):
            total += len(key) + len(value)
    if total > _ANNOTATION_BYTES:
        causes.append(
            Cause(
                "metadata.annotations",
                "FieldValueTooLong",
                f"Too long: may not be more than {_ANNOTATION_BYTES} bytes, are {show(total)}",
            )
        )
