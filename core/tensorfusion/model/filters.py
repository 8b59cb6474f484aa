"""The constraints of a request, each as one rule with the phrase that explains it.

Rules over a device's profile or a node are plain Python, decided once per distinct profile and
once per node and request kind. Rules over amounts are arrays and live in the engine.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Final, NamedTuple

from tensorfusion.model.demand import Shape, Toleration
from tensorfusion.model.device import OURS, RUNNING, DeviceProfile, NodeInfo, Taint


class ProfileRule(NamedTuple):
    """A constraint on what a device is.

    Attributes:
        name: Stable key, for machines.
        phrase: Reads after a number of GPUs: ``7 in another pool``.
        allows: Decides.
    """

    name: str
    phrase: str
    allows: Callable[[Shape, DeviceProfile], bool]


class NodeRule(NamedTuple):
    """A constraint on the node that carries a device; fields as in `ProfileRule`.

    ``reads`` returns what the rule looks at of a request, which answers can be kept by; None
    when the rule cannot exclude anything for it.
    """

    name: str
    phrase: str
    allows: Callable[[Shape, NodeInfo], bool]
    reads: Callable[[Shape], Hashable]


def _allows_pool(shape: Shape, profile: DeviceProfile) -> bool:
    return not shape.pool or shape.pool == profile.pool


def _allows_phase(_shape: Shape, profile: DeviceProfile) -> bool:
    return profile.phase == RUNNING


def _allows_owner(_shape: Shape, profile: DeviceProfile) -> bool:
    return profile.used_by in OURS


def _allows_vendor(shape: Shape, profile: DeviceProfile) -> bool:
    return not shape.vendor or shape.vendor.casefold() == profile.vendor.casefold()


def _allows_model(shape: Shape, profile: DeviceProfile) -> bool:
    if not shape.models:
        return True
    model = profile.model.casefold()
    # A family is the part of the catalogue's name before its form factor: A100 of A100_SXM_80G.
    names = (model, profile.full_model.casefold(), model.partition("_")[0])
    return any(wanted.casefold() in names for wanted in shape.models if wanted)


def _allows_isolation(shape: Shape, profile: DeviceProfile) -> bool:
    return profile.offers(shape.isolation)


def _allows_partition(shape: Shape, profile: DeviceProfile) -> bool:
    wish = shape.wish
    # A card without any templates is the business of the rule before.
    if wish is None or not profile.partitions:
        return True
    return any(kind.covers(wish) for kind in profile.partitions)


PROFILE_RULES: Final = (
    ProfileRule("pool", "in another pool", _allows_pool),
    ProfileRule("phase", "not running", _allows_phase),
    ProfileRule("owner", "managed by another system", _allows_owner),
    ProfileRule("vendor", "wrong vendor", _allows_vendor),
    ProfileRule("model", "wrong model", _allows_model),
    ProfileRule("isolation", "isolation mode not offered", _allows_isolation),
    ProfileRule("partition", "without a partition template that will do", _allows_partition),
)


def allows_profile(shape: Shape, profile: DeviceProfile) -> bool:
    """Tell whether a device of this profile can ever serve the request."""
    return all(rule.allows(shape, profile) for rule in PROFILE_RULES)


def _allows_node_name(shape: Shape, node: NodeInfo) -> bool:
    return not shape.node_name or shape.node_name == node.name


def _allows_selector(shape: Shape, node: NodeInfo) -> bool:
    for key, value in shape.node_selector:  # noqa: SIM110 - a generator costs twice as much
        if node.labels.get(key) != value:
            return False
    return True


def _allows_affinity(shape: Shape, node: NodeInfo) -> bool:
    if not shape.affinity:
        return True
    return any(term.matches(node.name, node.labels) for term in shape.affinity)


def _allows_cordon(_shape: Shape, node: NodeInfo) -> bool:
    return node.schedulable


def _allows_taints(shape: Shape, node: NodeInfo) -> bool:
    return not node.taints or tolerated(node.taints, shape.tolerations)


def tolerated(taints: Iterable[Taint], tolerations: tuple[Toleration, ...]) -> bool:
    """Tell whether every taint that keeps pods away is tolerated."""
    return all(
        taint.effect == "PreferNoSchedule"
        or any(toleration.tolerates(taint) for toleration in tolerations)
        for taint in taints
    )


NODE_RULES: Final = (
    NodeRule(
        "node-name",
        "on another node than asked for",
        _allows_node_name,
        lambda shape: shape.node_name or None,
    ),
    NodeRule(
        "node-selector",
        "on nodes that do not match the selector",
        _allows_selector,
        lambda shape: shape.node_selector or None,
    ),
    NodeRule(
        "node-affinity",
        "on nodes that do not match the affinity",
        _allows_affinity,
        lambda shape: shape.affinity or None,
    ),
    NodeRule("cordoned", "on cordoned nodes", _allows_cordon, lambda _shape: ()),
    NodeRule(
        "taint",
        "on nodes with an untolerated taint",
        _allows_taints,
        lambda shape: shape.tolerations,
    ),
)


def allows_node(shape: Shape, node: NodeInfo) -> bool:
    """Tell whether the request may run on the node at all."""
    return all(rule.allows(shape, node) for rule in NODE_RULES)


def node_key(shape: Shape) -> tuple[object, ...]:
    """Return what `allows_node` reads of a request."""
    return (shape.node_name, shape.node_selector, shape.affinity, shape.tolerations)


def profile_key(shape: Shape) -> tuple[object, ...]:
    """Return what `allows_profile` reads of a request."""
    return (shape.pool, shape.vendor, shape.models, shape.isolation, shape.wish)
