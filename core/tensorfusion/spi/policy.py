"""What a placement policy is: arrays of nodes and devices in, arrays of scores out.

The engine filters, caches, breaks ties and keeps accounts; a policy only says how good what fits
is. It is called with the few nodes that changed, or with the whole fleet when a kind of request
is seen for the first time, and must give a node the same score in both cases.
"""

from typing import Protocol, runtime_checkable

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Rows, Scores


@runtime_checkable
class PlacementPolicy(Protocol):
    """Scores nodes and devices; the highest score wins.

    Scores are finite numbers, compared with a resolution of 1/65536; by convention 0 to 100.
    Whole numbers may be returned as an array of integers, which is cheaper to compare.
    Equal scores are decided by the pool's rule for ties; see `tensorfusion.model.ties`.

    A score of a node is a function of the demand, that node's slice of ``rows`` and the fleet
    statistics, and of nothing else: no clock, no random numbers, no memory, no other node. The
    engine relies on it to keep scores until the node changes.

    Concurrency: called from one thread at a time; must not block.
    """

    @property
    def name(self) -> str:
        """Name a pool chooses it by: lower case with dashes."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that choose it, such as the value of a custom resource's enum."""
        ...

    @property
    def reads_demand(self) -> bool:
        """Whether scores depend on the demand's amounts or GPU count.

        False lets all requests that may use the same devices share their scores, which makes a
        decision several times cheaper.
        """
        ...

    @property
    def random_ties(self) -> bool:
        """Whether ties are drawn by the pool's seed, whatever the pool's rule is.

        For policies to which chance belongs; the draw itself is the engine's, so that it can be
        repeated.
        """
        ...

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Scores:
        """Score nodes as they are before the request is placed.

        Args:
            demand: The request.
            rows: Nodes to score; read-only. ``rows.matching`` are the devices that count;
                nodes without any may get any finite score.
            fleet: Totals of the hardware.

        Returns:
            Array of shape (nodes,).
        """
        ...

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Scores:
        """Score devices, which decides among those of the chosen node.

        Args and meaning as in `score_nodes`.

        Returns:
            Array of shape (nodes, slots); what lies in slots that do not match is ignored.
        """
        ...
