"""Namespace quotas: what may be used in total, and what one worker may ask for.

An unset dimension is unlimited. Usage is counted for every namespace from the first allocation
on, so a quota that is created late finds the right figures. When a namespace has several quotas,
all of them must hold.
"""

from collections.abc import Iterable, Mapping

import msgspec

from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Amount, Demand, Shape


class QuotaAmount(msgspec.Struct, frozen=True):
    """Compute in GFLOP/s and memory in bytes; None is unlimited."""

    gflops: int | None = None
    vram_bytes: int | None = None


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """One quota object.

    Attributes:
        namespace: Namespace it governs.
        name: Name of the object, for messages.
        total_requests: Ceiling of the sum of requests.
        total_limits: Ceiling of the sum of limits.
        max_workers: Ceiling of the number of workers.
        single_max_requests: Ceiling of one worker's request, per GPU.
        single_max_limits: Ceiling of one worker's limit, per GPU.
        single_max_request_share: Largest share of a card that one worker may request, thousandths
            of a percent; whatever it asks for counts as its share of the card it gets.
        single_max_limit_share: Likewise for its limit.
        max_gpu_count: GPUs one worker may have at most.
        alert_threshold_percent: Use above this is reported as a condition.
    """

    namespace: str
    name: str
    total_requests: QuotaAmount = QuotaAmount()
    total_limits: QuotaAmount = QuotaAmount()
    max_workers: int | None = None
    single_max_requests: QuotaAmount = QuotaAmount()
    single_max_limits: QuotaAmount = QuotaAmount()
    single_max_request_share: int | None = None
    single_max_limit_share: int | None = None
    max_gpu_count: int | None = None
    alert_threshold_percent: int = 95


class Usage(msgspec.Struct, frozen=True):
    """What a namespace uses, or what a change adds to it; limits count once per GPU."""

    request_gflops: int = 0
    request_vram_bytes: int = 0
    limit_gflops: int = 0
    limit_vram_bytes: int = 0
    workers: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum."""
        return Usage(
            self.request_gflops + other.request_gflops,
            self.request_vram_bytes + other.request_vram_bytes,
            self.limit_gflops + other.limit_gflops,
            self.limit_vram_bytes + other.limit_vram_bytes,
            self.workers + other.workers,
        )

    def minus(self, other: "Usage") -> "Usage":
        """Return the difference."""
        return Usage(
            self.request_gflops - other.request_gflops,
            self.request_vram_bytes - other.request_vram_bytes,
            self.limit_gflops - other.limit_gflops,
            self.limit_vram_bytes - other.limit_vram_bytes,
            self.workers - other.workers,
        )


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One quota that a change would break.

    Attributes:
        quota: Name of the quota object.
        namespace: Its namespace.
        resource: ``total.max.tflops.request``, ``single.max.vram.limit``, ...
        requested: What the change asks for, base units.
        used: What the namespace uses already; 0 for single caps.
        limit: The ceiling, base units.
    """

    quota: str
    namespace: str
    resource: str
    requested: int
    used: int
    limit: int

    @property
    def resolvable(self) -> bool:
        """Whether the same request can succeed once others have left."""
        return self.resource.startswith("total.") and self.requested <= self.limit

    @property
    def message(self) -> str:
        """One sentence with all figures in the resource's usual unit."""
        used = f", used {_print(self.resource, self.used)}" if self.used else ""
        return (
            f"quota {self.quota} of namespace {self.namespace} exceeded for {self.resource}: "
            f"requested {_print(self.resource, self.requested)}{used}, "
            f"limit {_print(self.resource, self.limit)}"
        )

    def counted(self, usage: Usage) -> int:
        """Return what a usage counts for the resource; 0 for single caps."""
        figures = zip(_TOTALS, _counts(usage), strict=True)
        return dict(figures).get(self.resource, 0)

    @property
    def remedy(self) -> str:
        """What an administrator would do about it."""
        needed = _print(self.resource, self.used + self.requested)
        return (
            f"raise {self.resource} of quota {self.quota} from "
            f"{_print(self.resource, self.limit)} to {needed}"
        )


