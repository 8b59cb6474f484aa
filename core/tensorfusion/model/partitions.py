"""Hardware partitions: which shapes a card can be cut into, and where a new cut may lie.

A card has slots. A partition covers neighbouring slots from one of the starts that the vendor
allows for its template, takes some of the compute, and possibly engines of which the card has
few. For NVIDIA's MIG the slots are eighths (A30: quarters) of the memory; for NPUs they are
isolation groups, which partitions of one template may share.

Everything here is a pure function of the geometry and the cuts that are there, so that ledger and
engine come to the same answer without telling each other.
"""

import re
from functools import lru_cache

import msgspec

MAX_KINDS_PER_FLEET = 58
"""Kinds of partition that one fleet may have: bits of a 64-bit word beside the isolation modes.
The whole catalogue has fewer."""


class PartitionTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """One shape of hardware partition.

    Attributes:
        id: The vendor's name of the shape, such as ``3g.40gb``.
        profile: NVML GPU instance profile number; None for other vendors.
        vram_bytes: Memory by the vendor's name of it, which may be rounded up.
        slices: Compute slices taken out of ``total_slices``.
        max_instances: How many fit on one card.
        starts: Slots at which an instance may begin.
        width: Slots an instance covers.
        per_slot: Instances of this template that may lie on the same slots.
        engines: What else an instance takes: name and amount.
    """

    id: str
    profile: int | None = None
    vram_bytes: int
    slices: int
    total_slices: int
    max_instances: int
    starts: tuple[int, ...]
    width: int
    per_slot: int = 1
    engines: tuple[tuple[str, int], ...] = ()


class Cut(msgspec.Struct, frozen=True, order=True):
    """A partition at its place on a card: template and first slot."""

    template: str
    start: int


Cuts = tuple[Cut, ...]
"""Cuts of one card, sorted."""


class PartitionWish(msgspec.Struct, frozen=True):
    """What a request wants of a partition.

    Attributes:
        template: Canonical name of a template; empty for any that is large enough.
        gflops: Compute needed.
        milli_percent: Compute needed as a share of the card, thousandths of a percent.
        vram_bytes: Memory needed.
    """

    template: str = ""
    gflops: int = 0
    milli_percent: int = 0
    vram_bytes: int = 0


class PartitionKind(msgspec.Struct, frozen=True):
    """What a partition of one template is on one model of card; units as in `PartitionWish`."""

    template: str
    gflops: int
    milli_percent: int
    vram_bytes: int

    def covers(self, wish: PartitionWish) -> bool:
        """Tell whether it is what is asked for by name, and large enough."""
        return (
            (not wish.template or canonical(self.template) == wish.template)
            and self.gflops >= wish.gflops
            and self.milli_percent >= wish.milli_percent
            and self.vram_bytes >= wish.vram_bytes
        )


