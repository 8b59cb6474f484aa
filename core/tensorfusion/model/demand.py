"""What a pod asks of the fleet, apart from who it is."""

from collections.abc import Mapping
from typing import Final

import msgspec

from tensorfusion.model.claims import Claim
from tensorfusion.model.device import ISOLATION_MODES, Taint
from tensorfusion.model.neighbours import Identity, Neighbours
from tensorfusion.model.partitions import PartitionWish, canonical
from tensorfusion.model.topology import TopologyWish

MAX_GPU_COUNT: Final = 128
FULL_CARD_MILLI_PERCENT: Final = 100_000
"""100 % in thousandths of a percent, the unit in which shares of a card are exact."""


class Amount(msgspec.Struct, frozen=True):
    """Compute and memory of one GPU. Zero means not asked for.

    Attributes:
        gflops: Compute, GFLOP/s.
        vram_bytes: Memory, bytes.
        milli_percent: Compute as a share of the card, thousandths of a percent; excludes
            ``gflops``.
    """

    gflops: int = 0
    vram_bytes: int = 0
    milli_percent: int = 0

    def __post_init__(self) -> None:
        """Refuse negative amounts and two notations for one amount.

        Raises:
            ValueError: An amount is negative or compute is given twice.
        """
        if min(self.gflops, self.vram_bytes, self.milli_percent) < 0:
            raise ValueError(f"amounts must not be negative, got {self}")
        if self.gflops and self.milli_percent:
            raise ValueError("compute is given as GFLOP/s or as percent of a card, not both")

    def gflops_on(self, capacity_gflops: int) -> int:
        """Return the compute this means on a card, rounded down to whole GFLOP/s."""
        if self.milli_percent:
            return self.milli_percent * capacity_gflops // FULL_CARD_MILLI_PERCENT
        return self.gflops


class Toleration(msgspec.Struct, frozen=True):
    """A Kubernetes toleration; an empty key with ``Exists`` tolerates everything."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """Tell whether this toleration covers the taint."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        if self.operator == "Exists":
            return True
        return bool(self.key) and self.value == taint.value


class Requirement(msgspec.Struct, frozen=True):
    """One expression of a node selector term.

    ``operator`` is one of ``In``, ``NotIn``, ``Exists``, ``DoesNotExist``, ``Gt``, ``Lt``.
    """

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels satisfy the expression; unknown operators match nothing."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return value is not None and self._compares(value)
        return False

    def _compares(self, value: str) -> bool:
        try:
            left, right = int(value), int(self.values[0])
        except (ValueError, IndexError):
            return False
        return left > right if self.operator == "Gt" else left < right


