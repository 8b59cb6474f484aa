"""Server-side apply and field ownership: pure functions over objects with ``managedFields``.

Every write names a manager. Entries of operation ``Apply`` hold what the manager's last
configuration set, entries of operation ``Update`` what it changed by other writes. An apply that
would change a field that someone else owns is a conflict unless it is forced.
"""

from dataclasses import dataclass
from typing import Any, Final

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.errors import BadRequest, Cause, Conflict
from tensorfusion.store.field_sets import (
    FieldSet,
    changed_fields,
    difference,
    fields_of,
    intersection,
    merge_applied,
    paths,
    remove_fields,
    union,
)
from tensorfusion.store.merge_rules import Rule, merge_rules

_SERVER_FIELDS: Final = frozenset(
    {
        "name",
        "namespace",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)
MAX_MANAGER_CHARACTERS: Final = 128
"""How long the name of a field manager may be, as on a Kubernetes API server."""


@dataclass(slots=True)
class _Manager:
    """One entry of ``managedFields``."""

    name: str
    operation: str
    subresource: str
    api_version: str
    time: str
    fields: FieldSet

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.name, self.operation, self.subresource)


def check_manager(name: str) -> None:
    """Refuse a manager name that a server would not store.

    Raises:
        BadRequest: It is longer than 128 characters or has unprintable ones.
    """
    if len(name) > MAX_MANAGER_CHARACTERS or not name.isprintable():
        raise BadRequest(
            f"fieldManager {name[:140]!r}: at most 128 printable characters are allowed"
        )


def owned(obj: JsonObject) -> JsonObject:
    """Return the part of an object whose fields have owners."""
    view = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
    metadata = obj.get("metadata")
    if isinstance(metadata, dict):
        kept = {key: value for key, value in metadata.items() if key not in _SERVER_FIELDS}
        if kept:
            view["metadata"] = kept
        else:
            del view["metadata"]
    return view


def read_managers(obj: JsonObject) -> list[_Manager] | None:
    """Decode ``managedFields``; None when they are malformed."""
    entries = obj.get("metadata", {}).get("managedFields")
    if not isinstance(entries, list):
        return []
    managers = []
    for entry in entries:
        if not isinstance(entry, dict):
            return None
        fields = entry.get("fieldsV1")
        texts = [entry.get(key, "") for key in ("manager", "subresource", "apiVersion", "time")]
        if (
            entry.get("operation") not in ("Apply", "Update")
            or not isinstance(fields, dict)
            or not all(isinstance(text, str) for text in texts)
            or not _well_formed(fields)
        ):
            return None
        name, subresource, api_version, time = texts
        managers.append(_Manager(name, entry["operation"], subresource, api_version, time, fields))
    return managers


def _well_formed(fields: FieldSet) -> bool:
    for step, node in fields.items():
        if not isinstance(node, dict):
            return False
        if step == ".":
            continue
        if step[:2] not in ("f:", "k:", "v:") or not _well_formed(node):
            return False
        if step[:2] == "k:" and not (step.startswith("k:{") and step.endswith("}")):
            return False
    return True


def _write_managers(obj: JsonObject, managers: list[_Manager]) -> JsonObject:
    metadata = dict(obj["metadata"])
    entries = []
    for manager in managers:
        if not manager.fields:
            continue
        entry: JsonObject = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": manager.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": manager.fields,
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    if entries:
        metadata["managedFields"] = entries
    else:
        metadata.pop("managedFields", None)
    return {**obj, "metadata": metadata}


def track_create(resource: Resource, obj: JsonObject, manager: str, now: str) -> JsonObject:
    """Return a new object whose fields are all owned by ``manager``."""
    fields = fields_of(owned(obj), merge_rules(resource))
    entry = _Manager(manager, "Update", "", resource.api_version, now, fields)
    return _write_managers(obj, [entry])


def track_update(
    resource: Resource,
    old: JsonObject,
    new: JsonObject,
    *,
    manager: str,
    subresource: str,
    now: str,
) -> JsonObject:
    """Return ``new`` with the ownership of what differs from ``old`` moved to ``manager``.

    ``managedFields`` that the writer sent are believed when they are well formed; without them
    (or with malformed ones) those of ``old`` go on. One empty entry resets them.
    """
    sent = new["metadata"].get("managedFields")
    if sent in ([], [{}]):
        managers: list[_Manager] = []
        if sent == [{}]:
            return _write_managers(new, managers)
    else:
        managers = read_managers(new) or []
    if not managers:
        managers = read_managers(old) or []
    written, removed = changed_fields(owned(old), owned(new), merge_rules(resource))
    if not written and not removed:
        return _write_managers(new, managers)
    key = (manager, "Update", subresource)
    touched = union(written, removed)
    mine = None
    for entry in managers:
        if entry.key == key:
            mine = entry
            entry.fields = union(difference(entry.fields, removed), written)
            entry.time = now
            entry.api_version = resource.api_version
        else:
            entry.fields = difference(entry.fields, touched)
    if mine is None and written:
        managers.append(
            _Manager(manager, "Update", subresource, resource.api_version, now, written)
        )
    return _write_managers(new, managers)


