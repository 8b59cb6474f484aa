"""Two changes that suffice together, where no kind of change suffices alone."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.bits import BIT
from tensorfusion.model.relax.cards import isolations
from tensorfusion.model.relax.loosest import AMOUNTS, restored
from tensorfusion.model.relax.question import ABOUT_OTHERS, EMPTYING, IN_PLACE, WORLD, Question
from tensorfusion.model.relax.request import each
from tensorfusion.model.relax.single import solve
from tensorfusion.model.relax.step import KINDS, Step
from tensorfusion.model.relax.trials import Trials
from tensorfusion.model.relax.world import WorldChanges, quota_step

PAIRS: Final = 3
"""Pairs that are given; more would not be read."""

_UNBOUNDED: Final = ("isolation", "partition", "dedicated", "gpu-count")
"""Request kinds that no single rule stands for; of a pair they are changed first."""
_FIRST: Final = (*_UNBOUNDED, "compute", "vram")
"""Kinds that of a pair are changed first: a limit cannot go below its request."""

_replace = msgspec.structs.replace


class Pairs:
    """Looks for pairs of kinds."""

    def __init__(self, question: Question, trials: Trials) -> None:
        """Look at one question."""
        self._question = question
        self._trials = trials

    def each(self) -> Iterator[tuple[Step, Step]]:
        """Yield pairs, those of mild kinds first."""
        question = self._question
        # Another mode than partitions makes amounts matter that did not before.
        amounts = AMOUNTS if question.shape.wish is not None else ()
        kinds = [kind for kind in KINDS if question.states(kind) or kind in amounts]
        places = {kind: place for place, kind in enumerate(kinds)}
        order = sorted(
            ((a, b) for a in kinds for b in kinds if places[a] < places[b]),
            key=lambda pair: (max(places[pair[0]], places[pair[1]]), places[pair[0]]),
        )
        found = 0
        for a, b in order:
            pair = self._pair(a, b)
            if pair is not None:
                yield pair
                found += 1
                if found == PAIRS:
                    return

    def _pair(self, a: str, b: str) -> tuple[Step, Step] | None:
        question = self._question
        first, second = _in_order(a, b)
        ruled = first in BIT and second in BIT and first not in _UNBOUNDED
        spread = ABOUT_OTHERS if question.spreads else 0
        if ruled and not question.failures.fits(BIT[first] | BIT[second] | spread):
            return None
        if first in WORLD:
            return self._pair_of_world(first, second)
        for step in self._first_steps(first, second):
            then = self._then(second, step)
            if then is not None:
                return step, then
        return None

    def _then(self, kind: str, step: Step) -> Step | None:
        """Solve the second kind of a pair after the first step."""
        question = self._question
        shape = step.shape or question.shape
        if step.kind == "quota":
            violations = _remaining(question.violations, step)
            if kind == "evict" and self._trials.needed:
                return None if violations else self._trials.evict(shape, within_quota=True)
            changes = WorldChanges(question.refit(shape), question.holdings, violations)
            return changes.kinds[kind](0, None)
        return solve(question, self._trials, kind, shape)

    def _first_steps(self, first: str, second: str) -> Iterator[Step]:
        """Yield smallest changes of one kind that suffice once the other kind is lifted."""
        question = self._question
        if first == "quota":
            violations = question.violations
            if second == "evict":  # what leaves makes room, up to the whole quota
                violations = [_replace(v, used=0) for v in violations if v.requested > v.limit]
            elif second in WORLD:
                violations = self._violated_with(second)
            if violations:
                yield quota_step(violations)
            return
        probe, lifted = question.probe(second, question.shape)
        look = question.look(probe, second)
        if second in IN_PLACE and question.spreads:
            lifted |= ABOUT_OTHERS  # which nodes a spread compares is known after the change
        steps = isolations(look.shape) if first == "isolation" else each(look, first, lifted)
        for step in steps:
            if step.shape is None:
                continue
            yield _replace(step, shape=restored(step.shape, question.shape, second))

    def _violated_with(self, kind: str) -> list[Violation]:
        """Return what quotas object to once other cards come in: a whole card is counted whole."""
        question = self._question
        step = WorldChanges(question.failures, question.holdings).kinds[kind](0, None)
        if step is None:
            return []
        if step.addition is not None:
            cards = list(step.addition.devices)
        else:
            slot = question.engine.fleet.slot_of(step.node)
            block = question.engine.fleet.blocks[slot] if slot is not None else []
            cards = [usage.device for usage in block if usage.device is not None]
        sizes = [card.capacity_gflops for card in cards]
        present = question.failures.smallest_card()
        smallest = min([*sizes, present] if present else sizes, default=0)
        return question.engine.ledger.quotas.precheck(question.demand, smallest)

    def _pair_of_world(self, first: str, second: str) -> tuple[Step, Step] | None:
        """Change two things about one node."""
        question = self._question
        tried = second == "evict" and self._trials.needed
        if first in EMPTYING or (question.violations and not tried):
            return None
        probe, lifted = question.probe(second, question.shape)
        passing = question.passing(question.shape)
        if tried:  # whether the quota allows it is seen once somebody has left
            passing = None
        step = WorldChanges(probe, question.holdings, (), passing).kinds[first](lifted, None)
        slot = question.engine.fleet.slot_of(step.node) if step is not None else None
        if step is None or slot is None:
            return None
        if tried:
            with question.applied(step):
                then = self._trials.evict(question.shape)
        else:
            changes = WorldChanges(question.failures, question.holdings, (), passing)
            then = changes.kinds[second](BIT[first], slot)
        return (step, then) if then is not None else None


def _in_order(a: str, b: str) -> tuple[str, str]:
    """Put the kind first that has to be changed first."""
    others = len(_FIRST)
    ranks = {kind: rank for rank, kind in enumerate(_FIRST)}
    ranks |= {kind: others + 1 + rank for rank, kind in enumerate(("quota", *WORLD))}
    first, second = sorted((a, b), key=lambda kind: ranks.get(kind, others))
    return first, second


def _remaining(violations: Sequence[Violation], step: Step) -> list[Violation]:
    """Return what still violates quotas once a step has raised them."""
    needed = {(item.quota, item.resource): item.needed for item in step.raises}
    raised = [
        _replace(v, limit=max(v.limit, needed.get((v.quota, v.resource), 0))) for v in violations
    ]
    return [v for v in raised if v.used + v.requested > v.limit]