class SelectorTerm(msgspec.Struct, frozen=True):
    """A required node selector term: all expressions hold; a term without any matches nothing.

    ``fields`` are ``matchFields``, of which Kubernetes knows ``metadata.name`` only.
    """

    expressions: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Tell whether a node satisfies the term."""
        if not self.expressions and not self.fields:
            return False
        identity = {"metadata.name": name}
        return all(field.matches(identity) for field in self.fields) and all(
            expression.matches(labels) for expression in self.expressions
        )


class Shape(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """A request without its owner: equal shapes share every cached result of the engine.

    Attributes:
        pool: Pool to place in; empty searches every pool.
        request: Guaranteed amounts per GPU.
        limit: Ceiling per GPU; a dimension left 0 equals the request.
        gpu_count: GPUs of one node, at most 128; 0 takes CPU and memory of a node only.
        vendor: Required vendor, any case; empty allows all.
        models: Allowed families or full names, any case; empty allows all.
        indices: Allowed positions on the node; empty allows all.
        isolation: ``shared``, ``soft``, ``hard`` or ``partitioned``.
        partition: Template of the hardware partition, any spelling; empty takes the smallest one
            that covers the amounts. Counts with isolation ``partitioned`` only.
        dedicated: Take whole idle cards whatever the amounts say.
        node_name: The only node allowed; empty allows all.
        node_selector: Label pairs, sorted; all must match.
        affinity: Required terms, one of which must match; empty allows all.
        tolerations: Taints that are accepted.
        containers: Container name and its GPUs, when a pod deals them out itself; the counts
            sum to ``gpu_count``.
        topology: How several cards should be connected; None takes the best connected ones of
            the node that the policy chooses.
        neighbours: Which other pods should be near or away; None when that does not matter.
        cpu_milli: CPU of the whole pod, thousandths of a core; counted where the node says what
            it has.
        memory_bytes: Memory of the whole pod, bytes; counted likewise.
    """

    pool: str = ""
    request: Amount = Amount()
    limit: Amount = Amount()
    gpu_count: int = 1
    vendor: str = ""
    models: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    isolation: str = "soft"
    partition: str = ""
    dedicated: bool = False
    node_name: str = ""
    node_selector: tuple[tuple[str, str], ...] = ()
    affinity: tuple[SelectorTerm, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    containers: tuple[tuple[str, int], ...] = ()
    topology: TopologyWish | None = None
    neighbours: Neighbours | None = None
    cpu_milli: int = 0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what can never be placed.

        Raises:
            ValueError: Names the field, its value and what is allowed.
        """
        if not 0 <= self.gpu_count <= MAX_GPU_COUNT:
            raise ValueError(f"gpu_count is {self.gpu_count}, allowed are 0 to {MAX_GPU_COUNT}")
        if self.cpu_milli < 0 or self.memory_bytes < 0:
            raise ValueError(
                f"cpu_milli and memory_bytes must not be negative, got {self.cpu_milli} and "
                f"{self.memory_bytes}"
            )
        if self.isolation not in ISOLATION_MODES:
            raise ValueError(
                f"isolation is {self.isolation!r}, allowed are {', '.join(ISOLATION_MODES)}"
            )
        if self.containers and sum(count for _, count in self.containers) != self.gpu_count:
            raise ValueError(
                f"containers ask for {sum(count for _, count in self.containers)} GPUs in sum, "
                f"gpu_count is {self.gpu_count}"
            )

    @property
    def exclusive(self) -> bool:
        """Whether whole idle cards are taken."""
        return self.dedicated or self.isolation == "shared"

    @property
    def wish(self) -> PartitionWish | None:
        """What is wanted of a hardware partition; None when none is."""
        if self.isolation != "partitioned" or self.dedicated:
            return None
        request = self.request
        return PartitionWish(
            canonical(self.partition), request.gflops, request.milli_percent, request.vram_bytes
        )

    def deal(self, devices: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Give the chosen devices to the containers, in the order both are listed."""
        dealt = []
        start = 0
        for name, count in self.containers:
            dealt.append((name, devices[start : start + count]))
            start += count
        return tuple(dealt)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """One pod's request.

    Attributes:
        namespace: Namespace of the pod; quotas are looked up by it.
        name: Name of the pod.
        uid: Its uid, the key of its allocation.
        shape: What it asks for.
        workload: Workload it belongs to.
        qos: ``low``, ``medium``, ``high`` or ``critical``.
        labels: Its labels, sorted, by which rules of other pods find it.
        claims: Numbers it needs for itself.
    """

    namespace: str
    name: str
    uid: str
    shape: Shape
    workload: str = ""
    qos: str = "medium"
    labels: tuple[tuple[str, str], ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def identity(self) -> Identity | msgspec.UnsetType:
        """What other pods need to know of it; unset when that is nothing."""
        neighbours = self.shape.neighbours
        apart = neighbours.apart if neighbours is not None else ()
        required = tuple(term for term in apart if not term.weight)
        return Identity(self.labels, required) if self.labels or required else msgspec.UNSET


def parse_models(text: str) -> tuple[str, ...]:
    """Split an allowed-models string at commas and bars: ``A100|H100``.

    Returns:
        Names without surrounding blanks, empty ones dropped; case is kept for messages.
    """
    parts = (part.strip() for part in text.replace("|", ",").split(","))
    return tuple(part for part in parts if part)
