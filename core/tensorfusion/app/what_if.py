"""What if: pods on a cluster with nodes added, or under another policy. Nothing is changed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.resource import JsonObject
from tensorfusion.app.snapshot import engine_from
from tensorfusion.errors import ConfigError
from tensorfusion.model.device import DYNAMIC, Device, NodeInfo, with_oversubscription
from tensorfusion.model.engine import Engine
from tensorfusion.model.explain import NoFit
from tensorfusion.model.hardware import find_card
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.scheduling.translate import demand_of, oversubscription_of
from tensorfusion.spi.policy import PlacementPolicy


class AddedNode(NamedTuple):
    """A node to add: a model of the catalogue and how many cards."""

    model: str
    gpus: int


class Answer(NamedTuple):
    """What becomes of one pod: a node with GPUs, or the reason why there is none."""

    pod: str
    node: str
    devices: tuple[str, ...]
    reason: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster after the pods came.

    Attributes:
        policy: Name of the policy; empty for each pool's own.
        answers: One per pod that had to be placed, in order.
        nodes: How many there are, and how many of them run nothing.
        gpus: How many there are, and how many of them run something.
        allocated_compute_pct: Compute promised to pods, percent of all.
        allocated_vram_pct: The same for memory.
    """

    policy: str
    answers: tuple[Answer, ...]
    nodes: int
    empty_nodes: int
    gpus: int
    used_gpus: int
    allocated_compute_pct: float
    allocated_vram_pct: float

    @property
    def placed(self) -> int:
        """How many pods found a place."""
        return sum(bool(answer.node) for answer in self.answers)


def what_if(
    objects: Sequence[JsonObject],
    policies: Mapping[str, PlacementPolicy],
    *,
    coming: Iterable[Pod] = (),
    added: Sequence[AddedNode] = (),
    policy: PlacementPolicy | None = None,
    anew: bool = False,
) -> Outcome:
    """Place what waits and what comes.

    Args:
        objects: A cluster.
        policies: Installed policies by name.
        coming: Admitted pods that are not in the cluster, in order.
        added: Nodes to add to the pool of the pods that come, or to the only pool.
        policy: Instead of what each pool says.
        anew: Place the pods that run anew, too, oldest first.
    """
    engine = engine_from(objects, policies)
    pools = {o["metadata"]["name"]: decode(GPUPool, o) for o in objects if o["kind"] == "GPUPool"}
    pods = sorted((decode(Pod, o) for o in objects if o["kind"] == "Pod"), key=_age)
    coming = list(coming)
    _add(engine, added, pools, [*coming, *pods])
    if policy is not None:
        for pool in pools:
            engine.set_policy(pool, policy)
    waiting = [p for p in pods if pod_view.is_worker(p) and not pod_view.is_finished(p)]
    if anew:
        for pod in waiting:
            engine.ledger.release(pod.metadata.uid)
    else:
        waiting = [p for p in waiting if not pod_view.node_name(p)]
    answers = tuple(_place(engine, pod) for pod in (*waiting, *coming))
    return _outcome(engine, policy.name if policy is not None else "", answers)


def _age(pod: Pod) -> tuple[str, str]:
    return pod.metadata.creation_timestamp or "", pod_view.key(pod)


def _place(engine: Engine, pod: Pod) -> Answer:
    name = pod_view.key(pod)
    try:
        demand = demand_of(pod)
        found = engine.place(demand)
        if isinstance(found, NoFit):
            return Answer(name, "", (), found.message)
        engine.reserve(demand, found)
    except (AllocationRefused, ConfigError, ValueError) as error:
        return Answer(name, "", (), str(error))
    return Answer(name, found.node, found.devices, f"by policy {found.policy}")


def _add(
    engine: Engine, added: Sequence[AddedNode], pools: Mapping[str, GPUPool], pods: Sequence[Pod]
) -> None:
    if not added:
        return
    wanted = [pod.metadata.labels.get(names.GPU_POOL, "") for pod in pods]
    pool = next((name for name in (*wanted, *sorted(pools)) if name in pools), None)
    if pool is None:
        raise ConfigError("there is no GPU pool that a node could be added to")
    for number, node in enumerate(added):
        card = find_card(node.model)
        info = NodeInfo(name=f"added-{number}", pool=pool)
        engine.upsert_node(info)
        devices = [
            Device(
                uuid=f"added-{number}-{index}",
                node=info.name,
                pool=pool,
                index=index,
                vendor=card.vendor,
                model=card.model,
                full_model=card.full_model,
                capacity_gflops=card.compute_gflops,
                capacity_vram_bytes=card.vram_bytes,
                isolation_policy=DYNAMIC,
                geometry=card.geometry,
            )
            for index in range(node.gpus)
        ]
        ratios = oversubscription_of(pools[pool])
        engine.upsert_devices(with_oversubscription(devices, info, ratios))


def _outcome(engine: Engine, policy: str, answers: tuple[Answer, ...]) -> Outcome:
    ledger = engine.ledger
    usages = [usage for usage in ledger.devices.values() if usage.device is not None]
    nodes = {usage.device.node for usage in usages if usage.device is not None}
    compute = sum(usage.device.capacity_gflops for usage in usages if usage.device is not None)
    vram = sum(usage.device.capacity_vram_bytes for usage in usages if usage.device is not None)
    return Outcome(
        policy=policy,
        answers=answers,
        nodes=len(nodes),
        empty_nodes=sum(not ledger.workers_on(node) for node in nodes),
        gpus=len(usages),
        used_gpus=sum(bool(usage.members) for usage in usages),
        allocated_compute_pct=100 * sum(u.used_gflops for u in usages) / compute if compute else 0,
        allocated_vram_pct=100 * sum(u.used_vram_bytes for u in usages) / vram if vram else 0,
    )
