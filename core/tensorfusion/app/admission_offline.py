"""Admission without a running control plane: objects of a file stand in for the store."""

from collections.abc import Iterable

from tensorfusion import names
from tensorfusion.admission import Migration, Offers
from tensorfusion.api import registry
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.gpu import GPU
from tensorfusion.api.resource import JsonObject, Resource
from tensorfusion.app.admission_context import ContextBuilder, LedgerAccounts
from tensorfusion.app.defaults import CLUSTER, POOL, default_objects, default_pool_spec
from tensorfusion.errors import NotFound
from tensorfusion.model.device import Device
from tensorfusion.model.ledger import Ledger
from tensorfusion.scheduling.placer import rebuild
from tensorfusion.scheduling.translate import device_of, node_of_gpu
from tensorfusion.store.interface import ObjectList


class ObjectReader:
    """Objects in memory, read as from a store; of two with one name the later one counts."""

    def __init__(self, objects: Iterable[JsonObject]) -> None:
        self._objects: dict[str, dict[tuple[str, str], JsonObject]] = {}
        for obj in objects:
            resource = registry.by_kind(obj["apiVersion"], obj["kind"])
            metadata = obj["metadata"]
            namespace = metadata.get("namespace") or "default" if resource.namespaced else ""
            found = {**obj, "metadata": {**metadata, "namespace": namespace}}
            of_kind = self._objects.setdefault(resource.qualified, {})
            of_kind[namespace, metadata["name"]] = found if namespace else obj

    def get(self, resource: Resource, name: str, namespace: str = "") -> JsonObject:
        """Return one object.

        Raises:
            NotFound: There is none.
        """
        found = self._objects.get(resource.qualified, {}).get(
            (namespace if resource.namespaced else "", name)
        )
        if found is None:
            raise NotFound(f'{resource.qualified} "{name}" not found')
        return found

    def list(self, resource: Resource, namespace: str = "") -> ObjectList:
        """Return all objects of a namespace, or of all when it is empty."""
        of_kind = self._objects.get(resource.qualified, {})
        items = [obj for (where, _), obj in of_kind.items() if not namespace or where == namespace]
        return ObjectList(items, "0")


def stand_in() -> list[JsonObject]:
    """The objects of a fresh control plane, its default pool included."""
    objects = [obj for _, obj in default_objects()]
    pool = {
        "apiVersion": names.API_VERSION,
        "kind": "GPUPool",
        "metadata": {
            "name": f"{CLUSTER}-{POOL}",
            "annotations": {names.IS_DEFAULT_POOL: "true"},
        },
        "spec": default_pool_spec(),
    }
    return [*objects, pool]


def offline_contexts(
    objects: Iterable[JsonObject], *, migration: Migration, inject: bool
) -> ContextBuilder:
    """Build contexts from objects alone; what pods hold is read from their annotations.

    Partitions count as offered when a GPU of the snapshot says that it supports them.
    """
    reader = ObjectReader(objects)
    gpus = [decode(GPU, obj) for obj in reader.list(registry.GPUS).items]
    pool_of = {
        node["metadata"]["name"]: (node["metadata"].get("labels") or {}).get(names.MANAGED_BY, "")
        for node in reader.list(registry.GPU_NODES).items
    }
    devices: dict[str, Device] = {}
    ledger = Ledger()
    for gpu in gpus:
        device = device_of(gpu, pool_of.get(node_of_gpu(gpu), ""), True)
        if device is not None:
            devices[device.uuid] = device
            ledger.set_device(device)
    pods = [decode(Pod, obj) for obj in reader.list(registry.PODS).items]
    for allocation in rebuild(pods, devices).values():
        ledger.restore(allocation)
    partitions = any("partitioned" in (d.supported_isolation or ()) for d in devices.values())
    modes = {"shared", "soft"} | ({"partitioned"} if partitions else set())
    return ContextBuilder(
        reader,
        LedgerAccounts(lambda: ledger),
        Offers(everywhere=frozenset(modes)),
        migration,
        inject=inject,
    )
