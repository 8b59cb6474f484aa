"""The levels of the one precedence, each read into the same fields.

annotation > WorkloadProfile > shared workload > native resources > namespace > pool > default.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorfusion import names
from tensorfusion.admission import values
from tensorfusion.admission.refusal import RefusedValue, annotation_field
from tensorfusion.admission.vendors import VENDORS, canonical_vendor
from tensorfusion.api.amounts import ISOLATION_MODES, QOS_LEVELS, Resource
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.workload_profile import WorkloadProfileSpec
from tensorfusion.model.demand import MAX_GPU_COUNT


@dataclass(slots=True)
class Layer:
    """What one level says; None is silence, and an amount of zero counts as silence too.

    Attributes:
        paths: Attribute to the field that gave it, for refusals.
        texts: Attribute to the value as it was written.
    """

    paths: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    pool: str | None = None
    request_gflops: int | None = None
    limit_gflops: int | None = None
    request_percent: int | None = None
    limit_percent: int | None = None
    request_vram: int | None = None
    limit_vram: int | None = None
    gpu_count: int | None = None
    gpu_indices: tuple[int, ...] | None = None
    container_counts: dict[str, int] | None = None
    containers: tuple[str, ...] | None = None
    gpu_model: str | None = None
    vendor: str | None = None
    qos: str | None = None
    isolation: str | None = None
    partition: str | None = None
    is_local: bool | None = None
    sidecar: bool | None = None
    dedicated: bool | None = None

    def put(self, attribute: str, path: str, text: object, value: Any) -> None:
        """Set an attribute and remember where it came from."""
        self.paths[attribute] = path
        self.texts[attribute] = text if isinstance(text, str) else json.dumps(text)
        setattr(self, attribute, value)

    def refused(self, attribute: str, allowed: str) -> RefusedValue:
        """The refusal of one of this level's values."""
        return RefusedValue(
            self.paths.get(attribute, attribute), self.texts.get(attribute, ""), allowed
        )

    @property
    def has_amounts(self) -> bool:
        """Whether any amount is given."""
        return any(getattr(self, name) is not None for name in AMOUNTS)

    def check_notations(self) -> None:
        """Refuse compute in both notations on one side."""
        for side in ("request", "limit"):
            percent = getattr(self, f"{side}_percent")
            if percent is not None and getattr(self, f"{side}_gflops") is not None:
                raise self.refused(
                    f"{side}_percent",
                    f"excludes {self.paths[f'{side}_gflops']}: give TFLOPS or percent, not both",
                )


AMOUNTS = (
    "request_gflops", "limit_gflops", "request_percent", "limit_percent", "request_vram",
    "limit_vram",
)  # fmt: skip
_Reader = Callable[[str, Any], int]
AMOUNT_KEYS: tuple[tuple[str, str, _Reader], ...] = (
    ("request_gflops", names.TFLOPS_REQUEST, values.gflops),
    ("limit_gflops", names.TFLOPS_LIMIT, values.gflops),
    ("request_percent", names.COMPUTE_PERCENT_REQUEST, values.milli_percent),
    ("limit_percent", names.COMPUTE_PERCENT_LIMIT, values.milli_percent),
    ("request_vram", names.VRAM_REQUEST, values.size_bytes),
    ("limit_vram", names.VRAM_LIMIT, values.size_bytes),
)
_PLAIN_KEYS = (
    ("pool", names.GPU_POOL),
    ("gpu_model", names.GPU_MODEL),
    ("partition", names.PARTITION_ID),
)
_BOOLEAN_KEYS = (
    ("is_local", names.IS_LOCAL_GPU),
    ("sidecar", names.STANDALONE_WORKER_MODE),
    ("sidecar", names.SIDECAR_WORKER),
    ("dedicated", names.DEDICATED_GPU),
)


def annotation_layer(annotations: Mapping[str, str], more_vendors: Sequence[str] = ()) -> Layer:
    """Read what the pod itself says.

    Raises:
        RefusedValue: A value cannot be read.
    """
    layer = Layer()
    _read_amounts(layer, original_amounts(annotations))
    for attribute, key in _PLAIN_KEYS:
        text = annotations.get(key, "").strip()
        if text:
            layer.put(attribute, annotation_field(key), text, text)
    for attribute, key in _BOOLEAN_KEYS:
        if key in annotations:
            _put_boolean(layer, attribute, key, annotations[key])
    field_, text = annotation_field(names.GPU_COUNT), annotations.get(names.GPU_COUNT, "")
    if names.GPU_COUNT in annotations:
        layer.put("gpu_count", field_, text, values.integer(field_, text, 1, MAX_GPU_COUNT))
    for attribute, key, allowed in (
        ("qos", names.QOS, QOS_LEVELS),
        ("isolation", names.ISOLATION, ISOLATION_MODES),
    ):
        if key in annotations:
            path, text = annotation_field(key), annotations[key]
            layer.put(attribute, path, text, values.choice(path, text, allowed))
    if annotations.get(names.VENDOR, "").strip():
        path, text = annotation_field(names.VENDOR), annotations[names.VENDOR]
        layer.put("vendor", path, text, vendor_name(path, text, more_vendors))
    _read_devices(layer, annotations)
    return layer


def _read_devices(layer: Layer, annotations: Mapping[str, str]) -> None:
    text = annotations.get(names.GPU_INDICES, "")
    if text.strip():
        path = annotation_field(names.GPU_INDICES)
        layer.put("gpu_indices", path, text, values.indices(path, text))
    text = annotations.get(names.CONTAINER_GPU_COUNT, "")
    if text.strip():
        path = annotation_field(names.CONTAINER_GPU_COUNT)
        layer.put("container_counts", path, text, values.counts(path, text))
    text = annotations.get(names.INJECT_CONTAINER, "")
    if text.strip():
        layer.put(
            "containers", annotation_field(names.INJECT_CONTAINER), text, values.names_list(text)
        )


