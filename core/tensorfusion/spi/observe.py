"""What observers are told."""

from dataclasses import dataclass

from tensorfusion.spi.backend import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationEvent:
    """A worker was given devices, or gave them back."""

    worker: str
    namespace: str
    name: str
    workload: str
    pool: str
    node: str
    devices: tuple[str, ...]
    share: Share
    time: float
    reason: str
