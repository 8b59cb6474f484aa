"""A device's shared state in a worker's ledger, decoded in one go: it is read ten times a second."""

import struct
from typing import Final, NamedTuple

from tensorfusion_native import layout

_WORDS: Final = layout.DEVICE_STATE["trim_ppm"] // 8
"""Fields of 64 bit come first, the small ones after them."""
_SMALL: Final = (layout.DEVICE_STATE_BYTES - layout.DEVICE_STATE["trim_ppm"]) // 4
_STATE: Final = struct.Struct(f"<{_WORDS}Q{_SMALL}I")


class State(NamedTuple):
    """The fields of ``device_state`` that an owner looks at, under their names there."""

    used_bytes: int
    denied: int
    charged_ns: int
    throttled_ns: int
    spilled_bytes: int
    spilled_total_bytes: int
    wanted_bytes: int
    full_denied: int
    full_waits: int
    full_waited_ns: int
    evict_requests: int
    trim_ppm: int

    @property
    def trim_ratio(self) -> float:
        """Measured over charged device time; 1 before the first measurement."""
        return (self.trim_ppm or layout.WHOLE_DEVICE_PPM) / layout.WHOLE_DEVICE_PPM

    def was_full(self) -> bool:
        """Whether a full device ever did anything to the worker."""
        return bool(
            self.spilled_total_bytes or self.full_denied or self.full_waits or self.evict_requests
        )


def _index(name: str) -> int:
    offset = layout.DEVICE_STATE[name]
    small = layout.DEVICE_STATE["trim_ppm"]
    return offset // 8 if offset < small else _WORDS + (offset - small) // 4


_INDEXES: Final = tuple(_index(name) for name in State._fields)


def decode_state(raw: bytes) -> State:
    """Read the bytes of a state.

    Raises:
        ValueError: They are not as many as a state has.
    """
    if len(raw) != layout.DEVICE_STATE_BYTES:
        raise ValueError(f"a device's state has {layout.DEVICE_STATE_BYTES} bytes, got {len(raw)}")
    values = _STATE.unpack(raw)
    return State._make([values[index] for index in _INDEXES])
