"""Conditions in the sense of kstatus: ``Ready`` sums up, ``Reconciling`` and ``Stalled`` explain."""

from collections.abc import Mapping, Sequence
from typing import Any

from tensorfusion.clock import format_timestamp

Condition = dict[str, Any]


def condition(
    kind: str, status: bool | None, reason: str, message: str = "", *, generation: int = 0
) -> Condition:
    """Build a condition without its transition time; None means ``Unknown``."""
    text = "Unknown" if status is None else str(status)
    result: Condition = {"type": kind, "status": text, "reason": reason, "message": message}
    if generation:
        result["observedGeneration"] = generation
    return result


def merge(
    present: Sequence[Mapping[str, Any]], wanted: Sequence[Condition], now: float
) -> list[Condition]:
    """Lay ``wanted`` over ``present``; a transition time moves only when the status changes.

    Conditions of other types stay, in their order; new ones follow.
    """
    by_type = {c["type"]: c for c in wanted}
    merged: list[Condition] = []
    for old in present:
        new = by_type.pop(old["type"], None)
        if new is None:
            merged.append(dict(old))
            continue
        same = old.get("status") == new["status"]
        moment = old.get("lastTransitionTime") if same else None
        merged.append({**new, "lastTransitionTime": moment or format_timestamp(now)})
    merged += [{**new, "lastTransitionTime": format_timestamp(now)} for new in by_type.values()]
    return merged
