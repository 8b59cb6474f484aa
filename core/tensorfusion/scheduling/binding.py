"""Bindings, and which pods still want one."""

import json
from collections.abc import Callable

import msgspec

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.resource import JsonObject
from tensorfusion.model.allocation import Allocation, cuts_held
from tensorfusion.model.engine import Placement
from tensorfusion.model.worker_annotations import format_cuts
from tensorfusion.scheduling.gang_pods import gang_key

Binder = Callable[[str, str, JsonObject], object]
"""Binds pod (namespace, name) by a ``Binding`` object, once."""


def waits(pod: Pod) -> bool:
    """Whether the pod has no node yet and may get one."""
    gated = bool(pod.spec and pod.spec.scheduling_gates)
    return (
        not pod_view.node_name(pod)
        and not pod_view.is_finished(pod)
        and not pod_view.is_deleting(pod)
        and not gated
    )


def binding(pod: Pod, placement: Placement, allocation: Allocation | None) -> JsonObject:
    """Build the Binding: node and GPU ids in one write."""
    annotations = {names.GPU_IDS: ",".join(placement.devices)} if placement.devices else {}
    if placement.containers:
        annotations[names.CONTAINER_GPUS] = json.dumps(
            {name: list(uuids) for name, uuids in placement.containers}
        )
    cuts = cuts_held(allocation) if allocation is not None else {}
    if cuts:
        annotations[names.PARTITIONS] = format_cuts(cuts)
        annotations[names.PARTITION_ID] = next(iter(cuts.values())).template
    if placement.connection is not None:
        annotations[names.GPU_TOPOLOGY] = msgspec.json.encode(placement.connection).decode()
    if gang_key(pod):
        annotations[names.GANG_PHASE] = "Scheduled"
    elif allocation is not None and names.WORKLOAD in pod.metadata.annotations:
        annotations[names.WORKER] = f"{allocation.key}/{allocation.name}"
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {
            "name": pod.metadata.name,
            "namespace": pod.metadata.namespace,
            "uid": pod.metadata.uid,
            "annotations": annotations,
        },
        "target": {"apiVersion": "v1", "kind": "Node", "name": placement.node},
    }
