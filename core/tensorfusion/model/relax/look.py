"""A request that is to be changed, looked at while other rules are lifted."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tensorfusion.model.demand import Shape
from tensorfusion.model.relax.bits import BIT
from tensorfusion.model.relax.failures import Failures
from tensorfusion.model.relax.step import Step

Allows = Callable[[Shape], bool]
"""Whether the quotas let a request pass."""
Refit = Callable[[Shape], Failures]
"""Failures of another request on the same fleet."""
NODES_TRIED: Final = 16
"""Nodes that are looked at one by one where rules about other pods tell them apart."""

_replace = msgspec.structs.replace


class Look:
    """What the search for the smallest change of a kind needs to know.

    Attributes:
        failures: Of the request.
        fleet: The columns.
        shape: The request.
        allows: Whether the quotas let a changed request pass; yes to everything while the quota
            is lifted as well.
        refit: Makes failures of a changed request.
        moving: Rules that must be looked at anew for each change, since they compare suitable
            nodes.
    """

    __slots__ = ("_only", "allows", "failures", "fleet", "moving", "refit", "shape")

    def __init__(
        self, failures: Failures, allows: Allows, refit: Refit, only: int | None = None
    ) -> None:
        """Look at one request.

        Args:
            failures: Of the request.
            allows: As the attribute.
            refit: As the attribute.
            only: The node that a change has to bring; None for any.
        """
        self.failures = failures
        self.fleet = failures.fleet
        self.shape = failures.shape
        self.allows = allows
        self.refit = refit
        around = failures.around
        self.moving = BIT["neighbours"] if around is not None and around.spreads else 0
        self._only = only

    def at(self, slot: int) -> "Look":
        """Return the same look for changes that bring one node."""
        return Look(self.failures, self.allows, self.refit, slot)

    def nodes(self, failures: Failures, lifted: int) -> list[int]:
        """Return the slots of nodes that a change may bring and that fit."""
        nodes = failures.nodes(lifted)
        if self._only is None:
            return nodes
        return [self._only] if self._only in nodes else []

    def nodes_without(self, kind: str, lifted: int) -> list[int]:
        """Return the slots of nodes that fit once a rule is lifted as well."""
        return self.nodes(self.failures, lifted | BIT[kind] | self.moving)

    def step(
        self, kind: str, text: str, fields: Mapping[str, object], slot: int, lifted: int = 0
    ) -> Step | None:
        """Return a change of some fields, None when it does not suffice.

        Args:
            kind: Of the change.
            text: An instruction for people.
            fields: New values.
            slot: Of the node where the request then fits.
            lifted: Rules that do not count.
        """
        changed = _replace(self.shape, **fields)
        if not self.allows(changed):
            return None
        if self.moving and not self.refit(changed).nodes(lifted):
            return None
        return Step(kind=kind, text=text, shape=changed, node=self.name(slot))

    def changed(
        self, kind: str, text: str, fields: Mapping[str, object], lifted: int
    ) -> Step | None:
        """Return a change of some fields if a node fits it as it then is."""
        nodes = self.refit(_replace(self.shape, **fields)).nodes(lifted)
        return self.step(kind, text, fields, nodes[0], lifted) if nodes else None

    def name(self, slot: int) -> str:
        """Return the name of a node."""
        node = self.fleet.nodes[slot]
        return node.name if node is not None else ""


def drop(look: Look, kind: str, fields: dict[str, object], lifted: int) -> Step | None:
    """Return a request without a rule, if that brings a node.

    Args:
        look: At the request.
        kind: Of the change.
        fields: What the request then says instead.
        lifted: Rules that do not count.
    """
    text = {
        "index": f"allow GPUs at any position, not only {list(look.shape.indices)}",
        "node-affinity": "drop the required node affinity",
        "node-name": f"allow other nodes than {look.shape.node_name}",
        "vendor": f"allow other vendors than {look.shape.vendor}",
        "pool": f"allow other pools than {look.shape.pool}",
    }[kind]
    nodes = look.nodes_without(kind, lifted)
    return look.step(kind, text, fields, nodes[0], lifted) if nodes else None
