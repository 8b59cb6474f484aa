"""Which other pods a pod wants near it or away from it: the rules, and who is where.

The words are Kubernetes' own: pod affinity, pod anti-affinity and topology spread constraints. A
domain is a set of nodes with one value of a label; a single GPU is a domain as well, by the
topology key `names.GPU_DOMAIN`. Pods are those that hold something in the ledger.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

import msgspec

HOSTNAME: Final = "kubernetes.io/hostname"
ANYWHERE: Final = "*"
"""Stands for all namespaces in `PeerSelector.namespaces`."""

_KEPT: Final = 256
"""Selectors whose pods are kept counted."""


class LabelCondition(msgspec.Struct, frozen=True):
    """Condition on one label; operators as in Kubernetes' label selectors."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels satisfy it; unknown operators match nothing."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        return False


class PeerSelector(msgspec.Struct, frozen=True):
    """Pods of some namespaces whose labels satisfy every condition."""

    namespaces: tuple[str, ...]
    conditions: tuple[LabelCondition, ...] = ()

    def matches(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Tell whether a pod is meant."""
        if ANYWHERE not in self.namespaces and namespace not in self.namespaces:
            return False
        return all(condition.matches(labels) for condition in self.conditions)


class PeerTerm(msgspec.Struct, frozen=True):
    """Pods, and the kind of domain in which they are near.

    Attributes:
        selector: The pods.
        key: Node label that names the domain.
        weight: 1 to 100 of a preference; 0 is a requirement.
    """

    selector: PeerSelector
    key: str
    weight: int = 0


class SpreadRule(msgspec.Struct, frozen=True):
    """How unevenly pods may lie in the domains of one kind.

    Attributes:
        selector: The pods.
        key: Node label that names the domain.
        max_skew: How many more a domain may have than the emptiest one.
        required: Refuse worse places instead of only preferring better ones.
        min_domains: With fewer domains than this the emptiest one counts as empty.
    """

    selector: PeerSelector
    key: str
    max_skew: int
    required: bool = True
    min_domains: int = 0


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """Every rule of one pod about other pods."""

    near: tuple[PeerTerm, ...] = ()
    apart: tuple[PeerTerm, ...] = ()
    spread: tuple[SpreadRule, ...] = ()


class Identity(msgspec.Struct, frozen=True):
    """What others need to know of a pod that has its place.

    Attributes:
        labels: Its labels, sorted.
        apart: Pods that must not come near it later.
    """

    labels: tuple[tuple[str, str], ...] = ()
    apart: tuple[PeerTerm, ...] = ()


class Resident(Protocol):
    """The part of an allocation that is counted here."""

    @property
    def namespace(self) -> str:
        """Namespace of the pod."""
        ...

    @property
    def node(self) -> str:
        """Node of the pod."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices of the pod."""
        ...

    @property
    def identity(self) -> Identity | msgspec.UnsetType:
        """Labels and rules of the pod."""
        ...


class Census:
    """How many pods are on each node and on each device; zeros are left out."""

    __slots__ = ("devices", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.devices: dict[str, int] = {}

    def count(self, pod: Resident, sign: int) -> None:
        """Add (1) or remove (-1) a pod."""
        _count(self.nodes, pod.node, sign)
        for uuid in pod.devices:
            _count(self.devices, uuid, sign)

    def __bool__(self) -> bool:
        return bool(self.nodes)


def _count(counts: dict[str, int], key: str, sign: int) -> None:
    left = counts.get(key, 0) + sign
    if left:
        counts[key] = left
    else:
        del counts[key]


class PeerIndex:
    """Counts the pods that rules ask for, and the rules of pods that have their place.

    A selector is counted once over all pods when it is first asked for, then kept up.

    Args:
        pods: All pods that hold something, a live view.
    """

    def __init__(self, pods: Mapping[str, Resident]) -> None:
        self._pods = pods
        self._counted: dict[PeerSelector, Census] = {}
        self._apart: dict[PeerTerm, Census] = {}

    def apply(self, pod: Resident, sign: int) -> None:
        """Take a pod in (1) or let it go (-1)."""
        identity = pod.identity
        if identity is msgspec.UNSET:
            return
        labels = dict(identity.labels)
        for selector, census in self._counted.items():
            if selector.matches(pod.namespace, labels):
                census.count(pod, sign)
        for term in identity.apart:
            census = self._apart.setdefault(term, Census())
            census.count(pod, sign)
            if not census:
                del self._apart[term]

    def census(self, selector: PeerSelector) -> Census:
        """Return where the pods are that a selector means; not to be changed."""
        known = self._counted.get(selector)
        if known is not None:
            return known
        if len(self._counted) >= _KEPT:
            self._counted.clear()
        found = self._counted[selector] = Census()
        for pod in self._pods.values():
            identity = pod.identity
            if identity is not msgspec.UNSET and selector.matches(
                pod.namespace, dict(identity.labels)
            ):
                found.count(pod, 1)
        return found

    def repelling(
        self, namespace: str, labels: Mapping[str, str]
    ) -> Iterator[tuple[PeerTerm, Census]]:
        """Yield the rules by which pods that are there keep a new one away, and where they are."""
        for term, census in self._apart.items():
            if term.selector.matches(namespace, labels):
                yield term, census

    @property
    def repels(self) -> bool:
        """Whether any pod that is there keeps others away."""
        return bool(self._apart)
