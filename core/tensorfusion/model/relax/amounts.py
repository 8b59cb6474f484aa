"""Less of something: compute, VRAM, their limits, CPU and memory of the node, GPUs."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tensorfusion.model.demand import Amount, Shape
from tensorfusion.model.relax.bits import BIT
from tensorfusion.model.relax.look import Look
from tensorfusion.model.relax.step import Step
from tensorfusion.model.rows import Ints
from tensorfusion.units import format_bytes, format_tflops

_replace = msgspec.structs.replace


def _compute(look: Look, lifted: int) -> Step | None:
    request, limit = look.shape.request, look.shape.limit
    asked = request.milli_percent or request.gflops
    field = "milli_percent" if request.milli_percent else "gflops"
    ceiling = getattr(limit, field)

    def with_amount(amount: int) -> Shape:
        # A limit that is not above the request follows it.
        new_limit = _with(limit, field, min(ceiling, amount)) if ceiling <= asked else limit
        return _replace(look.shape, request=_with(request, field, amount), limit=new_limit)

    return _amount(look, "compute", look.failures.compute_left, asked, lifted, with_amount, field)


def _compute_limit(look: Look, lifted: int) -> Step | None:
    request, limit = look.shape.request, look.shape.limit
    field = "milli_percent" if limit.milli_percent else "gflops"
    return _amount(
        look,
        "compute-limit",
        look.failures.compute_limit_left,
        getattr(limit, field),
        lifted,
        lambda amount: _replace(look.shape, limit=_with(limit, field, amount)),
        field,
        lowest=getattr(request, field),
    )


def _vram(look: Look, lifted: int) -> Step | None:
    request, limit = look.shape.request, look.shape.limit

    def with_amount(amount: int) -> Shape:
        ceiling = limit.vram_bytes
        if ceiling <= request.vram_bytes:
            ceiling = min(ceiling, amount)
        return _replace(
            look.shape,
            request=_with(request, "vram_bytes", amount),
            limit=_with(limit, "vram_bytes", ceiling),
        )

    left = look.failures.vram_left
    return _amount(look, "vram", left, request.vram_bytes, lifted, with_amount, "vram_bytes")


def _vram_limit(look: Look, lifted: int) -> Step | None:
    limit = look.shape.limit
    return _amount(
        look,
        "vram-limit",
        look.failures.vram_limit_left,
        limit.vram_bytes,
        lifted,
        lambda amount: _replace(look.shape, limit=_with(limit, "vram_bytes", amount)),
        "vram_bytes",
        lowest=look.shape.request.vram_bytes,
    )


def _amount(
    look: Look,
    kind: str,
    left: Ints,
    asked: int,
    lifted: int,
    with_amount: Callable[[int], Shape],
    field: str,
    lowest: int = 0,
) -> Step | None:
    found = look.failures.largest(left, lifted | BIT[kind])
    if found is None:
        return None
    most, slot = found
    amount = largest_that(min(most, asked), max(lowest, 1), lambda a: look.allows(with_amount(a)))
    if amount is None or amount >= asked:
        return None
    what = {
        "compute": "ask for at most {} of compute per GPU, not {}",
        "vram": "ask for at most {} of VRAM per GPU, not {}",
        "compute-limit": "limit compute to at most {} per GPU, not {}",
        "vram-limit": "limit VRAM to at most {} per GPU, not {}",
    }[kind]
    text = what.format(_print(field, amount), _print(field, asked))
    return Step(kind=kind, text=text, shape=with_amount(amount), node=look.name(slot))


def _host(look: Look, kind: str, column: int, lifted: int) -> Step | None:
    nodes = look.failures.nodes(lifted | BIT[kind])
    free = look.failures.host[nodes, column]
    if not nodes or int(free.max()) < 0:
        return None
    best = int(free.argmax())
    amount = int(free[best])
    field = ("cpu_milli", "memory_bytes")[column]
    asked = getattr(look.shape, field)
    if amount >= asked:
        return None
    shown = (
        (f"{amount}m", f"{asked}m")
        if kind == "cpu"
        else (format_bytes(amount), format_bytes(asked))
    )
    text = f"ask for at most {shown[0]} of {kind} of the node, not {shown[1]}"
    return look.step(kind, text, {field: amount}, nodes[best], lifted)


def _gpu_count(look: Look, lifted: int) -> Step | None:
    counts = look.failures.usable(lifted).sum(axis=1)
    if not counts.size or not counts.max():
        return None
    slot = int(counts.argmax())
    asked = look.shape.gpu_count
    most = min(int(counts[slot]), asked)
    wish = look.shape.topology
    if wish is not None and wish.required:
        # Fewer cards can be connected well enough where so many are not.
        fits = {
            n: look.refit(_replace(look.shape, gpu_count=n)).nodes(lifted)
            for n in range(1, most + 1)
        }
        most = max((n for n, nodes in fits.items() if nodes), default=0)
        slot = fits[most][0] if most else slot
    count = largest_that(most, 1, lambda n: look.allows(_replace(look.shape, gpu_count=n)))
    if count is None or count >= asked:
        return None
    text = f"ask for {count} {'GPU' if count == 1 else 'GPUs'}, not {asked}"
    return look.step("gpu-count", text, {"gpu_count": count}, slot, lifted)


KINDS: Final[Mapping[str, Callable[[Look, int], Step | None]]] = {
    "compute-limit": _compute_limit,
    "vram-limit": _vram_limit,
    "compute": _compute,
    "vram": _vram,
    "cpu": lambda look, lifted: _host(look, "cpu", 0, lifted),
    "memory": lambda look, lifted: _host(look, "memory", 1, lifted),
    "gpu-count": _gpu_count,
}
"""Kind of change to what finds the smallest one while some rules are lifted."""


def largest_that(high: int, low: int, holds: Callable[[int], bool]) -> int | None:
    """Return the largest number in [low, high] for which a condition holds that smaller ones ease.

    Returns:
        None when it does not even hold for ``low``, or the range is empty.
    """
    if high < low or not holds(low):
        return None
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _with(amount: Amount, field: str, value: int) -> Amount:
    return _replace(amount, **{field: value})


def _print(field: str, amount: int) -> str:
    if field == "vram_bytes":
        return format_bytes(amount)
    if field == "milli_percent":
        return f"{amount / 1000:g}%"
    return f"{format_tflops(amount)} TFLOPS"
