"""Gangs after a crash: a binding that was half written is completed, or taken back whole.

The decision log has the reservation of a member before its pod is bound. Where the store commits
the bindings of a gang together, either all of them are there or none, and reservations without
any are released. Where it cannot, some members may be bound while others are only reserved.
"""

from collections.abc import Iterable
from typing import NamedTuple

from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.model.ledger import Ledger
from tensorfusion.scheduling.binding import waits
from tensorfusion.scheduling.gang_pods import gang_key, required_of


class Settled(NamedTuple):
    """What becomes of gangs that were being bound.

    Attributes:
        keep: Uids of members whose reservation stands: they are bound to it now.
        give_up: Members that were bound and cannot be completed to a quorum, and why.
    """

    keep: list[str]
    give_up: list[tuple[Pod, str]]


def settle_gangs(ledger: Ledger, pods: Iterable[Pod]) -> Settled:
    """Decide for every gang that has members bound and members only reserved.

    Args:
        ledger: As the decision log left it.
        pods: All pods.
    """
    bound: dict[str, list[Pod]] = {}
    reserved: dict[str, list[Pod]] = {}
    for pod in pods:
        gang = gang_key(pod)
        if not gang or pod_view.is_finished(pod) or pod_view.is_deleting(pod):
            continue
        if pod_view.node_name(pod):
            bound.setdefault(gang, []).append(pod)
        elif waits(pod) and ledger.get(pod.metadata.uid) is not None:
            reserved.setdefault(gang, []).append(pod)
    settled = Settled([], [])
    for gang in sorted(bound.keys() & reserved.keys()):
        whole = [pod for pod in reserved[gang] if _stands(ledger, pod)]
        required = max(required_of(pod) for pod in bound[gang])
        if len(bound[gang]) + len(whole) >= required:
            settled.keep.extend(pod.metadata.uid for pod in whole)
        else:
            message = f"gang {gang} was bound in part and cannot be completed after a restart"
            settled.give_up.extend((pod, message) for pod in bound[gang])
    return settled


def _stands(ledger: Ledger, pod: Pod) -> bool:
    """Whether every device that a pod has reserved is still in the fleet."""
    allocation = ledger.get(pod.metadata.uid)
    if allocation is None:
        return False
    usages = [ledger.devices.get(uuid) for uuid in allocation.devices]
    return all(usage is not None and usage.device is not None for usage in usages)
