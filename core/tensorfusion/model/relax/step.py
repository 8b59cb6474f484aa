"""The vocabulary of an answer: steps, what each changes, and what cannot help."""

from collections.abc import Mapping
from typing import Final

import msgspec

from tensorfusion.model.demand import Shape
from tensorfusion.model.device import Device, NodeInfo


class Raise(msgspec.Struct, frozen=True):
    """A quota's figure that has to be larger: GFLOP/s, bytes, or a count.

    Attributes:
        quota: Name of the quota object.
        resource: As in `tensorfusion.model.quota.Violation`.
        limit: What it is.
        needed: The least it has to be.
    """

    quota: str
    resource: str
    limit: int
    needed: int


class Addition(msgspec.Struct, frozen=True):
    """A node to add, like one that is there."""

    like: str
    node: NodeInfo
    devices: tuple[Device, ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one kind.

    Attributes:
        kind: Which kind; one of `KINDS`.
        text: An instruction for people.
        shape: The request as it would be; None when the request stays.
        node: Where it then fits; empty when that is not one node.
        evict: Keys of the workers that go.
        raises: Quota figures that go up.
        devices: Uuids of cards that come into service.
        addition: A node that is added.
        max_workers: Workers that the node has to allow; 0 when that stays.
        exact: Whether no smaller change of the kind exists for sure; only a search for victims
            that was cut short leaves it open.
    """

    kind: str
    text: str
    shape: Shape | None = None
    node: str = ""
    evict: tuple[str, ...] = ()
    raises: tuple[Raise, ...] = ()
    devices: tuple[str, ...] = ()
    addition: Addition | None = None
    max_workers: int = 0
    exact: bool = True


class Futile(msgspec.Struct, frozen=True):
    """A kind of change that cannot help on its own, and what stands in the way besides it."""

    kind: str
    reason: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a request could be made to fit.

    Attributes:
        alone: Changes that suffice on their own, the smallest of each kind, mildest kind first.
        pairs: When there are none: pairs of changes that suffice together, of which neither can
            be left out or made smaller; mildest first.
        futile: Kinds that do not suffice alone, with the proof in words.
    """

    alone: tuple[Step, ...] = ()
    pairs: tuple[tuple[Step, Step], ...] = ()
    futile: tuple[Futile, ...] = ()

    @property
    def best(self) -> tuple[Step, ...]:
        """The mildest way, empty when there is none."""
        if self.alone:
            return (self.alone[0],)
        return self.pairs[0] if self.pairs else ()

    @property
    def message(self) -> str:
        """The mildest way in words; empty when there is none."""
        return ", and ".join(step.text for step in self.best)


KINDS: Final[Mapping[str, str]] = {
    "compute-limit": "a lower ceiling of compute",
    "vram-limit": "a lower ceiling of VRAM",
    "compute": "less compute",
    "vram": "less VRAM",
    "cpu": "less CPU",
    "memory": "less memory",
    "model": "more GPU models",
    "index": "any position of the GPU",
    "topology": "GPUs that are connected worse",
    "node-selector": "a looser node selector",
    "node-affinity": "no node affinity",
    "taint": "more tolerations",
    "neighbours": "no rules about other pods",
    "node-name": "another node",
    "vendor": "another vendor",
    "partition": "another partition template",
    "dedicated": "a part of a GPU instead of a whole one",
    "isolation": "another isolation mode",
    "gpu-count": "fewer GPUs",
    "pool": "another pool",
    "quota": "a higher quota",
    "worker-cap": "more workers per node",
    "cordoned": "a node back in service",
    "phase": "GPUs that start to run",
    "owner": "GPUs that another system gives back",
    "evict": "workers that leave",
    "add-node": "one more node",
}
"""Kinds of change, the mildest for the person who asks first, then what an administrator does."""
