"""Schemas compiled to closures: pruning with defaults, and checking.

Both walk decoded JSON once. A schema is compiled once per process; a normal pod takes well under
a tenth of a millisecond, which is why there is no general JSON-schema library here.

A check returns None when all is well, else findings with paths relative to the value. Only
failing values pay for building paths.
"""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import Cause

Prune = Callable[[Any, list[str], str], Any]
"""(value, unknown paths so far, path of the value) -> value without unknown fields."""

Check = Callable[[Any, Any], "list[Cause] | None"]
"""(value, former value or None) -> findings."""

_INTEGER_RANGE: Final = {"int32": 2**31, "int64": 2**63}
_DATE_TIME: Final = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)"
    r"(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
)
_LONGEST_VALUE: Final = 120
_KEPT_ANSWERS: Final = 1024
"""Values per rule that are known to obey it: workloads come in few shapes."""
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between custom resources and the core kinds.

    Attributes:
        empty_is_absent: An empty string passes where an enum or a pattern is, as Go types read it.
        unique_items: Elements of a keyed list must differ; among the core kinds each list has
            rules of its own.
    """

    empty_is_absent: bool
    unique_items: bool


CUSTOM: Final = Dialect(empty_is_absent=False, unique_items=True)
CORE: Final = Dialect(empty_is_absent=True, unique_items=False)


def show(value: Any) -> str:
    """Print a value for a message, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def invalid(value: Any, text: str, path: str = "") -> Cause:
    """A finding about a value that is not allowed."""
    return Cause(path, "FieldValueInvalid", f"Invalid value: {show(value)}: {text}")


def required(text: str = "", path: str = "") -> Cause:
    """A finding about a value that is missing."""
    return Cause(path, "FieldValueRequired", "Required value" + (f": {text}" if text else ""))


def _wrong_type(value: Any, wanted: str) -> list[Cause]:
    text = f"Invalid value: {show(value)}: must be of type {wanted}"
    return [Cause("", "FieldValueTypeInvalid", text)]


def _below(prefix: str, causes: list[Cause]) -> list[Cause]:
    return [
        Cause(
            prefix + ("" if not cause.field or cause.field[0] == "[" else ".") + cause.field,
            cause.reason,
            cause.message,
        )
        for cause in causes
    ]


# --- pruning and defaulting -------------------------------------------------------------------


def compile_prune(schema: JsonObject) -> Prune | None:
    """Compile what removes unknown fields and nulls and adds defaults; None if nothing can."""
    kind = schema.get("type")
    if kind == "array":
        item = compile_prune(schema["items"])
        return None if item is None else _prune_list(item)
    if kind != "object":
        return None
    if "properties" in schema:
        return _prune_struct(schema)
    if "additionalProperties" in schema:
        value = compile_prune(schema["additionalProperties"])
        return None if value is None else _prune_map(value)
    return None


def _prune_list(item: Prune) -> Prune:
    def prune(value: Any, unknown: list[str], path: str) -> Any:
        if type(value) is not list:
            return value
        return [item(element, unknown, f"{path}[{index}]") for index, element in enumerate(value)]

    return prune


def _prune_map(item: Prune) -> Prune:
    def prune(value: Any, unknown: list[str], path: str) -> Any:
        if type(value) is not dict:
            return value
        return {key: item(element, unknown, f"{path}.{key}") for key, element in value.items()}

    return prune


def _prune_struct(schema: JsonObject) -> Prune:
    children = {key: compile_prune(value) for key, value in schema["properties"].items()}
    defaults = tuple(
        (key, value["default"], isinstance(value["default"], dict | list))
        for key, value in schema["properties"].items()
        if "default" in value
    )
    keeps_unknown = bool(schema.get("x-kubernetes-preserve-unknown-fields"))

    def prune(value: Any, unknown: list[str], path: str) -> Any:
        if type(value) is not dict:
            return value
        result = {}
        for key, item in value.items():
            try:
                child = children[key]
            except KeyError:
                if keeps_unknown:
                    result[key] = item
                else:
                    unknown.append(f"{path}.{key}" if path else str(key))
                continue
            if item is None:
                continue  # null means absent, as for every field that is not nullable
            if child is None:
                result[key] = item
            else:
                result[key] = child(item, unknown, f"{path}.{key}" if path else key)
        for key, default, mutable in defaults:
            if key not in result:
                result[key] = copy.deepcopy(default) if mutable else default
        return result

    return prune


# --- checking ---------------------------------------------------------------------------------


def compile_check(schema: JsonObject, dialect: Dialect) -> Check:
    """Compile what finds values that the schema does not allow."""
    if schema.get("x-kubernetes-int-or-string"):
        return _check_mixed(schema, (int, str), "integer or string", dialect)
    if "oneOf" in schema or "not" in schema:
        return _check_mixed(schema, (int, float, str), "number or string", dialect)
    kind = schema.get("type")
    if kind == "string":
        return _check_string(schema, dialect)
    if kind in ("integer", "number"):
        return _check_number(schema, kind)
    if kind == "boolean":
        return lambda value, _old: None if type(value) is bool else _wrong_type(value, "boolean")
    if kind == "array":
        return _check_list(schema, dialect)
    if kind == "object":
        return _check_object(schema, dialect)
    return lambda _value, _old: None


