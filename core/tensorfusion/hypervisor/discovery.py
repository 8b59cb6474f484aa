"""Discovery: what devices a node has, published as Node and GPU objects.

Writes only what changed since the last pass, so that a quiet fleet costs nothing. Health and
presence of a device are facts of this module; capacity that is free is the scheduler's.
"""

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tensorfusion import names
from tensorfusion.api.gpu import GPU
from tensorfusion.api.registry import GPUS, NODES
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.errors import AlreadyExists, ApiError, BackendError, NotFound
from tensorfusion.hypervisor.node_health import NodeHealth
from tensorfusion.hypervisor.partitions import IdlePartitions
from tensorfusion.spi.backend import Capabilities, DeviceInfo, Enforcement, Link, NodeBackend
from tensorfusion.store.interface import Store
from tensorfusion.units import format_bytes, format_tflops

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-hypervisor"
NODE_VERSION = "v1.36.0-tensorfusion"
"""What a Node object that we make has for the version of its kubelet."""


class Discovery:
    """Publishes the devices of every session.

    Concurrency: `run_once` belongs to one thread; `infos` may be read from any.
    """

    def __init__(
        self,
        store: Store,
        sessions: Mapping[str, NodeBackend],
        capabilities: Capabilities,
        *,
        clock: Clock,
        registers_nodes: bool,
        batch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.infos: dict[str, dict[str, DeviceInfo]] = {}
        self._store = store
        self._sessions = sessions
        self._capabilities = capabilities
        self._clock = clock
        self._registers_nodes = registers_nodes
        self._batch = batch
        self._published: dict[str, JsonObject] = {}
        self._registered: set[str] = set()
        self._stored: dict[str, JsonObject] | None = None
        """What an earlier run left, by object name; empty once every node was seen."""
        self._unseen = set(sessions)
        """Nodes that were not discovered yet."""
        self._left: dict[str, list[str]] = {}
        """By node, the objects of an earlier run that are not marked as missing."""
        self._capacities: dict[str, tuple[Mapping[str, DeviceInfo], Mapping[str, int]]] = {}
        """By node, the devices and what follows from them."""
        self._health = NodeHealth(store, clock, MANAGER)
        self._idle = IdlePartitions(store, clock)
        self.on_change: Callable[[str, DeviceInfo], None] | None = None

    def run(self, stop: threading.Event, interval_seconds: float) -> None:
        """Discover until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.run_once()
            except ApiError as error:
                log.warning("devices not published", extra={"error": str(error)})
                self.look()
            self._clock.wait(stop, interval_seconds)

    def capacities(self, node: str) -> Mapping[str, int]:
        """Compute of a node's devices by uuid, GFLOP/s.

        The same object as last time as long as discovery found nothing else.
        """
        infos = self.infos.get(node, {})
        known = self._capacities.get(node)
        if known is None or known[0] is not infos:
            known = (infos, {uuid: info.compute_gflops for uuid, info in infos.items()})
            self._capacities[node] = known
        return known[1]

    def run_once(self) -> None:
        """Discover every node once; one node's failure does not hold up the rest."""
        if self._stored is None:
            self._stored = {o["metadata"]["name"]: o for o in self._store.list(GPUS).items}
            for name, obj in self._stored.items():
                if names.GPU_MISSING_SINCE not in obj["metadata"].get("annotations", {}):
                    owner = obj["metadata"].get("labels", {}).get(names.MANAGED_BY, "")
                    self._left.setdefault(owner, []).append(name)
            self._take_over_nodes()
        for node, session in self._sessions.items():
            try:
                found = session.discover()
                now = {info.uuid: info for info in found}
                before = self.infos.get(node, {})
                if (
                    now == before
                    and node not in self._unseen
                    and now.keys() <= self._published.keys()
                ):
                    continue  # a quiet node costs one look at its devices
                links = session.topology()
            except BackendError as error:
                log.warning("discovery failed", extra={"node": node, "error": str(error)})
                continue
            try:
                with self._batch():
                    self._publish_node(node, found, links, before)
                    self._health.report(node, found)
            except ApiError:
                # Nothing of the batch may have happened: the next pass writes all of it again.
                for uuid in before.keys() | now.keys():
                    self._published.pop(uuid, None)
                raise
            self.infos[node] = now
            self._registered.add(node)
            self._unseen.discard(node)
            self._left.pop(node, None)
            self._tell(node, before, now)
        if not self._unseen:
            self._stored = {}
        if self._capabilities.partitions:
            self._publish_idle_partitions()

    def _publish_idle_partitions(self) -> None:
        for node, session in self._sessions.items():
            infos = self.infos.get(node, {})
            cut = {uuid: info for uuid, info in infos.items() if info.partitioned}
            try:
                if cut:
                    self._idle.publish(session, cut)
            except BackendError as error:
                log.warning("partitions not read", extra={"node": node, "error": str(error)})

    def look(self) -> None:
        """Take in the devices of nodes that were never published, for those who only read."""
        for node, session in self._sessions.items():
            if node in self.infos:
                continue
            try:
                self.infos[node] = {info.uuid: info for info in session.discover()}
            except BackendError as error:
                log.warning("discovery failed", extra={"node": node, "error": str(error)})

    def _take_over_nodes(self) -> None:
        """Look at the Node objects that there are."""
        if len(self._sessions) == 1:
            # An agent has no use for the objects of a whole cluster.
            [name] = self._sessions
            items = self._store.list(NODES, field_selector=f"metadata.name={name}").items
        else:
            items = self._store.list(NODES).items
        present = {o["metadata"]["name"]: o for o in items}
        self._registered = present.keys() & self._sessions.keys()
        self._health.remember(present[name] for name in self._registered)

    def _publish_node(
        self,
        node: str,
        found: Sequence[DeviceInfo],
        links: Sequence[Link],
        before: Mapping[str, DeviceInfo],
    ) -> None:
        if self._registers_nodes and node not in self._registered:
            self._register_node(node, len(found))
        for info in found:
            self._publish(node, info, links)
        names_now = {info.uuid.lower() for info in found}
        gone = [uuid for uuid in before if uuid.lower() not in names_now]
        # What an earlier run left and whose device went while nobody looked.
        gone += [name for name in self._left.get(node, ()) if name not in names_now]
        for uuid in gone:
            self._mark_missing(uuid)

    def _tell(
        self, node: str, before: Mapping[str, DeviceInfo], now: Mapping[str, DeviceInfo]
    ) -> None:
        if self.on_change is None:
            return
        for uuid, info in now.items():
            if before.get(uuid) != info:
                self.on_change(node, info)
        for uuid, info in before.items():
            if uuid not in now:
                gone = dataclasses.replace(info, healthy=False, message="removed")
                self.on_change(node, gone)

    def _register_node(self, node: str, gpus: int) -> None:
        """Make the Node object that a kubelet would make."""
        now = format_timestamp(self._clock.now())
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": node,
                "labels": {
                    "kubernetes.io/hostname": node,
                    "kubernetes.io/os": "linux",
                    "nvidia.com/gpu.present": "true" if gpus else "false",
                },
            },
        }
        try:
            self._store.create(NODES, body, field_manager=MANAGER)
        except AlreadyExists:
            log.debug("node exists", extra={"node": node})
        status = {
            "capacity": {"cpu": "64", "memory": "512Gi", "pods": "256"},
            "allocatable": {"cpu": "64", "memory": "512Gi", "pods": "256"},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "HypervisorReady",
                    "message": "the hypervisor runs on this node",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
            "nodeInfo": {
                "kubeletVersion": NODE_VERSION,
                "operatingSystem": "linux",
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "tensorfusion://0",
                "kernelVersion": "",
                "kubeProxyVersion": "",
                "machineID": node,
                "osImage": "",
                "systemUUID": node,
            },
        }
        self._store.patch(
            NODES, node, {"status": status}, subresource="status", field_manager=MANAGER
        )

    def _publish(self, node: str, info: DeviceInfo, links: Sequence[Link]) -> None:
        wanted = gpu_object(node, info, links, self._capabilities)
        if self._published.get(info.uuid) == wanted:
            return
        name = info.uuid.lower()
        stored = (self._stored or {}).get(name)
        if stored is not None and _shows(stored, wanted):
            self._published[info.uuid] = wanted
            return
        metadata = wanted["metadata"]
        status = dict(wanted["status"])
        try:
            if stored is None and info.uuid not in self._published:
                body = {"apiVersion": names.API_VERSION, "kind": "GPU", "metadata": metadata}
                self._store.create(GPUS, body, field_manager=MANAGER)
                # What is free is the scheduler's to say; a new card starts with all of it.
                status["available"] = status["capacity"]
        except AlreadyExists:
            log.debug("GPU object exists", extra={"gpu": name})
        # A device that came back is no longer missing: null removes the mark.
        marks = {**metadata["annotations"], names.GPU_MISSING_SINCE: None}
        found = {**metadata, "annotations": marks}
        if "available" not in status:
            self._store.patch(GPUS, name, {"metadata": found}, field_manager=MANAGER)
        self._store.patch(
            GPUS, name, {"status": status}, subresource="status", field_manager=MANAGER
        )
        self._published[info.uuid] = wanted

    def _mark_missing(self, uuid: str) -> None:
        self._published.pop(uuid, None)
        stamp = format_timestamp(self._clock.now())
        patch = {"metadata": {"annotations": {names.GPU_MISSING_SINCE: stamp}}}
        status = {"phase": "Unknown", "message": f"not found on its node since {stamp}"}
        try:
            self._store.patch(GPUS, uuid.lower(), patch, field_manager=MANAGER)
            self._store.patch(
                GPUS,
                uuid.lower(),
                {"status": status},
                subresource="status",
                field_manager=MANAGER,
            )
        except NotFound:
            log.debug("missing device has no object", extra={"gpu": uuid})


