"""What the annotations of a pod say about its gang. Admission wrote them; see its `gang` module."""

from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.errors import ConfigError
from tensorfusion.model.gang import Closeness
from tensorfusion.units import parse_duration

MINIMUM = 2
"""Fewer members than this make no gang."""


@dataclass(frozen=True, slots=True)
class GangSpec:
    """A gang as one of its members describes it.

    Attributes:
        desired: Members that should exist.
        required: Members that must be placed together.
        timeout_seconds: How long they wait for each other; 0 is for ever.
        closeness: Whether they should be near each other.
    """

    desired: int
    required: int
    timeout_seconds: float
    closeness: Closeness


def gang_key(pod: Pod) -> str:
    """The gang of a pod, ``namespace/workload``; empty when it is in none."""
    annotations = pod.metadata.annotations
    if annotations.get(names.GANG_ENABLED) != "true" or required_of(pod) < MINIMUM:
        return ""
    return annotations.get(names.GANG_GROUP_KEY, "")


def required_of(pod: Pod) -> int:
    """How many members must be placed together; 0 for a pod without a gang."""
    return _integer(pod, names.GANG_REQUIRED_MEMBERS)


def gang_spec(pod: Pod) -> GangSpec:
    """Read the gang of a member.

    GPU topology is asked for by two annotations. ``require-gpu-topology: "true"`` keeps the whole
    gang in one zone; ``"false"``, or a largest tier alone, states a preference.
    """
    annotations = pod.metadata.annotations
    closeness: Closeness = "any"
    if annotations.get(names.REQUIRE_GPU_TOPOLOGY) == "true":
        closeness = "require"
    elif names.REQUIRE_GPU_TOPOLOGY in annotations or names.GPU_TOPOLOGY_MAX_TIER in annotations:
        closeness = "prefer"
    try:
        timeout = parse_duration(annotations.get(names.GANG_TIMEOUT, "0s"))
    except ConfigError:
        timeout = 0.0
    required = required_of(pod)
    desired = max(required, _integer(pod, names.GANG_DESIRED_MEMBERS))
    return GangSpec(desired, required, timeout, closeness)


def _integer(pod: Pod, key: str) -> int:
    text = pod.metadata.annotations.get(key, "")
    return int(text) if text.isdecimal() else 0
