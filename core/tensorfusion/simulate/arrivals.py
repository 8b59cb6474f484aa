"""In which order tasks arrive, and what nodes are called: everything a seed decides.

The protocol is the one of the artifact of "Beware of Fragmentation" (USENIX ATC 2023). All tasks
of the list arrive in random order; then tasks drawn from it with replacement follow, until the
next one would bring the requested GPU over the wanted share of the cluster's. A list that asks for
more loses random tasks instead.

Its simulator also puts a random number before each node's name before it starts. With ties by
name, that number is what decides them, so each seed has its own order of nodes; keeping the file's
order instead sends all tasks without GPU to the nodes that happen to be listed first, which costs
policies that leave many ties up to a point of allocation.
"""

import random
from collections.abc import Sequence

from tensorfusion.simulate.trace import Task, Trace, TraceNode

DEMAND_PERCENT = 130
"""Requested GPU at the end of a run, percent of the cluster's."""


class Arrivals:
    """One seed's story.

    Attributes:
        seed: The seed.
        tasks: Tasks in order of arrival; the second of a name is another task of its kind.
        nodes: Name in the run and node, in order of that name.
    """

    def __init__(self, trace: Trace, seed: int, demand_percent: int = DEMAND_PERCENT) -> None:
        """Draw tasks and node order.

        Args:
            trace: Cluster and list of tasks.
            seed: Same seed, same story, on any machine.
            demand_percent: Requested GPU at the end.
        """
        rng = random.Random(seed)  # noqa: S311 - a simulation must repeat
        self.seed = seed
        self.tasks = _tuned(trace.tasks, trace.gpus * demand_percent * 10, rng)
        self.nodes = in_random_order(trace.nodes, rng)


def in_random_order(nodes: Sequence[TraceNode], rng: random.Random) -> dict[str, TraceNode]:
    """Put a random number before each node's name; names and nodes in order of the new names."""
    ranks = list(range(len(nodes)))
    rng.shuffle(ranks)
    width = len(str(len(ranks)))
    by_name = sorted(nodes, key=lambda node: node.name)
    return dict(
        sorted(
            (f"{rank:0{width}d}-{node.name}", node)
            for rank, node in zip(ranks, by_name, strict=True)
        )
    )


def _tuned(tasks: Sequence[Task], target_milli: int, rng: random.Random) -> list[Task]:
    """Shuffle, then draw more or drop some until the sum is just below the target."""
    arrived = list(tasks)
    rng.shuffle(arrived)
    total = sum(task.gpu_milli for task in arrived)
    if not total:
        return arrived
    while total > target_milli:
        total -= arrived.pop(rng.randrange(len(arrived))).gpu_milli
    while True:
        task = tasks[rng.randrange(len(tasks))]
        total += task.gpu_milli
        if total > target_milli:
            return arrived
        arrived.append(task)
