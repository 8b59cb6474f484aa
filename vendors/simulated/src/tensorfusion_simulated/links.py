"""Direct links between simulated cards."""

from collections.abc import Mapping
from itertools import combinations

from tensorfusion.model.hardware import Card
from tensorfusion.spi.backend import Link


def find_links(cards: Mapping[str, Card]) -> list[Link]:
    """Connect cards of one model that have links, pairwise; ``cards`` is by uuid."""
    return [
        Link(
            source=source,
            target=target,
            kind="NVLink" if card.vendor == "NVIDIA" else "Fabric",
            tier=0,
            bandwidth_mbps=card.link_mbps,
        )
        for (source, card), (target, other) in combinations(cards.items(), 2)
        if card.model == other.model and card.link_count
    ]