def apply_configuration(
    resource: Resource,
    live: JsonObject,
    config: JsonObject,
    *,
    manager: str,
    subresource: str,
    force: bool,
    now: str,
) -> JsonObject:
    """Merge an applied configuration into an object.

    Fields that the manager's previous configuration had and this one lacks are removed, unless
    another manager owns them too.

    Raises:
        Conflict: A field would change that another manager owns, and ``force`` is not set; one
            cause per field.
        BadRequest: The configuration carries ``managedFields``.
    """
    if config.get("metadata", {}).get("managedFields"):
        raise BadRequest("metadata.managedFields must be nil in an applied configuration")
    rule = merge_rules(resource)
    configured = without_nulls(owned(config))
    _check_keys(configured, rule, "")
    wanted = fields_of(configured, rule)
    managers = read_managers(live) or []
    key = (manager, "Apply", subresource)
    previous = next((entry.fields for entry in managers if entry.key == key), {})
    others = [entry for entry in managers if entry.key != key]
    before = owned(live)
    merged = merge_applied(before, configured, rule)
    kept = wanted
    for entry in others:
        kept = union(kept, entry.fields)
    merged = remove_fields(merged, difference(previous, wanted), kept, rule)
    written, removed = changed_fields(before, merged, rule)
    _refuse_conflicts(resource, live, others, written, force=force)
    taken = union(written, removed)
    changed = bool(taken) or previous != wanted
    result_managers = []
    for entry in others:
        entry.fields = difference(entry.fields, taken)
        result_managers.append(entry)
    time = now
    if not changed:
        time = next((entry.time for entry in managers if entry.key == key), now)
    mine = _Manager(manager, "Apply", subresource, resource.api_version, time, wanted)
    position = next((i for i, entry in enumerate(managers) if entry.key == key), len(others))
    result_managers.insert(position, mine)
    return _write_managers(_reunite(live, merged), result_managers)


def _refuse_conflicts(
    resource: Resource,
    live: JsonObject,
    others: list[_Manager],
    written: FieldSet,
    *,
    force: bool,
) -> None:
    if force:
        return
    causes: list[Cause] = []
    names: list[str] = []
    for entry in others:
        clash = intersection(entry.fields, written)
        if not clash:
            continue
        how = f" with subresource {entry.subresource!r}" if entry.subresource else ""
        using = f" using {entry.api_version}" if entry.operation == "Update" else ""
        message = f'conflict with "{entry.name}"{how}{using}'
        found = list(paths(clash))
        names.append(f"{message}: {', '.join(found)}")
        causes.extend(Cause(path, "FieldManagerConflict", message) for path in found)
    if causes:
        plural = "conflict" if len(causes) == 1 else "conflicts"
        raise Conflict(
            f"Apply failed with {len(causes)} {plural}: " + "; ".join(names),
            causes=causes,
            details={
                "group": resource.group,
                "kind": resource.plural,
                "name": live.get("metadata", {}).get("name", ""),
            },
        )


def _reunite(live: JsonObject, merged: JsonObject) -> JsonObject:
    """Put the server's own fields of ``live`` back around the merged part."""
    result: JsonObject = {key: live[key] for key in ("apiVersion", "kind") if key in live}
    server = {k: v for k, v in live.get("metadata", {}).items() if k in _SERVER_FIELDS}
    result["metadata"] = {**server, **merged.get("metadata", {})}
    result.update({key: value for key, value in merged.items() if key != "metadata"})
    return result


def without_nulls(value: Any) -> Any:
    """Drop null fields: an applied configuration cannot own them."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _check_keys(value: Any, rule: Rule, path: str) -> None:
    """Refuse keyed lists with elements that lack their key or share one."""
    if isinstance(value, dict) and not rule.atomic:
        for name, child in value.items():
            child_rule = rule.fields.get(name)
            if child_rule is not None:
                _check_keys(child, child_rule, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and rule.list_keys:
        seen = set()
        for position, element in enumerate(value):
            where = f"{path}[{position}]"
            if not isinstance(element, dict):
                raise BadRequest(f"{where}: an element of a keyed list must be an object")
            keys = []
            for key in rule.list_keys:
                found = element.get(key, rule.key_defaults.get(key))
                if found is None or isinstance(found, (dict, list)):
                    raise BadRequest(f"{where}: the element has no key {key}")
                keys.append(found)
            if tuple(keys) in seen:
                raise BadRequest(f"{where}: duplicate entries for key {keys}")
            seen.add(tuple(keys))
            _check_keys(element, Rule(rule.fields), where)
    elif isinstance(value, list) and rule.is_set:
        for member in value:
            if isinstance(member, (dict, list)):
                raise BadRequest(f"{path}: a list of scalars has the member {member!r}")
