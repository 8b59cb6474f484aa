"""Hardware partitions by MIG: a GPU instance with one compute instance that takes all of it.

The driver keeps them, not we: what another program made is listed too, and a crash leaves nothing
that the next call does not find. Words and calls are those of NVML and of NVIDIA's MIG user guide.
"""

import ctypes
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorfusion.errors import BackendError
from tensorfusion.model.hardware import geometry_of
from tensorfusion.model.partitions import Geometry, PartitionTemplate
from tensorfusion.spi.backend import DeviceInfo, Partition, WorkerSpec
from tensorfusion_nvidia.devices import Found
from tensorfusion_nvidia.nvml import VENDOR, Nvml, text

log = logging.getLogger(__name__)
ISOLATION = "partitioned"
PREFIX = "MIG-"
"""Of the uuids of all partitions."""
CAPABILITIES = Path("driver", "nvidia", "capabilities")
"""Below the kernel's process folder: which device file opens which instance."""
MANY = 64
"""More than any card has instances."""
UNKNOWN = ("2", "6")
"""Codes for a name that is none, and for one that nothing has."""
WORDS = {
    3: "the driver does not offer it here",
    4: "no permission: partitions are cut by root, or by whoever may open"
    " /proc/driver/nvidia/capabilities/mig/config",
    16: "the device must be reset first: nvidia-smi --gpu-reset",
    19: "a process uses it",
    23: "there is no room for it beside what is there",
}
"""What codes of NVML mean for whoever cuts."""


