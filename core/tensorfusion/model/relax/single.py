"""The smallest change of one kind that suffices alone, and the proof where there is none."""

from tensorfusion.model.demand import Shape
from tensorfusion.model.relax.look import NODES_TRIED
from tensorfusion.model.relax.question import IN_PLACE, WORLD, Question
from tensorfusion.model.relax.request import REQUEST_KINDS, applies, each
from tensorfusion.model.relax.step import Step
from tensorfusion.model.relax.trials import Trials
from tensorfusion.model.relax.world import WorldChanges, quota_step


def solve(question: Question, trials: Trials, kind: str, shape: Shape) -> Step | None:
    """Return the smallest change of one kind that suffices for a request.

    Amounts and victims are sought card by card. Where cards must be connected, or other pods
    matter, victims are found by trying.

    Args:
        question: What is asked.
        trials: Of the question.
        kind: Of change.
        shape: The request, changed already or not.
    """
    if kind == "evict" and trials.needed:
        return trials.evict(shape)
    if kind in IN_PLACE and question.spreads:
        return trials.in_place(kind, shape)
    step = _sought(question, kind, shape)
    # Amounts are sought card by card: those that have enough must be connected as well.
    if step is None or step.shape is None or not question.connected:
        return step
    return step if question.refit(step.shape).fits() else None


def _sought(question: Question, kind: str, shape: Shape) -> Step | None:
    failures = question.refit(shape)
    if kind in REQUEST_KINDS:
        if not applies(shape, kind):
            return None
        return next(each(question.look(failures), kind, 0), None)
    violations = question.violated(shape)
    if kind == "quota":
        return quota_step(violations) if violations and failures.fits() else None
    if violations and kind != "evict":
        return None
    changes = WorldChanges(failures, question.holdings, violations, question.passing(shape))
    return changes.kinds[kind](0, None)


def proof(question: Question, kind: str) -> str:
    """Say what stands in the way when a kind is relaxed all the way."""
    violations = question.violations
    if kind in question.gave_up:
        if kind == "evict":
            return "none of the smallest sets of workers that were tried helps"
        return f"none of the {NODES_TRIED} nodes that were tried helps"
    if kind == "evict" and violations:
        return f"even with nobody there: {violations[0].message}"
    if violations and kind in WORLD:
        return "the quota refuses it before any GPU is looked at"
    if violations and kind == "quota":
        return f"no GPU fits either: {question.failures.rest(0)}"
    probe, lifted = question.probe(kind, question.shape)
    if violations and probe.fits(lifted):
        return violations[0].message
    return f"without it there still are: {probe.rest(lifted)}"