def _read_amounts(layer: Layer, annotations: Mapping[str, str]) -> None:
    for attribute, key, read in AMOUNT_KEYS:
        text = annotations.get(key)
        if text is not None:
            path = annotation_field(key)
            amount = read(path, text.strip())
            if amount:
                layer.put(attribute, path, text, amount)
    layer.check_notations()


def _put_boolean(layer: Layer, attribute: str, key: str, text: str) -> None:
    path = annotation_field(key)
    value = values.boolean(path, text)
    known = getattr(layer, attribute)
    if known is not None and known != value:
        raise RefusedValue(
            path, text, f"contradicts {layer.paths[attribute]}, another name of the same setting"
        )
    layer.put(attribute, path, text, value)


def original_amounts(annotations: Mapping[str, str]) -> Mapping[str, str]:
    """The amounts that were asked for, before a recommendation replaced them."""
    marker = annotations.get(names.ORIGINAL_RESOURCES)
    if not marker:
        return annotations
    try:
        found = json.loads(marker)
    except (ValueError, RecursionError):
        return annotations
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        return annotations
    return {names.PREFIX + key: text for key, text in found.items()}


def vendor_name(path: str, text: str, more_vendors: Sequence[str]) -> str:
    """Spell a vendor canonically.

    Raises:
        RefusedValue: Nobody knows it.
    """
    vendor = canonical_vendor(text, more_vendors)
    if vendor is None:
        known = dict.fromkeys((*VENDORS, *more_vendors))
        raise RefusedValue(path, text, f"must be one of {', '.join(known)}")
    return vendor


def spec_layer(spec: WorkloadProfileSpec, base: str, more_vendors: Sequence[str] = ()) -> Layer:
    """Read a WorkloadProfile's or a workload's spec; ``base`` names it in refusals.

    Raises:
        RefusedValue: A value cannot be read.
    """
    layer = Layer()
    if spec.resources is not None:
        _read_resource(layer, "request", spec.resources.requests, f"{base}.resources.requests")
        _read_resource(layer, "limit", spec.resources.limits, f"{base}.resources.limits")
        layer.check_notations()
    for attribute, wire, value in (
        ("pool", "poolName", spec.pool_name),
        ("gpu_model", "gpuModel", spec.gpu_model),
        ("qos", "qos", spec.qos),
        ("isolation", "isolation", spec.isolation),
        ("partition", "partitionTemplateId", spec.partition_template_id),
    ):
        if value:
            layer.put(attribute, f"{base}.{wire}", value, value)
    if spec.vendor:
        path = f"{base}.vendor"
        layer.put("vendor", path, spec.vendor, vendor_name(path, spec.vendor, more_vendors))
    if spec.gpu_count is not None:
        layer.put("gpu_count", f"{base}.gpuCount", spec.gpu_count, spec.gpu_count)
    if spec.gpu_indices:
        path, text = f"{base}.gpuIndices", ",".join(str(i) for i in spec.gpu_indices)
        layer.put("gpu_indices", path, text, values.indices(path, text))
    if spec.is_local_gpu is not None:
        layer.put("is_local", f"{base}.isLocalGPU", spec.is_local_gpu, spec.is_local_gpu)
    if spec.sidecar_worker is not None:
        layer.put("sidecar", f"{base}.sidecarWorker", spec.sidecar_worker, spec.sidecar_worker)
    return layer


def _read_resource(layer: Layer, side: str, resource: Resource | None, path: str) -> None:
    if resource is None:
        return
    for attribute, wire, text, read in (
        (f"{side}_gflops", "tflops", resource.tflops, values.gflops),
        (f"{side}_vram", "vram", resource.vram, values.size_bytes),
        (f"{side}_percent", "compute", resource.compute, values.milli_percent),
    ):
        if text is not None:
            amount = read(f"{path}.{wire}", text)
            if amount:
                layer.put(attribute, f"{path}.{wire}", text, amount)


def quota_layer(quota: GPUResourceQuota) -> Layer:
    """Read the defaults that a namespace gives to each worker.

    Raises:
        RefusedValue: A value cannot be read.
    """
    layer = Layer()
    single = quota.spec.single if quota.spec else None
    if single is None:
        return layer
    base = f'GPUResourceQuota "{quota.metadata.name}" spec.single'
    _read_resource(layer, "request", single.default_requests, f"{base}.defaultRequests")
    _read_resource(layer, "limit", single.default_limits, f"{base}.defaultLimits")
    layer.check_notations()
    return layer


def pool_layer(name: str, pool: GPUPool) -> Layer:
    """Read the defaults of a pool; its default quality of service is looked at separately."""
    layer = Layer()
    spec = pool.spec
    if spec is None:
        return layer
    mode = spec.node_manager_config.default_isolation_mode
    if mode:
        path = f'GPUPool "{name}" spec.nodeManagerConfig.defaultIsolationMode'
        layer.put("isolation", path, mode, mode)
    local = spec.default_using_local_gpu
    if local is not None:
        layer.put("is_local", f'GPUPool "{name}" spec.defaultUsingLocalGPU', local, local)
    return layer


def first(layers: Sequence[Layer], attribute: str) -> int | None:
    """Position of the first level that says something about an attribute."""
    for position, layer in enumerate(layers):
        if getattr(layer, attribute) is not None:
            return position
    return None
