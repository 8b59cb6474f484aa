"""Numbers that one pod has alone: host ports and indices of the device plugin."""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import msgspec

INDEX: Final = "index"
FLEET: Final = ""
"""Stands for the node of claims that hold on every node."""


class Claim(msgspec.Struct, frozen=True, order=True):
    """One number.

    Attributes:
        resource: What is numbered: ``TCP port``, ``UDP port``, ``index``.
        number: Which.
        fleet_wide: Whether one pod of the whole fleet may have it, not one pod of each node.
    """

    resource: str
    number: int
    fleet_wide: bool = False

    @property
    def passing(self) -> bool:
        """Whether it is held only until the pod runs.

        An index tells the device plugin which of the pods that start on a node is asking; once
        its containers run, nobody asks any more.
        """
        return self.resource == INDEX

    def __str__(self) -> str:
        where = "of the fleet" if self.fleet_wide else "of the node"
        return f"{self.resource} {self.number} {where}"


class Holder(Protocol):
    """The part of an allocation that is looked at here."""

    @property
    def key(self) -> str:
        """Key of the allocation."""
        ...

    @property
    def node(self) -> str:
        """Its node."""
        ...

    @property
    def claims(self) -> tuple[Claim, ...] | msgspec.UnsetType:
        """Its numbers."""
        ...


class ClaimBook:
    """Who holds which number on which node.

    Facts that are restored may contradict each other; a number then has several holders.
    """

    def __init__(self) -> None:
        self._held: dict[Claim, dict[str, set[str]]] = {}

    def apply(self, holder: Holder, sign: int) -> None:
        """Take in (1) or let go (-1) what an allocation holds."""
        if holder.claims is msgspec.UNSET:
            return
        for claim in holder.claims:
            node = FLEET if claim.fleet_wide else holder.node
            nodes = self._held.setdefault(claim, {})
            keys = nodes.setdefault(node, set())
            if sign > 0:
                keys.add(holder.key)
            else:
                keys.discard(holder.key)
            if not keys:
                del nodes[node]
            if not nodes:
                del self._held[claim]

    def holder(self, claim: Claim, node: str) -> str | None:
        """Return the key of an allocation that has a number already, None when it is free."""
        keys = self._held.get(claim, {}).get(FLEET if claim.fleet_wide else node)
        return min(keys) if keys else None

    def taken(self, claims: Iterable[Claim]) -> list[tuple[Claim, frozenset[str]]]:
        """Return those numbers that somebody has, and on which nodes; `FLEET` for all."""
        return [(claim, frozenset(nodes)) for claim in claims if (nodes := self._held.get(claim))]

    def contested(self) -> list[str]:
        """Name every number with more than one holder."""
        return [
            f"{claim}{f' {node}' if node else ''} is held by {', '.join(sorted(keys))}"
            for claim, nodes in sorted(self._held.items())
            for node, keys in sorted(nodes.items())
            if len(keys) > 1
        ]

    def state(self) -> Mapping[Claim, Mapping[str, set[str]]]:
        """Return everything, for comparisons."""
        return self._held
