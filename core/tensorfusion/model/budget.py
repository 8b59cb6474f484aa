"""Disruption budgets: how many pods of a group may be evicted now."""

import msgspec


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """What a budget comes to for the pods that exist.

    Attributes:
        expected: Pods that the budget covers.
        healthy: Those that serve.
        desired: Those that must go on serving.
    """

    expected: int
    healthy: int
    desired: int

    @property
    def allowed(self) -> int:
        """Pods that may be evicted now."""
        return max(0, self.healthy - self.desired) if self.expected else 0


def budget_state(
    expected: int,
    healthy: int,
    min_available: int | str | None = None,
    max_unavailable: int | str | None = None,
) -> BudgetState:
    """Work out a budget as the Kubernetes disruption controller does.

    Percentages are of the pods that exist and are rounded up, both of them: a budget of
    ``maxUnavailable: 30%`` lets one of three pods go, ``minAvailable: 30%`` keeps one.

    Args:
        expected: Pods that the budget covers.
        healthy: Those that serve.
        min_available: ``spec.minAvailable``, a number or a percentage.
        max_unavailable: ``spec.maxUnavailable``; counts only without the other one.

    Raises:
        ValueError: A value is neither a whole number nor a percentage.
    """
    if min_available is not None:
        desired = _count(min_available, expected)
    elif max_unavailable is not None:
        desired = max(0, expected - _count(max_unavailable, expected))
    else:
        desired = expected
    return BudgetState(expected=expected, healthy=healthy, desired=desired)


def _count(value: int | str, total: int) -> int:
    text = str(value)
    try:
        if text.endswith("%"):
            return -(-int(text[:-1]) * total // 100)
        return int(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a whole number nor a percentage such as 30%"
        ) from None
