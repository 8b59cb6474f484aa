"""Cached answers of the engine: which nodes can serve a request, and how good they are.

Three levels, each catching up on changed nodes only, which the fleet's journals name:

- `Suitability`: which cards and nodes a kind of request may use at all. Changes with hardware,
  labels and taints, not with load.
- `Tables`: per node the score, and which of its cards are open to an isolation mode. Requests of
  every kind share one table as long as their constraints take or leave whole nodes, which is the
  rule since the cards of a node are usually alike; otherwise a kind has its own. A policy that
  reads the demand has no scores here.
- `ShapeKeys`: one number per node for one shape, its score where the shape may fit and
  `NOT_FITTING` elsewhere. The fleet's rough columns sort out nearly all nodes that do not fit;
  the rest is looked at when a node is about to win, or for all at once by `prune`.
"""

from collections.abc import Callable, Hashable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.demand import Shape
from tensorfusion.model.filters import NODE_RULES, NodeRule, allows_profile, profile_key
from tensorfusion.model.fleet import LANES, Fleet
from tensorfusion.model.headroom import (
    GFLOPS,
    LIMIT_GFLOPS,
    LIMIT_PERCENT,
    LIMIT_VRAM,
    PERCENT,
    VRAM,
    rough_needs,
)
from tensorfusion.model.journal import Journal
from tensorfusion.model.rows import GATE_PLANE, Bools, Ints, Rows, Scorer, Scores, Slots
from tensorfusion.model.wishes import Wishes

NOT_FITTING: Final = -(1 << 62)
SCORE_SCALE: Final = 1 << 16
"""Scores are compared as integers in units of 1/65536, so that the order in which a processor
adds floating-point numbers cannot decide a tie."""

_CACHED_MASKS: Final = 1024
_FEW_NODES: Final = 4
"""Up to so many changes, plain Python is faster than a call of numpy per step."""
_MANY_UNSCORED: Final = 32
_NO_KEY: Final = np.int64(NOT_FITTING)


def needs_of(shape: Shape) -> list[tuple[int, int]]:
    """Return (quantity, amount) pairs that a card's headroom must reach.

    A limit below the request counts as the request, as in the ledger. When one of the two is a
    share of the card and the other is not, both conditions are stated; the larger one decides.
    A partition has the amounts of its template, which the gate looks at.
    """
    if shape.wish is not None:
        return [(GFLOPS, 0)]
    request, limit = shape.request, shape.limit
    needs = {
        GFLOPS: request.gflops,
        VRAM: request.vram_bytes,
        PERCENT: request.milli_percent,
        LIMIT_GFLOPS: max(limit.gflops, request.gflops),
        LIMIT_VRAM: max(limit.vram_bytes, request.vram_bytes),
        LIMIT_PERCENT: max(limit.milli_percent, request.milli_percent),
    }
    found = [(quantity, amount) for quantity, amount in needs.items() if amount]
    return found or [(GFLOPS, 0)]


