"""How a card divides its compute and memory among workers that want more than there is.

Compute: every worker first gets what it wants up to its request (the ledger keeps the sum of
requests within the card), the rest is divided by weighted max-min fairness with the requests as
weights, and nobody gets more than its limit. This is work-conserving: a share that is not wanted
is lent. Source of max-min fairness: Bertsekas and Gallager, Data Networks, section 6.5.2.

Memory is first come, first served: a worker keeps what it holds, grows while the card and its
limit allow, and is refused beyond.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's wish at a card: wanted and promised rates, GFLOP/s."""

    wanted: float
    request: float
    limit: float


def divide_compute(capacity: float, claims: Sequence[Claim]) -> list[float]:
    """Return what each claim gets; the sum never exceeds ``capacity``."""
    caps = [min(c.wanted, c.limit) for c in claims]
    given = [min(cap, c.request) for cap, c in zip(caps, claims, strict=True)]
    total = sum(given)
    if total > capacity:  # an unhealthy or throttled card: everyone shrinks alike
        return [g * capacity / total for g in given]
    left = capacity - total
    hungry = {i for i, cap in enumerate(caps) if cap > given[i]}
    while left > 1e-9 and hungry:
        weights = {i: max(claims[i].request, 1.0) for i in hungry}
        weight = sum(weights.values())
        step = {i: min(caps[i] - given[i], left * weights[i] / weight) for i in hungry}
        for i, amount in step.items():
            given[i] += amount
        left -= sum(step.values())
        full = {i for i in hungry if caps[i] - given[i] <= 1e-9}
        if not full:
            break
        hungry -= full
    return given


def grow_memory(
    capacity: int, held: Sequence[int], wanted: Sequence[int], limits: Sequence[int]
) -> tuple[list[int], list[bool]]:
    """Return new holdings and, per worker, whether an allocation was refused."""
    holdings = [min(h, w) for h, w in zip(held, wanted, strict=True)]
    refused = [False] * len(holdings)
    free = capacity - sum(holdings)
    for i, want in enumerate(wanted):
        more = want - holdings[i]
        if more <= 0:
            continue
        allowed = max(0, min(more, limits[i] - holdings[i], free))
        holdings[i] += allowed
        free -= allowed
        refused[i] = allowed < more
    return holdings, refused
