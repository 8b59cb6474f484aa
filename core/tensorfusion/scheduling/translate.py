"""From API objects to the model's words, once, at the edge. Pure functions."""

import json
from collections.abc import Mapping

import msgspec

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.amounts import Resource
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.core.scheduling import NodeSelectorRequirement
from tensorfusion.api.gpu import GPU, GPUStatus
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.model.allocation import Allocation, HostTake, Take
from tensorfusion.model.claims import Claim
from tensorfusion.model.demand import (
    Amount,
    Demand,
    Requirement,
    SelectorTerm,
    Shape,
    Toleration,
    parse_models,
)
from tensorfusion.model.device import Device, NodeInfo, Oversubscription, Peer, Taint
from tensorfusion.model.hardware import geometry_of
from tensorfusion.model.partitions import Cut, Cuts
from tensorfusion.model.quota import Quota, QuotaAmount, resolve
from tensorfusion.model.topology import DEFAULT_MAX_TIER, TopologyWish
from tensorfusion.model.worker_annotations import (
    container_counts_of,
    cuts_of,
    gpu_count_of,
    gpu_ids_of,
    limit_of,
    request_of,
)
from tensorfusion.scheduling.pod_rules import claims_of, host_of, labels_of, neighbours_of
from tensorfusion.units import (
    human_bytes,
    human_tflops,
    parse_bytes,
    parse_cpu,
    parse_gflops,
    parse_percent,
)

CAPABILITY_OF_MODE = {
    "soft": "SupportsSoftIsolation",
    "hard": "SupportsHardIsolation",
    "partitioned": "SupportsPartitioning",
}


def demand_of(pod: Pod) -> Demand:
    """Read what an admitted pod asks for.

    Raises:
        ConfigError: An amount cannot be read.
        ValueError: The request can never be placed; names the field.
    """
    annotations, labels = pod.metadata.annotations, pod.metadata.labels
    counts = container_counts_of(annotations)
    indices = annotations.get(names.GPU_INDICES, "")
    cpu_milli, memory_bytes = host_of(pod)
    shape = Shape(
        pool=labels.get(names.GPU_POOL, "") or annotations.get(names.GPU_POOL, ""),
        request=request_of(annotations),
        limit=limit_of(annotations),
        gpu_count=gpu_count_of(annotations),
        vendor=annotations.get(names.VENDOR, ""),
        models=parse_models(annotations.get(names.GPU_MODEL, "")),
        indices=tuple(int(i) for i in indices.split(",") if i.strip()),
        isolation=annotations.get(names.ISOLATION, "soft"),
        partition=annotations.get(names.PARTITION_ID, ""),
        dedicated=annotations.get(names.DEDICATED_GPU, "") == "true",
        node_selector=tuple(sorted(pod.spec.node_selector.items())) if pod.spec else (),
        affinity=_affinity(pod),
        tolerations=_tolerations(pod),
        containers=tuple(counts.items()),
        topology=_topology(annotations),
        neighbours=neighbours_of(pod),
        cpu_milli=cpu_milli,
        memory_bytes=memory_bytes,
    )
    return Demand(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        shape=shape,
        workload=labels.get(names.WORKLOAD, ""),
        qos=annotations.get(names.QOS, "medium"),
        labels=labels_of(pod),
        claims=claims_of(pod),
    )


def node_rules_of(pod: Pod) -> Shape:
    """Read what any pod demands of its node, as a request without GPUs."""
    return Shape(
        gpu_count=0,
        node_selector=tuple(sorted(pod.spec.node_selector.items())) if pod.spec else (),
        affinity=_affinity(pod),
        tolerations=_tolerations(pod),
    )


def _topology(annotations: Mapping[str, str]) -> TopologyWish | None:
    required = annotations.get(names.REQUIRE_GPU_TOPOLOGY)
    tier = annotations.get(names.GPU_TOPOLOGY_MAX_TIER)
    source = annotations.get(names.GPU_TOPOLOGY_SOURCE)
    if required is None and tier is None and source is None:
        return None
    return TopologyWish(
        required=required == "true",
        max_tier=DEFAULT_MAX_TIER if tier is None else int(tier),
        source=source or "auto",
    )


