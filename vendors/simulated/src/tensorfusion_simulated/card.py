"""One simulated card: it integrates load over time into utilization, memory, heat and energy."""

import math
from dataclasses import dataclass, field

from tensorfusion.model.hardware import Card
from tensorfusion.spi.backend import DeviceMetrics, Share, WorkerUsage
from tensorfusion_simulated.contention import Claim, divide_compute, grow_memory
from tensorfusion_simulated.load import Profile

AMBIENT_CELSIUS = 30.0
HOT_CELSIUS = 78.0
IDLE_POWER_RATIO = 0.12
"""Idle draw over the power limit: about 50 W of 400 W on an A100, from its own management tool."""
THERMAL_SECONDS = 30.0
"""Time constant of the first-order heat model: half a minute to reach two thirds of a step."""
MAX_STEPS = 240


@dataclass(slots=True)
class Tenant:
    """A worker on a card."""

    worker: str
    share: Share
    profile: Profile
    started: float
    vram_bytes: int = 0
    gflops: float = 0.0
    throttled_seconds: float = 0.0
    oom_total: int = 0
    refused: bool = False


@dataclass(slots=True)
class SimulatedCard:
    """State of one card; time is wall-clock epoch seconds and only moves in `advance`."""

    uuid: str
    card: Card
    now: float
    tenants: dict[str, Tenant] = field(default_factory=dict)
    speed_ratio: float = 1.0
    utilization: float = 0.0
    celsius: float = AMBIENT_CELSIUS
    joules: float = 0.0
    failed: str = ""

    def advance(self, now: float) -> None:
        """Integrate up to ``now``; averages of the interval become the current reading."""
        span = now - self.now
        if span <= 0:
            return
        if not self.tenants:
            self._burn(0.0, span)
            self.now, self.utilization = now, 0.0
            return
        # Between changes of load everything below is exact, however long the step.
        step = min((t.profile.step_seconds for t in self.tenants.values()), default=math.inf)
        steps = min(MAX_STEPS, max(1, math.ceil(span / step)))
        dt = span / steps
        used = dict.fromkeys(self.tenants, 0.0)
        for n in range(steps):
            self._step(self.now + (n + 0.5) * dt, dt, used)
        self.now = now
        for tenant in self.tenants.values():
            tenant.gflops = used[tenant.worker] / span
        self.utilization = min(1.0, sum(used.values()) / span / self.card.compute_gflops)

    def _step(self, moment: float, dt: float, used: dict[str, float]) -> None:
        tenants = list(self.tenants.values())
        whole = self.card.compute_gflops
        capacity = 0.0 if self.failed else whole * self.speed_ratio
        wanted = [t.profile.at(moment - t.started, whole) for t in tenants]
        claims = [
            Claim(w.gflops, t.share.request_on(whole), t.share.limit_on(whole))
            for w, t in zip(wanted, tenants, strict=True)
        ]
        given = divide_compute(capacity, claims)
        vram, refused = grow_memory(
            self.card.vram_bytes,
            [t.vram_bytes for t in tenants],
            [w.vram_bytes for w in wanted],
            [t.share.limit_vram_bytes for t in tenants],
        )
        for i, tenant in enumerate(tenants):
            used[tenant.worker] += given[i] * dt
            if wanted[i].gflops > given[i]:
                tenant.throttled_seconds += dt * (1 - given[i] / wanted[i].gflops)
            # An allocation that is refused is one event, however long the wish lasts.
            tenant.oom_total += int(refused[i] and not tenant.refused)
            tenant.refused = refused[i]
            tenant.vram_bytes = vram[i]
        self._burn(sum(given) / self.card.compute_gflops, dt)

    def _burn(self, load: float, dt: float) -> None:
        """Turn a load ratio over ``dt`` seconds into energy and heat."""
        idle = self.card.power_watts * IDLE_POWER_RATIO
        self.joules += (idle + (self.card.power_watts - idle) * load) * dt
        target = AMBIENT_CELSIUS + (HOT_CELSIUS - AMBIENT_CELSIUS) * load
        self.celsius += (target - self.celsius) * (1 - math.exp(-dt / THERMAL_SECONDS))

    def metrics(self) -> DeviceMetrics:
        """Read the card as of the last `advance`."""
        idle = self.card.power_watts * IDLE_POWER_RATIO
        return DeviceMetrics(
            uuid=self.uuid,
            time=self.now,
            utilization_ratio=self.utilization,
            vram_used_bytes=sum(t.vram_bytes for t in self.tenants.values()),
            temperature_celsius=self.celsius,
            power_watts=idle + (self.card.power_watts - idle) * self.utilization,
            energy_joules_total=self.joules,
            clock_hertz=1.41e9 * self.speed_ratio,
        )

    def usage(self) -> list[WorkerUsage]:
        """Read the tenants as of the last `advance`."""
        return [
            WorkerUsage(
                worker=t.worker,
                uuid=self.uuid,
                time=self.now,
                compute_gflops=t.gflops,
                vram_bytes=t.vram_bytes,
                throttled_seconds_total=t.throttled_seconds,
                oom_total=t.oom_total,
            )
            for t in self.tenants.values()
        ]
