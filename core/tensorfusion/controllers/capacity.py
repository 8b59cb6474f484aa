"""Sums of capacity: devices into nodes, nodes into pools, pools into clusters. Pure."""

from collections.abc import Iterable

import msgspec

from tensorfusion.api.gpu import GPU
from tensorfusion.api.node import GPUNodeStatus
from tensorfusion.api.pool import GPUPoolStatus
from tensorfusion.api.resource import JsonObject
from tensorfusion.model.device import Device
from tensorfusion.units import format_bytes, format_tflops, parse_bytes, parse_gflops


class Capacity(msgspec.Struct, frozen=True, gc=False):
    """Amounts in base units; ``available`` is what requests leave, virtual what limits may use."""

    gflops: int = 0
    vram_bytes: int = 0
    virtual_gflops: int = 0
    virtual_vram_bytes: int = 0
    available_gflops: int = 0
    available_vram_bytes: int = 0
    virtual_available_gflops: int = 0
    virtual_available_vram_bytes: int = 0


def total(parts: Iterable[Capacity]) -> Capacity:
    """Add capacities up."""
    columns = zip(*map(msgspec.structs.astuple, parts), strict=True)
    return Capacity(*(sum(column) for column in columns))


def of_gpu(gpu: GPU, device: Device | None) -> Capacity:
    """Read one GPU object; ``device`` adds what oversubscription allows."""
    status = gpu.status
    if status is None or status.capacity is None:
        return Capacity()
    gflops = parse_gflops(status.capacity.tflops or 0)
    vram = parse_bytes(status.capacity.vram or 0)
    free = status.available or status.capacity
    limits = [pod for app in status.running_apps for pod in app.pods if pod.limits is not None]
    limit_gflops = sum(parse_gflops(p.limits.tflops or 0) for p in limits if p.limits)
    limit_vram = sum(parse_bytes(p.limits.vram or 0) for p in limits if p.limits)
    virtual_gflops = device.limit_gflops if device else gflops
    virtual_vram = device.limit_vram_bytes if device else vram
    return Capacity(
        gflops=gflops,
        vram_bytes=vram,
        virtual_gflops=virtual_gflops,
        virtual_vram_bytes=virtual_vram,
        available_gflops=parse_gflops(free.tflops or 0),
        available_vram_bytes=parse_bytes(free.vram or 0),
        virtual_available_gflops=virtual_gflops - limit_gflops,
        virtual_available_vram_bytes=virtual_vram - limit_vram,
    )


def to_status(capacity: Capacity) -> JsonObject:
    """Print a capacity as the status fields that nodes, pools and clusters share."""
    return {
        "totalTFlops": format_tflops(capacity.gflops),
        "totalVRAM": format_bytes(capacity.vram_bytes),
        "virtualTFlops": format_tflops(capacity.virtual_gflops),
        "virtualVRAM": format_bytes(capacity.virtual_vram_bytes),
        "availableTFlops": format_tflops(capacity.available_gflops),
        "availableVRAM": format_bytes(capacity.available_vram_bytes),
        "virtualAvailableTFlops": format_tflops(capacity.virtual_available_gflops),
        "virtualAvailableVRAM": format_bytes(capacity.virtual_available_vram_bytes),
    }


def of_status(status: GPUNodeStatus | GPUPoolStatus) -> Capacity:
    """Read those fields back."""
    return Capacity(
        gflops=parse_gflops(status.total_tflops or 0),
        vram_bytes=parse_bytes(status.total_vram or 0),
        virtual_gflops=parse_gflops(status.virtual_tflops or 0),
        virtual_vram_bytes=parse_bytes(status.virtual_vram or 0),
        available_gflops=parse_gflops(status.available_tflops or 0),
        available_vram_bytes=parse_bytes(status.available_vram or 0),
        virtual_available_gflops=parse_gflops(status.virtual_available_tflops or 0),
        virtual_available_vram_bytes=parse_bytes(status.virtual_available_vram or 0),
    )
