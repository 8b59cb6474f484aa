"""One taint of a node, put on or taken off without touching the others."""

from tensorfusion.api.registry import NODES
from tensorfusion.api.resource import JsonObject
from tensorfusion.controllers.status import MANAGER
from tensorfusion.store.interface import Store


def set_taint(store: Store, node: JsonObject, key: str, taint: JsonObject | None) -> JsonObject:
    """Write a node's taint of a key, or remove it.

    Args:
        store: Where the node is.
        node: As it was read; somebody else's change since then is not overwritten.
        key: Of the taint.
        taint: What it shall be besides its key; None for none.

    Returns:
        The node as it is now.

    Raises:
        Conflict: The node has changed since it was read.
    """
    before = (node.get("spec") or {}).get("taints") or []
    taints = [other for other in before if other.get("key") != key]
    if taint is not None:
        taints.append({"key": key, **taint})
    version = {"resourceVersion": node["metadata"]["resourceVersion"]}
    body = {"metadata": version, "spec": {"taints": taints}}
    return store.patch(NODES, node["metadata"]["name"], body, field_manager=MANAGER)