def allocation_of(pod: Pod, devices: Mapping[str, Device]) -> Allocation | None:
    """Rebuild what a bound pod holds from its own annotations; None when it holds nothing.

    Ids on a pod without a node were not written by a binding and count for nothing.

    This is the second source of truth beside the decision log: both must give equal digests.
    """
    ids = gpu_ids_of(pod.metadata.annotations)
    if not ids or not pod_view.node_name(pod) or pod_view.is_finished(pod):
        return None
    demand = demand_of(pod)
    shape = demand.shape
    cuts = cuts_of(pod.metadata.annotations)
    takes = [_take(uuid, shape, devices.get(uuid), cuts.get(uuid)) for uuid in ids]
    # A pod that shares a worker says whose it is.
    key, _, name = pod.metadata.annotations.get(names.WORKER, "").partition("/")
    return Allocation(
        key=key or demand.uid,
        namespace=demand.namespace,
        name=name or demand.name,
        workload=demand.workload,
        pool=devices[ids[0]].pool if ids[0] in devices else shape.pool,
        node=pod_view.node_name(pod),
        isolation=shape.isolation,
        exclusive=shape.exclusive,
        qos=demand.qos,
        request=shape.request,
        limit=shape.limit,
        takes=tuple(takes),
        holders=(demand.uid,),
        containers=shape.deal(ids) if shape.containers else (),
        host=HostTake(shape.cpu_milli, shape.memory_bytes)
        if shape.cpu_milli or shape.memory_bytes
        else msgspec.UNSET,
        identity=demand.identity,
        claims=_held_claims(pod, demand) or msgspec.UNSET,
    )


def _held_claims(pod: Pod, demand: Demand) -> tuple[Claim, ...]:
    runs = pod_view.phase(pod) == "Running"
    return tuple(sorted(claim for claim in demand.claims if not (runs and claim.passing)))


def _take(uuid: str, shape: Shape, device: Device | None, cut: Cut | None) -> Take:
    capacity_gflops = device.capacity_gflops if device else 0
    capacity_vram = device.capacity_vram_bytes if device else 0
    if shape.exclusive:
        return Take(uuid, capacity_gflops, capacity_vram, capacity_gflops, capacity_vram)
    if cut is None:
        return Take(uuid, *resolve(shape.request, shape.limit, capacity_gflops))
    kinds = {kind.template: kind for kind in device.partition_kinds} if device else {}
    kind = kinds.get(cut.template)
    amounts = (kind.gflops, kind.vram_bytes) if kind else (0, 0)
    return Take(uuid, *amounts, *amounts, cut)


def device_of(gpu: GPU, pool: str, dynamic: bool) -> Device | None:
    """Read a GPU object; None while its capacity is not known yet."""
    status = gpu.status
    if status is None or status.capacity is None:
        return None
    missing = names.GPU_MISSING_SINCE in gpu.metadata.annotations
    # A card says itself when its mode is fixed; cut up by its driver, it is fixed in any case.
    fixed = status.isolation_policy == "Static" or status.isolation_mode == "partitioned"
    dynamic = not fixed and (dynamic or status.isolation_policy == "Dynamic")
    return Device(
        uuid=gpu.metadata.name,
        node=node_of_gpu(gpu),
        pool=pool,
        index=status.index or 0,
        vendor=status.vendor,
        model=status.model or status.gpu_model,
        full_model=status.gpu_model,
        capacity_gflops=parse_gflops(status.capacity.tflops or 0),
        capacity_vram_bytes=parse_bytes(status.capacity.vram or 0),
        phase="Unknown" if missing else status.phase,
        used_by=status.used_by,
        isolation_mode="" if dynamic else status.isolation_mode,
        isolation_policy="dynamic" if dynamic else "static",
        supported_isolation=_supported(gpu),
        numa_node=-1 if status.numa_node is None else status.numa_node,
        peers=_peers(status),
        geometry=geometry_of(status.model, status.gpu_model),
        idle_partitions=idle_partitions(gpu),
    )


def _peers(status: GPUStatus) -> tuple[Peer, ...]:
    if status.topology is not None and status.topology.peers:
        return tuple(
            Peer(peer.peer_gpu_uuid, peer.tier, peer.bandwidth or 0)
            for peer in status.topology.peers
        )
    links = status.nv_link.peers if status.nv_link is not None else ()
    return tuple(Peer(link.peer_uuid, 0, link.bandwidth_mbps or 0) for link in links)


def idle_partitions(gpu: GPU) -> Cuts:
    """Read the partitions that the driver has and that belong to no pod."""
    found = gpu.status.allocated_partitions.values() if gpu.status is not None else ()
    return tuple(
        sorted(
            Cut(part.template_id, part.allocated_slot_start)
            for part in found
            if not part.pod_uid and part.allocated_slot_start is not None
        )
    )


def node_of_gpu(gpu: GPU) -> str:
    """The node that carries a GPU."""
    if gpu.status is not None and gpu.status.node_selector:
        return gpu.status.node_selector.get("kubernetes.io/hostname", "")
    return gpu.metadata.labels.get(names.MANAGED_BY, "")


