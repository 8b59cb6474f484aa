"""GPU models as users write them, looked up in the hardware catalogue."""

import difflib
from functools import lru_cache

from tensorfusion.model.demand import parse_models
from tensorfusion.model.hardware import Card, cards


@lru_cache(maxsize=512)
def cards_named(text: str) -> tuple[Card, ...]:
    """Cards that a ``gpu-model`` value allows: by model, full name or family, in any case.

    ``A100`` is the family of ``A100_SXM_80G``. Empty when the catalogue knows none of them.
    """
    wanted = {name.casefold() for name in parse_models(text)}
    return tuple(card for card in cards().values() if wanted & _names(card))


@lru_cache(maxsize=512)
def unknown_models(text: str) -> tuple[str, ...]:
    """Names in a ``gpu-model`` value that the catalogue does not know."""
    return tuple(name for name in parse_models(text) if not cards_named(name))


def closest_models(name: str) -> str:
    """Model names that look like an unknown one, for messages."""
    known = sorted({*cards(), *(_family(card) for card in cards().values())})
    by_lower = {model.casefold(): model for model in known}
    near = difflib.get_close_matches(name.casefold(), by_lower, n=3, cutoff=0.3)
    return ", ".join(by_lower[model] for model in near) or ", ".join(known)


def _names(card: Card) -> set[str]:
    return {card.model.casefold(), card.full_model.casefold(), _family(card).casefold()}


def _family(card: Card) -> str:
    return card.model.partition("_")[0]
