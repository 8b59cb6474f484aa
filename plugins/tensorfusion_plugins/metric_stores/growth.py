"""Growth of a counter over a window, as Prometheus computes it."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EDGE_RATIO = 1.1
"""A gap at the edge of a window that is wider than this many sampling steps is no mere offset."""


def increase(values: Floats) -> float:
    """Return the growth of a counter over its samples; a drop is a reset that began at zero."""
    if len(values) < 2:
        return 0.0
    steps = np.diff(values)
    return float(np.where(steps >= 0, steps, values[1:]).sum())


def growth(times: Floats, values: Floats, start: float, end: float) -> float:
    """Return the growth over the whole window (start, end], of which samples cover only a part.

    Samples never lie exactly on the edges of a window. The growth between the first and the last
    one is stretched to the edges, or by half a step where the series begins or ends inside the
    window, and never below zero of the counter.

    Source: the semantics of ``increase`` (Prometheus documentation, "Querying", functions;
    ``extrapolatedRate`` of its engine).
    """
    grown = increase(values)
    covered = float(times[-1] - times[0])
    step = covered / (len(times) - 1)
    before, after = float(times[0]) - start, end - float(times[-1])
    if grown > 0 and values[0] >= 0:
        before = min(before, covered * float(values[0]) / grown)
    stretched = covered
    for gap in (before, after):
        stretched += gap if gap < step * EDGE_RATIO else step / 2
    return grown * stretched / covered
