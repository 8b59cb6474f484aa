"""Builders of API objects: complete and valid with no argument, changed by keyword.

Every builder returns the JSON of one object, as a `tensorfusion.store.interface.Store` takes it.
Annotations and labels are given without our prefix::

    pod("web-0", tflops="10", vram="4Gi", annotations={"qos": "high"})
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tensorfusion import names
from tensorfusion.api.resource import JsonObject
from tensorfusion.units import format_tflops

IMAGE = "registry.example/app:1"
CARD = "A100_SXM_80G"


def _prefixed(values: Mapping[str, str]) -> dict[str, str]:
    """Put our prefix before keys that have no domain of their own."""
    return {key if "/" in key else names.PREFIX + key: text for key, text in values.items()}


def _metadata(name: str, namespace: str = "", **fields: Mapping[str, str] | None) -> JsonObject:
    metadata: JsonObject = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    for field, values in fields.items():
        if values:
            metadata[field] = _prefixed(values)
    return metadata


def pod(
    name: str = "pod",
    namespace: str = "default",
    *,
    tflops: str = "10",
    vram: str = "4Gi",
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> JsonObject:
    """Build a pod that asks for a part of a GPU; limits are the requests unless given.

    Args:
        name: Name of the pod.
        namespace: Its namespace.
        tflops: Requested TFLOPS; empty for a pod without a GPU.
        vram: Requested memory.
        annotations: More, or instead of, what the amounts make.
        labels: More labels.
        spec: Fields of the pod's spec, such as ``nodeName`` or ``priorityClassName``.
    """
    asked = {
        "tflops-request": tflops,
        "tflops-limit": tflops,
        "vram-request": vram,
        "vram-limit": vram,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(
            name,
            namespace,
            labels={**({"enabled": "true"} if tflops else {}), **(labels or {})},
            annotations={**(asked if tflops else {}), **(annotations or {})},
        ),
        "spec": {"containers": [{"name": "main", "image": IMAGE}], **spec},
    }


def node(
    name: str = "node", *, labels: Mapping[str, str] | None = None, ready: bool = True
) -> JsonObject:
    """Build a node with GPUs, as a hypervisor or a kubelet registers it."""
    plain = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "nvidia.com/gpu.present": "true",
    }
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "256"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _metadata(name, labels={**plain, **(labels or {})}),
        "spec": {},
        "status": {
            "capacity": dict(amounts),
            "allocatable": dict(amounts),
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "reason": "HypervisorReady" if ready else "HypervisorStopped",
                    "message": "built for a test",
                }
            ],
        },
    }


def gpu(
    name: str = "gpu-0",
    node_name: str = "node",
    *,
    model: str = CARD,
    index: int = 0,
    phase: str = "Running",
    labels: Mapping[str, str] | None = None,
    **status: Any,
) -> JsonObject:
    """Build a GPU as discovery publishes it, all of it free.

    Args:
        name: Name of the object, which is the device's uuid in lower case.
        node_name: Node that carries it.
        model: A model of the hardware catalogue; decides vendor and capacity.
        index: Position on the node.
        phase: ``Running`` takes new work.
        labels: More labels, such as ``{"gpupool": "shared"}``.
        status: More fields of the status.

    Raises:
        ConfigError: The model is not in the catalogue.
    """
    from tensorfusion.model.hardware import GIB, find_card

    card = find_card(model)
    amounts = {
        "tflops": format_tflops(card.compute_gflops),
        "vram": f"{card.vram_bytes // GIB}Gi",
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "GPU",
        "metadata": _metadata(name, labels={"managed-by": node_name, **(labels or {})}),
        "status": {
            "uuid": name,
            "index": index,
            "vendor": card.vendor,
            "model": card.model,
            "gpuModel": card.full_model,
            "phase": phase,
            "capacity": dict(amounts),
            "available": dict(amounts),
            "nodeName": node_name,
            "nodeSelector": {"kubernetes.io/hostname": node_name},
            "usedBy": names.SYSTEM,
            **status,
        },
    }


def pool(name: str = "shared", *, default: bool = True, **spec: Any) -> JsonObject:
    """Build a pool that takes every node with GPUs; ``spec`` adds or replaces fields."""
    term = {"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}
    selector = {"nodeSelectorTerms": [{"matchExpressions": [term]}]}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "GPUPool",
        "metadata": _metadata(name, annotations={"is-default-pool": str(default).lower()}),
        "spec": {
            "nodeManagerConfig": {"provisioningMode": "AutoSelect", "nodeSelector": selector},
            **spec,
        },
    }


def workload(
    name: str = "workload",
    namespace: str = "default",
    *,
    pool_name: str = "shared",
    tflops: str = "10",
    vram: str = "4Gi",
    replicas: int = 1,
    **spec: Any,
) -> JsonObject:
    """Build a workload whose limits are its requests; ``spec`` adds or replaces fields."""
    amounts = {"tflops": tflops, "vram": vram}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TensorFusionWorkload",
        "metadata": _metadata(name, namespace, labels={"gpupool": pool_name}),
        "spec": {
            "poolName": pool_name,
            "replicas": replicas,
            "resources": {"requests": dict(amounts), "limits": dict(amounts)},
            **spec,
        },
    }


def quota(
    name: str = "quota",
    namespace: str = "default",
    *,
    tflops: str = "100",
    vram: str = "100Gi",
    workers: int | None = None,
    single: Mapping[str, Any] | None = None,
) -> JsonObject:
    """Build a quota on the sums of a namespace's requests; ``single`` bounds each worker."""
    total: JsonObject = {"requests": {"tflops": tflops, "vram": vram}}
    if workers is not None:
        total["maxWorkers"] = workers
    spec: JsonObject = {"total": total}
    if single is not None:
        spec["single"] = dict(single)
    return {
        "apiVersion": names.API_VERSION,
        "kind": "GPUResourceQuota",
        "metadata": _metadata(name, namespace),
        "spec": spec,
    }


def items(*objects: JsonObject) -> JsonObject:
    """Build a ``List``, as ``kubectl get -o json`` prints several objects."""
    found: Sequence[JsonObject] = objects
    return {"apiVersion": "v1", "kind": "List", "items": list(found)}
