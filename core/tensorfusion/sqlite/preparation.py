"""The rules of object metadata, as pure functions from request and stored object to new object."""

import secrets
import uuid
from typing import Any, Final

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.validation import is_label, is_subdomain
from tensorfusion.errors import BadRequest, Cause, Conflict, Invalid

_SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_CHARACTERS: Final = 5
_MAX_GENERATED_BASE: Final = 58
_SERVER_SET: Final = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
)
_NO_GENERATION: Final = frozenset(
    {"Namespace", "Node", "Event", "Lease", "Secret", "ConfigMap", "Service"}
)
_STRINGS: Final = ("name", "namespace", "generateName", "uid", "resourceVersion")


def has_generation(resource: Resource) -> bool:
    """Whether objects of a kind count changes of their specification."""
    return resource.is_custom or resource.kind not in _NO_GENERATION


def details_of(resource: Resource, name: str, uid: str = "") -> dict[str, str]:
    """Return the ``details`` of a ``Status`` about an object."""
    details = {"group": resource.group, "kind": resource.plural, "name": name}
    if uid:
        details["uid"] = uid
    return {key: value for key, value in details.items() if value}


def invalid(resource: Resource, name: str, causes: list[Cause]) -> Invalid:
    """Return the refusal of an object, worded as a Kubernetes API server does."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    texts = [
        f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes
    ]
    body = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    details = {"group": resource.group, "kind": resource.kind, "name": name}
    return Invalid(f'{kind} "{name}" is invalid: {body}', causes=causes, details=details)


def envelope(resource: Resource, obj: Any, namespace: str) -> JsonObject:
    """Return a copy of a request's object with kind, apiVersion and namespace settled.

    Raises:
        BadRequest: It is no object of this kind, or its metadata have wrong types.
    """
    if not isinstance(obj, dict):
        raise BadRequest(f"a {resource.kind} must be a JSON object, got {type(obj).__name__}")
    for key, wanted in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        given = obj.get(key)
        if given is not None and given != "" and given != wanted:
            raise BadRequest(f"the {key} of the object is {given!r}, the request is for {wanted!r}")
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = {}
    check_metadata_types(metadata)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    given_namespace = metadata.get("namespace", "")
    if resource.namespaced:
        if namespace and given_namespace and namespace != given_namespace:
            raise BadRequest(
                f"the namespace of the provided object ({given_namespace}) does not match the "
                f"namespace sent on the request ({namespace})"
            )
        settled = namespace or given_namespace
        if not settled:
            raise BadRequest(f"a {resource.kind} needs a namespace, none was given")
        metadata["namespace"] = settled
    else:
        metadata.pop("namespace", None)
    head: JsonObject = {"apiVersion": resource.api_version, "kind": resource.kind}
    head["metadata"] = metadata
    head.update({key: value for key, value in obj.items() if key not in head})
    return head


def check_metadata_types(metadata: Any) -> None:
    """Refuse metadata that cannot be read at all.

    Raises:
        BadRequest: A field has the wrong JSON type; the message names it.
    """
    if not isinstance(metadata, dict):
        raise BadRequest(f"metadata must be an object, got {type(metadata).__name__}")
    for key in _STRINGS:
        value = metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"metadata.{key} must be a string, got {value!r:.80}")
    for key in ("labels", "annotations"):
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise BadRequest(f"metadata.{key} must be an object of strings, got {value!r:.80}")
        for name, text in value.items():
            if not isinstance(text, str):
                raise BadRequest(f"metadata.{key}.{name} must be a string, got {text!r:.80}")
    finalizers = metadata.get("finalizers")
    if finalizers is not None and not (
        isinstance(finalizers, list) and all(isinstance(item, str) for item in finalizers)
    ):
        raise BadRequest("metadata.finalizers must be a list of strings")
    owners = metadata.get("ownerReferences")
    if owners is None:
        return
    if not isinstance(owners, list) or not all(isinstance(item, dict) for item in owners):
        raise BadRequest("metadata.ownerReferences must be a list of objects")
    for position, owner in enumerate(owners):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not isinstance(owner.get(key, ""), str):
                raise BadRequest(f"metadata.ownerReferences[{position}].{key} must be a string")
        for key in ("controller", "blockOwnerDeletion"):
            if not isinstance(owner.get(key, False), (bool, type(None))):
                raise BadRequest(
                    f"metadata.ownerReferences[{position}].{key} must be true or false"
                )


def name_causes(resource: Resource, metadata: JsonObject) -> list[Cause]:
    """Return what is wrong with a name; everything else of the metadata is validated later."""
    name = metadata.get("name", "")
    if not name:
        message = "Required value: name or generateName is required"
        return [Cause("metadata.name", "FieldValueRequired", message)]
    if is_label(name) if resource.kind == "Namespace" else is_subdomain(name):
        return []
    form = (
        "a lowercase RFC 1123 label of at most 63 characters"
        if resource.kind == "Namespace"
        else "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
        "'-' or '.', and must start and end with an alphanumeric character"
    )
    return [Cause("metadata.name", "FieldValueInvalid", f'Invalid value: "{name[:100]}": {form}')]


def generated_name(base: str) -> str:
    """Return ``base`` with five random characters, cut so that it stays a valid name."""
    suffix = "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(_SUFFIX_CHARACTERS))
    return base[:_MAX_GENERATED_BASE] + suffix


def new_object(resource: Resource, obj: JsonObject, now: str) -> JsonObject:
    """Return the object as first stored, without a resourceVersion: server fields set, status reset."""
    metadata = {key: value for key, value in obj["metadata"].items() if key not in _SERVER_SET}
    metadata.pop("managedFields", None)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now
    if has_generation(resource):
        metadata["generation"] = 1
    result = {**obj, "metadata": metadata}
    if resource.has_status and resource.kind != "Node":
        result.pop("status", None)
    if resource.kind == "Pod":
        result["status"] = {"phase": "Pending"}
    elif resource.kind == "Namespace":
        result["status"] = {"phase": "Active"}
        result["spec"] = {"finalizers": ["kubernetes"]}
        metadata["labels"] = {
            **metadata.get("labels", {}),
            "kubernetes.io/metadata.name": metadata["name"],
        }
    return result


def check_preconditions(
    resource: Resource, current: JsonObject, *, uid: str, resource_version: str
) -> None:
    """Compare what a writer expects with what is stored; empty expectations always hold.

    Raises:
        Conflict: The object is another one, or was changed since.
    """
    metadata = current["metadata"]
    name = metadata["name"]
    if uid and uid != metadata["uid"]:
        raise Conflict(
            f'Operation cannot be fulfilled on {resource.qualified} "{name}": Precondition failed: '
            f"UID in precondition: {uid}, UID in object meta: {metadata['uid']}",
            details=details_of(resource, name),
        )
    if resource_version and resource_version != metadata["resourceVersion"]:
        raise Conflict(
            f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been '
            "modified; please apply your changes to the latest version and try again "
            f"(sent version {resource_version}, stored version {metadata['resourceVersion']})",
            details=details_of(resource, name),
        )


def updated_object(
    resource: Resource, current: JsonObject, obj: JsonObject, subresource: str
) -> JsonObject:
    """Return what a write of ``obj`` makes of ``current``, before defaults.

    A write of the ``status`` subresource takes only the status; any other write keeps the stored
    status. Server-set metadata always stay.

    Raises:
        Invalid: A finalizer is added while the object is being deleted.
    """
    old = current["metadata"]
    if subresource == "status":
        metadata = dict(old)
        if "managedFields" in obj["metadata"]:
            metadata["managedFields"] = obj["metadata"]["managedFields"]
        result = {**current, "metadata": metadata}
        result.pop("status", None)
        if obj.get("status") is not None:
            result["status"] = obj["status"]
        return result
    metadata = {key: value for key, value in obj["metadata"].items() if key not in _SERVER_SET}
    metadata.update({key: old[key] for key in (*_SERVER_SET, "resourceVersion") if key in old})
    result = {**obj, "metadata": metadata}
    if resource.has_status:
        result.pop("status", None)
        if "status" in current:
            result["status"] = current["status"]
    if resource.kind == "Namespace":
        result["spec"] = current.get("spec", {})
    if "deletionTimestamp" in old:
        added = set(metadata.get("finalizers") or ()) - set(old.get("finalizers") or ())
        if added:
            message = (
                "Forbidden: no new finalizers can be added if the object is being deleted, found "
                f"new finalizers {sorted(added)}"
            )
            raise invalid(
                resource,
                old["name"],
                [Cause("metadata.finalizers", "FieldValueForbidden", message)],
            )
    return result


def specification_changed(old: JsonObject, new: JsonObject) -> bool:
    """Whether anything but metadata and status differs."""
    skipped = ("metadata", "status")
    return {key: value for key, value in old.items() if key not in skipped} != {
        key: value for key, value in new.items() if key not in skipped
    }


def same_content(old: JsonObject, new: JsonObject) -> bool:
    """Whether two states differ in nothing but field ownership times and versions."""
    if old.keys() != new.keys():
        return False
    if any(old[key] != new[key] for key in old if key != "metadata"):
        return False
    return _comparable(old["metadata"]) == _comparable(new["metadata"])


def _comparable(metadata: JsonObject) -> JsonObject:
    view = {key: value for key, value in metadata.items() if key != "resourceVersion"}
    entries = view.get("managedFields")
    if isinstance(entries, list):
        view["managedFields"] = [
            {key: value for key, value in entry.items() if key != "time"} for entry in entries
        ]
    return {key: value for key, value in view.items() if value not in ({}, [], None)}


def owner_uids(metadata: JsonObject) -> list[str]:
    """Return the uids an object names as its owners."""
    return [owner["uid"] for owner in metadata.get("ownerReferences") or () if owner.get("uid")]
