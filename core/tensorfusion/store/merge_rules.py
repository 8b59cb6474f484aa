"""How lists and maps of each kind merge: the facts behind strategic merge and server-side apply.

They are derived from the markers in a kind's schema (``x-kubernetes-list-type``,
``x-kubernetes-list-map-keys``, ``x-kubernetes-patch-merge-key``, ``x-kubernetes-map-type``), so
that a field says once how it merges. A list without a marker is replaced as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from tensorfusion.api.resource import Resource
from tensorfusion.api.schema import resource_schema

_NO_FIELDS: Final[Mapping[str, "Rule"]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Rule:
    """How one value merges.

    Attributes:
        fields: Rules of the fields of this object, or of each element when this is a list.
        merge_key: Strategic merge: the field that identifies an element; empty replaces the list.
        list_keys: Server-side apply: the fields that identify an element; empty means atomic.
        key_defaults: Values of missing ``list_keys``, such as protocol ``TCP``.
        is_set: A list of scalars that merges as a set.
        atomic: An object that server-side apply owns and replaces as a whole.
    """

    fields: Mapping[str, "Rule"] = field(default_factory=lambda: _NO_FIELDS)
    merge_key: str = ""
    list_keys: tuple[str, ...] = ()
    key_defaults: Mapping[str, Any] = field(default_factory=dict)
    is_set: bool = False
    atomic: bool = False


LEAF: Final = Rule()


@lru_cache(maxsize=256)
def merge_rules(resource: Resource) -> Rule:
    """Return the rules of a kind, from the root of its objects."""
    return Rule(_field_rules(resource_schema(resource)))


def rule_from_schema(schema: Mapping[str, Any]) -> Rule:
    """Derive the rule of a structural schema from its ``x-kubernetes-*`` markers."""
    if schema.get("type") == "array":
        return _list_rule(schema)
    if schema.get("x-kubernetes-map-type") == "atomic":
        # The fields still count for strategic merges, which know no atomic objects.
        return Rule(_field_rules(schema), atomic=True)
    fields = _field_rules(schema)
    return Rule(fields) if fields else LEAF


def _list_rule(schema: Mapping[str, Any]) -> Rule:
    items = schema.get("items", {})
    merge_key = str(schema.get("x-kubernetes-patch-merge-key", ""))
    kind = schema.get("x-kubernetes-list-type", "atomic")
    keys = tuple(sorted(schema.get("x-kubernetes-list-map-keys", ()))) if kind == "map" else ()
    properties = items.get("properties", {})
    defaults = {
        key: properties[key]["default"] for key in keys if "default" in properties.get(key, {})
    }
    return Rule(
        fields=_field_rules(items) if keys or merge_key else _NO_FIELDS,
        merge_key=merge_key,
        list_keys=keys,
        key_defaults=defaults,
        is_set=kind == "set",
    )


def _field_rules(schema: Mapping[str, Any]) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for name, child in schema.get("properties", {}).items():
        rule = rule_from_schema(child)
        if rule is not LEAF:
            rules[name] = rule
    return rules
