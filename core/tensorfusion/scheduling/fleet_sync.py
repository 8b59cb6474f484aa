"""Keeps the placer's fleet, policies and quotas in step with their objects."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorfusion import names
from tensorfusion.api.core.node import Node
from tensorfusion.api.gpu import GPU
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.scheduling_config import Placement, SchedulingConfigTemplate
from tensorfusion.clock import Clock
from tensorfusion.errors import Terminal
from tensorfusion.model.device import Device, with_oversubscription
from tensorfusion.model.ties import NAME, Ties
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.translate import (
    device_of,
    idle_partitions,
    node_info_of,
    node_of_gpu,
    oversubscription_of,
    quota_of,
)
from tensorfusion.spi.policy import PlacementPolicy
from tensorfusion.store.informer import Change, Informer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetInformers:
    """What the fleet is made of; ``gpus`` is indexed by ``node``."""

    nodes: Informer[Node]
    gpu_nodes: Informer[GPUNode]
    gpus: Informer[GPU]
    pools: Informer[GPUPool]
    templates: Informer[SchedulingConfigTemplate]
    quotas: Informer[GPUResourceQuota]


class FleetSync:
    """One reconciler per node, pool and quota; each recomputes its part in full."""

    def __init__(
        self,
        placer: Placer,
        informers: FleetInformers,
        policies: Mapping[str, PlacementPolicy],
        *,
        clock: Clock,
        dynamic_isolation: bool = True,
    ) -> None:
        self._placer = placer
        self._informers = informers
        self._policies = policies
        self._dynamic = dynamic_isolation
        self._known: dict[str, set[str]] = {}
        self.devices: dict[str, Device] = {}
        self.nodes = Controller("fleet-nodes", self.reconcile_node, clock=clock)
        self.pools = Controller("fleet-pools", self.reconcile_pool, clock=clock)
        self.quotas = Controller("fleet-quotas", self.reconcile_quota, clock=clock)
        informers.nodes.subscribe(self.nodes.enqueue)
        informers.gpu_nodes.subscribe(self._gpu_node_changed)
        informers.gpus.subscribe(self._gpu_changed)
        informers.pools.subscribe(self._pool_changed)
        informers.templates.subscribe(self._template_changed)
        informers.quotas.subscribe(self.quotas.enqueue)

    @property
    def controllers(self) -> list[Controller]:
        """What the manager runs."""
        return [self.nodes, self.pools, self.quotas]

    def load(self) -> None:
        """Take in everything the informers have, before anything is placed."""
        for pool in self._informers.pools.all_keys():
            self.reconcile_pool(pool)
        for node in self._informers.nodes.all_keys():
            self.reconcile_node(node)
        for quota in self._informers.quotas.all_keys():
            self.reconcile_quota(quota)

    def pool_of(self, node: str) -> str:
        """The pool that a node belongs to; empty while none claims it."""
        gpu_node = self._informers.gpu_nodes.get(node)
        return gpu_node.metadata.labels.get(names.MANAGED_BY, "") if gpu_node is not None else ""

    def reconcile_node(self, key: str) -> Result:
        """Recompute one node and its devices."""
        node = self._informers.nodes.get(key)
        pool = self.pool_of(key)
        known = self._known.get(key, set())
        if node is None or not pool:
            if known or node is None:
                self._placer.remove_node(key)
                self._forget(key, known)
            return DONE
        info = node_info_of(node, pool)
        found = [
            device
            for gpu in self._informers.gpus.by_index("node", key)
            if (device := device_of(gpu, pool, self._dynamic)) is not None
        ]
        ratios = oversubscription_of(self._informers.pools.get(pool))
        devices = with_oversubscription(found, info, ratios)
        with self._placer.lock:
            self._placer.upsert_node(info)
            self._placer.upsert_devices(devices)
            for uuid in known - {d.uuid for d in devices}:
                self._placer.remove_device(uuid)
        self._forget(key, known)
        self._known[key] = {d.uuid for d in devices}
        self.devices.update({d.uuid: d for d in devices})
        return DONE

    def _forget(self, key: str, known: set[str]) -> None:
        self._known.pop(key, None)
        for uuid in known:
            self.devices.pop(uuid, None)

    def reconcile_pool(self, key: str) -> Result:
        """Choose the pool's policy and recompute its nodes."""
        pool = self._informers.pools.get(key)
        if pool is not None:
            placement = self._placement_of(pool)
            self._placer.set_policy(key, policy_of(self._policies, placement), ties_of(placement))
        for gpu_node in self._informers.gpu_nodes.values():
            if gpu_node.metadata.labels.get(names.MANAGED_BY) == key:
                self.nodes.queue.add(gpu_node.metadata.name)
        return DONE

    def template_of(self, pool: str) -> SchedulingConfigTemplate | None:
        """The scheduling template of a pool; None when it has none."""
        found = self._informers.pools.get(pool)
        name = found.spec.scheduling_config_template if found is not None and found.spec else ""
        return self._informers.templates.get(name) if name else None

    def _placement_of(self, pool: GPUPool) -> Placement | None:
        template = self.template_of(pool.metadata.name)
        return template.spec.placement if template is not None and template.spec else None

    def reconcile_quota(self, key: str) -> Result:
        """Take over one quota."""
        quota = self._informers.quotas.get(key)
        namespace, _, name = key.partition("/")
        if quota is None:
            self._placer.remove_quota(namespace, name)
        else:
            self._placer.put_quota(quota_of(quota))
        return DONE

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        """Queue the pool when its spec changed; its status is written all the time."""
        if change.old is None or change.new is None or change.old.spec != change.new.spec:
            self.pools.queue.add(change.key)

    def _gpu_node_changed(self, change: Change[GPUNode]) -> None:
        old = change.old.metadata.labels if change.old is not None else None
        new = change.new.metadata.labels if change.new is not None else None
        if old != new:
            self.nodes.queue.add(change.key)

    def _gpu_changed(self, change: Change[GPU]) -> None:
        """Queue the GPU's node, unless only what we wrote ourselves has changed."""
        if _facts(change.old) == _facts(change.new):
            return
        gpu = change.new or change.old
        if gpu is not None:
            self.nodes.queue.add(node_of_gpu(gpu))

    def _template_changed(self, change: Change[SchedulingConfigTemplate]) -> None:
        for pool in self._informers.pools.values():
            if pool.spec is not None and pool.spec.scheduling_config_template == change.key:
                self.pools.queue.add(pool.metadata.name)


