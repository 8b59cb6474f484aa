"""GPUs that a pod asks for the native way, such as ``nvidia.com/gpu: 1``."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tensorfusion.admission.layers import Layer
from tensorfusion.admission.providers import Providers
from tensorfusion.admission.raw import containers, mapping, resources, spec_of
from tensorfusion.admission.refusal import RefusedValue
from tensorfusion.api.resource import JsonObject
from tensorfusion.units import MILLI_PERCENT_FULL, count_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeRequest:
    """What a pod asks for natively.

    Attributes:
        resources: The resource names, in order.
        vendors: Vendors of the whole cards, in order.
        slices: Partition templates asked for, in order.
        count: GPUs or partitions of the whole pod.
        by_container: Container name to its count, without init containers.
    """

    resources: tuple[str, ...]
    vendors: tuple[str, ...]
    slices: tuple[str, ...]
    count: int
    by_container: dict[str, int]

    def layer(self, *, shared: bool) -> Layer:
        """Read the request as a level of the precedence.

        Args:
            shared: Nothing else says how the card is used: take it whole.

        Raises:
            RefusedValue: It mixes vendors, partition shapes, or cards and partitions.
        """
        name = self.resources[0]
        field, text = f"spec.containers resources {name}", str(self.count)
        kinds = (*self.vendors, *(f"partition {s}" for s in self.slices))
        if len(kinds) > 1:
            raise RefusedValue(
                "spec.containers resources",
                ", ".join(self.resources),
                f"a pod can use GPUs of one kind, these are {' and '.join(kinds)}",
            )
        layer = Layer()
        layer.put("gpu_count", field, text, self.count)
        if self.slices:
            layer.put("partition", field, self.slices[0], self.slices[0])
            layer.put("isolation", field, self.slices[0], "partitioned")
        else:
            layer.put("vendor", field, name, self.vendors[0])
            if shared:
                layer.put("isolation", field, text, "shared")
            else:
                layer.put("limit_percent", field, text, MILLI_PERCENT_FULL)
        if self.by_container:
            layer.put("containers", field, text, tuple(self.by_container))
            if len(self.by_container) > 1 and sum(self.by_container.values()) == self.count:
                layer.put("container_counts", field, text, dict(self.by_container))
        return layer


def native_request(pod: JsonObject, providers: Providers) -> NativeRequest | None:
    """Count what a pod asks for natively; None when it asks for nothing.

    Init containers run before the others, so the larger of both needs counts, as Kubernetes
    does it. Limits and requests are both looked at; of an extended resource they are equal.
    """
    main = {
        str(container.get("name", "")): _count(container, providers)
        for container in containers(pod)
    }
    first = [_count(container, providers) for container in containers(pod, "initContainers")]
    asked = [found for found in (*main.values(), *first) if found]
    if not asked:
        return None
    by_container = {name: sum(found.values()) for name, found in main.items() if found}
    largest_init = max((sum(found.values()) for found in first), default=0)
    names = tuple(dict.fromkeys(name for found in asked for name in found))
    whole = [providers.whole[name] for name in names if name in providers.whole]
    slices = [part for part in (providers.slice_of(name) for name in names) if part]
    return NativeRequest(
        resources=names,
        vendors=tuple(dict.fromkeys(whole)),
        slices=tuple(dict.fromkeys(slices)),
        count=max(sum(by_container.values()), largest_init),
        by_container=by_container,
    )


def without_native(pod: JsonObject, names: Iterable[str]) -> JsonObject:
    """Return a pod whose containers no longer ask for these resources."""
    gone = frozenset(names)
    spec = dict(spec_of(pod))
    for kind in ("containers", "initContainers"):
        if isinstance(spec.get(kind), list):
            spec[kind] = [_stripped(c, gone) if isinstance(c, dict) else c for c in spec[kind]]
    return {**pod, "spec": spec}


def _count(container: JsonObject, providers: Providers) -> Counter[str]:
    found: Counter[str] = Counter()
    for side in resources(container):
        for name, amount in side.items():
            if providers.is_native(name):
                number = count_of(amount)
                if number > found[name]:
                    found[name] = number
    return +found


def _stripped(container: JsonObject, gone: frozenset[str]) -> JsonObject:
    block = mapping(container.get("resources"))
    if not any(name in gone for side in resources(container) for name in side):
        return container
    kept = dict(block)
    for side in ("limits", "requests"):
        if side in kept:
            kept[side] = {k: v for k, v in mapping(kept[side]).items() if k not in gone}
            if not kept[side]:
                del kept[side]
    result = {key: value for key, value in container.items() if key != "resources"}
    return {**result, "resources": kept} if kept else result
