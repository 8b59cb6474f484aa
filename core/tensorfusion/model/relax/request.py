"""Changes of the request: for each kind the smallest one that makes it fit."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from tensorfusion.model.demand import Amount, Shape, Toleration
from tensorfusion.model.device import NodeInfo
from tensorfusion.model.relax.failures import BIT, Failures
from tensorfusion.model.relax.step import Step
from tensorfusion.model.rows import Ints
from tensorfusion.model.topology import UNKNOWN
from tensorfusion.units import format_bytes, format_tflops

Allows = Callable[[Shape], bool]
"""Whether the quotas let a request pass."""
Refit = Callable[[Shape], Failures]
"""Failures of another request on the same fleet."""
Missing = TypeVar("Missing")
MODES_BY_COST: Final = ("soft", "hard", "partitioned", "shared")
"""Isolation modes, those that take the least of a card first."""
NODES_TRIED: Final = 16
"""Nodes that are looked at one by one where rules about other pods tell them apart."""
_BY_NODE: Final = ("model", "vendor", "pool", "node-selector", "taint")
"""Kinds of change that bring different nodes by different steps."""
_replace = msgspec.structs.replace


class RequestChanges:
    """Finds the smallest change of one kind while other rules are lifted.

    Attributes:
        kinds: Kind of change to the method that finds it.
    """

    def __init__(self, failures: Failures, allows: Allows, refit: Refit) -> None:
        """Look at one request.

        Args:
            failures: Of the request.
            allows: Says yes to everything while the quota is lifted as well.
            refit: Makes failures of a changed request.
        """
        self._failures = failures
        self._fleet = failures.fleet
        self._shape = failures.shape
        self._allows = allows
        self._refit = refit
        around = failures.around
        self._moving = BIT["neighbours"] if around is not None and around.spreads else 0
        """Rules that must be looked at anew for each change, since they compare suitable nodes."""
        self._only: int | None = None
        """The node that a change has to bring; None for any."""
        self.kinds: dict[str, Callable[[int], Step | None]] = {
            "compute-limit": self._compute_limit,
            "vram-limit": self._vram_limit,
            "compute": self._compute,
            "vram": self._vram,
            "cpu": lambda lifted: self._host("cpu", 0, lifted),
            "memory": lambda lifted: self._host("memory", 1, lifted),
            "model": self._model,
            "index": lambda lifted: self._drop("index", {"indices": ()}, lifted),
            "node-selector": self._selector,
            "node-affinity": lambda lifted: self._drop("node-affinity", {"affinity": ()}, lifted),
            "taint": self._taint,
            "node-name": lambda lifted: self._drop("node-name", {"node_name": ""}, lifted),
            "vendor": self._vendor,
            "dedicated": self._dedicated,
            "isolation": self._isolation,
            "partition": self._partition,
            "topology": self._topology,
            "neighbours": self._neighbours,
            "gpu-count": self._gpu_count,
            "pool": self._pool,
        }

    def applies(self, kind: str) -> bool:
        """Tell whether the request states what the kind would change."""
        shape = self._shape
        # Of a partition only the template counts; its amounts cannot be had one by one.
        amounts = shape.wish is None
        stated: dict[str, object] = {
            "compute-limit": amounts and (shape.limit.gflops or shape.limit.milli_percent),
            "vram-limit": amounts and shape.limit.vram_bytes > shape.request.vram_bytes,
            "compute": amounts and (shape.request.gflops or shape.request.milli_percent),
            "vram": amounts and shape.request.vram_bytes,
            "partition": not amounts,
            "topology": shape.gpu_count > 1 and shape.topology and shape.topology.required,
            "neighbours": shape.neighbours,
            "cpu": shape.cpu_milli,
            "memory": shape.memory_bytes,
            "model": shape.models,
            "index": shape.indices,
            "node-selector": shape.node_selector,
            "node-affinity": shape.affinity,
            "node-name": shape.node_name,
            "vendor": shape.vendor,
            "dedicated": shape.dedicated,
            "gpu-count": shape.gpu_count > 1 and not shape.containers,
            "pool": shape.pool,
        }
        return bool(stated.get(kind, True))

    def each(self, kind: str, lifted: int) -> Iterator[Step]:
        """Yield changes of one kind, smallest first.

        Where rules about other pods matter, the smallest change may bring nodes that those rule
        out; then there is one for each node that comes into question.
        """
        if self._failures.around is None or kind not in _BY_NODE:
            step = self.kinds[kind](lifted)
            if step is not None:
                yield step
            return
        found: dict[Shape, Step] = {}
        for slot in self._nodes(self._failures, lifted | BIT[kind] | self._moving)[:NODES_TRIED]:
            self._only = slot
            step = self.kinds[kind](lifted)
            if step is not None and step.shape is not None:
                found.setdefault(step.shape, step)
        self._only = None
        yield from sorted(found.values(), key=_looseness)

    def _nodes(self, failures: Failures, lifted: int) -> list[int]:
        nodes = failures.nodes(lifted)
        if self._only is None:
            return nodes
        return [self._only] if self._only in nodes else []

    # Amounts

    def _compute(self, lifted: int) -> Step | None:
        request, limit = self._shape.request, self._shape.limit
        asked = request.milli_percent or request.gflops
        field = "milli_percent" if request.milli_percent else "gflops"
        ceiling = getattr(limit, field)

        def with_amount(amount: int) -> Shape:
            # A limit that is not above the request follows it.
            new_limit = _with(limit, field, min(ceiling, amount)) if ceiling <= asked else limit
            return _replace(self._shape, request=_with(request, field, amount), limit=new_limit)

        return self._amount(
            "compute", self._failures.compute_left, asked, lifted, with_amount, field
        )

    def _compute_limit(self, lifted: int) -> Step | None:
        request, limit = self._shape.request, self._shape.limit
        field = "milli_percent" if limit.milli_percent else "gflops"
        return self._amount(
            "compute-limit",
            self._failures.compute_limit_left,
            getattr(limit, field),
            lifted,
            lambda amount: _replace(self._shape, limit=_with(limit, field, amount)),
            field,
            lowest=getattr(request, field),
        )

    def _vram(self, lifted: int) -> Step | None:
        request, limit = self._shape.request, self._shape.limit

        def with_amount(amount: int) -> Shape:
            ceiling = limit.vram_bytes
            if ceiling <= request.vram_bytes:
                ceiling = min(ceiling, amount)
            return _replace(
                self._shape,
                request=_with(request, "vram_bytes", amount),
                limit=_with(limit, "vram_bytes", ceiling),
            )

        left = self._failures.vram_left
        return self._amount("vram", left, request.vram_bytes, lifted, with_amount, "vram_bytes")

    def _vram_limit(self, lifted: int) -> Step | None:
        limit = self._shape.limit
        return self._amount(
            "vram-limit",
            self._failures.vram_limit_left,
            limit.vram_bytes,
            lifted,
            lambda amount: _replace(self._shape, limit=_with(limit, "vram_bytes", amount)),
            "vram_bytes",
            lowest=self._shape.request.vram_bytes,
        )

    def _amount(
        self,
        kind: str,
        left: Ints,
        asked: int,
        lifted: int,
        with_amount: Callable[[int], Shape],
        field: str,
        lowest: int = 0,
    ) -> Step | None:
        found = self._failures.largest(left, lifted | BIT[kind])
        if found is None:
            return None
        most, slot = found
        amount = largest_that(
            min(most, asked), max(lowest, 1), lambda a: self._allows(with_amount(a))
        )
        if amount is None or amount >= asked:
            return None
        what = {
            "compute": "ask for at most {} of compute per GPU, not {}",
            "vram": "ask for at most {} of VRAM per GPU, not {}",
            "compute-limit": "limit compute to at most {} per GPU, not {}",
            "vram-limit": "limit VRAM to at most {} per GPU, not {}",
        }[kind]
        text = what.format(_print(field, amount), _print(field, asked))
        return Step(kind=kind, text=text, shape=with_amount(amount), node=self._name(slot))

    def _host(self, kind: str, column: int, lifted: int) -> Step | None:
        nodes = self._failures.nodes(lifted | BIT[kind])
        free = self._failures.host[nodes, column]
        if not nodes or int(free.max()) < 0:
            return None
        best = int(free.argmax())
        amount = int(free[best])
        field = ("cpu_milli", "memory_bytes")[column]
        asked = getattr(self._shape, field)
        if amount >= asked:
            return None
        shown = (
            (f"{amount}m", f"{asked}m")
            if kind == "cpu"
            else (format_bytes(amount), format_bytes(asked))
        )
        text = f"ask for at most {shown[0]} of {kind} of the node, not {shown[1]}"
        return self._step(kind, text, {field: amount}, nodes[best], lifted)

    def _gpu_count(self, lifted: int) -> Step | None:
        counts = self._failures.usable(lifted).sum(axis=1)
        if not counts.size or not counts.max():
            return None
        slot = int(counts.argmax())
        asked = self._shape.gpu_count
        most = min(int(counts[slot]), asked)
        wish = self._shape.topology
        if wish is not None and wish.required:
            # Fewer cards can be connected well enough where so many are not.
            fits = {
                n: self._refit(_replace(self._shape, gpu_count=n)).nodes(lifted)
                for n in range(1, most + 1)
            }
            most = max((n for n, nodes in fits.items() if nodes), default=0)
            slot = fits[most][0] if most else slot
        count = largest_that(most, 1, lambda n: self._allows(_replace(self._shape, gpu_count=n)))
        if count is None or count >= asked:
            return None
        text = f"ask for {count} {'GPU' if count == 1 else 'GPUs'}, not {asked}"
        return self._step("gpu-count", text, {"gpu_count": count}, slot, lifted)

    # Rules

    def _drop(self, kind: str, fields: dict[str, object], lifted: int) -> Step | None:
        text = {
            "index": f"allow GPUs at any position, not only {list(self._shape.indices)}",
            "node-affinity": "drop the required node affinity",
            "node-name": f"allow other nodes than {self._shape.node_name}",
            "vendor": f"allow other vendors than {self._shape.vendor}",
            "pool": f"allow other pools than {self._shape.pool}",
        }[kind]
        nodes = self._nodes(self._failures, lifted | BIT[kind] | self._moving)
        return self._step(kind, text, fields, nodes[0], lifted) if nodes else None

    def _model(self, lifted: int) -> Step | None:
        """Add as few models as possible: on each node those with the most cards first."""
        failures, fleet = self._failures, self._fleet
        lifted_most = lifted | BIT["model"] | self._moving
        nodes = self._nodes(failures, lifted_most)
        usable, already = failures.usable(lifted_most), failures.usable(lifted | self._moving)
        best: tuple[int, list[str], int] | None = None
        for slot in nodes:
            missing = self._shape.gpu_count - int(already[slot].sum())
            cards: dict[str, int] = {}
            for place in (usable[slot] & ~already[slot]).nonzero()[0].tolist():
                profile = fleet.profiles[fleet.profile_codes[slot, place]]
                name = profile.model or profile.full_model
                cards[name] = cards.get(name, 0) + 1
            added: list[str] = []
            for name, count in sorted(cards.items(), key=lambda item: (-item[1], item[0])):
                if missing <= 0:
                    break
                added.append(name)
                missing -= count
            if all(added) and (best is None or len(added) < best[0]):
                best = (len(added), added, slot)
        if best is None or not best[1]:
            return None
        text = f"allow {' and '.join(best[1])} besides {', '.join(self._shape.models)}"
        models = (*self._shape.models, *best[1])
        return self._step("model", text, {"models": models}, best[2], lifted)

    def _vendor(self, lifted: int) -> Step | None:
        return self._other("vendor", lifted)

    def _pool(self, lifted: int) -> Step | None:
        return self._other("pool", lifted)

    def _other(self, kind: str, lifted: int) -> Step | None:
        """Name another value if one will do, else drop the rule."""
        fleet, shape = self._fleet, self._shape
        current = getattr(shape, kind).casefold()
        values = sorted({getattr(profile, kind) for profile in fleet.profiles} - {""})
        for value in values:
            if value.casefold() == current:
                continue
            changed = _replace(shape, **{kind: value})
            nodes = self._nodes(self._refit(changed), lifted)
            if nodes and self._allows(changed):
                text = f"use the {kind} {value} instead of {getattr(shape, kind)}"
                return self._step(kind, text, {kind: value}, nodes[0], lifted)
        return self._drop(kind, {kind: ""}, lifted)

    def _selector(self, lifted: int) -> Step | None:
        pairs = self._shape.node_selector

        def missing(node: NodeInfo) -> list[tuple[str, str]]:
            return [(k, v) for k, v in pairs if node.labels.get(k) != v]

        best = self._fewest("node-selector", lifted, missing)
        if best is None:
            return None
        wrong, slot = best
        text = f"drop {', '.join(f'{k}={v}' for k, v in wrong)} from the node selector"
        kept = tuple(pair for pair in pairs if pair not in wrong)
        return self._step("node-selector", text, {"node_selector": kept}, slot, lifted)

    def _taint(self, lifted: int) -> Step | None:
        known = self._shape.tolerations

        def missing(node: NodeInfo) -> list[Toleration]:
            return [
                Toleration(taint.key, "Equal", taint.value, taint.effect)
                for taint in dict.fromkeys(node.taints)
                if taint.effect != "PreferNoSchedule"
                and not any(toleration.tolerates(taint) for toleration in known)
            ]

        best = self._fewest("taint", lifted, missing)
        if best is None:
            return None
        wanted, slot = best
        words = ", ".join(f"{t.key}={t.value}:{t.effect}" for t in wanted)
        fields = {"tolerations": (*known, *wanted)}
        return self._step("taint", f"tolerate the taint {words}", fields, slot, lifted)

    def _fewest(
        self, kind: str, lifted: int, missing: Callable[[NodeInfo], list[Missing]]
    ) -> tuple[list[Missing], int] | None:
        """Return the shortest list over the nodes that pass without the rule, and its node."""
        best: tuple[list[Missing], int] | None = None
        for slot in self._nodes(self._failures, lifted | BIT[kind] | self._moving):
            node = self._fleet.nodes[slot]
            found = missing(node) if node is not None else []
            if found and (best is None or len(found) < len(best[0])):
                best = (found, slot)
        return best

    def isolations(self) -> Iterator[Step]:
        """Yield a step for every other isolation mode, whether it suffices or not."""
        for mode in MODES_BY_COST:
            if mode != self._shape.isolation:
                text = f"use isolation {mode} instead of {self._shape.isolation}"
                yield Step(kind="isolation", text=text, shape=_replace(self._shape, isolation=mode))

    def _isolation(self, lifted: int) -> Step | None:
        for step in self.isolations():
            if step.shape is not None and self._allows(step.shape):
                nodes = self._refit(step.shape).nodes(lifted)
                if nodes:
                    return _replace(step, node=self._name(nodes[0]))
        return None

    def _partition(self, lifted: int) -> Step | None:
        """Name another template, the one with the most memory that will do."""
        kinds = {kind for profile in self._fleet.profiles for kind in profile.partitions}
        order = sorted(kinds, key=lambda kind: (-kind.vram_bytes, -kind.gflops, kind.template))
        for name in dict.fromkeys(kind.template for kind in order):
            fields = {"partition": name, "request": Amount(), "limit": Amount()}
            changed = _replace(self._shape, **fields)
            if changed.wish == self._shape.wish or not self._allows(changed):
                continue
            nodes = self._refit(changed).nodes(lifted)
            if nodes:
                instead = self._shape.partition or "one that covers the request"
                text = f"use a partition {name} instead of {instead}"
                return self._step("partition", text, fields, nodes[0], lifted)
        return None

    def _topology(self, lifted: int) -> Step | None:
        """Accept the best connection there is."""
        wish = self._shape.topology
        if wish is None:
            return None
        for tier in range(wish.max_tier + 1, UNKNOWN + 1):
            looser = _replace(wish, max_tier=tier)
            nodes = self._refit(_replace(self._shape, topology=looser)).nodes(lifted)
            if nodes:
                text = f"accept GPUs connected at tier {tier}, not only {wish.max_tier}"
                return self._step("topology", text, {"topology": looser}, nodes[0], lifted)
        return None

    def _neighbours(self, lifted: int) -> Step | None:
        changed = _replace(self._shape, neighbours=None)
        nodes = self._refit(changed).nodes(lifted)
        if not nodes:
            return None
        text = "drop its affinity to other pods and its spread constraints"
        return self._step("neighbours", text, {"neighbours": None}, nodes[0], lifted)

    def _dedicated(self, lifted: int) -> Step | None:
        changed = _replace(self._shape, dedicated=False)
        nodes = self._refit(changed).nodes(lifted)
        if not nodes:
            return None
        text = "take a part of a GPU instead of a dedicated one"
        return self._step("dedicated", text, {"dedicated": False}, nodes[0], lifted)

    def _step(
        self, kind: str, text: str, fields: Mapping[str, object], slot: int, lifted: int = 0
    ) -> Step | None:
        changed = _replace(self._shape, **fields)
        if not self._allows(changed):
            return None
        if self._moving and not self._refit(changed).nodes(lifted):
            return None
        return Step(kind=kind, text=text, shape=changed, node=self._name(slot))

    def _name(self, slot: int) -> str:
        node = self._fleet.nodes[slot]
        return node.name if node is not None else ""


def _looseness(step: Step) -> tuple[int, int, int, bool, bool]:
    """Return how much a request gives up, compared with others of the same kind."""
    shape = step.shape or Shape()
    return (
        len(shape.models),
        -len(shape.node_selector),
        len(shape.tolerations),
        not shape.vendor,
        not shape.pool,
    )


def loosest(shape: Shape, kind: str) -> Shape:
    """Return a request with one kind relaxed as far as it goes; others come back as they are."""
    request, limit = shape.request, shape.limit
    if kind in _FIELDS:
        part, fields = _FIELDS[kind]
        lowest = {f: min(1, getattr(request, f)) for f in fields}
        if part == "limit":  # a ceiling can come down to the request
            floor = {f: min(getattr(limit, f), max(getattr(request, f), 1)) for f in fields}
            return _replace(shape, limit=_replace(limit, **floor))
        # A limit that is not above the request follows it.
        follows = {
            f: low for f, low in lowest.items() if 0 < getattr(limit, f) <= getattr(request, f)
        }
        return _replace(
            shape, request=_replace(request, **lowest), limit=_replace(limit, **follows)
        )
    return _replace(shape, **_LOOSEST.get(kind, {}))


def restored(shape: Shape, original: Shape, kind: str) -> Shape:
    """Return a request with what one kind changes as it was in the original."""
    if kind not in _FIELDS:
        return _replace(shape, **{name: getattr(original, name) for name in _LOOSEST.get(kind, {})})
    part, fields = _FIELDS[kind]
    parts = ("limit",) if part == "limit" else ("request", "limit")
    changes = {
        name: _replace(
            getattr(shape, name), **{f: getattr(getattr(original, name), f) for f in fields}
        )
        for name in parts
    }
    return _replace(shape, **changes)


_FIELDS: Final = {
    "compute": ("request", ("gflops", "milli_percent")),
    "vram": ("request", ("vram_bytes",)),
    "compute-limit": ("limit", ("gflops", "milli_percent")),
    "vram-limit": ("limit", ("vram_bytes",)),
}
AMOUNTS: Final = tuple(_FIELDS)
"""Kinds that change an amount."""
_LOOSEST: Final[dict[str, dict[str, object]]] = {
    "cpu": {"cpu_milli": 0},
    "memory": {"memory_bytes": 0},
    "model": {"models": ()},
    "index": {"indices": ()},
    "node-selector": {"node_selector": ()},
    "node-affinity": {"affinity": ()},
    "taint": {"tolerations": (Toleration("", "Exists"),)},
    "node-name": {"node_name": ""},
    "vendor": {"vendor": ""},
    "dedicated": {"dedicated": False},
    "gpu-count": {"gpu_count": 1, "containers": ()},
    "pool": {"pool": ""},
    "topology": {"topology": None},
    "neighbours": {"neighbours": None},
    "partition": {"partition": "", "request": Amount(), "limit": Amount()},
}


def largest_that(high: int, low: int, holds: Callable[[int], bool]) -> int | None:
    """Return the largest number in [low, high] for which a condition holds that smaller ones ease.

    Returns:
        None when it does not even hold for ``low``, or the range is empty.
    """
    if high < low or not holds(low):
        return None
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _with(amount: Amount, field: str, value: int) -> Amount:
    return _replace(amount, **{field: value})


def _print(field: str, amount: int) -> str:
    if field == "vram_bytes":
        return format_bytes(amount)
    if field == "milli_percent":
        return f"{amount / 1000:g}%"
    return f"{format_tflops(amount)} TFLOPS"
