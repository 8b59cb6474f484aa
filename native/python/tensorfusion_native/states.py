"""What the processes of workers share about their devices: copied in one call, for it is read ten times a second."""

import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorfusion_native.libraries import compiled


class DeviceUse(NamedTuple):
    """What a worker uses of one device; the tenant can write these figures, so check them against the driver's.

    The fields stand as in the layout; some of it is the limiter's own business.

    Attributes:
        used_bytes: All allocations of all its processes.
        peak_bytes: The most it ever was.
        denied: Allocations refused at the cap.
        spilled_bytes: The part of ``used_bytes`` that is in host memory.
        spilled_total_bytes: Bytes that ever went there.
        wanted_bytes: What its threads wait for now because the card is full.
        full_denied: Allocations within the cap, refused because the card was full.
        full_waits: Allocations that waited for room.
        full_waited_ns: How long, summed over threads.
        evict_requests: Allocations for which the owner was asked to make room.
        paced_ns: Device time that it had, as the limiter knows: charged, corrected and settled by what is measured.
        launches: Launches admitted under a share.
        throttled_ns: Time that its threads were held back, summed.
    """

    used_bytes: int
    peak_bytes: int
    denied: int
    spilled_bytes: int
    spilled_total_bytes: int
    wanted_bytes: int
    full_denied: int
    full_waits: int
    full_waited_ns: int
    evict_requests: int
    paced_ns: int
    launches: int
    throttled_ns: int

    def was_full(self) -> bool:
        """Whether a full device ever did anything to the worker."""
        return bool(
            self.spilled_total_bytes or self.full_denied or self.full_waits or self.evict_requests
        )


def decode_state(raw: bytes) -> DeviceUse:
    """Read a copy of a state.

    Raises:
        ValueError: It does not have as many bytes as a state.
    """
    form = _form()
    if len(raw) != form.size:
        raise ValueError(f"a device's state has {form.size} bytes, got {len(raw)}")
    return DeviceUse._make(form.unpack(raw))


@functools.cache
def _form() -> struct.Struct:
    """The state as the compiler laid it out: reading a field at a time from Python takes four times as long."""
    ffi, text, end = compiled().ffi, "<", 0
    fields = dict(ffi.typeof("struct tf_device_state").fields)
    for name in DeviceUse._fields:
        offset, size = fields[name].offset, ffi.sizeof(fields[name].type)
        text += f"{offset - end}x{'Q' if size == 8 else 'I'}"
        end = offset + size
    return struct.Struct(f"{text}{ffi.sizeof('struct tf_device_state') - end}x")


class Place(NamedTuple):
    """Where a state lies, and the mapping that must stay for it."""

    pointer: Any
    mapping: Any


class States:
    """The shared states of many devices of many workers, read in one call.

    Args:
        places: Where they lie, by `WorkerRegion.state`; None is left empty. They go on being read
            when their region is closed meanwhile.
    """

    def __init__(self, places: Sequence[Place | None]) -> None:
        native = compiled()
        self._ffi, self._lib = native.ffi, native.lib
        self._places = list(places)
        pointers = [self._ffi.NULL if place is None else place.pointer for place in places]
        self._states = self._ffi.new("struct tf_device_state *[]", pointers)
        self._copies = self._ffi.new("struct tf_device_state[]", len(pointers))
        self._changed = self._ffi.new("uint32_t[]", len(pointers))
        self._bytes = self._ffi.buffer(self._copies)
        size = self._ffi.sizeof("struct tf_device_state")
        self._cuts = [slice(n * size, (n + 1) * size) for n in range(len(pointers))]
        self._taken = [b"" if place is None else bytes(size) for place in places]

    def take(self) -> list[bytes]:
        """Copy every state as it is now; what did not change is the same object as before."""
        count = self._lib.tf_owner_copy(self._states, len(self._taken), self._copies, self._changed)
        if count:
            raw, cuts, taken = self._bytes[:], self._cuts, self._taken
            for index in self._ffi.unpack(self._changed, count):
                taken[index] = raw[cuts[index]]
        return self._taken.copy()

    def any_wants(self) -> bool:
        """Whether a process of some worker waits for memory, or was killed while it did."""
        return bool(self._lib.tf_owner_wants(self._states, len(self._taken)))