def policy_of(
    policies: Mapping[str, PlacementPolicy], placement: Placement | None
) -> PlacementPolicy:
    """Find the policy that a pool's template chooses, the default mode without one.

    Raises:
        Terminal: It is not installed.
    """
    wanted = (placement.policy or placement.mode) if placement else "NodeCompactGPULowLoad"
    return find_policy(policies, wanted)


def ties_of(placement: Placement | None) -> Ties:
    """Return the rule for ties that a pool's template chooses: by name without one."""
    if placement is None:
        return Ties()
    return Ties(placement.ties or NAME, placement.seed or 0)


def find_policy(policies: Mapping[str, PlacementPolicy], wanted: str) -> PlacementPolicy:
    """Find a policy by its name or one of its aliases, such as a placement mode of the CRD.

    Raises:
        Terminal: There is none; names those there are.
    """
    for name, policy in policies.items():
        if wanted == name or wanted in policy.aliases:
            return policy
    raise Terminal(
        "UnknownPolicy",
        f"placement policy {wanted!r} is not installed; installed: {', '.join(sorted(policies))}",
    )


def _facts(gpu: GPU | None) -> tuple[Any, ...] | None:
    if gpu is None:
        return None
    status = gpu.status
    if status is None:
        return ()
    return (
        status.phase,
        status.capacity,
        status.used_by,
        status.index,
        status.node_selector,
        status.isolation_mode,
        status.isolation_policy,
        status.model,
        status.gpu_model,
        status.numa_node,
        status.topology,
        status.nv_link,
        idle_partitions(gpu),
        gpu.metadata.labels,
        gpu.metadata.annotations,
    )
