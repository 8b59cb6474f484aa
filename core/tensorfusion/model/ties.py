"""Which of equally good nodes and cards is taken.

A scheduler that leaves this to chance or to the order of a map cannot be replayed, and on real
traces the rule is worth more than the choice of policy, so it is a setting of its own:

- ``name``: the node with the smallest name, the card with the smallest index.
- ``pack``: the node with the least free GPU in sum, the card with the least left; then by name.
- ``random``: any of them, all equally likely. The draw is a function of the seed and the pod's uid
  alone, so the same pod against the same fleet gets the same place on any machine, asked once or
  ten times.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from tensorfusion.model.candidates import NOT_FITTING
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.rows import FREE_GPU_COLUMN, MILLI_PLANE, Ints

NAME: Final = "name"
PACK: Final = "pack"
RANDOM: Final = "random"
TIE_RULES: Final = (NAME, PACK, RANDOM)


class Ties(msgspec.Struct, frozen=True):
    """A rule with its seed.

    Attributes:
        rule: ``name``, ``pack`` or ``random``.
        seed: Of ``random``; without effect on the others.
    """

    rule: str = NAME
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown rules.

        Raises:
            ValueError: Names the rule and those there are.
        """
        if self.rule not in TIE_RULES:
            raise ValueError(f"ties is {self.rule!r}, allowed are {', '.join(TIE_RULES)}")

    @property
    def drawn(self) -> "Ties":
        """The same with rule ``random``."""
        return self if self.rule == RANDOM else Ties(RANDOM, self.seed)

    def node(self, fleet: Fleet, keys: Ints, uid: str, attempt: int = 0) -> int:
        """Return the node slot to take: one of those with the largest key.

        When nothing fits, that is any slot with the key `NOT_FITTING`.

        Args:
            fleet: Names and loads of the nodes.
            keys: One comparable number per node slot.
            uid: Of the pod.
            attempt: Counts the draws for one decision, so that each is a new one.
        """
        first = int(keys.argmax())
        if keys[first] == NOT_FITTING or (self.rule == NAME and fleet.ordered):
            return first
        slots = (keys == keys[first]).nonzero()[0]
        if len(slots) == 1:
            return first
        if self.rule == PACK:
            free = fleet.host[slots, FREE_GPU_COLUMN]
            slots = slots[free == free.min()]
        if self.rule == RANDOM:
            position = _draw(self.seed, uid, attempt) % len(slots)
            if fleet.ordered:
                return int(slots[position])
            return fleet.by_name(slots.tolist())[position]
        return int(slots[0]) if fleet.ordered else fleet.by_name(slots.tolist())[0]

    def cards(
        self, fleet: Fleet, slot: int, fitting: Sequence[int], scores: Sequence[int], uid: str
    ) -> list[int]:
        """Return the fitting cards of a node, best first.

        Args:
            fleet: Loads of the cards.
            slot: The node.
            fitting: Positions of the cards that fit, in order.
            scores: Score per position.
            uid: Of the pod.
        """
        order = list(fitting)
        if self.rule == PACK:
            cards = fleet.cards[slot]
            order.sort(key=lambda position: cards[position][MILLI_PLANE])
        elif self.rule == RANDOM:
            order.sort(key=lambda position: _draw(self.seed, uid, -1 - position))
        # The sort is stable, so equal scores stay in the order of the rule.
        order.sort(key=scores.__getitem__, reverse=True)
        return order


def _draw(seed: int, uid: str, number: int) -> int:
    digest = blake2b(f"{seed}/{number}/{uid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
