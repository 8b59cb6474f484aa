"""Gang, topology and eviction annotations: read, checked against each other, made explicit."""

from collections.abc import Mapping
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.admission import values
from tensorfusion.admission.refusal import RefusedValue, annotation_field
from tensorfusion.api.workload_profile import WorkloadProfileSpec
from tensorfusion.units import format_duration

WORST_TIER = 3
FEATURES = ("gpu-limiter", "gpu-opt", "mem-manager", "start-worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """Pods that are placed together.

    Attributes:
        desired: Members that should exist.
        required: Members that must fit together.
        timeout_seconds: How long they wait for each other; 0 is for ever.
    """

    desired: int
    required: int
    timeout_seconds: float

    def annotations(self, namespace: str, workload: str) -> dict[str, str]:
        """The normalised annotations of a member."""
        return {
            names.GANG_ENABLED: "true",
            names.GANG_MIN_MEMBERS: str(self.required),
            names.GANG_TIMEOUT: format_duration(self.timeout_seconds),
            names.GANG_DESIRED_MEMBERS: str(self.desired),
            names.GANG_REQUIRED_MEMBERS: str(self.required),
            names.GANG_GROUP_KEY: f"{namespace}/{workload}",
        }


def gang_of(
    annotations: Mapping[str, str], profile: WorkloadProfileSpec | None, size: int | None
) -> Gang | None:
    """Read the gang of a pod; None when it is in none.

    Args:
        annotations: The pod's.
        profile: Its WorkloadProfile, whose gang counts where the pod is silent.
        size: How many members there will be, where known.

    Raises:
        RefusedValue: The numbers cannot be read or make no gang.
    """
    block = profile.gang_scheduling if profile is not None else None
    minimum = (block.min_members or 0) if block else 0
    timeout = values.duration_seconds("gangScheduling.timeout", block.timeout) if block else 0.0
    field = annotation_field(names.GANG_MIN_MEMBERS)
    if names.GANG_MIN_MEMBERS in annotations:
        minimum = values.integer(field, annotations[names.GANG_MIN_MEMBERS], 0)
        if minimum == 1:
            raise RefusedValue(
                field, "1", "must be 0 for all members, or at least 2: one member is no gang"
            )
    if names.GANG_TIMEOUT in annotations:
        path = annotation_field(names.GANG_TIMEOUT)
        timeout = values.duration_seconds(path, annotations[names.GANG_TIMEOUT])
    enabled = minimum >= 2 and block is not None
    if names.GANG_ENABLED in annotations:
        enabled = values.boolean(
            annotation_field(names.GANG_ENABLED), annotations[names.GANG_ENABLED]
        )
    if not enabled:
        return None
    path = field if names.GANG_MIN_MEMBERS in annotations else annotation_field(names.GANG_ENABLED)
    if size is None and minimum < 2:
        raise RefusedValue(
            path,
            annotations.get(names.GANG_ENABLED, str(minimum)),
            f"the number of members is not known: set {names.GANG_MIN_MEMBERS} to at least 2",
        )
    desired = minimum if size is None else size
    if desired < 2:
        raise RefusedValue(path, str(desired), "a gang needs at least 2 members")
    if minimum > desired:
        raise RefusedValue(path, str(minimum), f"must not exceed the {desired} members there are")
    return Gang(desired=desired, required=minimum or desired, timeout_seconds=timeout)


def check_placement_wishes(annotations: Mapping[str, str]) -> dict[str, str]:
    """Check topology and eviction annotations and return them in their one spelling.

    Raises:
        RefusedValue: A value cannot be read.
    """
    found: dict[str, str] = {}
    key = names.REQUIRE_GPU_TOPOLOGY
    if key in annotations:
        found[key] = str(values.boolean(annotation_field(key), annotations[key])).lower()
    key = names.GPU_TOPOLOGY_MAX_TIER
    if key in annotations:
        found[key] = str(values.integer(annotation_field(key), annotations[key], 0, WORST_TIER))
    key = names.GPU_TOPOLOGY_SOURCE
    if key in annotations:
        allowed = ("auto", "numa", "vendor")
        found[key] = values.choice(annotation_field(key), annotations[key], allowed)
    key = names.EVICTION_PROTECTION
    if key in annotations:
        seconds = values.duration_seconds(annotation_field(key), annotations[key])
        found[key] = format_duration(seconds)
    return found


def disabled_features(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Read the features that are switched off.

    Raises:
        RefusedValue: One does not exist.
    """
    text = annotations.get(names.DISABLE_FEATURES, "")
    found = values.names_list(text)
    if any(feature not in FEATURES for feature in found):
        raise RefusedValue(
            annotation_field(names.DISABLE_FEATURES),
            text,
            f"must be a list of {', '.join(FEATURES)}, separated by commas",
        )
    return found
