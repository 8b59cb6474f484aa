"""What a pod wants of others: distance, nearness, and numbers of its own."""

from collections.abc import Iterable, Mapping

from tensorfusion import names
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
