"""Who a pod belongs to, and what its workload is called."""

import hashlib

from tensorfusion.admission.context import AdmissionContext
from tensorfusion.admission.raw import controller_of, mapping, metadata_of, spec_of
from tensorfusion.api.resource import JsonObject

LONGEST_LABEL = 63
_PARENTS = {"ReplicaSet": "Deployment", "Job": "CronJob"}
HASH_LABEL = "pod-template-hash"


def root_owner(pod: JsonObject, context: AdmissionContext) -> JsonObject | None:
    """The object at the top of a pod's chain of controllers, as an owner reference.

    When the ReplicaSet cannot be looked up, its Deployment is known by name only, without uid.
    """
    owner = controller_of(pod)
    if owner is None or owner.get("kind") not in _PARENTS:
        return owner
    name = str(owner.get("name", ""))
    found = context.owner(str(owner["kind"]), name)
    if found is not None:
        return controller_of(found) or owner
    digest = mapping(metadata_of(pod).get("labels")).get(HASH_LABEL, "")
    if owner["kind"] == "ReplicaSet" and digest and name.endswith(f"-{digest}"):
        return {
            "apiVersion": owner.get("apiVersion", "apps/v1"),
            "kind": _PARENTS["ReplicaSet"],
            "name": name.removesuffix(f"-{digest}"),
            "controller": True,
        }
    return owner


def replicas_of(owner: JsonObject | None, context: AdmissionContext) -> int | None:
    """How many pods an owner wants, where known."""
    if owner is None:
        return None
    found = context.owner(str(owner.get("kind", "")), str(owner.get("name", "")))
    spec = spec_of(found) if found is not None else {}
    for field in ("replicas", "parallelism", "completions"):
        if type(spec.get(field)) is int:
            return int(spec[field])
    return None


def workload_name(pod: JsonObject, owner: JsonObject | None) -> str:
    """Name the workload of a pod: its owner's name, else its own; a valid label value."""
    metadata = metadata_of(pod)
    name = str(owner.get("name", "")) if owner is not None else ""
    name = name or str(metadata.get("name") or "")
    return label_safe(name or str(metadata.get("generateName") or "").rstrip("-.") or "workload")


def label_safe(name: str) -> str:
    """Shorten a name to what fits in a label, keeping it unique."""
    if len(name) <= LONGEST_LABEL:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_LABEL - 9].rstrip('-.')}-{digest}"
