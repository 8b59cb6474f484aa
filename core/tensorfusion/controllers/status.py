"""Writing a status: only when it says something new, and never over what others wrote."""

from collections.abc import Sequence
from typing import Any

from tensorfusion.api.decode import to_json
from tensorfusion.api.fields import Wire
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.clock import Clock
from tensorfusion.errors import NotFound
from tensorfusion.runtime.conditions import Condition, condition, merge
from tensorfusion.store.interface import Store

MANAGER = "tensorfusion-controller"


def write_status(
    store: Store,
    resource: Resource,
    obj: Any,
    status: JsonObject,
    conditions: Sequence[Condition],
    clock: Clock,
) -> bool:
    """Patch an object's status if it differs from what the view shows.

    Args:
        obj: The typed view that the decision was made on.
        status: Fields that the caller owns, without conditions.
        conditions: Conditions that the caller owns.

    Returns:
        Whether something was written.

    Raises:
        Conflict: Someone wrote the object meanwhile; the reconcile is tried again.
    """
    present = to_json(obj.status) if isinstance(obj.status, Wire) else {}
    standing = present.get("conditions", ())
    if not any(c["type"] == "Stalled" for c in conditions):
        # By kstatus an object with Stalled has failed: what is no longer so must go.
        standing = [c for c in standing if c["type"] != "Stalled"]
    merged = merge(standing, conditions, clock.now())
    generation = obj.metadata.generation
    wanted = {**status, "conditions": merged}
    if generation:
        wanted["observedGeneration"] = generation
    if all(present.get(key) == value for key, value in wanted.items()):
        return False
    patch = {"metadata": {"resourceVersion": obj.metadata.resource_version}, "status": wanted}
    try:
        store.patch(
            resource,
            obj.metadata.name,
            patch,
            obj.metadata.namespace,
            subresource="status",
            field_manager=MANAGER,
        )
    except NotFound:
        return False
    return True


def ready(is_ready: bool, reason: str, message: str, generation: int | None) -> list[Condition]:
    """Build the kstatus conditions of a summary: Ready, and Reconciling while it is not."""
    number = generation or 0
    return [
        condition("Ready", is_ready, reason, message, generation=number),
        condition(
            "Reconciling",
            not is_ready,
            reason if not is_ready else "Settled",
            "" if is_ready else message,
            generation=number,
        ),
    ]


def stalled(reason: str, message: str, generation: int | None) -> list[Condition]:
    """Build the kstatus conditions of an object that cannot become ready as it stands."""
    number = generation or 0
    return [
        condition("Ready", False, reason, message, generation=number),
        condition("Reconciling", False, reason, "", generation=number),
        condition("Stalled", True, reason, message, generation=number),
    ]
