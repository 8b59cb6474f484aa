"""The subresources ``scale`` and ``binding``, as pure functions."""

from typing import Any, Final

from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.validation import is_qualified
from tensorfusion.errors import BadRequest, Cause, Conflict
from tensorfusion.sqlite.preparation import details_of, invalid
from tensorfusion.store.selectors import selector_from_labels

_REPLICA_COUNTS: Final = ("replicas", "workerCount", "readyWorkers")
_MAX_REPLICAS: Final = 2**31 - 1


def scale_of(obj: JsonObject) -> JsonObject:
    """Return the ``autoscaling/v1 Scale`` view of an object."""
    metadata = obj["metadata"]
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    selector = spec.get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, dict) else None
    current = next((status[key] for key in _REPLICA_COUNTS if key in status), 0)
    result: JsonObject = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            key: metadata[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
            if key in metadata
        },
        "spec": {"replicas": spec.get("replicas", 0)},
        "status": {"replicas": current},
    }
    if labels:
        result["status"]["selector"] = selector_from_labels(labels)
    return result


def scaled(resource: Resource, obj: JsonObject, scale: Any) -> JsonObject:
    """Return an object with the replica count of a ``Scale``.

    Raises:
        BadRequest: There is no replica count in it, or it is no integer.
        Invalid: The count is negative or too large.
    """
    spec = scale.get("spec") if isinstance(scale, dict) else None
    if spec is None:
        spec = {}
    replicas = spec.get("replicas", 0) if isinstance(spec, dict) else None
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise BadRequest(f"spec.replicas of a Scale must be an integer, got {replicas!r:.80}")
    if not 0 <= replicas <= _MAX_REPLICAS:
        message = f"Invalid value: {replicas}: must be between 0 and {_MAX_REPLICAS}"
        raise invalid(
            resource,
            obj["metadata"]["name"],
            [Cause("spec.replicas", "FieldValueInvalid", message)],
        )
    before = obj.get("spec")
    return {**obj, "spec": {**(before if isinstance(before, dict) else {}), "replicas": replicas}}


def bound(resource: Resource, pod: JsonObject, binding: Any, now: str) -> JsonObject:
    """Return a pod with the node of a ``Binding`` and its annotations merged in.

    Raises:
        BadRequest: The binding names no node.
        Conflict: The pod has a node already, or is being deleted.
    """
    target = binding.get("target") if isinstance(binding, dict) else None
    node = target.get("name") if isinstance(target, dict) else None
    if not isinstance(node, str) or not node:
        raise BadRequest("target.name of a Binding must be the name of a node")
    if isinstance(target, dict) and target.get("kind") not in (None, "", "Node"):
        raise BadRequest(
            f"target.kind of a Binding is {target.get('kind')!r}; only Node is allowed"
        )
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    name = metadata["name"]
    details = details_of(resource, name)
    if "deletionTimestamp" in metadata:
        raise Conflict(
            f"pod {name} is being deleted, cannot be assigned to a host", details=details
        )
    if spec.get("nodeName"):
        raise Conflict(
            f"pod {name} is already assigned to node {spec['nodeName']!r}", details=details
        )
    sent = binding.get("metadata")
    additions = sent.get("annotations") if isinstance(sent, dict) else None
    annotations = dict(metadata.get("annotations") or {})
    if isinstance(additions, dict):
        if not all(isinstance(value, str) for value in additions.values()):
            raise BadRequest("metadata.annotations of a Binding must be an object of strings")
        for key_name in additions:
            if not is_qualified(key_name.lower()):
                raise BadRequest(f"{key_name[:100]!r} of a Binding is no annotation key")
        annotations.update(additions)
    result = {**pod, "spec": {**spec, "nodeName": node}, "metadata": dict(metadata)}
    if annotations:
        result["metadata"]["annotations"] = annotations
    status = pod.get("status") or {}
    others = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"]
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
    result["status"] = {**status, "conditions": [*others, scheduled]}
    return result