def _print(resource: str, value: int) -> str:
    if ".tflops." in resource:
        return f"{value / 1000:g} TFLOPS"
    if ".vram." in resource:
        return f"{value / 2**30:g} GiB"
    if ".percent." in resource:
        return f"{value / 1000:g} %"
    return str(value)


class QuotaBook:
    """All quotas, and the usage of every namespace."""

    def __init__(self) -> None:
        self._quotas: dict[str, dict[str, Quota]] = {}
        self._usage: dict[str, list[int]] = {}

    def put(self, quota: Quota) -> None:
        """Add or replace a quota."""
        self._quotas.setdefault(quota.namespace, {})[quota.name] = quota

    def remove(self, namespace: str, name: str) -> None:
        """Forget a quota; unknown ones are ignored."""
        self._quotas.get(namespace, {}).pop(name, None)

    def governs(self, namespace: str) -> bool:
        """Tell whether the namespace has any quota."""
        return bool(self._quotas.get(namespace))

    def quotas(self, namespace: str) -> list[Quota]:
        """Return the quotas of a namespace in order of name."""
        return [quota for _, quota in sorted(self._quotas.get(namespace, {}).items())]

    def usage(self, namespace: str) -> Usage:
        """Return what the namespace uses now."""
        counted = self._usage.get(namespace)
        return Usage(*counted) if counted else Usage()

    def usages(self) -> Mapping[str, Usage]:
        """Return the usage of every namespace that uses anything."""
        return {name: Usage(*counted) for name, counted in self._usage.items() if any(counted)}

    def add(self, namespace: str, change: Usage, sign: int) -> None:
        """Count a change; ``sign`` is 1 or -1. The ledger is the only caller."""
        counted = self._usage.get(namespace)
        if counted is None:
            counted = self._usage[namespace] = [0, 0, 0, 0, 0]
        counted[0] += sign * change.request_gflops
        counted[1] += sign * change.request_vram_bytes
        counted[2] += sign * change.limit_gflops
        counted[3] += sign * change.limit_vram_bytes
        counted[4] += sign * change.workers

    def check(
        self,
        namespace: str,
        change: Usage,
        per_gpu: Iterable[tuple[int, int, int, int]],
        gpu_count: int,
        *,
        shares: tuple[int, int] = (0, 0),
        only_increases: bool = False,
    ) -> list[Violation]:
        """Name every quota that the change would break.

        Args:
            namespace: Namespace of the worker.
            change: What the change adds to the totals.
            per_gpu: Request GFLOP/s, request bytes, limit GFLOP/s, limit bytes on each GPU of
                the worker after the change.
            gpu_count: GPUs of the worker.
            shares: Largest request and largest limit as a share of the card, thousandths of a
                percent; 0 while the cards are not known.
            only_increases: Ignore totals that the change does not raise, so that a namespace
                above a quota lowered later can still shrink.

        Returns:
            Violations in order of quota name; empty when all quotas hold.
        """
        quotas = self._quotas.get(namespace)
        if not quotas:
            return []
        used = self.usage(namespace)
        largest = tuple(max(column) for column in zip(*per_gpu, strict=True)) or (0, 0, 0, 0)
        found: list[Violation] = []
        for _, quota in sorted(quotas.items()):
            found += _single_violations(quota, largest, gpu_count, shares)
            found += _total_violations(quota, used, change, only_increases)
        return found

    def precheck(self, demand: Demand, lowest_capacity_gflops: int) -> list[Violation]:
        """Check a demand whose devices are not chosen yet.

        A share of a card counts as that share of the smallest card it could get, so that a
        refusal here is final for the time being; `Ledger.allocate` checks the exact figures.

        Args:
            demand: The request.
            lowest_capacity_gflops: Smallest card among the candidates; 0 when unknown.
        """
        if not self._quotas.get(demand.namespace):
            return []
        shape = demand.shape
        amounts = resolve(shape.request, shape.limit, lowest_capacity_gflops)
        if shape.exclusive:  # the whole card is taken, so at least the smallest one is
            whole = max(amounts[0], lowest_capacity_gflops)
            amounts = (whole, amounts[1], max(amounts[2], whole), amounts[3])
        count = shape.gpu_count
        gflops, vram_bytes, limit_gflops, limit_vram_bytes = (amount * count for amount in amounts)
        change = Usage(gflops, vram_bytes, limit_gflops, limit_vram_bytes, 1)
        shares = asked_shares(shape)
        return self.check(demand.namespace, change, [amounts], count, shares=shares)


