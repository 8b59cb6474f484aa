"""Other cards, or another use of them: model, position, connection, vendor, partition, mode, pool."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec
import numpy as np

from tensorfusion.model.demand import Amount, Shape
from tensorfusion.model.relax.bits import BIT
from tensorfusion.model.relax.look import Look, drop
from tensorfusion.model.relax.step import Step
from tensorfusion.model.topology import UNKNOWN

MODES_BY_COST: Final = ("soft", "hard", "partitioned", "shared")
"""Isolation modes, those that take the least of a card first."""

_replace = msgspec.structs.replace


def _model(look: Look, lifted: int) -> Step | None:
    """Add as few models as possible: on each node those with the most cards first."""
    failures, fleet = look.failures, look.fleet
    lifted_most = lifted | BIT["model"] | look.moving
    nodes = look.nodes(failures, lifted_most)
    usable, already = failures.usable(lifted_most), failures.usable(lifted | look.moving)
    missing = look.shape.gpu_count - np.count_nonzero(already[nodes], axis=1)
    if (missing <= 0).any():
        return None
    best: tuple[int, list[str], int] | None = None
    for slot, lacking in zip(nodes, missing.tolist(), strict=True):
        cards: dict[str, int] = {}
        for place in (usable[slot] & ~already[slot]).nonzero()[0].tolist():
            profile = fleet.profiles[fleet.profile_codes[slot, place]]
            name = profile.model or profile.full_model
            cards[name] = cards.get(name, 0) + 1
        added: list[str] = []
        for name, count in sorted(cards.items(), key=lambda item: (-item[1], item[0])):
            if lacking <= 0:
                break
            added.append(name)
            lacking -= count
        if all(added) and (best is None or len(added) < best[0]):
            best = (len(added), added, slot)
            if len(added) == 1:
                break
    if best is None:
        return None
    text = f"allow {' and '.join(best[1])} besides {', '.join(look.shape.models)}"
    models = (*look.shape.models, *best[1])
    return look.step("model", text, {"models": models}, best[2], lifted)


def _other(look: Look, kind: str, lifted: int) -> Step | None:
    """Name another value if one will do, else drop the rule."""
    fleet, shape = look.fleet, look.shape
    current = getattr(shape, kind).casefold()
    values = sorted({getattr(profile, kind) for profile in fleet.profiles} - {""})
    for value in values:
        if value.casefold() == current:
            continue
        changed = _replace(shape, **{kind: value})
        nodes = look.nodes(look.refit(changed), lifted)
        if nodes and look.allows(changed):
            text = f"use the {kind} {value} instead of {getattr(shape, kind)}"
            return look.step(kind, text, {kind: value}, nodes[0], lifted)
    return drop(look, kind, {kind: ""}, lifted)


def isolations(shape: Shape) -> Iterator[Step]:
    """Yield a step for every other isolation mode, whether it suffices or not."""
    for mode in MODES_BY_COST:
        if mode != shape.isolation:
            text = f"use isolation {mode} instead of {shape.isolation}"
            yield Step(kind="isolation", text=text, shape=_replace(shape, isolation=mode))


def _isolation(look: Look, lifted: int) -> Step | None:
    for step in isolations(look.shape):
        if step.shape is not None and look.allows(step.shape):
            nodes = look.refit(step.shape).nodes(lifted)
            if nodes:
                return _replace(step, node=look.name(nodes[0]))
    return None


def _partition(look: Look, lifted: int) -> Step | None:
    """Name another template, the one with the most memory that will do."""
    kinds = {kind for profile in look.fleet.profiles for kind in profile.partitions}
    order = sorted(kinds, key=lambda kind: (-kind.vram_bytes, -kind.gflops, kind.template))
    for name in dict.fromkeys(kind.template for kind in order):
        fields = {"partition": name, "request": Amount(), "limit": Amount()}
        changed = _replace(look.shape, **fields)
        if changed.wish == look.shape.wish or not look.allows(changed):
            continue
        nodes = look.refit(changed).nodes(lifted)
        if nodes:
            instead = look.shape.partition or "one that covers the request"
            text = f"use a partition {name} instead of {instead}"
            return look.step("partition", text, fields, nodes[0], lifted)
    return None


def _topology(look: Look, lifted: int) -> Step | None:
    """Accept the best connection there is."""
    wish = look.shape.topology
    if wish is None:
        return None
    for tier in range(wish.max_tier + 1, UNKNOWN + 1):
        looser = _replace(wish, max_tier=tier)
        nodes = look.refit(_replace(look.shape, topology=looser)).nodes(lifted)
        if nodes:
            text = f"accept GPUs connected at tier {tier}, not only {wish.max_tier}"
            return look.step("topology", text, {"topology": looser}, nodes[0], lifted)
    return None


def _dedicated(look: Look, lifted: int) -> Step | None:
    text = "take a part of a GPU instead of a dedicated one"
    return look.changed("dedicated", text, {"dedicated": False}, lifted)


KINDS: Final[Mapping[str, Callable[[Look, int], Step | None]]] = {
    "model": _model,
    "index": lambda look, lifted: drop(look, "index", {"indices": ()}, lifted),
    "topology": _topology,
    "vendor": lambda look, lifted: _other(look, "vendor", lifted),
    "partition": _partition,
    "dedicated": _dedicated,
    "isolation": _isolation,
    "pool": lambda look, lifted: _other(look, "pool", lifted),
}
"""Kind of change to what finds the smallest one while some rules are lifted."""
