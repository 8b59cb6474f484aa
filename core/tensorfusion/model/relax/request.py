"""Changes of the request: which kinds there are, and the smallest change of each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tensorfusion.model.demand import Shape
from tensorfusion.model.relax import amounts, cards, places
from tensorfusion.model.relax.look import NODES_TRIED, Look
from tensorfusion.model.relax.step import Step

REQUEST_KINDS: Final[Mapping[str, Callable[[Look, int], Step | None]]] = {
    **amounts.KINDS,
    **cards.KINDS,
    **places.KINDS,
}
"""Kind of change to what finds the smallest one while some rules are lifted."""

_BY_NODE: Final = ("model", "vendor", "pool", "node-selector", "taint")
"""Kinds of change that bring different nodes by different steps."""


def applies(shape: Shape, kind: str) -> bool:
    """Tell whether a request states what a kind would change."""
    # Of a partition only the template counts; its amounts cannot be had one by one.
    figures = shape.wish is None
    stated: dict[str, object] = {
        "compute-limit": figures and (shape.limit.gflops or shape.limit.milli_percent),
        "vram-limit": figures and shape.limit.vram_bytes > shape.request.vram_bytes,
        "compute": figures and (shape.request.gflops or shape.request.milli_percent),
        "vram": figures and shape.request.vram_bytes,
        "partition": not figures,
        "topology": shape.gpu_count > 1 and shape.topology and shape.topology.required,
        "neighbours": shape.neighbours,
        "cpu": shape.cpu_milli,
        "memory": shape.memory_bytes,
        "model": shape.models,
        "index": shape.indices,
        "node-selector": shape.node_selector,
        "node-affinity": shape.affinity,
        "node-name": shape.node_name,
        "vendor": shape.vendor,
        "dedicated": shape.dedicated,
        "gpu-count": shape.gpu_count > 1 and not shape.containers,
        "pool": shape.pool,
    }
    return bool(stated.get(kind, True))


def each(look: Look, kind: str, lifted: int) -> Iterator[Step]:
    """Yield changes of one kind, smallest first.

    Where rules about other pods matter, the smallest change may bring nodes that those rule
    out; then there is one for each node that comes into question.
    """
    smallest = REQUEST_KINDS[kind]
    if look.failures.around is None or kind not in _BY_NODE:
        step = smallest(look, lifted)
        if step is not None:
            yield step
        return
    found: dict[Shape, Step] = {}
    for slot in look.nodes_without(kind, lifted)[:NODES_TRIED]:
        step = smallest(look.at(slot), lifted)
        if step is not None and step.shape is not None:
            found.setdefault(step.shape, step)
    yield from sorted(found.values(), key=_looseness)


def _looseness(step: Step) -> tuple[int, int, int, bool, bool]:
    """Return how much a request gives up, compared with others of the same kind."""
    shape = step.shape or Shape()
    return (
        len(shape.models),
        -len(shape.node_selector),
        len(shape.tolerations),
        not shape.vendor,
        not shape.pool,
    )