def node_info_of(node: Node, pool: str) -> NodeInfo:
    """Read a Node."""
    capacity = node.status.capacity if node.status else {}
    allocatable = (node.status.allocatable or capacity) if node.status else {}
    taints = node.spec.taints if node.spec else ()
    return NodeInfo(
        name=node.metadata.name,
        pool=pool,
        labels=node.metadata.labels,
        taints=tuple(Taint(t.key, t.value, t.effect) for t in taints),
        schedulable=not (node.spec and node.spec.unschedulable)
        and names.DEFRAG_SOURCE not in node.metadata.labels,
        host_memory_bytes=parse_bytes(capacity.get("memory", 0)),
        host_disk_bytes=parse_bytes(capacity.get("ephemeral-storage", 0)),
        cpu_milli=parse_cpu(allocatable.get("cpu", 0)),
        memory_bytes=parse_bytes(allocatable.get("memory", 0)),
    )


def oversubscription_of(pool: GPUPool | None) -> Oversubscription:
    """Read a pool's ratios; without a block limits may not exceed the cards."""
    config = pool.spec.capacity_config if pool is not None and pool.spec else None
    ratios = config.oversubscription if config else None
    if ratios is None:
        return Oversubscription()
    return Oversubscription(
        compute_percent=ratios.tflops_oversell_ratio,
        vram_to_host_memory_percent=ratios.vram_expand_to_host_mem,
        vram_to_host_disk_percent=ratios.vram_expand_to_host_disk,
    )


def quota_of(quota: GPUResourceQuota) -> Quota:
    """Read a namespace quota."""
    spec = quota.spec
    total, single = (spec.total, spec.single) if spec else (None, None)
    return Quota(
        namespace=quota.metadata.namespace,
        name=quota.metadata.name,
        total_requests=_bound(total.requests if total else None),
        total_limits=_bound(total.limits if total else None),
        max_workers=total.max_workers if total else None,
        single_max_requests=_cap(single.max_requests if single else None),
        single_max_limits=_cap(single.max_limits if single else None),
        single_max_request_share=_share(single.max_requests if single else None),
        single_max_limit_share=_share(single.max_limits if single else None),
        max_gpu_count=(single.max_gpu_count or None) if single else None,
        alert_threshold_percent=total.alert_threshold_percent if total else 95,
    )


def _bound(resource: Resource | None) -> QuotaAmount:
    if resource is None:
        return QuotaAmount()
    return QuotaAmount(
        gflops=None if resource.tflops is None else parse_gflops(resource.tflops),
        vram_bytes=None if resource.vram is None else parse_bytes(resource.vram),
    )


def _cap(resource: Resource | None) -> QuotaAmount:
    """Read a cap on one worker, where zero stands for no cap."""
    found = _bound(resource)
    return QuotaAmount(gflops=found.gflops or None, vram_bytes=found.vram_bytes or None)


def _share(resource: Resource | None) -> int | None:
    if resource is None or resource.compute is None:
        return None
    return parse_percent(resource.compute) or None


def _supported(gpu: GPU) -> tuple[str, ...] | None:
    text = gpu.metadata.annotations.get(names.VIRTUALIZATION_CAPABILITIES)
    if not text:
        return None
    claims = json.loads(text)
    return tuple(mode for mode, claim in CAPABILITY_OF_MODE.items() if claims.get(claim))


def _affinity(pod: Pod) -> tuple[SelectorTerm, ...]:
    affinity = pod.spec.affinity if pod.spec else None
    node = affinity.node_affinity if affinity else None
    required = node.required_during_scheduling_ignored_during_execution if node else None
    if required is None:
        return ()
    return tuple(
        SelectorTerm(
            expressions=tuple(_requirement(e) for e in term.match_expressions),
            fields=tuple(_requirement(e) for e in term.match_fields),
        )
        for term in required.node_selector_terms
    )


def _requirement(expression: NodeSelectorRequirement) -> Requirement:
    return Requirement(expression.key, expression.operator, tuple(expression.values))


def _tolerations(pod: Pod) -> tuple[Toleration, ...]:
    tolerations = pod.spec.tolerations if pod.spec else ()
    return tuple(Toleration(t.key, t.operator or "Equal", t.value, t.effect) for t in tolerations)


def amount_text(amount: Amount) -> str:
    """Print an amount for events and logs."""
    compute = (
        f"{amount.milli_percent / 1000:g} %"
        if amount.milli_percent
        else human_tflops(amount.gflops)
    )
    return f"{compute}, {human_bytes(amount.vram_bytes)}"