def _check_mixed(
    schema: JsonObject, allowed: tuple[type, ...], wanted: str, dialect: Dialect
) -> Check:
    bounds = _bounds(schema)
    pattern = _pattern(schema)

    def check(value: Any, _old: Any) -> list[Cause] | None:
        if type(value) not in allowed:
            return _wrong_type(value, wanted)
        if type(value) is str:
            if pattern is None or (dialect.empty_is_absent and not value):
                return None
            return pattern(value)
        return bounds(value) if bounds else None

    return check


def _pattern(schema: JsonObject) -> Callable[[str], list[Cause] | None] | None:
    text = schema.get("pattern")
    if not text:
        return None
    search = re.compile(text, re.ASCII).search
    form = schema.get("x-form")
    wanted = f"must be {form}" if form else f"should match '{text}'"
    # A dollar sign of Python also matches before a final line break, that of RE2 does not.
    return lambda value: (
        None if search(value) and not value.endswith("\n") else [invalid(value, wanted)]
    )


def _bounds(schema: JsonObject) -> Callable[[Any], list[Cause] | None] | None:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return None
    if high is None:
        text = f"should be greater than or equal to {low}"
    elif low is None:
        text = f"should be less than or equal to {high}"
    else:
        text = f"should be between {low} and {high}"
    return lambda value: (
        [invalid(value, text)]
        if (low is not None and value < low) or (high is not None and value > high)
        else None
    )


def _check_number(schema: JsonObject, kind: str) -> Check:
    bounds = _bounds(schema)
    limit = _INTEGER_RANGE.get(schema.get("format", ""), 2**63)
    allowed = (int,) if kind == "integer" else (int, float)

    def check(value: Any, _old: Any) -> list[Cause] | None:
        if type(value) not in allowed:
            return _wrong_type(value, kind)
        if not -limit <= value < limit:
            return [invalid(value, f"must fit {schema.get('format') or 'int64'}")]
        return bounds(value) if bounds else None

    return check


def _check_string(schema: JsonObject, dialect: Dialect) -> Check:
    options = tuple(schema.get("enum", ()))
    pattern = _pattern(schema)
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
    is_time = schema.get("format") == "date-time"
    if not (options or pattern or shortest or longest or is_time):
        return lambda value, _old: None if type(value) is str else _wrong_type(value, "string")
    supported = ", ".join(json.dumps(option) for option in options)

    def check(value: Any, _old: Any) -> list[Cause] | None:
        if type(value) is not str:
            return _wrong_type(value, "string")
        if not value and dialect.empty_is_absent and not shortest:
            return None
        if options and value not in options:
            text = f"Unsupported value: {show(value)}: supported values: {supported}"
            return [Cause("", "FieldValueNotSupported", text)]
        if shortest and len(value) < shortest:
            return [invalid(value, f"should be at least {shortest} chars long")]
        if longest is not None and len(value) > longest:
            return [
                Cause("", "FieldValueTooLong", f"Too long: may not be more than {longest} bytes")
            ]
        if is_time and not _DATE_TIME.fullmatch(value):
            return [invalid(value, 'must be a time such as "2025-01-31T12:00:00Z"')]
        return pattern(value) if pattern else None

    return check


def _check_list(schema: JsonObject, dialect: Dialect) -> Check:
    item = compile_check(schema["items"], dialect)
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    keys = tuple(schema.get("x-kubernetes-list-map-keys", ()))
    unique = dialect.unique_items and schema.get("x-kubernetes-list-type") in ("map", "set")
    defaults = {
        key: facts["default"]
        for key, facts in schema["items"].get("properties", {}).items()
        if key in keys and "default" in facts
    }

    def check(value: Any, old: Any) -> list[Cause] | None:
        if type(value) is not list:
            return _wrong_type(value, "array")
        if len(value) < fewest:
            if not value:
                return [required("must have at least one item" if fewest == 1 else "")]
            return [invalid(value, f"should have at least {fewest} items")]
        if most is not None and len(value) > most:
            return [
                Cause(
                    "",
                    "FieldValueTooMany",
                    f"Too many: {len(value)}: must have at most {most} items",
                )
            ]
        causes: list[Cause] = []
        former = _match_items(old, keys) if keys and type(old) is list else {}
        for index, element in enumerate(value):
            before = former.get(_key_of(element, keys)) if former else None
            found = item(element, before)
            if found:
                causes += _below(f"[{index}]", found)
        if unique and not causes and len(value) > 1:
            causes += _duplicates(value, keys, defaults)
        return causes or None

    return check


