"""Pods without a share of a GPU: which node they go to, where nobody else binds them.

What kube-scheduler would look at first: cordons, selector, node affinity, taints, and extended
resources such as ``nvidia.com/gpu``, which a node has or has not. In progressive migration a pod
that asks for GPUs the native way goes to nodes without workers only, so that a card is given out
by one of the two systems.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tensorfusion.api import pod_view
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.model.demand import Shape
from tensorfusion.model.device import NodeInfo
from tensorfusion.model.filters import NODE_RULES
from tensorfusion.scheduling.translate import node_info_of, node_rules_of
from tensorfusion.store.informer import Informer
from tensorfusion.units import count_of

BESIDE_WORKERS = "node(s) with workers of ours, and native GPU pods are kept apart from them"


@dataclass(frozen=True, slots=True)
class PlainChoice:
    """Where a pod goes.

    Attributes:
        node: Its name; empty when there is none.
        message: Why there is none, as kube-scheduler puts it.
        apart: The node was chosen among those without workers.
    """

    node: str = ""
    message: str = ""
    apart: bool = False


class PlainPods:
    """Chooses nodes for pods that are no workers; ``pods`` is indexed by ``node``.

    Args:
        workers_on: How many workers of ours a node has.
        native: Names of the resources that stand for whole GPUs or partitions of them.
        progressive: Native GPU pods and workers are kept apart by node.
    """

    def __init__(
        self,
        nodes: Informer[Node],
        pods: Informer[Pod],
        *,
        workers_on: Callable[[str], int],
        native: Callable[[str], bool],
        progressive: bool = False,
    ) -> None:
        self._nodes = nodes
        self._pods = pods
        self._workers_on = workers_on
        self._native = native
        self._progressive = progressive
        self._assumed: dict[str, tuple[str, Pod]] = {}
        """By uid, pods whose binding the informer has not shown yet, and their nodes."""

    def assume(self, pod: Pod, node: str) -> None:
        """Count a pod that was just bound before the informer shows it."""
        self._assumed[pod.metadata.uid] = (node, pod)

    def seen(self, uid: str) -> None:
        """Take note that the informer shows a pod bound, or that it is gone."""
        self._assumed.pop(uid, None)

    def choose(self, pod: Pod) -> PlainChoice:
        """Choose the node with the fewest pods of those that will do."""
        shape = node_rules_of(pod)
        asked = extended_resources(pod)
        apart = self._progressive and any(self._native(name) for name in asked)
        reasons: Counter[str] = Counter()
        found: list[tuple[bool, int, str]] = []
        for node in self._nodes.values():
            info = node_info_of(node, "")
            reason = self._refusal(shape, info, node, asked, apart=apart)
            if reason:
                reasons[reason] += 1
                continue
            on_node = len(self._on(info.name))
            found.append((_is_avoided(shape, info), on_node, info.name))
        if found:
            return PlainChoice(node=min(found)[2], apart=apart)
        total = sum(reasons.values())
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return PlainChoice(message=f"0/{total} nodes are available: {told or 'there is none'}")

    def _refusal(
        self, shape: Shape, info: NodeInfo, node: Node, asked: Counter[str], *, apart: bool
    ) -> str:
        """Say why a node will not do; empty when it will."""
        for rule in NODE_RULES:
            if rule.reads(shape) is not None and not rule.allows(shape, info):
                return rule.phrase
        if asked:
            held = self._held(info.name)
            status = node.status
            offered = (status.allocatable or status.capacity) if status is not None else {}
            for name, amount in asked.items():
                if held[name] + amount > count_of(offered.get(name, 0)):
                    return f"Insufficient {name}"
        return BESIDE_WORKERS if apart and self._workers_on(info.name) else ""

    def _on(self, node: str) -> list[Pod]:
        assumed = [pod for where, pod in list(self._assumed.values()) if where == node]
        return [*self._pods.by_index("node", node), *assumed]

    def _held(self, node: str) -> Counter[str]:
        """Add up the extended resources of the pods on a node."""
        total: Counter[str] = Counter()
        for pod in self._on(node):
            if not pod_view.is_finished(pod):
                total += extended_resources(pod)
        return total


def extended_resources(pod: Pod) -> Counter[str]:
    """Count what a pod asks for of resources that have a domain in their name.

    Init containers run before the others, so the larger of both needs counts.
    """
    if pod.spec is None:
        return Counter()
    together: Counter[str] = Counter()
    for container in pod.spec.containers:
        if container.resources is not None:
            together += _extended((container.resources.limits, container.resources.requests))
    for container in pod.spec.init_containers:
        if container.resources is not None:
            together |= _extended((container.resources.limits, container.resources.requests))
    return together


def _extended(sides: Iterable[dict[str, str | int | float]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for side in sides:
        for name, amount in side.items():
            if "/" in name:
                found[name] = max(found[name], count_of(amount))
    return +found


def _is_avoided(shape: Shape, info: NodeInfo) -> bool:
    """Whether the node has a taint that the pod would rather avoid."""
    return any(
        taint.effect == "PreferNoSchedule"
        and not any(toleration.tolerates(taint) for toleration in shape.tolerations)
        for taint in info.taints
    )