class Geometry(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """How one model of card may be cut.

    Attributes:
        templates: The shapes.
        slots: Slots of the card.
        max_partitions: Partitions of all shapes together.
        divides_memory: Whether each slot is an equal part of the card's memory, so that a
            partition has exactly the memory of its slots.
        engines: What the card has of the engines that templates take.
    """

    templates: tuple[PartitionTemplate, ...]
    slots: int
    max_partitions: int
    divides_memory: bool = True
    engines: tuple[tuple[str, int], ...] = ()

    def template(self, name: str) -> PartitionTemplate | None:
        """Find a template by any spelling of its name; None when there is none."""
        wanted = canonical(name)
        return next((t for t in self.templates if canonical(t.id) == wanted), None)

    def kinds(self, gflops: int, vram_bytes: int) -> tuple[PartitionKind, ...]:
        """Return what each template is on a card of this size, in order of the templates."""
        return tuple(
            PartitionKind(
                template.id,
                gflops * template.slices // template.total_slices,
                100_000 * template.slices // template.total_slices,
                self._memory(template, vram_bytes),
            )
            for template in self.templates
        )

    def _memory(self, template: PartitionTemplate, vram_bytes: int) -> int:
        # The vendor's name rounds up: two 3g.71gb share the 141 GiB of an H200.
        if not self.divides_memory:
            return template.vram_bytes
        return min(template.vram_bytes, vram_bytes * template.width // self.slots)


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """Return the one spelling of a template's name.

    ``MIG-1g.10gb``, ``1G_10GB`` and ``1g-10gb`` are the same; a leading ``mig-`` says nothing.
    """
    return re.sub(r"[-._ /+]+", "-", name.strip().lower()).removeprefix("mig-")


@lru_cache(maxsize=1 << 16)
def legal_starts(geometry: Geometry, cuts: Cuts, name: str) -> tuple[int, ...]:
    """Return the slots at which one more partition may begin, in the vendor's order.

    Args:
        geometry: Of the card.
        cuts: What is there.
        name: Template of the new partition, as in the geometry.
    """
    template = geometry.template(name)
    if template is None or len(cuts) >= geometry.max_partitions:
        return ()
    there = [(cut, found) for cut in cuts if (found := geometry.template(cut.template))]
    if sum(found.id == template.id for _, found in there) >= template.max_instances:
        return ()
    others = [found for _, found in there]
    if sum(o.slices for o in others) + template.slices > template.total_slices:
        return ()
    if not _engines_left(geometry, [*others, template]):
        return ()
    return tuple(start for start in template.starts if _free(there, template, start))


def _engines_left(geometry: Geometry, templates: list[PartitionTemplate]) -> bool:
    totals = dict(geometry.engines)
    for template in templates:
        for name, amount in template.engines:
            if name in totals:
                totals[name] -= amount
    return min(totals.values(), default=0) >= 0


def _free(
    there: list[tuple[Cut, PartitionTemplate]], template: PartitionTemplate, start: int
) -> bool:
    """Tell whether the slots are free, or held by as many of the same template as may share."""
    beside = [
        (cut, other)
        for cut, other in there
        if cut.start < start + template.width and start < cut.start + other.width
    ]
    return len(beside) < template.per_slot and all(
        other.id == template.id and cut.start == start for cut, other in beside
    )


@lru_cache(maxsize=1 << 16)
def choices(geometry: Geometry, cuts: Cuts) -> int:
    """Weigh the partitions that could still be made: every template at every legal start.

    Each counts by the square of its compute slices, so that one place for a large partition is
    worth more than the places for small ones that it consists of, and cut cards are filled up
    before whole ones are cut.
    """
    return sum(
        template.slices**2 * len(legal_starts(geometry, cuts, template.id))
        for template in geometry.templates
    )


class CutChoice(msgspec.Struct, frozen=True):
    """Where a new partition goes on one card.

    Attributes:
        cut: Template and start.
        reuses: Whether an idle partition of this template lies there already.
        removes: Idle partitions that are in the way.
        loss: Choices that are gone afterwards; see `choices`.
    """

    cut: Cut
    reuses: bool
    removes: int
    loss: int


@lru_cache(maxsize=1 << 16)
def best_cut(geometry: Geometry, held: Cuts, idle: Cuts, name: str) -> CutChoice | None:
    """Choose the place of a new partition on one card.

    An idle partition of the same template is reused. Else the start that leaves the most choices
    is taken, then the one that removes the fewest idle partitions, then the first.

    Args:
        geometry: Of the card.
        held: Partitions that workers hold.
        idle: Partitions that exist and that nobody holds; they may be removed.
        name: Template.

    Returns:
        None when no start is legal.
    """
    found = []
    before = choices(geometry, held)
    for start in legal_starts(geometry, held, name):
        cut = Cut(name, start)
        removed = sum(not _beside(geometry, held, cut, other) for other in idle if other != cut)
        loss = before - choices(geometry, tuple(sorted((*held, cut))))
        found.append(CutChoice(cut, cut in idle, removed, loss))
    return min(found, key=lambda c: (not c.reuses, c.loss, c.removes, c.cut.start), default=None)


def _beside(geometry: Geometry, held: Cuts, cut: Cut, other: Cut) -> bool:
    """Tell whether an idle partition can stay when a new one is made."""
    with_new = tuple(sorted((*held, cut)))
    return other.start in legal_starts(geometry, with_new, other.template)


@lru_cache(maxsize=1 << 16)
def best_of(
    geometry: Geometry,
    held: Cuts,
    idle: Cuts,
    kinds: tuple[PartitionKind, ...],
    wish: PartitionWish,
) -> tuple[PartitionKind, CutChoice] | None:
    """Choose template and place for a request on one card.

    Of the templates that cover the request and fit now, the one that wastes the least memory and
    then the least compute is taken; the order of the geometry decides between equals.

    Args:
        geometry: Of the card.
        held: Partitions that workers hold.
        idle: Partitions that exist and that nobody holds.
        kinds: What the templates are on this card.
        wish: What is asked for.
    """
    covering = [kind for kind in kinds if kind.covers(wish)]
    covering.sort(key=lambda kind: (kind.vram_bytes, kind.gflops))
    for kind in covering:
        choice = best_cut(geometry, held, idle, kind.template)
        if choice is not None:
            return kind, choice
    return None


def conflicts(geometry: Geometry, cuts: Cuts) -> list[Cut]:
    """Return the cuts that could not be there beside those before them."""
    found: list[Cut] = []
    there: list[Cut] = []
    for cut in cuts:
        if cut.start not in legal_starts(geometry, tuple(sorted(there)), cut.template):
            found.append(cut)
        there.append(cut)
    return found


class PartitionBits:
    """Numbers the kinds of partition of a fleet, so that "which fit now" is one word per card.

    Args:
        first: Position of the first bit.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._bits: dict[PartitionKind, int] = {}
        self._open: dict[tuple[Geometry, int, int, Cuts], int] = {}

    def add(self, kinds: tuple[PartitionKind, ...]) -> bool:
        """Give bits to kinds that have none; tells whether there were any.

        Raises:
            ValueError: There are more kinds than bits.
        """
        known = len(self._bits)
        for kind in kinds:
            if kind not in self._bits:
                self._bits[kind] = 1 << (self._first + len(self._bits))
        if len(self._bits) > MAX_KINDS_PER_FLEET:
            raise ValueError(
                f"the fleet has {len(self._bits)} kinds of partition, at most "
                f"{MAX_KINDS_PER_FLEET} can be told apart"
            )
        return len(self._bits) > known

    def asked(self, wish: PartitionWish) -> int:
        """Return the bits of all kinds that satisfy a request."""
        return sum(bit for kind, bit in self._bits.items() if kind.covers(wish))

    def open(self, geometry: Geometry, gflops: int, vram_bytes: int, cuts: Cuts) -> int:
        """Return the bits of the kinds that fit on a card now.

        Args:
            geometry: Of the card.
            gflops: What the card has.
            vram_bytes: What the card has.
            cuts: Partitions that workers hold.
        """
        key = (geometry, gflops, vram_bytes, cuts)
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = sum(
                self._bits[kind]
                for kind in geometry.kinds(gflops, vram_bytes)
                if legal_starts(geometry, cuts, kind.template)
            )
        return found
