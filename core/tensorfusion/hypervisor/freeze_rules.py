"""When an idle worker is frozen, as a pool's template says per quality of service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tensorfusion.api.scheduling_config import AutoFreeze, HypervisorScheduling
from tensorfusion.errors import ConfigError
from tensorfusion.spi.backend import Tier
from tensorfusion.units import QuantityError, parse_duration

ORDER: Final = (Tier.HOT, Tier.WARM, Tier.COLD)


@dataclass(frozen=True, slots=True)
class FreezeRule:
    """Seconds of idling before a worker goes to host memory and to disk; None is never."""

    to_memory: float | None = None
    to_disk: float | None = None


NEVER: Final = FreezeRule()


def freeze_rules(scheduling: HypervisorScheduling | None) -> Mapping[str, FreezeRule]:
    """Read a template's rules by quality of service; an entry counts only when it is enabled.

    Raises:
        ConfigError: A duration is wrong; names the entry and the field.
    """
    freezing = scheduling.auto_freeze_and_resume if scheduling is not None else None
    entries = freezing.auto_freeze if freezing is not None else ()
    return {entry.qos: _rule(entry) for entry in entries if entry.enable}


def _rule(entry: AutoFreeze) -> FreezeRule:
    return FreezeRule(
        _seconds(entry, "freezeToMemTTL", entry.freeze_to_mem_ttl),
        _seconds(entry, "freezeToDiskTTL", entry.freeze_to_disk_ttl),
    )


def _seconds(entry: AutoFreeze, field: str, text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = parse_duration(text)
    except QuantityError as error:
        raise ConfigError(f"autoFreeze for qos {entry.qos!r}: {field}: {error}") from error
    if seconds <= 0:
        raise ConfigError(
            f"autoFreeze for qos {entry.qos!r}: {field} is {text!r}, allowed are durations above 0"
        )
    return seconds


def due_tier(rule: FreezeRule, idle_seconds: float, now: Tier, offered: Sequence[Tier]) -> Tier:
    """The tier where a worker belongs after so much idling: never a warmer one than it is in."""
    reached = now
    for tier, after in ((Tier.WARM, rule.to_memory), (Tier.COLD, rule.to_disk)):
        waited = after is not None and idle_seconds >= after
        if waited and tier in offered and ORDER.index(tier) > ORDER.index(reached):
            reached = tier
    return reached
