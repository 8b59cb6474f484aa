"""What a worker's allocations do when a card is full although the worker is within its limit.

Only a pool that promises more VRAM than it has can get there, so without its ``oversubscription``
block the answer is to refuse. The defaults follow what a quality of service pays for: ``low`` keeps
running, slower, and costs nobody else anything; ``medium`` bridges the peaks of its neighbours;
``high`` and ``critical`` come before neighbours that are idle, and ``critical`` has the time that
freezing a large one takes.
"""

from collections.abc import Mapping
from typing import Final

from tensorfusion.api.pool import GPUPool, VramFull
from tensorfusion.spi.backend import FullPolicy, Share, WhenFull
from tensorfusion.units import parse_bytes, parse_duration

WAIT_SECONDS: Final = 10.0
"""How long an allocation is held where the pool says nothing."""
DEFAULTS: Final[Mapping[str, tuple[FullPolicy, float]]] = {
    "low": (FullPolicy.SPILL, 0.0),
    "medium": (FullPolicy.WAIT, WAIT_SECONDS),
    "high": (FullPolicy.EVICT, WAIT_SECONDS),
    "critical": (FullPolicy.EVICT, 3 * WAIT_SECONDS),
}
"""Policy and deadline by quality of service."""


def when_full(pool: GPUPool | None, qos: str, share: Share) -> WhenFull:
    """Choose a worker's policy.

    Args:
        pool: The pool of its node; None while none claims it.
        qos: The worker's quality of service; one that the pool does not know counts as medium.
        share: Its hold on each of its devices.
    """
    config = pool.spec.capacity_config if pool is not None and pool.spec else None
    promised = config.oversubscription if config else None
    if promised is None:
        return WhenFull()
    for rule in promised.vram_full:
        if rule.qos == qos:
            return _ruled(rule, share)
    policy, seconds = DEFAULTS.get(qos, DEFAULTS["medium"])
    return WhenFull(policy, seconds, _host_bytes(policy, share.limit_vram_bytes))


def _ruled(rule: VramFull, share: Share) -> WhenFull:
    policy = FullPolicy(rule.policy)
    waits = policy in (FullPolicy.WAIT, FullPolicy.EVICT)
    seconds = parse_duration(rule.timeout) if rule.timeout else WAIT_SECONDS
    most = share.limit_vram_bytes if rule.host_memory is None else parse_bytes(rule.host_memory)
    return WhenFull(policy, seconds if waits else 0.0, _host_bytes(policy, most))


def _host_bytes(policy: FullPolicy, most: int) -> int:
    return most if policy is FullPolicy.SPILL else 0
