"""Quotas, profiles and workloads as their authors write them: what no schema can say. Pure."""

from tensorfusion.admission import values
from tensorfusion.admission.amounts import resolve_amounts
from tensorfusion.admission.context import AdmissionContext
from tensorfusion.admission.layers import spec_layer
from tensorfusion.admission.refusal import RefusedValue
from tensorfusion.api.amounts import Resource
from tensorfusion.api.quota import GPUResourceQuotaSpec
from tensorfusion.api.workload_profile import WorkloadProfileSpec
from tensorfusion.units import format_percent, format_tflops, human_bytes

_DIMENSIONS = ("tflops", "vram", "compute")
_Amounts = dict[str, tuple[str, int]]
"""Dimension to the path and the amount in base units."""


def check_profile(spec: WorkloadProfileSpec, context: AdmissionContext) -> None:
    """Refuse a profile or workload that no pod could use.

    Raises:
        RefusedValue: An amount cannot be read, a request exceeds its limit, a vendor or partition
            does not exist.
    """
    layer = spec_layer(spec, "spec", context.providers.vendors)
    resolve_amounts([layer])
    known = context.providers.partitions
    if layer.partition and known and layer.partition not in known:
        raise layer.refused("partition", f"must be one of {', '.join(sorted(known))}")
    listed = len(spec.gpu_indices)
    if listed and spec.gpu_count is not None and spec.gpu_count > listed:
        raise layer.refused("gpu_count", f"must not exceed the {listed} devices of spec.gpuIndices")


def check_quota_object(spec: GPUResourceQuotaSpec) -> None:
    """Refuse a quota that contradicts itself.

    Raises:
        RefusedValue: A limit is below its request, or a default above its maximum.
    """
    total, single = spec.total, spec.single
    if total is not None:
        requests = _amounts(total.requests, "spec.total.requests")
        limits = _amounts(total.limits, "spec.total.limits")
        _refuse_shares(requests, limits)
        _at_most(requests, limits)
    if single is None:
        return
    max_requests = _amounts(single.max_requests, "spec.single.maxRequests")
    max_limits = _amounts(single.max_limits, "spec.single.maxLimits")
    requests = _amounts(single.default_requests, "spec.single.defaultRequests")
    limits = _amounts(single.default_limits, "spec.single.defaultLimits")
    for defaults in (requests, limits):
        if "tflops" in defaults and "compute" in defaults:
            path = defaults["compute"][0]
            raise RefusedValue(path, "", "excludes tflops beside it: give TFLOPS or percent")
    for low, high in (
        (max_requests, max_limits),
        (requests, limits),
        (requests, max_requests),
        (limits, max_limits),
    ):
        _at_most(low, high)


def _amounts(resource: Resource | None, path: str) -> _Amounts:
    found: _Amounts = {}
    if resource is None:
        return found
    readers = (values.gflops, values.size_bytes, values.milli_percent)
    for dimension, read in zip(_DIMENSIONS, readers, strict=True):
        text = getattr(resource, dimension)
        if text is not None:
            field = f"{path}.{dimension}"
            found[dimension] = field, read(field, text)
    return found


def _refuse_shares(*bounds: _Amounts) -> None:
    for amounts in bounds:
        if "compute" in amounts:
            path, amount = amounts["compute"]
            raise RefusedValue(
                path,
                format_percent(amount),
                "a total is given in tflops: percentages of different cards do not add up",
            )


def _at_most(low: _Amounts, high: _Amounts) -> None:
    for dimension, (path, amount) in low.items():
        if dimension in high and amount > high[dimension][1]:
            other, ceiling = high[dimension]
            raise RefusedValue(
                path,
                _shown(dimension, amount),
                f"must not exceed {other}, {_shown(dimension, ceiling)}",
            )


def _shown(dimension: str, amount: int) -> str:
    if dimension == "tflops":
        return format_tflops(amount)
    return human_bytes(amount) if dimension == "vram" else format_percent(amount)
