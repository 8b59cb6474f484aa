"""A placement engine built from objects: of a running store, or of a file."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from tensorfusion import names
from tensorfusion.api import registry
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.gpu import GPU
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.api.scheduling_config import SchedulingConfigTemplate
from tensorfusion.errors import NotFound
from tensorfusion.model.device import Device, NodeInfo, with_oversubscription
from tensorfusion.model.engine import Engine
from tensorfusion.scheduling.fleet_sync import find_policy, policy_of, ties_of
from tensorfusion.scheduling.placer import rebuild
from tensorfusion.scheduling.translate import (
    device_of,
    node_info_of,
    node_of_gpu,
    oversubscription_of,
    quota_of,
)
from tensorfusion.spi.policy import PlacementPolicy
from tensorfusion.store.interface import ObjectList
from tensorfusion.store.selectors import compile_selectors

KINDS: tuple[Resource, ...] = (
    registry.NODES,
    registry.GPU_NODES,
    registry.GPUS,
    registry.GPU_POOLS,
    registry.SCHEDULING_CONFIGS,
    registry.QUOTAS,
    registry.PDBS,
    registry.PODS,
)


class Lists(Protocol):
    """Anything that lists objects of a kind."""

    def list(self, resource: Resource) -> ObjectList:
        """Return every object of one kind."""
        ...


def read_objects(store: Lists) -> list[JsonObject]:
    """Fetch everything that a snapshot is made of."""
    return [obj for resource in KINDS for obj in store.list(resource).items]


class Snapshot:
    """Objects of a file, read like a store.

    Concurrency: immutable.
    """

    def __init__(self, objects: Iterable[JsonObject], source: str) -> None:
        """Index objects.

        Args:
            objects: With apiVersion and kind.
            source: Where they are from, for messages.
        """
        self._objects = list(objects)
        self._source = source

    def all(self) -> list[JsonObject]:
        """Return every object."""
        return self._objects

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object.

        Raises:
            NotFound: There is none of that name.
        """
        for obj in self.list(resource, namespace).items:
            if obj["metadata"]["name"] == name:
                return obj
        raise NotFound(f'{resource.plural} "{name}" not found in {self._source}')

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> ObjectList:
        """Return the objects of one kind, as a store does."""
        matches = compile_selectors(resource, label_selector, field_selector)
        found = [
            obj
            for obj in self._objects
            if (obj.get("apiVersion"), obj.get("kind")) == (resource.api_version, resource.kind)
            and (not namespace or obj["metadata"].get("namespace") == namespace)
            and (matches is None or matches(obj))
        ]
        return ObjectList(found, "")


def engine_from(objects: Iterable[JsonObject], policies: Mapping[str, PlacementPolicy]) -> Engine:
    """Build an engine with the fleet, quotas and allocations that the objects describe."""
    by_kind: dict[str, list[JsonObject]] = {}
    for obj in objects:
        by_kind.setdefault(str(obj.get("kind")), []).append(obj)
    pools = {o["metadata"]["name"]: decode(GPUPool, o) for o in by_kind.get("GPUPool", ())}
    templates = {
        o["metadata"]["name"]: decode(SchedulingConfigTemplate, o)
        for o in by_kind.get("SchedulingConfigTemplate", ())
    }
    engine = Engine(find_policy(policies, "NodeCompactGPULowLoad"))
    for name, pool in pools.items():
        template = templates.get(pool.spec.scheduling_config_template) if pool.spec else None
        placement = template.spec.placement if template is not None and template.spec else None
        engine.set_policy(name, policy_of(policies, placement), ties_of(placement))
    devices = _devices(by_kind, pools, engine)
    for obj in by_kind.get("GPUResourceQuota", ()):
        engine.ledger.quotas.put(quota_of(decode(GPUResourceQuota, obj)))
    pods = [decode(Pod, o) for o in by_kind.get("Pod", ())]
    for allocation in rebuild(pods, devices).values():
        engine.ledger.restore(allocation)
    return engine


def _devices(
    by_kind: Mapping[str, list[JsonObject]], pools: Mapping[str, GPUPool], engine: Engine
) -> dict[str, Device]:
    pool_of = {
        node.metadata.name: node.metadata.labels.get(names.MANAGED_BY, "")
        for node in (decode(GPUNode, o) for o in by_kind.get("GPUNode", ()))
    }
    found: dict[str, list[Device]] = {}
    for gpu in (decode(GPU, o) for o in by_kind.get("GPU", ())):
        node = node_of_gpu(gpu)
        device = device_of(gpu, pool_of.get(node, ""), True)
        if device is not None:
            found.setdefault(node, []).append(device)
    infos: dict[str, NodeInfo] = {}
    for obj in by_kind.get("Node", ()):
        name = obj["metadata"]["name"]
        infos[name] = node_info_of(decode(Node, obj), pool_of.get(name, ""))
    devices: dict[str, Device] = {}
    for name in sorted(found):
        info = infos.get(name) or NodeInfo(name=name, pool=pool_of.get(name, ""))
        engine.upsert_node(info)
        ratios = oversubscription_of(pools.get(info.pool))
        on_node = with_oversubscription(found[name], info, ratios)
        engine.upsert_devices(on_node)
        devices |= {device.uuid: device for device in on_node}
    return devices
