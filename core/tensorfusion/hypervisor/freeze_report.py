"""What is said of a frozen worker: a condition of its pod."""

from typing import Final

from tensorfusion.hypervisor.pod_report import PodReport
from tensorfusion.runtime.conditions import condition
from tensorfusion.spi.backend import Tier, WorkerSpec

CONDITION: Final = "Frozen"
"""Condition of a pod: its worker is off its devices."""


class FreezeReport(PodReport):
    """Tells the pods of workers where these are.

    Concurrency: any thread.
    """

    def frozen(self, spec: WorkerSpec, tier: Tier, vram_bytes: int) -> None:
        """Write that a worker is off its devices."""
        reason, message = f"In{tier.value.capitalize()}Tier", f"{vram_bytes} bytes in tier {tier}"
        self.write(spec, condition(CONDITION, status=True, reason=reason, message=message))

    def thawed(self, spec: WorkerSpec, message: str) -> None:
        """Write that a worker is on its devices."""
        self.write(spec, condition(CONDITION, status=False, reason="Thawed", message=message))
