"""Other nodes: selector, affinity, taints, name, and what other pods are there."""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from tensorfusion.model.demand import Toleration
from tensorfusion.model.device import NodeInfo
from tensorfusion.model.relax.look import Look, drop
from tensorfusion.model.relax.step import Step

Missing = TypeVar("Missing")


def _selector(look: Look, lifted: int) -> Step | None:
    pairs = look.shape.node_selector

    def missing(node: NodeInfo) -> list[tuple[str, str]]:
        return [(k, v) for k, v in pairs if node.labels.get(k) != v]

    best = _fewest(look, "node-selector", lifted, missing)
    if best is None:
        return None
    wrong, slot = best
    text = f"drop {', '.join(f'{k}={v}' for k, v in wrong)} from the node selector"
    kept = tuple(pair for pair in pairs if pair not in wrong)
    return look.step("node-selector", text, {"node_selector": kept}, slot, lifted)


def _taint(look: Look, lifted: int) -> Step | None:
    known = look.shape.tolerations

    def missing(node: NodeInfo) -> list[Toleration]:
        return [
            Toleration(taint.key, "Equal", taint.value, taint.effect)
            for taint in dict.fromkeys(node.taints)
            if taint.effect != "PreferNoSchedule"
            and not any(toleration.tolerates(taint) for toleration in known)
        ]

    best = _fewest(look, "taint", lifted, missing)
    if best is None:
        return None
    wanted, slot = best
    words = ", ".join(f"{t.key}={t.value}:{t.effect}" for t in wanted)
    fields = {"tolerations": (*known, *wanted)}
    return look.step("taint", f"tolerate the taint {words}", fields, slot, lifted)


def _fewest(
    look: Look, kind: str, lifted: int, missing: Callable[[NodeInfo], list[Missing]]
) -> tuple[list[Missing], int] | None:
    """Return the shortest list over the nodes that pass without the rule, and its node."""
    best: tuple[list[Missing], int] | None = None
    for slot in look.nodes_without(kind, lifted):
        node = look.fleet.nodes[slot]
        found = missing(node) if node is not None else []
        if found and (best is None or len(found) < len(best[0])):
            best = (found, slot)
            if len(found) == 1:
                break
    return best


def _neighbours(look: Look, lifted: int) -> Step | None:
    text = "drop its affinity to other pods and its spread constraints"
    return look.changed("neighbours", text, {"neighbours": None}, lifted)


KINDS: Final[Mapping[str, Callable[[Look, int], Step | None]]] = {
    "node-selector": _selector,
    "node-affinity": lambda look, lifted: drop(look, "node-affinity", {"affinity": ()}, lifted),
    "taint": _taint,
    "neighbours": _neighbours,
    "node-name": lambda look, lifted: drop(look, "node-name", {"node_name": ""}, lifted),
}
"""Kind of change to what finds the smallest one while some rules are lifted."""
