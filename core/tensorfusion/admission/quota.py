"""What a namespace quota says to new workers, before a GPU is chosen for them. Pure."""

from tensorfusion import names
from tensorfusion.admission.context import AdmissionContext
from tensorfusion.admission.refusal import QuotaExceeded, annotation_field
from tensorfusion.admission.resolve import Resolved
from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.quota import QuotaBook, Usage, Violation, asked_shares, resolve
from tensorfusion.units import format_percent, human_bytes, human_tflops

FIELDS = {
    "tflops.request": names.TFLOPS_REQUEST,
    "tflops.limit": names.TFLOPS_LIMIT,
    "percent.request": names.COMPUTE_PERCENT_REQUEST,
    "percent.limit": names.COMPUTE_PERCENT_LIMIT,
    "vram.request": names.VRAM_REQUEST,
    "vram.limit": names.VRAM_LIMIT,
    "gpuCount.limit": names.GPU_COUNT,
}


def check_quota(resolved: Resolved, namespace: str, context: AdmissionContext) -> None:
    """Refuse workers that would break a quota.

    Shares of a card and whole cards are priced by the smallest card of the pool; the ledger
    checks the exact figures again when a card is chosen.

    Raises:
        QuotaExceeded: Names the quota, what is requested, used and allowed.
    """
    if not context.quotas:
        return
    book = QuotaBook()
    for quota in context.quotas:
        book.put(quota)
    book.add(namespace, context.usage.minus(context.freed), 1)
    shape = Shape(
        request=resolved.request,
        limit=resolved.limit,
        gpu_count=resolved.gpu_count,
        isolation=resolved.isolation,
        dedicated=resolved.dedicated,
    )
    card = 0
    if shape.exclusive or shape.request.milli_percent or shape.limit.milli_percent:
        card = context.smallest_gflops(resolved.pool)
    if context.replicas == 1:
        demand = Demand(namespace=namespace, name="", uid="", shape=shape)
        violations = book.precheck(demand, card)
    else:
        violations = _check_many(book, namespace, shape, card, context.replicas)
    if violations:
        worst = violations[0]
        key = FIELDS.get(".".join(worst.resource.split(".")[2:]), "")
        field = annotation_field(key) if key else worst.resource
        raise QuotaExceeded(field, _figure(worst.resource, worst.requested), _text(worst))


def _check_many(
    book: QuotaBook, namespace: str, shape: Shape, card_gflops: int, replicas: int
) -> list[Violation]:
    """Check several equal workers at once."""
    if replicas < 1:
        return []
    amounts = resolve(shape.request, shape.limit, card_gflops)
    if shape.exclusive:
        whole = max(amounts[0], card_gflops)
        amounts = (whole, amounts[1], max(amounts[2], whole), amounts[3])
    gflops, vram, limit_gflops, limit_vram = (a * shape.gpu_count * replicas for a in amounts)
    change = Usage(gflops, vram, limit_gflops, limit_vram, replicas)
    shares = asked_shares(shape)
    return book.check(namespace, change, [amounts], shape.gpu_count, shares=shares)


def _text(violation: Violation) -> str:
    figures = (violation.requested, violation.used, violation.limit)
    requested, used, limit = (_figure(violation.resource, figure) for figure in figures)
    return (
        f"quota exceeded in namespace {violation.namespace} for {violation.resource} of"
        f" GPUResourceQuota {violation.quota}: requested {requested}, used {used}, limit {limit}"
    )


def _figure(resource: str, value: int) -> str:
    if ".tflops." in resource:
        return f"{human_tflops(value)} TFLOPS"
    if ".vram." in resource:
        return human_bytes(value)
    if ".percent." in resource:
        return f"{format_percent(value)} %"
    return str(value)
