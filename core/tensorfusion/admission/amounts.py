"""Requests and limits from the levels of the precedence. Pure."""

from collections.abc import Sequence

from tensorfusion.admission.layers import Layer, first
from tensorfusion.model.demand import Amount
from tensorfusion.units import format_percent, format_tflops, human_bytes

NOTATIONS = ("gflops", "percent")


def resolve_amounts(layers: Sequence[Layer]) -> tuple[Amount, Amount]:
    """Return request and limit per GPU.

    The highest level that speaks of compute decides whether lower ones may speak of it in TFLOPS
    or in percent. A side that nobody gives equals the other one.

    Raises:
        RefusedValue: A request exceeds its limit.
    """
    compute = {side: _compute(layers, side) for side in ("request", "limit")}
    vram = {side: first(layers, f"{side}_vram") for side in ("request", "limit")}
    sizes = {
        side: 0 if at is None else (getattr(layers[at], f"{side}_vram") or 0)
        for side, at in vram.items()
    }
    request_at, limit_at = compute["request"] or compute["limit"], compute["limit"]
    limit_at = limit_at or compute["request"]
    _check_compute(layers, compute)
    request_in, limit_in = vram["request"], vram["limit"]
    if request_in is not None and limit_in is not None and sizes["request"] > sizes["limit"]:
        raise layers[request_in].refused(
            "request_vram",
            f"must not exceed the limit of {human_bytes(sizes['limit'])}"
            f" ({layers[limit_in].paths['limit_vram']})",
        )
    request = _amount(request_at, sizes["request"] or sizes["limit"])
    limit = _amount(limit_at, sizes["limit"] or sizes["request"])
    return request, limit


_Compute = tuple[str, int, int]
"""Notation, amount, position of the level."""


def _compute(layers: Sequence[Layer], side: str) -> _Compute | None:
    lead = next((layer for layer in layers if _notations(layer)), None)
    if lead is None:
        return None
    allowed = _notations(lead)
    for position, layer in enumerate(layers):
        for notation in allowed:
            amount = getattr(layer, f"{side}_{notation}")
            if amount is not None:
                return notation, amount, position
    return None


def _notations(layer: Layer) -> tuple[str, ...]:
    return tuple(
        notation
        for notation in NOTATIONS
        if getattr(layer, f"request_{notation}") is not None
        or getattr(layer, f"limit_{notation}") is not None
    )


def _check_compute(layers: Sequence[Layer], compute: dict[str, _Compute | None]) -> None:
    request, limit = compute["request"], compute["limit"]
    if request is None or limit is None or request[0] != limit[0] or request[1] <= limit[1]:
        return
    shown = f"{format_tflops(limit[1])} TFLOPS"
    if limit[0] == "percent":
        shown = f"{format_percent(limit[1])} percent"
    raise layers[request[2]].refused(
        f"request_{request[0]}",
        f"must not exceed the limit of {shown} ({layers[limit[2]].paths[f'limit_{limit[0]}']})",
    )


def _amount(compute: _Compute | None, vram_bytes: int) -> Amount:
    if compute is None:
        return Amount(0, vram_bytes)
    notation, amount, _ = compute
    if notation == "percent":
        return Amount(0, vram_bytes, amount)
    return Amount(amount, vram_bytes)