def _key_of(element: Any, keys: tuple[str, ...]) -> tuple[Any, ...]:
    # Text, because an element that is not checked yet may hold anything, hashable or not.
    return tuple(repr(element.get(key)) for key in keys) if isinstance(element, dict) else ()


def _match_items(old: list[Any], keys: tuple[str, ...]) -> dict[tuple[Any, ...], Any]:
    return {_key_of(element, keys): element for element in old}


def _duplicates(value: list[Any], keys: tuple[str, ...], defaults: JsonObject) -> list[Cause]:
    seen = set()
    causes = []
    for index, element in enumerate(value):
        key = (
            tuple(element.get(name, defaults.get(name)) for name in keys)
            if keys
            else json.dumps(element, sort_keys=True)
        )
        if key in seen:
            shown = show({name: element.get(name) for name in keys} if keys else element)
            causes.append(Cause(f"[{index}]", "FieldValueDuplicate", f"Duplicate value: {shown}"))
        seen.add(key)
    return causes


def _check_object(schema: JsonObject, dialect: Dialect) -> Check:
    if "properties" in schema:
        structure = _check_struct(schema, dialect)
    elif "additionalProperties" in schema:
        structure = _check_map(schema, dialect)
    else:
        return lambda value, _old: None if type(value) is dict else _wrong_type(value, "object")
    rules = tuple(_compile_rule(rule) for rule in schema.get("x-kubernetes-validations", ()))
    if not rules:
        return structure

    def check(value: Any, old: Any) -> list[Cause] | None:
        causes = structure(value, old)
        if causes:
            return causes  # rules may rely on the types, as on the real server
        found = [cause for rule in rules for cause in rule(value, old)]
        return found or None

    return check


def _check_map(schema: JsonObject, dialect: Dialect) -> Check:
    item = compile_check(schema["additionalProperties"], dialect)

    def check(value: Any, old: Any) -> list[Cause] | None:
        if type(value) is not dict:
            return _wrong_type(value, "object")
        causes: list[Cause] = []
        for key, element in value.items():
            found = item(element, old.get(key) if type(old) is dict else None)
            if found:
                causes += _below(f"[{key}]", found)
        return causes or None

    return check


def _check_struct(schema: JsonObject, dialect: Dialect) -> Check:
    checks = {key: compile_check(value, dialect) for key, value in schema["properties"].items()}
    needed = tuple(schema.get("required", ()))

    def check(value: Any, old: Any) -> list[Cause] | None:
        if type(value) is not dict:
            return _wrong_type(value, "object")
        causes: list[Cause] | None = None
        former = old if type(old) is dict else None
        for key, element in value.items():
            inner = checks.get(key)
            if inner is None:
                continue
            before = former.get(key) if former is not None else None
            if element is before and type(element) in (dict, list):
                continue  # the stored part itself, which was checked when it was stored
            found = inner(element, before)
            if found:
                causes = (causes or []) + _below(key, found)
        for key in needed:
            if key not in value:
                causes = [*(causes or []), required(path=key)]
        return causes

    return check


def _compile_rule(rule: JsonObject) -> Callable[[Any, Any], list[Cause]]:
    import cel  # lazy: it takes a third of a second, and only kinds with rules need it

    program = cel.compile(rule["rule"])
    about_change = "oldSelf" in program.variables()
    narrow = _narrowing(rule["rule"])
    path = rule.get("fieldPath", "").lstrip(".")
    held: set[bytes] = set()

    def evaluate(value: Any, old: Any) -> list[Cause]:
        if about_change and old is None:
            return []
        seen = value if about_change else narrow(value)
        known = None if about_change else _fingerprint(seen)
        if known in held:
            return []
        try:
            holds = program.execute(
                {"self": value, "oldSelf": old} if about_change else {"self": seen}
            )
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            return [
                invalid(_brief(value), f"rule {rule['rule']!r} cannot be evaluated: {error}", path)
            ]
        if holds is not True:
            return [invalid(_blamed(value, path), rule["message"], path)]
        if known is not None:
            if len(held) >= _KEPT_ANSWERS:
                held.clear()
            held.add(known)
        return []

    return evaluate


def _fingerprint(value: Any) -> bytes | None:
    try:
        return _encode(value)
    except (OverflowError, UnicodeEncodeError, RecursionError):
        return None  # the store refuses it later; the rule's own word comes first


def _narrowing(rule: str) -> Callable[[Any], Any]:
    """Reduce an object to the fields that a rule names: the rest costs time to convert."""
    if re.search(r"\bself\b(?!\.\w)", rule):
        return lambda value: value
    fields = frozenset(re.findall(r"\bself\.(\w+)", rule))

    def narrow(value: Any) -> Any:
        if type(value) is not dict:
            return value
        return {name: value[name] for name in fields & value.keys()}

    return narrow


def _brief(value: Any) -> Any:
    return "object" if isinstance(value, dict) else value


def _blamed(value: Any, path: str) -> Any:
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    return _brief(value)
