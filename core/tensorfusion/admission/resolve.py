"""From the levels of the precedence to one answer per field. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.admission.amounts import resolve_amounts
from tensorfusion.admission.context import AdmissionContext
from tensorfusion.admission.layers import Layer, first
from tensorfusion.admission.models import cards_named, closest_models
from tensorfusion.admission.refusal import RefusedValue, annotation_field
from tensorfusion.model.demand import MAX_GPU_COUNT, Amount

REMOTE_REASON = (
    "remote workers are not available in this release: leave it out or set it to true, and the"
    " pod runs on the node of its GPU"
)
SIDECAR_REASON = (
    "a worker of its own means hard isolation, which this release does not have: leave it out or"
    " set it to false"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The levels in order, and where the lower ones begin.

    Attributes:
        all: Every level, the highest first; the last one is the pool.
        own: How many of them speak about this pod alone: annotation, profile, shared workload
            and native request. Namespace and pool come after.
    """

    all: tuple[Layer, ...]
    own: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a worker gets. Amounts are per GPU."""

    pool: str
    request: Amount
    limit: Amount
    gpu_count: int
    gpu_indices: tuple[int, ...]
    container_counts: Mapping[str, int]
    containers: tuple[str, ...]
    gpu_model: str
    vendor: str
    qos: str
    isolation: str
    partition: str
    dedicated: bool


def resolve(
    levels: Levels, pool: str, container_names: Sequence[str], context: AdmissionContext
) -> Resolved:
    """Answer every field.

    Raises:
        RefusedValue: An answer contradicts another one, or cannot be had.
    """
    layers = levels.all
    _refuse_remote(layers)
    vendor, model = _text(layers, "vendor"), _text(layers, "gpu_model")
    isolation = _isolation(layers, vendor, model, context)
    dedicated = _dedicated(layers)
    request, limit = _amounts(levels, isolation, dedicated, model)
    counts, count = _devices(layers, container_names)
    at = first(layers, "gpu_indices")
    partition = _partition(layers, isolation, context)
    asked = request.gflops or request.milli_percent or request.vram_bytes
    if not (asked or partition or isolation == "shared"):
        raise RefusedValue(
            annotation_field(names.TFLOPS_REQUEST),
            "",
            "no GPU amounts are given: set tflops-request, tflops-limit, compute-percent-limit,"
            " vram-request or vram-limit on the pod, its WorkloadProfile or as namespace default",
        )
    return Resolved(
        pool=pool,
        request=request,
        limit=limit,
        gpu_count=count,
        gpu_indices=() if at is None else layers[at].gpu_indices or (),
        container_counts=counts,
        containers=_containers(layers, counts, container_names),
        gpu_model=model,
        vendor=vendor,
        qos=_qos(layers, request, limit, context, pool),
        isolation=isolation,
        partition=partition,
        dedicated=dedicated,
    )


def _text(layers: Sequence[Layer], attribute: str) -> str:
    at = first(layers, attribute)
    return "" if at is None else str(getattr(layers[at], attribute))


def _refuse_remote(layers: Sequence[Layer]) -> None:
    at = first(layers, "is_local")
    if at is not None and layers[at].is_local is False:
        raise layers[at].refused("is_local", REMOTE_REASON)
    at = first(layers, "sidecar")
    if at is not None and layers[at].sidecar:
        raise layers[at].refused("sidecar", SIDECAR_REASON)


def _isolation(layers: Sequence[Layer], vendor: str, model: str, context: AdmissionContext) -> str:
    at = first(layers, "isolation")
    mode = "soft" if at is None else str(layers[at].isolation)
    if not vendor:
        vendors = {card.vendor for card in cards_named(model)}
        vendor = vendors.pop() if len(vendors) == 1 else ""
    reason = context.offers.refusal(mode, vendor)
    if not reason:
        return mode
    vendor_at = first(layers, "vendor")
    if at is not None and (vendor_at is None or at <= vendor_at):
        raise layers[at].refused("isolation", reason)
    if vendor_at is not None:
        raise layers[vendor_at].refused("vendor", reason)
    raise RefusedValue(annotation_field(names.ISOLATION), mode, reason)


def _dedicated(layers: Sequence[Layer]) -> bool:
    at = first(layers, "dedicated")
    return at is not None and bool(layers[at].dedicated)


def _amounts(levels: Levels, isolation: str, dedicated: bool, model: str) -> tuple[Amount, Amount]:
    if dedicated:
        layer = levels.all[0]
        if not model:
            raise layer.refused("dedicated", f"needs {names.GPU_MODEL} to say which card is meant")
        found = cards_named(model)
        if not found:
            raise RefusedValue(
                annotation_field(names.GPU_MODEL),
                model,
                f"is not in the hardware catalogue, which {names.DEDICATED_GPU} needs;"
                f" close: {closest_models(model)}",
            )
        # Any of the allowed cards will do, so the amounts are those of the smallest.
        whole = Amount(
            min(card.compute_gflops for card in found), min(card.vram_bytes for card in found)
        )
        return whole, whole
    # A whole card is not cut down to what a namespace gives to those who say nothing.
    layers = levels.all[: levels.own] if isolation == "shared" else levels.all
    return resolve_amounts(layers)


def _devices(
    layers: Sequence[Layer], container_names: Sequence[str]
) -> tuple[Mapping[str, int], int]:
    count_at, counts_at = first(layers, "gpu_count"), first(layers, "container_counts")
    indices_at = first(layers, "gpu_indices")
    listed = 0 if indices_at is None else len(layers[indices_at].gpu_indices or ())
    counts: Mapping[str, int] = {}
    blamed: tuple[int, str] | None = None
    if counts_at is not None and (count_at is None or counts_at <= count_at):
        layer = layers[counts_at]
        counts = layer.container_counts or {}
        count = sum(counts.values())
        _check_containers(layer, "container_counts", counts, container_names)
        if count > MAX_GPU_COUNT:
            raise layer.refused("container_counts", f"must add up to at most {MAX_GPU_COUNT}")
        if counts_at == count_at and layer.gpu_count != count:
            raise layer.refused(
                "gpu_count",
                f"must be {count}, the sum of {layer.paths['container_counts']}, or be left out",
            )
        blamed = counts_at, "container_counts"
    elif count_at is not None and (indices_at is None or count_at <= indices_at):
        count = layers[count_at].gpu_count or 1
        blamed = count_at, "gpu_count"
    else:
        count = listed or 1
    if listed and count > listed and blamed is not None and indices_at is not None:
        path = layers[indices_at].paths["gpu_indices"]
        raise layers[blamed[0]].refused(
            blamed[1], f"must not exceed the {listed} devices that {path} allows"
        )
    return counts, count


def _check_containers(
    layer: Layer, attribute: str, wanted: Mapping[str, int] | Sequence[str], present: Sequence[str]
) -> None:
    # A pod without containers is refused by the API itself, in its own words.
    unknown = [name for name in wanted if name not in present] if present else []
    if unknown:
        raise layer.refused(
            attribute,
            f"the pod has no container {unknown[0]!r}; it has {', '.join(present)}",
        )


def _containers(
    layers: Sequence[Layer], counts: Mapping[str, int], present: Sequence[str]
) -> tuple[str, ...]:
    at = first(layers, "containers")
    counts_at = first(layers, "container_counts")
    if at is not None and (not counts or counts_at is None or at <= counts_at):
        layer = layers[at]
        chosen = layer.containers or ()
        _check_containers(layer, "containers", chosen, present)
        missing = [name for name in counts if name not in chosen]
        if missing and counts_at is not None:
            raise layers[counts_at].refused(
                "container_counts",
                f"names container {missing[0]!r}, which {layer.paths['containers']} leaves out",
            )
        return chosen
    if counts:
        return tuple(counts)
    if len(present) > 1:
        raise RefusedValue(
            annotation_field(names.INJECT_CONTAINER),
            "",
            "must name the containers that use the GPU, since the pod has several:"
            f" {', '.join(present)}",
        )
    return tuple(present)


def _qos(
    layers: Sequence[Layer], request: Amount, limit: Amount, context: AdmissionContext, pool: str
) -> str:
    given = _text(layers, "qos")
    if given:
        return given
    compute = request.gflops or request.milli_percent
    if request == limit and compute and request.vram_bytes:
        return "high"
    spec = context.pools[pool].spec if pool in context.pools else None
    default = spec.qos_config.default_qos if spec and spec.qos_config else ""
    return default or "medium"


def _partition(layers: Sequence[Layer], isolation: str, context: AdmissionContext) -> str:
    at = first(layers, "partition")
    if at is None:
        return ""
    layer, text = layers[at], str(layers[at].partition)
    if isolation != "partitioned":
        isolation_at = first(layers, "isolation")
        if isolation_at is not None and isolation_at < at:
            return ""
        raise layer.refused("partition", f"needs isolation partitioned, it is {isolation}")
    known = context.providers.partitions
    if known and text not in known:
        raise layer.refused("partition", f"must be one of {', '.join(sorted(known))}")
    return known.get(text, text)
