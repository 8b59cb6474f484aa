"""The TensorFusionWorkload behind a pod. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from tensorfusion import names
from tensorfusion.admission.gang import Gang
from tensorfusion.admission.raw import mapping, metadata_of, objects
from tensorfusion.admission.resolve import Resolved
from tensorfusion.api.decode import to_json
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.workload_profile import WorkloadProfileSpec
from tensorfusion.model.demand import Amount
from tensorfusion.units import format_bytes, format_duration, format_percent, format_tflops


def spec_json(
    resolved: Resolved, profile: WorkloadProfileSpec | None, scaling: JsonObject, gang: Gang | None
) -> JsonObject:
    """Print the spec: every answer, and from the profile what only a profile can say."""
    spec: JsonObject = {
        "poolName": resolved.pool,
        "gpuCount": resolved.gpu_count,
        "qos": resolved.qos,
        "isolation": resolved.isolation,
        "isLocalGPU": True,
    }
    sides = {"requests": _amount(resolved.request), "limits": _amount(resolved.limit)}
    resources = {side: amount for side, amount in sides.items() if amount}
    optional: dict[str, Any] = {
        "resources": resources,
        "gpuIndices": list(resolved.gpu_indices),
        "gpuModel": resolved.gpu_model,
        "vendor": resolved.vendor,
        "partitionTemplateId": resolved.partition,
        "autoScalingConfig": scaling,
    }
    if gang is not None:
        optional["gangScheduling"] = {
            "minMembers": gang.required,
            "timeout": format_duration(gang.timeout_seconds),
            "mode": "Strict",
        }
    if profile is not None:
        if profile.replicas is not None:
            spec["replicas"] = profile.replicas
        if profile.node_affinity is not None:
            optional["nodeAffinity"] = to_json(profile.node_affinity)
    spec.update({key: value for key, value in optional.items() if value})
    return spec


def _amount(amount: Amount) -> JsonObject:
    result: JsonObject = {}
    if amount.gflops:
        result["tflops"] = format_tflops(amount.gflops)
    if amount.milli_percent:
        result["compute"] = format_percent(amount.milli_percent)
    if amount.vram_bytes:
        result["vram"] = format_bytes(amount.vram_bytes)
    return result


def workload_object(
    name: str,
    namespace: str,
    spec: JsonObject,
    owner: JsonObject | None,
    container_counts: Mapping[str, int],
    features: tuple[str, ...],
) -> JsonObject:
    """Build the object as it should be."""
    mode = "fixed" if "replicas" in spec else "dynamic"
    annotations = {names.WORKLOAD_MODE: mode}
    if features:
        annotations[names.DISABLE_FEATURES] = ",".join(features)
    if container_counts:
        annotations[names.CONTAINER_GPU_COUNT] = json.dumps(dict(container_counts))
    metadata: JsonObject = {
        "name": name,
        "namespace": namespace,
        "labels": {names.GPU_POOL: spec["poolName"]},
        "annotations": annotations,
    }
    if owner is not None and owner.get("uid"):
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TensorFusionWorkload",
        "metadata": metadata,
        "spec": spec,
    }


_OURS = (names.WORKLOAD_MODE, names.DISABLE_FEATURES, names.CONTAINER_GPU_COUNT)


def merged(
    existing: JsonObject | None, wanted: JsonObject, *, keep_spec: bool
) -> JsonObject | None:
    """Lay a workload over what exists; None when nothing changes.

    Labels, annotations and owners of others stay. With ``keep_spec`` the spec stays too: it
    belongs to whoever made the workload that this pod only shares.
    """
    if existing is None:
        return wanted
    old, new = metadata_of(existing), wanted["metadata"]
    annotations = {k: v for k, v in mapping(old.get("annotations")).items() if k not in _OURS}
    metadata: JsonObject = {
        "name": new["name"],
        "namespace": new["namespace"],
        "labels": {**mapping(old.get("labels")), **new["labels"]},
        "annotations": {**annotations, **new["annotations"]},
    }
    if keep_spec:
        metadata["labels"] = mapping(old.get("labels"))
        metadata["annotations"] = mapping(old.get("annotations"))
    owners = _owners(objects(old.get("ownerReferences")), new.get("ownerReferences", []))
    if owners:
        metadata["ownerReferences"] = owners
    spec = existing.get("spec", {}) if keep_spec else wanted["spec"]
    same = (
        spec == existing.get("spec")
        and metadata["labels"] == mapping(old.get("labels"))
        and metadata["annotations"] == mapping(old.get("annotations"))
        and owners == objects(old.get("ownerReferences"))
    )
    if same:
        return None
    kept = {k: old[k] for k in ("finalizers",) if k in old}
    return {**wanted, "metadata": {**metadata, **kept}, "spec": spec}


def _owners(old: list[JsonObject], new: list[JsonObject]) -> list[JsonObject]:
    present = {owner.get("uid") for owner in old}
    has_controller = any(owner.get("controller") for owner in old)
    added = []
    for owner in new:
        if owner.get("uid") in present:
            continue
        if has_controller and owner.get("controller"):
            # An object has one controller; the others own it all the same.
            owner = {k: v for k, v in owner.items() if k != "controller"}
        added.append(owner)
    return [*old, *added]
