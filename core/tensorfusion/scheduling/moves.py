"""What defragmentation and compaction may touch, read from objects. Pure functions."""

from collections.abc import Iterable, Mapping

from tensorfusion import names
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.node import GPUNode
from tensorfusion.api.pool import GPUPool, PoolResources
from tensorfusion.clock import parse_timestamp
from tensorfusion.model.compaction import Amounts, NodeSize, PoolFloor, total_of
from tensorfusion.model.defrag import DEFAULT_THRESHOLD_PERCENT, DefragRules, Mover
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.victims import Disruptable, Victim
from tensorfusion.scheduling.translate import demand_of
from tensorfusion.store.informer import Change
from tensorfusion.units import parse_bytes, parse_gflops

PASSED_ON = "a mark from an earlier try"


def movers_of(ledger: Ledger, pods: Iterable[Pod], disruptable: Disruptable) -> dict[str, Mover]:
    """Describe every running worker that could be moved, with what stands against it.

    Workers that are starting or ending are left out.
    """
    by_uid = {pod.metadata.uid: pod for pod in pods}
    found = {}
    for key, victim in disruptable.victims.items():
        holders = ledger.allocations[key].holders
        pod = by_uid.get(holders[0])
        if pod is None:
            continue
        found[key] = Mover(
            demand=demand_of(pod),
            obstacle=_obstacle(pod, victim, disruptable.allowed),
            budgets=victim.budgets,
            lost_gpu_seconds=victim.lost_gpu_seconds,
        )
    return found


def _obstacle(pod: Pod, victim: Victim, allowed: Mapping[str, int]) -> str:
    if pod.metadata.annotations.get(names.DO_NOT_DISRUPT) == "true":
        return f"its pod has {names.DO_NOT_DISRUPT}"
    if victim.protected:
        return "it is protected from eviction"
    if victim.gang:
        return f"it is a member of gang {victim.gang}, which would stop without it"
    if victim.pods > 1:
        return f"{victim.pods} pods share it"
    if not controller_of(pod):
        return "nothing would make its pod anew"
    for budget in victim.budgets:
        if allowed.get(budget, 0) < 1:
            return f"disruption budget {budget} allows no eviction now"
    return ""


def controller_of(pod: Pod) -> str:
    """Uid of the object that makes a pod anew when it goes; empty when there is none."""
    return next((o.uid for o in pod.metadata.owner_references if o.controller), "")


def defrag_rules(
    pool: GPUPool, gpu_nodes: Iterable[GPUNode], nodes: Mapping[str, Node]
) -> DefragRules:
    """Read how far a pool may be defragmented, and which of its nodes stay out of it."""
    config = pool.spec.node_manager_config if pool.spec else None
    defrag = config.node_compaction.defrag if config and config.node_compaction else None
    held = {}
    for gpu_node in gpu_nodes:
        name = gpu_node.metadata.name
        reason = _held(gpu_node, nodes.get(name))
        if reason:
            held[name] = reason
    begun = frozenset(
        n.metadata.name for n in nodes.values() if names.DEFRAG_SOURCE in n.metadata.labels
    )
    percent = DEFAULT_THRESHOLD_PERCENT if defrag is None else defrag.utilization_threshold_percent
    return DefragRules(threshold_percent=percent, held=held, begun=begun)


def _held(gpu_node: GPUNode, node: Node | None) -> str:
    marks = [gpu_node.metadata.labels, gpu_node.metadata.annotations]
    if node is not None:
        marks += [node.metadata.labels, node.metadata.annotations]
        if node.metadata.labels.get(names.DEFRAG_SKIP):
            why = node.metadata.annotations.get(names.DEFRAG_SKIP_REASON, PASSED_ON)
            return f"it is passed over until the next run: {why}"
    if any(mark.get(names.DO_NOT_DISRUPT) == "true" for mark in marks):
        return f"the node has {names.DO_NOT_DISRUPT}"
    if gpu_node.metadata.deletion_timestamp:
        return "the node is being deleted"
    if gpu_node.status is None or gpu_node.status.phase != "Running":
        return "the node is not running"
    return ""


def node_sizes(
    pool: str, gpu_nodes: Iterable[GPUNode], nodes: Mapping[str, Node], ledger: Ledger, now: float
) -> list[NodeSize]:
    """Describe the nodes of a pool for compaction."""
    devices: dict[str, list[tuple[Amounts, Amounts]]] = {}
    for usage in ledger.devices.values():
        device = usage.device
        if device is not None and device.pool == pool:
            total = Amounts(device.capacity_gflops, device.capacity_vram_bytes)
            free = Amounts(usage.free_gflops, usage.free_vram_bytes)
            devices.setdefault(device.node, []).append((total, free))
    found = []
    for gpu_node in gpu_nodes:
        if gpu_node.metadata.labels.get(names.MANAGED_BY) != pool:
            continue
        name = gpu_node.metadata.name
        cards = devices.get(name, [])
        created = gpu_node.metadata.creation_timestamp
        found.append(
            NodeSize(
                name=name,
                gpus=len(cards),
                total=total_of(total for total, _ in cards),
                free=total_of(free for _, free in cards),
                workers=ledger.workers_on(name),
                age_seconds=now - parse_timestamp(created) if created else 0.0,
                obstacle=_held(gpu_node, nodes.get(name)),
            )
        )
    return found


def floor_of(pool: GPUPool) -> PoolFloor:
    """Read what a pool keeps."""
    config = pool.spec.capacity_config if pool.spec else None
    if config is None:
        return PoolFloor()
    return PoolFloor(least=_amounts(config.min_resources), warm=_amounts(config.warm_resources))


def _amounts(resources: PoolResources | None) -> Amounts:
    if resources is None:
        return Amounts()
    return Amounts(parse_gflops(resources.tflops or 0), parse_bytes(resources.vram or 0))


def asks_anew(change: Change[GPUPool]) -> bool:
    """Whether a pool says something else than before; its status is written all the time."""
    before = change.old and (change.old.spec, change.old.metadata.annotations)
    after = change.new and (change.new.spec, change.new.metadata.annotations)
    return before != after