def gpu_object(
    node: str, info: DeviceInfo, links: Sequence[Link], capabilities: Capabilities
) -> JsonObject:
    """Build the facts of a GPU object: metadata and the status fields that discovery owns."""
    capacity = {"tflops": format_tflops(info.compute_gflops), "vram": format_bytes(info.vram_bytes)}
    modes = capabilities.isolation
    abilities = {
        "SupportsPartitioning": capabilities.partitions and info.partitioned,
        "SupportsSoftIsolation": "soft" in modes,
        "SupportsHardIsolation": "hard" in modes,
        "SupportsSnapshot": capabilities.snapshot,
        "SupportsMetrics": capabilities.metrics,
        "SupportsRemoting": capabilities.remoting,
        "MaxWorkersPerDevice": capabilities.max_workers_per_device or 0,
        "Enforcement": {mode: level.value for mode, level in modes.items()},
    }
    status: dict[str, Any] = {
        "uuid": info.uuid,
        "index": info.index,
        "vendor": info.vendor,
        "model": info.model,
        "gpuModel": info.full_model,
        "capacity": capacity,
        "nodeName": node,
        "nodeSelector": {"kubernetes.io/hostname": node},
        "phase": "Running" if info.healthy else "Unknown",
        "message": info.message or "the device is healthy",
        "usedBy": "tensor-fusion",
    }
    if info.partitioned:
        status |= {"isolationMode": "partitioned", "isolationPolicy": "Static"}
    if info.numa_node is not None:
        status["numaNode"] = info.numa_node
    peers = [_peer(info.uuid, link) for link in links if info.uuid in (link.source, link.target)]
    if peers:
        status["topology"] = {"peers": peers}
    return {
        "metadata": {
            "name": info.uuid.lower(),
            "labels": {names.MANAGED_BY: node},
            "annotations": {
                names.VIRTUALIZATION_CAPABILITIES: json.dumps(abilities, sort_keys=True),
            },
        },
        "status": status,
    }


