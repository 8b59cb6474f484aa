"""What several features ask of a pod, answered once."""

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.resource import JsonObject

FINISHED = frozenset({"Succeeded", "Failed"})


def key(pod: Pod) -> str:
    """``namespace/name``."""
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def node_name(pod: Pod) -> str:
    """The node it is bound to; empty while it waits."""
    return (pod.spec.node_name or "") if pod.spec else ""


def phase(pod: Pod) -> str:
    """``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``."""
    return (pod.status.phase or "Pending") if pod.status else "Pending"


def is_finished(pod: Pod) -> bool:
    """Whether its containers will never run again."""
    return phase(pod) in FINISHED


def is_deleting(pod: Pod) -> bool:
    """Whether deletion has begun."""
    return bool(pod.metadata.deletion_timestamp)


def is_ready(pod: Pod) -> bool:
    """Whether it serves."""
    conditions = pod.status.conditions if pod.status else ()
    return any(c.type == "Ready" and c.status == "True" for c in conditions or ())


def is_worker(pod: Pod) -> bool:
    """Whether admission made it a worker that the placement engine binds."""
    return pod.metadata.labels.get(names.COMPONENT) == "worker"


def reference(pod: Pod) -> JsonObject:
    """The parts of a pod that an Event refers to."""
    metadata = {
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace,
        "uid": pod.metadata.uid,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
