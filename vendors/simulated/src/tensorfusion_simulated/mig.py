"""Partitions of the fidelity ``driver``: GPU instances of the simulated driver, by NVML's calls for MIG.

The driver keeps them, so they outlive the sessions and the processes that use them.
"""

import ctypes as c
from collections.abc import Collection, Mapping
from contextlib import suppress

from tensorfusion.errors import BackendError
from tensorfusion.model.hardware import Card
from tensorfusion.model.partitions import PartitionTemplate
from tensorfusion.spi.backend import Partition
from tensorfusion_native.driver_library import open_library
from tensorfusion_native.libraries import VIEW
from tensorfusion_native.simulated_machine import SimulatedMachine
from tensorfusion_simulated.partitions import partition_of

IN_USE = "19"
"""NVML_ERROR_IN_USE."""
COMPUTE_PROFILES = 9
"""NVML_COMPUTE_INSTANCE_PROFILE_COUNT."""
MANY = 64
"""More than any card has instances."""


class _Placement(c.Structure):
    _fields_ = (("start", c.c_uint), ("size", c.c_uint))


class _Instance(c.Structure):
    _fields_ = (
        ("device", c.c_void_p),
        ("id", c.c_uint),
        ("profile", c.c_uint),
        ("placement", _Placement),
    )


class DriverPartitions:
    """The partitions of one simulated machine.

    Args:
        machine: Its management library has been initialised in this process.
        cards: Its cards by uuid.
        partitioned: Those that shall be set up for partitions.
    """

    def __init__(
        self, machine: SimulatedMachine, cards: Mapping[str, Card], partitioned: Collection[str]
    ) -> None:
        self._library = open_library("NVML", machine.folder / VIEW, machine.state, machine.config)
        self._cards = {uuid: card for uuid, card in cards.items() if card.geometry is not None}
        self._wanted = frozenset(partitioned)
        self._handles = {uuid: self._find(uuid) for uuid in self._cards}

    def is_set_up(self, uuid: str) -> bool:
        """Whether a card takes partitions, and nothing else, at the moment."""
        now, then = c.c_uint(), c.c_uint()
        if uuid in self._handles:
            self._call("nvmlDeviceGetMigMode", self._handles[uuid], c.byref(now), c.byref(then))
        return bool(now.value)

    def set_up(self, used: Collection[str]) -> dict[str, str]:
        """Bring the cards into the mode that is wanted, and tell which cannot be brought there yet.

        A card does not change while somebody uses it.

        Args:
            used: Uuids of the cards and partitions that workers have.

        Returns:
            By uuid, what there is to say.
        """
        waiting = {}
        for uuid in self._handles:
            wanted = uuid in self._wanted
            if self.is_set_up(uuid) != wanted and not self._change_mode(uuid, wanted, used):
                mode = "off" if wanted else "on"
                waiting[uuid] = f"MIG mode is {mode} until nobody uses the card"
        return waiting

    def _change_mode(self, uuid: str, wanted: bool, used: Collection[str]) -> bool:
        """Set a card's mode; partitions that nobody uses do not stand in the way. False: somebody uses the card."""
        if uuid in used:
            return False
        if not wanted:
            self._clear(uuid, self._cards[uuid])
            for made in self._of(uuid, self._cards[uuid]):
                if made.uuid not in used:
                    with suppress(BackendError):
                        self.remove(made.uuid)
        status = c.c_uint()
        self._call("nvmlDeviceSetMigMode", self._handles[uuid], c.c_uint(wanted), c.byref(status))
        return not status.value

    def all(self) -> list[Partition]:
        """List the partitions that programs can use."""
        return [one for uuid, card in self._cards.items() for one in self._of(uuid, card)]

    def cut(self, uuid: str, card: Card, shape: PartitionTemplate, start: int) -> Partition:
        """Make a GPU instance and the compute instance that takes all of it."""
        self._clear(uuid, card)
        placement, instance, part = _Placement(start, shape.width), c.c_void_p(), c.c_void_p()
        self._call(
            "nvmlDeviceCreateGpuInstanceWithPlacement",
            self._handles[uuid],
            c.c_uint(shape.profile or 0),
            c.byref(placement),
            c.byref(instance),
        )
        # Of the numbers of profiles the simulated driver takes the one for the whole instance only.
        create = self._library.nvmlGpuInstanceCreateComputeInstance
        if all(create(instance, c.c_uint(n), c.byref(part)) for n in range(COMPUTE_PROFILES)):
            raise BackendError("simulated", f"device {uuid}: {shape.id}: no compute profile fits")
        return next(one for one in self._of(uuid, card) if one.start == start)

    def remove(self, uuid: str) -> bool:
        """Give a partition back; False when there was none.

        Raises:
            BackendError: A process uses it.
        """
        made = next((one for one in self.all() if one.uuid == uuid), None)
        if made is None:
            return False
        part = c.c_void_p()
        instance = self._instance(self._handles[made.parent], self._find(uuid))
        number = c.c_uint(0)
        self._call("nvmlGpuInstanceGetComputeInstanceById", instance, number, c.byref(part))
        try:
            self._call("nvmlComputeInstanceDestroy", part)
        except BackendError as error:
            if error.code != IN_USE:
                raise
            raise BackendError(
                "simulated", f"partition {uuid}: a process uses it", code=error.code
            ) from error
        self._call("nvmlGpuInstanceDestroy", instance)
        return True

    def _of(self, uuid: str, card: Card) -> list[Partition]:
        assert card.geometry is not None
        shapes = {shape.profile: shape.id for shape in card.geometry.templates}
        found = []
        for number in range(card.geometry.max_partitions):
            handle, told = c.c_void_p(), _Instance()
            if self._library.nvmlDeviceGetMigDeviceHandleByIndex(
                self._handles[uuid], c.c_uint(number), c.byref(handle)
            ):
                break
            instance = self._instance(self._handles[uuid], handle)
            self._call("nvmlGpuInstanceGetInfo", instance, c.byref(told))
            name = c.create_string_buffer(96)
            self._call("nvmlDeviceGetUUID", handle, name, c.c_uint(len(name)))
            shape, start = shapes[told.profile], int(told.placement.start)
            found.append(partition_of(card, uuid, shape, start, name.value.decode()))
        return found

    def _clear(self, uuid: str, card: Card) -> None:
        """Remove what a crash left between the two steps of a cut: no program can use it, and it is not listed.

        An instance with its compute instance refuses to be destroyed, so it may be asked of all.
        """
        assert card.geometry is not None
        for shape in card.geometry.templates:
            rows, count = (c.c_void_p * MANY)(), c.c_uint(MANY)
            profile = c.c_uint(shape.profile or 0)
            self._call(
                "nvmlDeviceGetGpuInstances", self._handles[uuid], profile, rows, c.byref(count)
            )
            for row in rows[: count.value]:
                self._library.nvmlGpuInstanceDestroy(c.c_void_p(row))

    def _instance(self, card: c.c_void_p, partition: c.c_void_p) -> c.c_void_p:
        number, instance = c.c_uint(), c.c_void_p()
        self._call("nvmlDeviceGetGpuInstanceId", partition, c.byref(number))
        self._call("nvmlDeviceGetGpuInstanceById", card, number, c.byref(instance))
        return instance

    def _find(self, uuid: str) -> c.c_void_p:
        handle = c.c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), c.byref(handle))
        return handle

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            self._library.nvmlErrorString.restype = c.c_char_p
            words = self._library.nvmlErrorString(code).decode()
            raise BackendError("NVML", f"{function}: {words}", code=str(code))
