"""A request with one kind of change made as far as it goes, and taken back."""

from typing import Final

import msgspec

from tensorfusion.model.demand import Amount, Shape, Toleration

_replace = msgspec.structs.replace


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
