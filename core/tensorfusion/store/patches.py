"""Patches as pure functions: merge (RFC 7386), JSON (RFC 6902) and strategic merge.

None of them changes its arguments; results share unchanged parts with the original.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import BadRequest, Invalid
from tensorfusion.store.merge_rules import LEAF, Rule

MAX_JSON_PATCH_OPERATIONS: Final = 10_000
"""How many operations one JSON patch may have, as on a Kubernetes API server."""

_MAX_COPIED_BYTES: Final = 3 * 1024 * 1024
_ORDER: Final = "$setElementOrder/"
_PRIMITIVE: Final = "$deleteFromPrimitiveList/"


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch: objects merge, null deletes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """Apply a JSON patch.

    Raises:
        BadRequest: The patch is no list of operations.
        Invalid: An operation cannot be applied, a ``test`` among them.
    """
    if not isinstance(operations, list):
        raise BadRequest("a JSON patch is a list of operations")
    if len(operations) > MAX_JSON_PATCH_OPERATIONS:
        raise BadRequest(
            f"a JSON patch has at most {MAX_JSON_PATCH_OPERATIONS} operations, got {len(operations)}"
        )
    document, copied = target, 0
    for index, operation in enumerate(operations):
        if not isinstance(operation, dict):
            raise BadRequest(f"operation {index} of the JSON patch is not an object")
        verb, path = operation.get("op"), _pointer(operation, "path", index)
        where = f"operation {index} of the JSON patch ({verb} {operation.get('path')})"
        if verb in ("add", "replace", "test") and "value" not in operation:
            raise BadRequest(f"{where} has no value")
        if verb == "test":
            if not _same(_lookup(document, path, where), operation["value"]):
                raise Invalid(f"{where}: the value differs")
            continue
        if verb in ("move", "copy"):
            source = _pointer(operation, "from", index)
            value = _lookup(document, source, where)
            if verb == "move":
                if path[: len(source)] == source and path != source:
                    raise Invalid(f"{where}: cannot move a value into itself")
                document = _edit(document, source, "remove", None, where)
            else:
                copied += len(msgspec.json.encode(value))
                if copied > _MAX_COPIED_BYTES:
                    raise Invalid(f"{where}: the patch copies more than 3 MiB")
            document = _edit(document, path, "add", value, where)
        elif verb in ("add", "remove", "replace"):
            document = _edit(document, path, verb, operation.get("value"), where)
        else:
            raise BadRequest(
                f"{where}: the operation is one of add, remove, replace, move, copy, test"
            )
    return document


def _pointer(operation: Mapping[str, Any], key: str, index: int) -> list[str]:
    text = operation.get(key)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise BadRequest(
            f"operation {index} of the JSON patch: {key} is {text!r}; a JSON pointer such as "
            "/metadata/labels is needed"
        )
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _same(left: Any, right: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _lookup(document: Any, path: list[str], where: str) -> Any:
    for step in path:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list):
            document = document[_position(step, len(document) - 1, where)]
        else:
            raise Invalid(f"{where}: there is no {step!r}")
    return document


def _position(step: str, last: int, where: str) -> int:
    if not (step.isascii() and step.isdigit() and len(step) < 10) or (
        len(step) > 1 and step[0] == "0"
    ):
        raise Invalid(f"{where}: {step!r} is no list index")
    position = int(step)
    if position > last:
        raise Invalid(f"{where}: index {step} is past the end of the list")
    return position


def _edit(document: Any, path: list[str], verb: str, value: Any, where: str) -> Any:
    if not path:
        return None if verb == "remove" else value
    spine, node = [], document
    for step in path[:-1]:
        spine.append(node)
        node = _lookup(node, [step], where)
    node = _edit_leaf(node, path[-1], verb, value, where)
    for parent, step in zip(reversed(spine), reversed(path[:-1]), strict=True):
        copy = parent.copy()
        copy[step if isinstance(copy, dict) else int(step)] = node
        node = copy
    return node


def _edit_leaf(parent: Any, step: str, verb: str, value: Any, where: str) -> Any:
    if isinstance(parent, dict):
        if verb != "add" and step not in parent:
            raise Invalid(f"{where}: there is no {step!r}")
        result = dict(parent)
        if verb == "remove":
            del result[step]
        else:
            result[step] = value
        return result
    if isinstance(parent, list):
        items = list(parent)
        if verb == "add":
            position = len(items) if step == "-" else _position(step, len(items), where)
            items.insert(position, value)
        elif verb == "remove":
            del items[_position(step, len(items) - 1, where)]
        else:
            items[_position(step, len(items) - 1, where)] = value
        return items
    raise Invalid(f"{where}: {step!r} is inside a value that is neither object nor list")


def strategic_merge(target: JsonObject, patch: JsonObject, rule: Rule) -> JsonObject:
    """Apply a strategic merge patch by the merge keys of ``rule``.

    The directives ``$patch`` (merge, replace, delete), ``$retainKeys`` and
    ``$deleteFromPrimitiveList`` are obeyed; ``$setElementOrder`` is accepted and has no effect
    (new elements go to the end).

    Raises:
        BadRequest: A directive is unknown, or an element of a keyed list lacks its key.
    """
    directive = patch.get("$patch", "merge")
    if directive == "delete":
        return {}
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive != "merge":
        raise BadRequest(f"$patch is {directive!r}; merge, replace and delete are allowed")
    result = dict(target)
    retain = patch.get("$retainKeys")
    if retain is not None:
        if not isinstance(retain, list):
            raise BadRequest("$retainKeys is a list of field names")
        result = {key: value for key, value in result.items() if key in retain}
    for key, value in patch.items():
        if key.startswith(_PRIMITIVE):
            name = key[len(_PRIMITIVE) :]
            existing = result.get(name)
            if isinstance(existing, list) and isinstance(value, list):
                result[name] = [item for item in existing if item not in value]
        elif key.startswith("$"):
            if not (key in ("$patch", "$retainKeys") or key.startswith(_ORDER)):
                raise BadRequest(f"unknown directive {key!r} in a strategic merge patch")
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _strategic_value(result.get(key), value, rule.fields.get(key, LEAF), key)
    return result


def _strategic_value(existing: Any, value: Any, rule: Rule, name: str) -> Any:
    if isinstance(value, dict):
        return strategic_merge(existing if isinstance(existing, dict) else {}, value, rule)
    if isinstance(value, list):
        base = existing if isinstance(existing, list) else []
        if rule.merge_key:
            return _strategic_list(base, value, rule, name)
        if rule.is_set:
            return base + [item for item in value if item not in base]
    return value


def _strategic_list(existing: list[Any], patch: list[Any], rule: Rule, name: str) -> list[Any]:
    key = rule.merge_key
    replace = any(isinstance(i, dict) and i.get("$patch") == "replace" for i in patch)
    result = [] if replace else list(existing)
    for item in patch:
        if not isinstance(item, dict):
            raise BadRequest(f"an element of {name} is not an object but {item!r}")
        if replace and item.get("$patch") == "replace" and key not in item:
            continue
        if key not in item:
            raise BadRequest(f"an element of {name} does not contain the declared merge key: {key}")
        matching = [
            position
            for position, other in enumerate(result)
            if isinstance(other, dict) and _same(other.get(key), item[key])
        ]
        if item.get("$patch") == "delete":
            result = [other for position, other in enumerate(result) if position not in matching]
        elif matching:
            result[matching[0]] = strategic_merge(result[matching[0]], item, rule)
        else:
            result.append(strategic_merge({}, item, rule))
    return result


def require_object(patch: Any, what: str) -> JsonObject:
    """Return ``patch`` when it is a JSON object.

    Raises:
        BadRequest: It is something else.
    """
    if not isinstance(patch, dict):
        raise BadRequest(f"{what} must be a JSON object, got {type(patch).__name__}")
    return patch
