"""The smallest changes that make a request fit: one kind alone, else two together."""

from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.engine import Engine
from tensorfusion.model.relax.bits import Parts
from tensorfusion.model.relax.emptied import Emptied
from tensorfusion.model.relax.failures import Failures
from tensorfusion.model.relax.holdings import Holdings
from tensorfusion.model.relax.pairs import Pairs
from tensorfusion.model.relax.question import Question
from tensorfusion.model.relax.residents import Residents
from tensorfusion.model.relax.single import proof, solve
from tensorfusion.model.relax.step import KINDS, Answer, Futile, Step
from tensorfusion.model.relax.trials import Trials


class Relaxer:
    """Answers for one engine; keeps what holds over answers.

    Concurrency: as the engine's.
    """

    def __init__(self, engine: Engine) -> None:
        """Answer for an engine; fleet, ledger and quotas are left as they are."""
        self._engine = engine
        self._holdings = Holdings(engine.fleet, engine.ledger)
        self._emptied = Emptied(engine.fleet)
        self._residents = Residents(engine.ledger)

    def answer(self, demand: Demand) -> Answer:
        """Find what would make a request fit.

        Args:
            demand: A request with GPUs that does not fit. One that fits needs no answer and gets
                an empty one, and so does one without GPUs.
        """
        if not demand.shape.gpu_count:
            return Answer()
        self._holdings.catch_up()
        question = Question(self._engine, self._holdings, self._emptied, self._residents, demand)
        if not question.violations and question.failures.fits():
            return Answer()
        trials = Trials(question)
        alone: list[Step] = []
        futile: list[Futile] = []
        for kind in KINDS:
            if not question.states(kind):
                continue
            step = solve(question, trials, kind, question.shape)
            if step is not None:
                alone.append(step)
            else:
                futile.append(Futile(kind, proof(question, kind)))
        pairs = () if alone else tuple(Pairs(question, trials).each())
        return Answer(alone=tuple(alone), pairs=pairs, futile=tuple(futile))


def relax(engine: Engine, demand: Demand) -> Answer:
    """Find what would make one request fit; see `Relaxer.answer`."""
    return Relaxer(engine).answer(demand)


def failures_of(engine: Engine, shape: Shape) -> Failures:
    """Return which rules each card fails for a request."""
    return Failures(Parts(engine.fleet, engine.masks), shape)
