"""Label and field selectors: text to predicates.

The grammar is that of ``metav1.ListOptions``: a comma-separated conjunction. Label selectors know
``k=v``, ``k==v``, ``k!=v``, ``k in (a,b)``, ``k notin (a,b)``, ``k`` and ``!k``; field selectors
know ``path=v``, ``path==v`` and ``path!=v``.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.errors import BadRequest

Predicate = Callable[[JsonObject], bool]
"""Whether an object is selected."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.\-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.\-]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_SET_TERM = re.compile(r"([^\s!=,()]+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUALITY_TERM = re.compile(r"([^\s!=,()]+)\s*(==|=|!=)\s*([^\s!=,()]*)")
_EXISTS_TERM = re.compile(r"(!?)\s*([^\s!=,()]+)")
_CUSTOM_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_FIELD_PATH = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z][A-Za-z0-9]*)*")
_MAX_SELECTOR_CHARACTERS = 16_384


def compile_selectors(
    resource: Resource, label_selector: str, field_selector: str
) -> Predicate | None:
    """Combine both selectors of a request.

    Returns:
        None when both are empty, so that callers can skip the test altogether.

    Raises:
        BadRequest: A selector cannot be read.
    """
    labels = label_predicate(label_selector) if label_selector else None
    fields = (
        field_predicate(field_selector, custom=resource.is_custom, kind=resource.kind)
        if field_selector
        else None
    )
    if labels is None or fields is None:
        return labels or fields
    return lambda obj: labels(obj) and fields(obj)


@lru_cache(maxsize=1024)
def label_predicate(selector: str) -> Predicate | None:
    """Compile a label selector; None selects everything.

    Raises:
        BadRequest: The text is not a label selector; the message quotes what is wrong.
    """
    terms = [_label_term(selector, term) for term in _split_terms(selector)]
    if not terms:
        return None

    def matches(obj: JsonObject) -> bool:
        labels = obj.get("metadata", {}).get("labels") or {}
        return all(term(labels) for term in terms)

    return matches


def selector_from_labels(labels: Mapping[str, str]) -> str:
    """Print an equality selector that matches objects which carry all of ``labels``."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


@lru_cache(maxsize=1024)
def field_predicate(selector: str, *, custom: bool, kind: str) -> Predicate | None:
    """Compile a field selector; None selects everything.

    Custom kinds select on ``metadata.name`` and ``metadata.namespace`` only, as on a Kubernetes
    API server; core kinds select on any dotted path to a scalar.

    Raises:
        BadRequest: The text is not a field selector, or the field is not selectable.
    """
    if len(selector) > _MAX_SELECTOR_CHARACTERS:
        raise BadRequest("field selector is longer than 16384 characters")
    terms: list[tuple[tuple[str, ...], bool, str]] = []
    for text in selector.split(","):
        if not text.strip():
            continue
        match = re.fullmatch(r"\s*([^=!\s]+)\s*(==|=|!=)\s*(.*?)\s*", text, re.DOTALL)
        if match is None:
            raise BadRequest(
                f"unable to parse field selector {selector!r}: {text!r} is not FIELD=VALUE, "
                "FIELD==VALUE or FIELD!=VALUE"
            )
        path, operator, value = match.groups()
        if custom and path not in _CUSTOM_FIELDS:
            raise BadRequest(
                f"field label not supported: {path} ({kind} allows metadata.name and "
                "metadata.namespace)"
            )
        if not _FIELD_PATH.fullmatch(path):
            raise BadRequest(f"field label not supported: {path}")
        terms.append((tuple(path.split(".")), operator != "!=", value))
    if not terms:
        return None

    def matches(obj: JsonObject) -> bool:
        return all((_scalar_at(obj, path) == value) is wanted for path, wanted, value in terms)

    return matches


def field_equals(selector: str, path: str) -> str:
    """Return the value that ``selector`` demands of ``path`` by equality, or an empty string."""
    for text in selector.split(","):
        key, _, value = text.partition("=")
        if key.strip() == path and not value.startswith(("=", "!")):
            return value.strip()
        if key.strip() == path and value.startswith("="):
            return value[1:].strip()
    return ""


def _scalar_at(obj: JsonObject, path: tuple[str, ...]) -> str:
    value: Any = obj
    for step in path:
        if not isinstance(value, dict):
            return ""
        value = value.get(step)
    if value is None or isinstance(value, (dict, list)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _split_terms(selector: str) -> list[str]:
    """Split at the commas that are not inside parentheses."""
    if len(selector) > _MAX_SELECTOR_CHARACTERS:
        raise BadRequest("label selector is longer than 16384 characters")
    terms, depth, start = [], 0, 0
    for position, character in enumerate(selector):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "," and depth == 0:
            terms.append(selector[start:position])
            start = position + 1
    terms.append(selector[start:])
    if terms == [""] or not selector.strip():
        return []
    return terms


def _label_term(selector: str, text: str) -> Callable[[Mapping[str, str]], bool]:
    term = text.strip()
    if match := _SET_TERM.fullmatch(term):
        key, operator, body = match.groups()
        values = frozenset(value.strip() for value in body.split(","))
        _check_key(selector, key)
        for value in values:
            _check_value(selector, key, value)
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUALITY_TERM.fullmatch(term):
        key, operator, wanted = match.groups()
        _check_key(selector, key)
        _check_value(selector, key, wanted)
        if operator == "!=":
            return lambda labels: labels.get(key) != wanted
        return lambda labels: labels.get(key) == wanted
    if match := _EXISTS_TERM.fullmatch(term):
        negated, key = match.groups()
        _check_key(selector, key)
        if negated:
            return lambda labels: key not in labels
        return lambda labels: key in labels
    raise BadRequest(
        f"unable to parse label selector {selector!r}: {term!r} is none of KEY, !KEY, KEY=VALUE, "
        "KEY!=VALUE, KEY in (A,B), KEY notin (A,B)"
    )


def _check_key(selector: str, key: str) -> None:
    if not _KEY.fullmatch(key):
        raise BadRequest(
            f"unable to parse label selector {selector!r}: {key!r} is no label key: an optional "
            "DNS prefix and '/', then at most 63 letters, digits, '-', '_', '.'"
        )


def _check_value(selector: str, key: str, value: str) -> None:
    if not _VALUE.fullmatch(value):
        raise BadRequest(
            f"unable to parse label selector {selector!r}: {value!r} for {key} is no label value: "
            "at most 63 letters, digits, '-', '_', '.', with a letter or digit at both ends"
        )
