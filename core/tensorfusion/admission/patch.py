"""Writing what was decided onto the pod: labels, normalised annotations, scheduler, priority."""

import json
from collections.abc import Mapping

from tensorfusion import names
from tensorfusion.admission.gang import Gang
from tensorfusion.admission.layers import AMOUNT_KEYS
from tensorfusion.admission.raw import mapping, metadata_of, objects, spec_of
from tensorfusion.admission.resolve import Resolved
from tensorfusion.api.core.scheduling import NodeAffinity
from tensorfusion.api.decode import to_json
from tensorfusion.api.resource import JsonObject
from tensorfusion.model.demand import Amount
from tensorfusion.model.worker_annotations import format_amounts

USED_BY_TOLERATION = {
    "key": names.USED_BY_TAINT,
    "operator": "Equal",
    "value": names.SYSTEM,
    "effect": "PreferNoSchedule",
}
AMOUNT_NAMES = tuple(key for _, key, _ in AMOUNT_KEYS)


def normalised(
    annotations: Mapping[str, str], resolved: Resolved, request: Amount, limit: Amount
) -> dict[str, str]:
    """Rewrite annotations so that they alone say everything that scheduling reads.

    Args:
        annotations: As they were written; those that are not about amounts stay.
        resolved: The answers.
        request: What the pod gets, a recommendation included.
        limit: The same for its ceiling.
    """
    result = {k: v for k, v in annotations.items() if k not in AMOUNT_NAMES}
    result.update(format_amounts(request, limit))
    result[names.QOS] = resolved.qos
    result[names.GPU_COUNT] = str(resolved.gpu_count)
    result[names.GPU_POOL] = resolved.pool
    result[names.IS_LOCAL_GPU] = "true"
    result[names.ISOLATION] = resolved.isolation
    optional = {
        names.GPU_MODEL: resolved.gpu_model,
        names.VENDOR: resolved.vendor,
        names.PARTITION_ID: resolved.partition,
        names.GPU_INDICES: ",".join(str(i) for i in resolved.gpu_indices),
        names.INJECT_CONTAINER: ",".join(resolved.containers),
        names.CONTAINER_GPU_COUNT: json.dumps(dict(resolved.container_counts))
        if resolved.container_counts
        else "",
        names.DEDICATED_GPU: "true" if resolved.dedicated else "",
        names.ORIGINAL_RESOURCES: _original(resolved, request, limit),
    }
    for key, text in optional.items():
        if text:
            result[key] = text
        else:
            result.pop(key, None)
    return result


def _original(resolved: Resolved, request: Amount, limit: Amount) -> str:
    if (request, limit) == (resolved.request, resolved.limit):
        return ""
    asked = format_amounts(resolved.request, resolved.limit)
    return json.dumps({key.removeprefix(names.PREFIX): text for key, text in asked.items()})


def gang_annotations(
    annotations: dict[str, str], gang: Gang | None, namespace: str, workload: str
) -> None:
    """Write or remove what scheduling reads about a gang."""
    if gang is not None:
        annotations.update(gang.annotations(namespace, workload))
        return
    for key in (names.GANG_DESIRED_MEMBERS, names.GANG_REQUIRED_MEMBERS, names.GANG_GROUP_KEY):
        annotations.pop(key, None)


def with_metadata(
    pod: JsonObject, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> JsonObject:
    """Return the pod with these labels and annotations."""
    metadata = {**metadata_of(pod), "labels": dict(labels), "annotations": dict(annotations)}
    return {**pod, "metadata": metadata}


def scheduled(pod: JsonObject, qos: str, affinity: NodeAffinity | None) -> JsonObject:
    """Return the pod with our scheduler, toleration, priority class and the profile's affinity."""
    spec = dict(spec_of(pod))
    spec["schedulerName"] = names.SCHEDULER
    tolerations = objects(spec.get("tolerations"))
    if not any(t.get("key") == names.USED_BY_TAINT for t in tolerations):
        tolerations = [*tolerations, dict(USED_BY_TOLERATION)]
    spec["tolerations"] = tolerations
    if not spec.get("priorityClassName") and not spec.get("priority"):
        # The API server resolves the class to its number again.
        spec.pop("priority", None)
        spec["priorityClassName"] = f"{names.SYSTEM}-{qos}"
    if affinity is not None:
        own = mapping(spec.get("affinity"))
        if "nodeAffinity" not in own:
            spec["affinity"] = {**own, "nodeAffinity": to_json(affinity)}
    return {**pod, "spec": spec}
