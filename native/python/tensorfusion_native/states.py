"""A device's shared state in a worker's ledger, decoded in one go: it is read ten times a second."""

import struct
from typing import Final, NamedTuple

from tensorfusion_native import layout


class State(NamedTuple):
    """The fields of ``device_state`` that an owner looks at, under their names and in their order."""

    used_bytes: int
    denied: int
    spilled_bytes: int
    spilled_total_bytes: int
    wanted_bytes: int
    full_denied: int
    full_waits: int
    full_waited_ns: int
    evict_requests: int
    charged_ns: int
    throttled_ns: int
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


def _format() -> str:
    """The layout with padding for the fields that nobody looks at.

    Fields of 64 bit come first, from ``trim_ppm`` on they have 32.
    """
    text, end = "<", 0
    for name in State._fields:
        offset = layout.DEVICE_STATE[name]
        small = offset >= layout.DEVICE_STATE["trim_ppm"]
        text += f"{offset - end}x{'I' if small else 'Q'}"
        end = offset + (4 if small else 8)
    return f"{text}{layout.DEVICE_STATE_BYTES - end}x"


_STATE: Final = struct.Struct(_format())


def decode_state(raw: bytes) -> State:
    """Read the bytes of a state.

    Raises:
        ValueError: They are not as many as a state has.
    """
    if len(raw) != layout.DEVICE_STATE_BYTES:
        raise ValueError(f"a device's state has {layout.DEVICE_STATE_BYTES} bytes, got {len(raw)}")
    return State._make(_STATE.unpack(raw))
