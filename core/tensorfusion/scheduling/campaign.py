"""When defragmentation may run: by a pool's schedule, or because somebody asked. Pure."""

from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tensorfusion import names
from tensorfusion.api.pool import Defrag, GPUPool
from tensorfusion.clock import parse_timestamp
from tensorfusion.errors import ConfigError
from tensorfusion.units import parse_duration

DEFAULT_DURATION_SECONDS = 7200.0
DEFAULT_MARKER_SECONDS = 1800.0
"""How long an emptied node stays marked; both as the CRD's defaults."""


class Campaign(NamedTuple):
    """A run of defragmentation.

    Attributes:
        start: When it was due, epoch seconds.
        end: When it must be over.
    """

    start: float
    end: float


def defrag_config(pool: GPUPool) -> Defrag | None:
    """Return a pool's settings for defragmentation."""
    config = pool.spec.node_manager_config if pool.spec else None
    return config.node_compaction.defrag if config and config.node_compaction else None


def campaign_of(pool: GPUPool, now: float) -> Campaign | None:
    """Return the run that is due or under way; None when there is none.

    A run is over once the pool's ``lastDefragTime`` is not before its start.

    Raises:
        ConfigError: The schedule, its time zone or a duration cannot be read; names the field.
    """
    config = defrag_config(pool)
    last = pool.status.last_defrag_time if pool.status is not None else None
    done = parse_timestamp(last) if last else 0.0
    duration = DEFAULT_DURATION_SECONDS
    starts = []
    if config is not None:
        duration = _duration(config.max_duration, "maxDuration")
        if config.enabled:
            starts.append(_latest_tick(config, now))
    asked = pool.metadata.annotations.get(names.MANUAL_DEFRAG, "")
    if asked:
        starts.append(_moment(asked))
    due = [start for start in starts if done < start <= now < start + duration]
    return Campaign(max(due), max(due) + duration) if due else None


def marker_seconds(pool: GPUPool) -> float | None:
    """How long an emptied node stays marked; None for ever."""
    config = defrag_config(pool)
    if config is None:
        return DEFAULT_MARKER_SECONDS
    if config.source_node_marker_ttl.lower() == "never":
        return None
    return _duration(config.source_node_marker_ttl, "sourceNodeMarkerTTL")


def _latest_tick(config: Defrag, now: float) -> float:
    from croniter import CroniterError, croniter  # lazy: few pools have a schedule

    try:
        zone = ZoneInfo(config.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"nodeCompaction.defrag.timezone is {config.timezone!r}, allowed are IANA names such"
            " as Europe/Berlin"
        ) from error
    try:
        # The tick at this very second counts.
        moment = datetime.fromtimestamp(now + 1.0, zone)
        return float(croniter(config.schedule, moment).get_prev(float))
    except (CroniterError, ValueError, KeyError) as error:
        raise ConfigError(
            f"nodeCompaction.defrag.schedule is {config.schedule!r}, allowed are five fields of"
            f" cron such as '0 3 * * *': {error}"
        ) from error


def _duration(text: str, field: str) -> float:
    try:
        return parse_duration(text)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"nodeCompaction.defrag.{field}: {error}") from error


def _moment(text: str) -> float:
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise ConfigError(
            f"annotation {names.MANUAL_DEFRAG} is {text!r}, allowed is a time such as"
            " 2026-01-31T12:00:00Z"
        ) from error
