"""What a pod wants besides GPUs: distance, nearness, numbers of its own, CPU and memory."""

from collections.abc import Iterable, Mapping

from tensorfusion import names
from tensorfusion.api.core.container import ResourceRequirements
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.core.scheduling import (
    PodAffinity,
    PodAffinityTerm,
    PodAntiAffinity,
    TopologySpreadConstraint,
)
from tensorfusion.api.meta import LabelSelector
from tensorfusion.model.claims import INDEX, Claim
from tensorfusion.model.neighbours import (
    ANYWHERE,
    LabelCondition,
    Neighbours,
    PeerSelector,
    PeerTerm,
    SpreadRule,
)
from tensorfusion.units import parse_bytes, parse_cpu

_NOBODY = PeerSelector(())
"""What a rule without a selector means in Kubernetes."""


def claims_of(pod: Pod) -> tuple[Claim, ...]:
    """Return the host ports and the index that a pod needs for itself.

    A pod that shares a worker claims none in its name: the worker is another pod's as well.
    """
    annotations = pod.metadata.annotations
    if names.WORKLOAD in annotations:
        return ()
    containers = pod.spec.containers if pod.spec is not None else ()
    found = {
        Claim(f"{port.protocol} port", port.host_port)
        for container in containers
        for port in container.ports
        if port.host_port
    }
    if annotations.get(names.PORT_NUMBER, "").isdigit():
        found.add(Claim("host port", int(annotations[names.PORT_NUMBER]), fleet_wide=True))
    if annotations.get(names.INDEX, "").isdigit():
        found.add(Claim(INDEX, int(annotations[names.INDEX])))
    return tuple(sorted(found))


def host_of(pod: Pod) -> tuple[int, int]:
    """Return the CPU (thousandths of a core) and memory (bytes) that a pod requests of its node.

    As Kubernetes counts: what runs together is added up, of what runs before only the largest
    step counts, and the pod's overhead comes on top. A pod that shares a worker requests none in
    its name, as with claims.
    """
    spec = pod.spec
    if spec is None or names.WORKLOAD in pod.metadata.annotations:
        return (0, 0)
    together = [_requested(container.resources) for container in spec.containers]
    before = (0, 0)
    beside = (0, 0)
    for container in spec.init_containers:
        asked = _requested(container.resources)
        if container.restart_policy == "Always":
            beside = _sum([beside, asked])
            together.append(asked)
            asked = (0, 0)
        step = _sum([beside, asked])
        before = (max(before[0], step[0]), max(before[1], step[1]))
    running = _sum(together)
    overhead = _amounts(spec.overhead)
    return (
        max(running[0], before[0]) + overhead[0],
        max(running[1], before[1]) + overhead[1],
    )


def _requested(resources: ResourceRequirements | None) -> tuple[int, int]:
    return _amounts({**resources.limits, **resources.requests} if resources else {})


def _amounts(quantities: Mapping[str, str | int | float]) -> tuple[int, int]:
    return (parse_cpu(quantities.get("cpu", "0")), parse_bytes(quantities.get("memory", "0")))


def _sum(amounts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    cpu, memory = zip((0, 0), *amounts, strict=True)
    return (sum(cpu), sum(memory))


def labels_of(pod: Pod) -> tuple[tuple[str, str], ...]:
    """Return the labels by which rules of other pods find a pod.

    A pod that shares a worker has none: the worker would have those of whichever pod came first.
    """
    if names.WORKLOAD in pod.metadata.annotations:
        return ()
    return tuple(sorted(pod.metadata.labels.items()))


def neighbours_of(pod: Pod) -> Neighbours | None:
    """Read every rule of a pod about other pods; None when it states none.

    Raises:
        ValueError: A rule selects namespaces by their labels, which placement does not know.
    """
    if pod.spec is None:
        return None
    affinity = pod.spec.affinity
    near = _terms(pod, affinity.pod_affinity, "podAffinity") if affinity else ()
    apart = _terms(pod, affinity.pod_anti_affinity, "podAntiAffinity") if affinity else ()
    spread = tuple(_spread(pod, rule) for rule in pod.spec.topology_spread_constraints)
    if not (near or apart or spread):
        return None
    return Neighbours(near=near, apart=apart, spread=spread)


def _terms(
    pod: Pod, rules: PodAffinity | PodAntiAffinity | None, field: str
) -> tuple[PeerTerm, ...]:
    if rules is None:
        return ()
    required = rules.required_during_scheduling_ignored_during_execution
    preferred = rules.preferred_during_scheduling_ignored_during_execution
    found = [PeerTerm(_peers(pod, term, field), term.topology_key) for term in required]
    for weighted in preferred:
        term = weighted.pod_affinity_term
        found.append(PeerTerm(_peers(pod, term, field), term.topology_key, weighted.weight))
    return tuple(found)


def _peers(pod: Pod, term: PodAffinityTerm, field: str) -> PeerSelector:
    namespaces = term.namespaces or (pod.metadata.namespace,)
    if term.namespace_selector is not None:
        if term.namespace_selector.match_labels or term.namespace_selector.match_expressions:
            raise ValueError(
                f"{field}.namespaceSelector is {term.namespace_selector}, allowed are an empty "
                "one, which means every namespace, or a list in namespaces"
            )
        namespaces = (ANYWHERE,)
    extra = [
        *_own_values(pod, term.match_label_keys, "In"),
        *_own_values(pod, term.mismatch_label_keys, "NotIn"),
    ]
    return _selector(namespaces, term.label_selector, extra)


def _spread(pod: Pod, rule: TopologySpreadConstraint) -> SpreadRule:
    extra = _own_values(pod, rule.match_label_keys, "In")
    return SpreadRule(
        selector=_selector((pod.metadata.namespace,), rule.label_selector, extra),
        key=rule.topology_key,
        max_skew=rule.max_skew,
        required=rule.when_unsatisfiable == "DoNotSchedule",
        min_domains=rule.min_domains or 0,
    )


def _own_values(pod: Pod, keys: Iterable[str], operator: str) -> list[LabelCondition]:
    """Return conditions that other pods have, or have not, the pod's own values."""
    labels: Mapping[str, str] = pod.metadata.labels
    return [LabelCondition(key, operator, (labels[key],)) for key in keys if key in labels]


def _selector(
    namespaces: tuple[str, ...], selector: LabelSelector | None, extra: list[LabelCondition]
) -> PeerSelector:
    if selector is None:
        return _NOBODY
    equal = [LabelCondition(k, "In", (v,)) for k, v in sorted(selector.match_labels.items())]
    others = [LabelCondition(e.key, e.operator, e.values) for e in selector.match_expressions]
    return PeerSelector(tuple(sorted(namespaces)), (*equal, *others, *extra))
