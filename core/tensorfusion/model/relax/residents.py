"""All workers by what rules about other pods look at of them: namespace, labels and own rules."""

from collections.abc import Mapping, Sequence

import msgspec

from tensorfusion.model.allocation import Allocation
from tensorfusion.model.demand import Demand
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.neighbours import Identity, PeerSelector

Kind = tuple[str, Identity | msgspec.UnsetType]
"""Namespace and identity. Workers are many, their kinds are few."""


class Residents:
    """Workers of each kind; catches up on those that came, went or changed."""

    def __init__(self, ledger: Ledger) -> None:
        """Start empty."""
        self._ledger = ledger
        self._digest: int | None = None
        self._known: dict[str, Allocation] = {}
        self._kinds: dict[Kind, set[str]] = {}

    def catch_up(self) -> None:
        """Look at the workers that are not as they were."""
        allocations = self._ledger.allocations
        if self._digest == self._ledger.digest:
            return
        self._digest = self._ledger.digest
        for key in self._known.keys() - allocations.keys():
            self._drop(key, self._known.pop(key))
        known = self._known
        changed = [key for key, worker in allocations.items() if known.get(key) is not worker]
        for key in changed:
            if key in known:
                self._drop(key, known[key])
            worker = known[key] = allocations[key]
            self._kinds.setdefault(_kind(worker), set()).add(key)

    def _drop(self, key: str, worker: Allocation) -> None:
        kind = _kind(worker)
        keys = self._kinds[kind]
        keys.remove(key)
        if not keys:
            del self._kinds[kind]

    def meant(self, selectors: Sequence[PeerSelector], demand: Demand) -> set[str]:
        """Return the keys of workers that selectors mean, or that keep a request away."""
        labels = dict(demand.labels)
        found: set[str] = set()
        for (namespace, identity), keys in self._kinds.items():
            if identity is not msgspec.UNSET and _means(
                selectors, namespace, identity, demand.namespace, labels
            ):
                found |= keys
        return found

    def of_namespace(self, namespace: str) -> set[str]:
        """Return the keys of a namespace's workers."""
        of_kinds = (keys for (own, _), keys in self._kinds.items() if own == namespace)
        return set().union(*of_kinds)


def _kind(worker: Allocation) -> Kind:
    return worker.namespace, worker.identity


def _means(
    selectors: Sequence[PeerSelector],
    namespace: str,
    identity: Identity,
    asking: str,
    labels: Mapping[str, str],
) -> bool:
    """Tell whether selectors mean a worker, or its own rules keep a pod away.

    Args:
        selectors: Of the pod that asks.
        namespace: Of the worker.
        identity: Of the worker.
        asking: Namespace of the pod that asks.
        labels: Of the pod that asks.
    """
    theirs = dict(identity.labels)
    return any(one.matches(namespace, theirs) for one in selectors) or any(
        term.selector.matches(asking, labels) for term in identity.apart
    )