class StaticMasks:
    """Masks that many request kinds share: one per node rule, one per set of profile rules."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._nodes: dict[tuple[str, Hashable], tuple[int, Bools]] = {}
        self._profiles: dict[tuple[object, ...], list[bool]] = {}

    def profiles(self, shape: Shape) -> Bools:
        """Return which device profiles suit the request; one more False for empty slots."""
        table = self._profiles.setdefault(profile_key(shape), [])
        for profile in self._fleet.profiles[len(table) :]:
            table.append(allows_profile(shape, profile))
        return np.array([*table, False], dtype=np.bool_)

    def nodes(self, shape: Shape) -> Bools:
        """Return which node slots suit the request, all node rules together; (fleet.rows,)."""
        combined = np.ones(self._fleet.rows, dtype=np.bool_)
        for _, mask in self.node_rules(shape):
            combined &= mask
        return combined

    def node_rules(self, shape: Shape) -> list[tuple[NodeRule, Bools]]:
        """Return the node rules that concern the request and which node slots each allows."""
        found = []
        for rule in NODE_RULES:
            reads = rule.reads(shape)
            if reads is not None:
                found.append((rule, self._node_mask(rule, reads, shape)))
        return found

    def clear(self) -> None:
        """Forget all node masks."""
        self._nodes.clear()

    def _node_mask(self, rule: NodeRule, reads: Hashable, shape: Shape) -> Bools:
        fleet = self._fleet
        key = (rule.name, reads)
        known = self._nodes.get(key)
        version = fleet.static_journal.version
        if known is not None and known[0] == version:
            return known[1]
        allows = rule.allows
        changed = fleet.static_journal.since(known[0]) if known is not None else None
        if known is None or changed is None:
            if len(self._nodes) >= _CACHED_MASKS:
                self._nodes.clear()
            mask: Bools = np.zeros(fleet.rows, dtype=np.bool_)
            mask[: fleet.size] = [node is not None and allows(shape, node) for node in fleet.nodes]
        else:
            mask = known[1]
            for slot in set(changed.tolist()):
                node = fleet.nodes[slot]
                mask[slot] = node is not None and allows(shape, node)
        self._nodes[key] = (version, mask)
        return mask


class Suitability:
    """What a kind of request may use, load aside.

    Attributes:
        cards: Cards that the unchanging constraints allow; (rows, width).
        nodes: Nodes with at least one such card; (rows,).
        regular: Whether each node has either all or none of its cards allowed.
    """

    def __init__(self, fleet: Fleet, masks: StaticMasks, shape: Shape) -> None:
        self._fleet = fleet
        self._masks = masks
        self._shape = shape
        self.cards: Bools = np.zeros((fleet.rows, fleet.width), dtype=np.bool_)
        self.nodes: Bools = np.zeros(fleet.rows, dtype=np.bool_)
        self._irregular: Bools = np.zeros(fleet.rows, dtype=np.bool_)
        self.regular = True
        self._cursor = -1

    def catch_up(self) -> None:
        """Look at the nodes whose hardware, labels or taints changed since the last call."""
        fleet = self._fleet
        version = fleet.static_journal.version
        if version == self._cursor:
            return
        where = _changed(fleet.static_journal, self._cursor, fleet.size)
        shape = self._shape
        if not shape.gpu_count:
            self.nodes[where] = self._masks.nodes(shape)[where]
            if shape.pool:
                in_pool = [node is not None and node.pool == shape.pool for node in fleet.nodes]
                self.nodes[: fleet.size] &= in_pool
            self._cursor = version
            return
        codes = fleet.profile_codes[where]
        cards = self._masks.profiles(shape)[codes]
        cards &= self._masks.nodes(shape)[where, None]
        if shape.indices:
            cards &= np.isin(fleet.indices[where], shape.indices)
        some = cards.any(axis=1)
        self.cards[where] = cards
        self.nodes[where] = some
        self._irregular[where] = some & ((codes >= 0) != cards).any(axis=1)
        self.regular = not self._irregular[: fleet.size].any()
        self._cursor = version

    def lowest_capacity_gflops(self) -> int:
        """Return the compute of the smallest card allowed, 0 if none."""
        size = self._fleet.size
        capacities = self._fleet.capacity[0, :size][self.cards[:size]]
        return int(capacities.min()) if capacities.size else 0


class Tables:
    """Scores per node, and which cards are open.

    Attributes:
        node_scores: Score per node slot, in units of 1/`SCORE_SCALE`; see `score_unscored`.
        open: Cards that count and that the isolation mode may join; (rows, lanes), as wide as
            `Fleet.rough`.
        words: The same, eight at a time, in a row.
    """

    def __init__(
        self, fleet: Fleet, policy: Scorer | None, shape: Shape, suitability: Suitability | None
    ) -> None:
        """Start empty.

        Args:
            fleet: The columns.
            policy: Gives the scores; None for open cards only.
            shape: A request of the kind.
            suitability: Restricts the cards that count; None counts all.
        """
        self._fleet = fleet
        self._policy = policy
        self._shape = shape
        self._suitability = suitability
        self._bit = fleet.gate_asked(shape)
        self.node_scores: Ints = np.zeros(fleet.rows, dtype=np.int64)
        self.open: Bools = np.zeros(fleet.rough.shape[1:], dtype=np.bool_)
        self.words = self.open.reshape(-1).view(np.uint64)
        self._gates: dict[int, list[int]] = {}
        """Gates of nodes as `open` has them; most changes of load leave them as they are."""
        self._unscored: set[int] = set()
        self._cursor = -1

    def catch_up(self) -> None:
        """Look at the nodes that changed since the last call."""
        fleet = self._fleet
        version = fleet.journal.version
        if version == self._cursor:
            return
        where = _changed(fleet.journal, self._cursor, fleet.size)
        self._cursor = version
        if not isinstance(where, slice) and len(where) <= _FEW_NODES:
            slots = set(where.tolist())
            for slot in slots:
                self._write_open(slot)
            if self._policy is not None:
                self._unscored |= slots
            return
        is_open = (fleet.gate[where] & self._bit) != 0
        if self._suitability is not None:
            is_open &= self._suitability.cards[where]
        self.open[where, : fleet.width] = is_open
        self._gates.clear()
        if self._policy is not None:
            self._score(where, self.rows(where))

    def score_unscored(self, keys: Ints) -> None:
        """Bring scores up to date if one of those that are not matters to a shape.

        A changed node often fits nothing that is asked for next, and scoring many at once costs
        hardly more than scoring one.

        Args:
            keys: Of the shape; those of nodes that had no score are written anew.
        """
        key = keys.item
        wanted = [slot for slot in self._unscored if key(slot) != NOT_FITTING]
        if wanted or len(self._unscored) > _MANY_UNSCORED:
            where = np.array(sorted(self._unscored), dtype=np.intp)
            self._unscored.clear()
            self._score(where, self.rows(where))
            keys[wanted] = self.node_scores[wanted]

    def _score(self, where: slice | Slots, rows: Rows) -> None:
        policy = self._policy
        if policy is not None:
            scores = policy.score_nodes(self._shape, rows, self._fleet.statistics)
            self.node_scores[where] = scaled(scores)

    def _write_open(self, slot: int) -> None:
        bit = self._bit
        gates = self._fleet.gates[slot]
        if self._suitability is None:
            if self._gates.get(slot) == gates:
                return
            self._gates[slot] = gates.copy()
        row = [gate & bit != 0 for gate in gates]
        if self._suitability is not None:
            allowed = self._suitability.cards[slot].tolist()
            row = [card and may for card, may in zip(row, allowed, strict=False)]
        self.open[slot, : len(row)] = row

    def rows(self, where: slice | Slots) -> Rows:
        """Return nodes as a policy sees them."""
        fleet = self._fleet
        suitability = self._suitability
        if isinstance(where, slice):
            matching = None if suitability is None else suitability.cards[where]
            return Rows(fleet.cells[where], fleet.host[where], matching, self._bit)
        matching = None if suitability is None else suitability.cards.take(where, axis=0)
        return Rows(fleet.cells, fleet.host.take(where, axis=0), matching, self._bit, where)


class ShapeKeys:
    """One comparable number per node for one shape.

    Attributes:
        needs: (quantity, amount) pairs a card's headroom must reach.
        keys: Score where the shape may fit, else `NOT_FITTING`; per node slot.
        wishes: What matters about the set of cards besides their amounts.
    """

    def __init__(
        self,
        fleet: Fleet,
        shape: Shape,
        suitability: Suitability,
        shared: Tables,
        policy: Scorer | None,
        wishes: Wishes | None = None,
    ) -> None:
        """Start empty.

        Args:
            fleet: The columns.
            shape: The request.
            suitability: Of its kind.
            shared: Tables of all cards, used while the kind is regular.
            policy: Gives the scores when it reads the demand; None when the tables have them.
            wishes: What matters about the set of cards besides their amounts; None for nothing.
        """
        self.wishes = wishes
        self._fleet = fleet
        self.shape = shape
        self.suitability = suitability
        self.needs = needs_of(shape) if shape.gpu_count else []
        first, self._least = rough_needs(self.needs or [(GFLOPS, 0)])
        self._rough = fleet.rough[first : first + len(self._least)]
        self._compared = [
            (rough.reshape(-1), least.reshape(()), cards)
            for rough, least, cards in zip(
                self._rough, self._least, fleet.scratch.cards, strict=False
            )
        ]
        """Flat columns, the least of each, and where the answers go."""
        host = enumerate((shape.cpu_milli, shape.memory_bytes))
        self._host_needs = [(column, amount) for column, amount in host if amount]
        self._policy = policy
        self._exact = False
        self.keys: Ints = np.full(fleet.rows, NOT_FITTING, dtype=np.int64)
        self._bit = fleet.gate_asked(shape)
        self._shared = shared
        self._tables: Tables | None = None
        self._cursor = -1

    def catch_up(self, own: Callable[[], Tables]) -> Tables:
        """Look at the nodes that changed since the last call.

        Args:
            own: Finds the tables of this kind of request alone.

        Returns:
            The tables that apply.
        """
        fleet = self._fleet
        suitability = self.suitability
        suitability.catch_up()
        tables = self._shared if suitability.regular else own()
        tables.catch_up()
        if tables is not self._tables:
            self._tables = tables
            self._cursor = -1
        version = fleet.journal.version
        if version == self._cursor:
            return tables
        where = _changed(fleet.journal, self._cursor, fleet.size)
        self._cursor = version
        self._score(where, tables)
        if self.wishes is not None and self.wishes.weighs:
            self._weigh(where, self.wishes)
        return tables

    def _score(self, where: slice | Slots, tables: Tables) -> None:
        fleet = self._fleet
        if isinstance(where, slice):
            maybe = self._sweep(tables)
            self.keys.fill(NOT_FITTING)
        else:
            maybe = self._maybe(where, tables)
            self.keys[where] = _NO_KEY
        policy = self._policy
        if policy is None and not self._exact:
            if isinstance(where, slice):
                np.copyto(self.keys, tables.node_scores, where=maybe)
            else:
                fitting = where[maybe]
                self.keys[fitting] = tables.node_scores.take(fitting)
            tables.score_unscored(self.keys)
            return
        slots = maybe.nonzero()[0] if isinstance(where, slice) else where[maybe]
        if self._exact and slots.size:
            slots = slots[self._count_fitting(slots) >= self.shape.gpu_count]
        if policy is None:
            self.keys[slots] = tables.node_scores.take(slots)
            tables.score_unscored(self.keys)
        elif slots.size:
            rows = tables.rows(slots)
            self.keys[slots] = scaled(policy.score_nodes(self.shape, rows, fleet.statistics))

    def _weigh(self, where: slice | Slots, wishes: Wishes) -> None:
        """Look at the very cards of each node: some sets of them are refused, some are better."""
        slots = range(where.start, where.stop) if isinstance(where, slice) else set(where.tolist())
        for slot in slots:
            if self.keys[slot] == _NO_KEY:
                continue
            fitting = self.fitting(slot)
            worth = wishes.worth(slot, fitting) if len(fitting) >= self.shape.gpu_count else None
            if worth is None:
                self.keys[slot] = _NO_KEY
            else:
                self.keys[slot] += worth * SCORE_SCALE

    def _sweep(self, tables: Tables) -> Bools:
        """Tell which nodes have room, judged by the rough columns.

        Returns:
            One answer per row of the fleet, in an array that the next sweep overwrites.
        """
        fleet = self._fleet
        found = fleet.scratch.nodes
        np.copyto(found, self.suitability.nodes)
        if self.needs:
            # One quantity at a time, as flat arrays: numpy is twice as fast at those.
            for rough, least, cards in self._compared:
                np.greater_equal(rough, least, cards)
            # Eight cards are one word: whether a card has enough of everything is a logical and.
            word, *others = fleet.scratch.words[: len(self._compared)]
            for other in others:
                np.bitwise_and(word, other, word)
            np.bitwise_and(word, tables.words, word)
            found &= self._enough(word)
        for column, amount in self._host_needs:
            found &= fleet.host[:, column] >= amount
        return found

    def _maybe(self, where: Slots, tables: Tables) -> Bools:
        """Tell which of some nodes have room, judged by the rough columns."""
        enough: Bools = self.suitability.nodes.take(where)
        for column, amount in self._host_needs:
            enough &= self._fleet.host[:, column].take(where) >= amount
        if self.needs:
            cards = (self._rough.take(where, axis=1) >= self._least).view(np.uint64)
            word = np.bitwise_and.reduce(cards, axis=0)
            word &= tables.open.take(where, axis=0).view(np.uint64)
            enough &= self._enough(word.reshape(-1))
        return enough

    def _enough(self, word: NDArray[np.uint64]) -> Bools:
        """Tell which nodes have enough cards; those are the bytes of the words, in a row."""
        count, width = self.shape.gpu_count, self._fleet.rough.shape[2]
        if count == 1 and width == LANES:
            return word.astype(np.bool_)
        enough: Bools = word.view(np.bool_).reshape(-1, width).sum(axis=1) >= count
        return enough

    def prune(self) -> None:
        """Look at the cards of every node that may fit and drop those that do not.

        From now on that is done for every node that changes: for this shape the rough columns
        tell too little, as when it asks for parts of a MiB.
        """
        if not self.shape.gpu_count:
            return
        self._exact = True
        slots = (self.keys != _NO_KEY).nonzero()[0]
        if slots.size:
            self.keys[slots[self._count_fitting(slots) < self.shape.gpu_count]] = _NO_KEY

    def will_do(self, slot: int, cards: list[int]) -> bool:
        """Tell whether cards of a node that fit are enough, and connected as they must be."""
        if len(cards) < self.shape.gpu_count:
            return False
        wishes = self.wishes
        return wishes is None or not wishes.weighs or wishes.worth(slot, cards) is not None

    def drop(self, slot: int) -> None:
        """Note that a node does not fit as it is now."""
        self.keys[slot] = _NO_KEY

    def _count_fitting(self, slots: Slots) -> NDArray[np.intp]:
        cells = self._fleet.cells.take(slots, axis=0)
        fits = (cells[:, GATE_PLANE] & self._bit) != 0
        if not self.suitability.regular:
            fits &= self.suitability.cards.take(slots, axis=0)
        for quantity, amount in self.needs:
            fits &= cells[:, quantity] >= amount
        counts: NDArray[np.intp] = fits.sum(axis=1)
        return counts

    def fitting(self, slot: int) -> list[int]:
        """Return the device slots of a node whose cards fit exactly, in order of index."""
        fleet = self._fleet
        if not self.needs:
            return []
        suitability = self.suitability
        if suitability.regular and not suitability.nodes.item(slot):
            return []
        allowed = None if suitability.regular else suitability.cards[slot].tolist()
        gates = fleet.gates[slot]
        needs = self.needs
        bit = self._bit
        found = []
        for position, card in enumerate(fleet.cards[slot]):
            if not gates[position] & bit or (allowed is not None and not allowed[position]):
                continue
            for quantity, amount in needs:
                if card[quantity] < amount:
                    break
            else:
                found.append(position)
        return found


def _changed(journal: Journal, cursor: int, size: int) -> slice | Slots:
    """Return the slots changed since the cursor, or all when that is no more work."""
    changed = journal.since(cursor) if cursor >= 0 else None
    if changed is None or 2 * len(changed) >= size:
        return slice(0, size)
    return changed


def scaled(scores: Scores) -> Ints:
    """Turn scores into integers in units of 1/`SCORE_SCALE`."""
    product = scores * SCORE_SCALE
    integers: Ints
    integers = product if product.dtype == np.int64 else np.rint(product).astype(np.int64)  # type: ignore[assignment]  # mypy does not narrow by dtype
    return integers