class Mig:
    """The partitions of this machine's devices. The session's lock guards it."""

    def __init__(self, nvml: Nvml, proc: Path) -> None:
        self._nvml = nvml
        self._proc = proc

    def all(self, devices: Iterable[Found]) -> list[Partition]:
        """List what programs can use, in order of device and slot."""
        made = [one for device in devices if device.info.partitioned for one in self._of(device)]
        return sorted(made, key=lambda one: (one.parent, one.start, one.uuid))

    def create(self, device: Found, template: str, start: int | None) -> Partition:
        """Cut a device.

        Raises:
            BackendError: The device is not in MIG mode, has no such template, or no room for it.
        """
        info = device.info
        if not info.partitioned:
            raise BackendError(
                VENDOR,
                f"device {info.uuid}: MIG mode is off; `nvidia-smi -i {info.index} -mig 1` turns it"
                " on, and takes effect when nobody uses the device",
            )
        shape = self._shape(info, template)
        before = {one.uuid for one in self._of(device)}
        instance = self._left_over(device, shape, start)
        if instance is None:
            instance = self._cut(device, shape, start)
        try:
            self._complete(instance)
        except BackendError as error:
            self._nvml.ask("nvmlGpuInstanceDestroy", instance)
            raise _explained(error, f"device {info.uuid}: {shape.id}") from error
        return next(one for one in self._of(device) if one.uuid not in before)

    def check(
        self, spec: WorkerSpec, devices: Sequence[Found], workers: Mapping[str, WorkerSpec]
    ) -> None:
        """Refuse a worker whose partitions are missing, of other devices, or in use, and one that wants a cut device.

        Args:
            spec: The worker.
            devices: Its devices.
            workers: All of the session, by name.

        Raises:
            BackendError: As said; names the device or the partition.
        """
        who = f"worker {spec.namespace}/{spec.name}"
        if spec.isolation != ISOLATION:
            for device in devices:
                if device.info.partitioned:
                    raise BackendError(
                        VENDOR,
                        f"{who}: device {device.info.uuid} is in MIG mode and takes isolation"
                        f" {ISOLATION!r} only, not {spec.isolation!r}",
                    )
            return
        if len(spec.partitions) != len(spec.devices):
            raise BackendError(
                VENDOR,
                f"{who}: {len(spec.partitions)} partitions for {len(spec.devices)} devices;"
                " allowed is one for each",
            )
        parents = {one.uuid: one.parent for one in self.all(devices)}
        taken = {
            cut: name
            for name, other in workers.items()
            if name != spec.worker
            for cut in other.partitions
        }
        for uuid, cut in zip(spec.devices, spec.partitions, strict=True):
            if parents.get(cut) != uuid:
                raise BackendError(VENDOR, f"{who}: device {uuid} has no partition {cut!r}")
            if cut in taken:
                raise BackendError(VENDOR, f"{who}: partition {cut} is used by worker {taken[cut]}")

    def remove(self, uuid: str) -> None:
        """Give a partition back; one that is gone is fine.

        Raises:
            BackendError: A process uses it, or this user may not.
        """
        if not uuid.startswith(PREFIX):
            return
        try:
            handle = self._nvml.call("nvmlDeviceGetHandleByUUID", uuid)
        except BackendError as error:
            if error.code in UNKNOWN:
                return
            raise _explained(error, f"partition {uuid}") from error
        try:
            card = self._nvml.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
            number = self._nvml.call("nvmlDeviceGetGpuInstanceId", handle)
            compute = self._nvml.call("nvmlDeviceGetComputeInstanceId", handle)
            instance = self._nvml.call("nvmlDeviceGetGpuInstanceById", card, number)
            part = self._nvml.call("nvmlGpuInstanceGetComputeInstanceById", instance, compute)
            self._nvml.call("nvmlComputeInstanceDestroy", part)
            self._nvml.call("nvmlGpuInstanceDestroy", instance)
        except BackendError as error:
            raise _explained(error, f"partition {uuid}") from error

    def device_files(self, device: Found, uuid: str) -> list[str]:
        """Name the device files that a partition's processes open besides its card's.

        The kernel's process folder tells their minor numbers (MIG user guide, "Device nodes").
        """
        handle = self._nvml.call("nvmlDeviceGetHandleByUUID", uuid)
        instance = self._nvml.call("nvmlDeviceGetGpuInstanceId", handle)
        compute = self._nvml.call("nvmlDeviceGetComputeInstanceId", handle)
        folder = self._proc / CAPABILITIES / f"gpu{device.minor}" / "mig" / f"gi{instance}"
        files = []
        for path in (folder / "access", folder / f"ci{compute}" / "access"):
            try:
                lines = path.read_text().splitlines()
            except OSError:
                continue
            numbers = [line.split(":")[1].strip() for line in lines if "DeviceFileMinor" in line]
            files += [f"/dev/nvidia-caps/nvidia-cap{number}" for number in numbers]
        return files

    def _of(self, device: Found) -> Iterator[Partition]:
        geometry = geometry_of(device.info.model, device.info.full_model)
        for index in range(self._nvml.ask("nvmlDeviceGetMaxMigDeviceCount", device.handle) or 0):
            handle = self._nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", device.handle, index)
            if handle is None:
                continue
            number = self._nvml.call("nvmlDeviceGetGpuInstanceId", handle)
            instance = self._nvml.call("nvmlDeviceGetGpuInstanceById", device.handle, number)
            told = self._nvml.call("nvmlGpuInstanceGetInfo", instance)
            shape = _by_profile(geometry, int(told.profileId))
            if shape is None:
                log.warning(
                    "partition of a shape that the catalogue does not know",
                    extra={"gpu": device.info.uuid, "profile": int(told.profileId)},
                )
                continue
            yield Partition(
                uuid=text(self._nvml.call("nvmlDeviceGetUUID", handle)),
                parent=device.info.uuid,
                template=shape.id,
                start=int(told.placement.start),
                compute_gflops=device.info.compute_gflops * shape.slices // shape.total_slices,
                vram_bytes=int(self._nvml.call("nvmlDeviceGetMemoryInfo", handle).total),
            )

    def _shape(self, info: DeviceInfo, template: str) -> PartitionTemplate:
        geometry = geometry_of(info.model, info.full_model)
        shape = geometry.template(template) if geometry is not None else None
        if shape is None:
            known = ", ".join(t.id for t in geometry.templates) if geometry else "none"
            raise BackendError(
                VENDOR,
                f"device {info.uuid}: no partition template {template!r}; allowed for"
                f" {info.model}: {known}",
            )
        return shape

    def _cut(self, device: Found, shape: PartitionTemplate, start: int | None) -> Any:
        where = "" if start is None else f" at slot {start}"
        try:
            if start is None:
                return self._nvml.call("nvmlDeviceCreateGpuInstance", device.handle, shape.profile)
            if start not in shape.starts:
                raise BackendError(
                    VENDOR,
                    f"device {device.info.uuid}: {shape.id} may start at slots"
                    f" {', '.join(map(str, shape.starts))}, not at {start}",
                )
            placement = self._nvml.make("c_nvmlGpuInstancePlacement_t", start, shape.width)
            return self._nvml.call(
                "nvmlDeviceCreateGpuInstanceWithPlacement",
                device.handle,
                shape.profile,
                ctypes.byref(placement),
            )
        except BackendError as error:
            raise _explained(error, f"device {device.info.uuid}: {shape.id}{where}") from error

    def _complete(self, instance: Any) -> None:
        """Give a GPU instance the compute instance that takes all of it."""
        engines = self._nvml.constant("NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED", 0)
        found = {}
        for number in range(self._nvml.constant("NVML_COMPUTE_INSTANCE_PROFILE_COUNT", 0)):
            told = self._nvml.ask(
                "nvmlGpuInstanceGetComputeInstanceProfileInfo", instance, number, engines
            )
            if told is not None:
                found[int(told.sliceCount)] = int(told.id)
        if not found:
            raise BackendError(VENDOR, "the instance has no compute profile")
        self._nvml.call("nvmlGpuInstanceCreateComputeInstance", instance, found[max(found)])

    def _left_over(self, device: Found, shape: PartitionTemplate, start: int | None) -> Any | None:
        """What a crash left between the two steps of a cut: the same place is taken up, others in the way go.

        No program can use an instance without compute instance, and no partition is listed for it.
        """
        taken = None
        for instance, told in self._unfinished(device):
            place = int(told.placement.start), int(told.placement.size)
            if (int(told.profileId), place[0]) == (shape.profile, start) and taken is None:
                taken = instance
            elif start is None or (place[0] < start + shape.width and start < sum(place)):
                self._nvml.ask("nvmlGpuInstanceDestroy", instance)
        return taken

    def _unfinished(self, device: Found) -> Iterator[tuple[Any, Any]]:
        geometry = geometry_of(device.info.model, device.info.full_model)
        for shape in geometry.templates if geometry else ():
            for instance in self._listed("nvmlDeviceGetGpuInstances", device.handle, shape.profile):
                if not self._has_compute(instance):
                    yield instance, self._nvml.call("nvmlGpuInstanceGetInfo", instance)

    def _has_compute(self, instance: Any) -> bool:
        return any(
            self._listed("nvmlGpuInstanceGetComputeInstances", instance, number)
            for number in range(self._nvml.constant("NVML_COMPUTE_INSTANCE_PROFILE_COUNT", 0))
        )

    def _listed(self, function: str, owner: Any, profile: int | None) -> list[Any]:
        kind = "c_nvmlGpuInstance_t" if "GpuInstances" in function else "c_nvmlComputeInstance_t"
        rows, count = self._nvml.make_array(kind, MANY), ctypes.c_uint(MANY)
        if self._nvml.ask(function, owner, profile, rows, ctypes.byref(count)) is None:
            return []
        return list(rows[: count.value])


def _by_profile(geometry: Geometry | None, profile: int) -> PartitionTemplate | None:
    templates = geometry.templates if geometry is not None else ()
    return next((t for t in templates if t.profile == profile), None)


def _explained(error: BackendError, what: str) -> BackendError:
    """Say what an error of the driver means for a partition."""
    if what in str(error):
        return error
    words = WORDS.get(int(error.code or 0))
    return BackendError(VENDOR, f"{what}: {words or error}", code=error.code)
