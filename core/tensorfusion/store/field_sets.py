"""Sets of fields in the ``FieldsV1`` form of ``metadata.managedFields``.

A set is a tree of nested objects: ``f:NAME`` steps into a field, ``k:{...}`` into the element of
a keyed list, ``v:VALUE`` names a member of a list of scalars. A node is a member of the set when
it is empty or has the entry ``.``. The root itself is never a member, so an empty root is the
empty set.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tensorfusion.api.resource import JsonObject
from tensorfusion.store.merge_rules import LEAF, Rule

FieldSet = dict[str, Any]
"""One node of a set: step to node."""

_SELF: Final = "."
_encode: Final = msgspec.json.Encoder(order="sorted").encode


def is_member(node: FieldSet) -> bool:
    """Whether the node itself is in the set, not only something below it."""
    return not node or _SELF in node


def union(left: FieldSet, right: FieldSet) -> FieldSet:
    """Return the fields that are in either set."""
    if not left or not right:
        return left or right
    result = dict(left)
    for step, node in right.items():
        if step not in result:
            result[step] = node
        elif step != _SELF and node is not result[step]:
            result[step] = _union_nodes(result[step], node)
    return result


def _union_nodes(left: FieldSet, right: FieldSet) -> FieldSet:
    merged = union(left, right)
    if merged and (is_member(left) or is_member(right)) and _SELF not in merged:
        return {_SELF: {}, **merged}
    return merged


def difference(left: FieldSet, right: FieldSet) -> FieldSet:
    """Return the fields of ``left`` that are not in ``right``."""
    if not right:
        return left
    result: FieldSet = {}
    for step, node in left.items():
        if step == _SELF:
            continue
        other = right.get(step)
        if other is None:
            result[step] = node
            continue
        below = {key: value for key, value in difference(node, other).items() if key != _SELF}
        keeps_itself = is_member(node) and not is_member(other)
        if keeps_itself:
            below = {_SELF: {}, **below} if below else {}
        if below or keeps_itself:
            result[step] = below
    return result


def intersection(left: FieldSet, right: FieldSet) -> FieldSet:
    """Return the fields that are in both sets."""
    result: FieldSet = {}
    for step, node in left.items():
        other = right.get(step)
        if step == _SELF or other is None:
            continue
        below = intersection(node, other)
        both = is_member(node) and is_member(other)
        if both:
            below = {_SELF: {}, **below} if below else {}
        if below or both:
            result[step] = below
    return result


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """Yield members as readable paths, such as ``.spec.containers[name="main"].image``."""
    for step, node in fields.items():
        if step == _SELF:
            continue
        kind, _, rest = step.partition(":")
        if kind == "f":
            path = f"{prefix}.{rest}"
        elif kind == "k":
            keys = msgspec.json.decode(rest)
            inner = ",".join(f"{key}={_text(value)}" for key, value in keys.items())
            path = f"{prefix}[{inner}]"
        else:
            path = f"{prefix}[={rest}]"
        if is_member(node):
            yield path
        yield from paths(node, path)


def _text(value: object) -> str:
    return _encode(value).decode()


def key_step(element: JsonObject, rule: Rule) -> str:
    """Return the ``k:`` step of an element of a keyed list."""
    keys = {}
    for key in rule.list_keys:
        value = element.get(key, rule.key_defaults.get(key))
        if value is not None:
            keys[key] = value
    return "k:" + _text(keys)


def value_step(value: object) -> str:
    """Return the ``v:`` step of a member of a list of scalars."""
    return "v:" + _text(value)


def fields_of(value: Any, rule: Rule) -> FieldSet:
    """Return the node of all fields that ``value`` sets."""
    if isinstance(value, dict):
        if rule.atomic:
            return {}
        return {
            "f:" + name: fields_of(child, rule.fields.get(name, LEAF))
            for name, child in value.items()
        }
    if isinstance(value, list):
        if rule.list_keys:
            return {
                key_step(element, rule): {_SELF: {}, **_element_fields(element, rule)}
                for element in value
                if isinstance(element, dict)
            }
        if rule.is_set:
            return {value_step(member): {} for member in value}
    return {}


def _element_fields(element: JsonObject, rule: Rule) -> FieldSet:
    return {
        "f:" + name: fields_of(child, rule.fields.get(name, LEAF))
        for name, child in element.items()
    }


def changed_fields(old: Any, new: Any, rule: Rule) -> tuple[FieldSet, FieldSet]:
    """Compare two objects (or values of one field).

    Returns:
        The fields that were added or modified, and the fields that were removed.
    """
    written: FieldSet = {}
    removed: FieldSet = {}
    for name, value in new.items():
        before = old.get(name)
        if before is None and name not in old:
            written["f:" + name] = fields_of(value, rule.fields.get(name, LEAF))
        elif before != value:
            _compare(before, value, rule.fields.get(name, LEAF), "f:" + name, written, removed)
    for name, value in old.items():
        if name not in new:
            removed["f:" + name] = fields_of(value, rule.fields.get(name, LEAF))
    return written, removed


def _compare(
    before: Any, value: Any, rule: Rule, step: str, written: FieldSet, removed: FieldSet
) -> None:
    """Add the differences of one changed value to both sets."""
    if isinstance(before, dict) and isinstance(value, dict) and not rule.atomic:
        below, gone = changed_fields(before, value, rule)
    elif isinstance(before, list) and isinstance(value, list) and rule.list_keys:
        below, gone = _changed_elements(before, value, rule)
    elif isinstance(before, list) and isinstance(value, list) and rule.is_set:
        below = {value_step(member): {} for member in value if member not in before}
        gone = {value_step(member): {} for member in before if member not in value}
    else:
        written[step] = fields_of(value, rule)
        gone = fields_of(before, rule)
        if gone:
            removed[step] = gone
        return
    if below:
        written[step] = below
    if gone:
        removed[step] = gone


def _changed_elements(before: list[Any], after: list[Any], rule: Rule) -> tuple[FieldSet, FieldSet]:
    written: FieldSet = {}
    removed: FieldSet = {}
    old = {key_step(element, rule): element for element in before if isinstance(element, dict)}
    for element in after:
        if not isinstance(element, dict):
            continue
        step = key_step(element, rule)
        previous = old.pop(step, None)
        if previous is None:
            written[step] = {_SELF: {}, **_element_fields(element, rule)}
        elif previous != element:
            below, gone = changed_fields(previous, element, rule)
            if below:
                written[step] = below
            if gone:
                removed[step] = gone
    for step, element in old.items():
        removed[step] = {_SELF: {}, **_element_fields(element, rule)}
    return written, removed


def merge_applied(live: Any, config: Any, rule: Rule) -> Any:
    """Merge an applied configuration into the live value: what it does not name stays."""
    if isinstance(config, dict) and isinstance(live, dict) and not rule.atomic:
        result = dict(live)
        for name, value in config.items():
            result[name] = (
                merge_applied(live[name], value, rule.fields.get(name, LEAF))
                if name in live
                else value
            )
        return result
    if isinstance(config, list) and isinstance(live, list):
        if rule.list_keys:
            wanted = {key_step(element, rule): element for element in config}
            element_rule = Rule(rule.fields)
            merged = []
            for element in live:
                change = wanted.pop(key_step(element, rule), None)
                merged.append(
                    element if change is None else merge_applied(element, change, element_rule)
                )
            return merged + list(wanted.values())
        if rule.is_set:
            return live + [member for member in config if member not in live]
    return config


def remove_fields(value: Any, doomed: FieldSet, kept: FieldSet, rule: Rule) -> Any:
    """Return ``value`` without the members of ``doomed``, sparing what ``kept`` has or has below.

    An object or list that becomes empty by it disappears too, unless ``kept`` knows it.
    """
    if isinstance(value, dict):
        result = dict(value)
        for step, node in doomed.items():
            name = step[2:]
            if step == _SELF or name not in result:
                continue
            other = kept.get(step)
            child = result[name]
            child_rule = rule.fields.get(name, LEAF)
            if node and isinstance(child, (dict, list)):
                child = remove_fields(child, node, other or {}, child_rule)
                if child or other is not None:
                    result[name] = child
                    continue
            if other is None:
                del result[name]
        return result
    if isinstance(value, list) and rule.list_keys:
        element_rule = Rule(rule.fields)
        survivors = []
        for element in value:
            step = key_step(element, rule) if isinstance(element, dict) else ""
            node = doomed.get(step)
            if node is None:
                survivors.append(element)
            elif step in kept or not is_member(node):
                survivors.append(remove_fields(element, node, kept.get(step, {}), element_rule))
        return survivors
    if isinstance(value, list) and rule.is_set:
        return [
            member for member in value if (step := value_step(member)) not in doomed or step in kept
        ]
    return value