def asked_shares(shape: Shape) -> tuple[int, int]:
    """Return request and limit as far as they are stated as a share of a card.

    Returns:
        Thousandths of a percent; 0 for what is stated in TFLOPS.
    """
    if shape.exclusive:
        return FULL_CARD_MILLI_PERCENT, FULL_CARD_MILLI_PERCENT
    request, limit = shape.request.milli_percent, shape.limit.milli_percent
    return request, max(request, limit)


def resolve(request: Amount, limit: Amount, capacity_gflops: int) -> tuple[int, int, int, int]:
    """Turn a request and a limit into base units on a card of the given capacity.

    A limit that is not set, or that is below the request, equals the request.

    Returns:
        Request GFLOP/s, request bytes, limit GFLOP/s, limit bytes.
    """
    gflops = request.gflops_on(capacity_gflops)
    ceiling = limit.gflops_on(capacity_gflops)
    return (
        gflops,
        request.vram_bytes,
        max(gflops, ceiling),
        max(request.vram_bytes, limit.vram_bytes),
    )


def available_percent(used: int, limit: int | None) -> str:
    """Print what is left of a quota in percent, two decimals, never below 0.

    Returns:
        ``100`` when there is no quota for this dimension; ``0.00`` for a quota of zero.
    """
    if limit is None:
        return "100"
    if limit <= 0:
        return "0.00"
    return f"{max(0, (limit - used) * 10000 // limit) / 100:.2f}"


def _ceilings(requests: QuotaAmount, limits: QuotaAmount) -> tuple[int | None, ...]:
    return (requests.gflops, requests.vram_bytes, limits.gflops, limits.vram_bytes)


_DIMENSIONS = ("tflops.request", "vram.request", "tflops.limit", "vram.limit")
_TOTALS = (*(f"total.max.{dimension}" for dimension in _DIMENSIONS), "total.max.workers.limit")


def _single_violations(
    quota: Quota, largest: tuple[int, ...], gpu_count: int, shares: tuple[int, int]
) -> list[Violation]:
    ceilings = _ceilings(quota.single_max_requests, quota.single_max_limits)
    found = [
        _violation(quota, f"single.max.{dimension}", amount, 0, ceiling)
        for dimension, amount, ceiling in zip(_DIMENSIONS, largest, ceilings, strict=True)
        if ceiling is not None and amount > ceiling
    ]
    bounds = (quota.single_max_request_share, quota.single_max_limit_share)
    for side, share, bound in zip(("request", "limit"), shares, bounds, strict=True):
        if bound is not None and share > bound:
            found.append(_violation(quota, f"single.max.percent.{side}", share, 0, bound))
    if quota.max_gpu_count is not None and gpu_count > quota.max_gpu_count:
        name = "single.max.gpuCount.limit"
        found.append(_violation(quota, name, gpu_count, 0, quota.max_gpu_count))
    return found


def _total_violations(
    quota: Quota, used: Usage, change: Usage, only_increases: bool
) -> list[Violation]:
    ceilings = (*_ceilings(quota.total_requests, quota.total_limits), quota.max_workers)
    found = []
    for name, now, added, ceiling in zip(
        _TOTALS, _counts(used), _counts(change), ceilings, strict=True
    ):
        if ceiling is None or now + added <= ceiling or (only_increases and added <= 0):
            continue
        found.append(_violation(quota, name, added, now, ceiling))
    return found


def _counts(usage: Usage) -> tuple[int, int, int, int, int]:
    return (
        usage.request_gflops,
        usage.request_vram_bytes,
        usage.limit_gflops,
        usage.limit_vram_bytes,
        usage.workers,
    )


def _violation(quota: Quota, resource: str, requested: int, used: int, limit: int) -> Violation:
    return Violation(
        quota=quota.name,
        namespace=quota.namespace,
        resource=resource,
        requested=requested,
        used=used,
        limit=limit,
    )