def enforcement_of(gpu: GPU, mode: str) -> str:
    """How strongly an isolation mode binds on a card, as the one who published it says."""
    text = gpu.metadata.annotations.get(names.VIRTUALIZATION_CAPABILITIES, "")
    try:
        levels = json.loads(text)["Enforcement"]
        return Enforcement(levels.get(mode, "none")).value
    except (ValueError, KeyError, TypeError, AttributeError):
        return Enforcement.NONE.value


def _shows(stored: JsonObject, wanted: JsonObject) -> bool:
    """Whether a stored object says everything that discovery has to say."""
    metadata, status = stored["metadata"], stored.get("status", {})
    if names.GPU_MISSING_SINCE in metadata.get("annotations", {}):
        return False
    parts = (
        (wanted["metadata"]["labels"], metadata.get("labels", {})),
        (wanted["metadata"]["annotations"], metadata.get("annotations", {})),
        (wanted["status"], status),
    )
    return all(present.get(k) == v for want, present in parts for k, v in want.items())


def _peer(uuid: str, link: Link) -> JsonObject:
    other = link.target if link.source == uuid else link.source
    return {
        "peerGPUUUID": other,
        "tier": link.tier,
        "linkType": link.kind,
        "bandwidth": link.bandwidth_mbps,
    }
