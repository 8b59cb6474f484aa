"""Settings: one YAML file, environment overrides with one prefix, validated as a whole."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import yaml

from tensorfusion.errors import ConfigError

ENVIRONMENT_PREFIX = "TENSORFUSION_"
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which plugins load."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class SimulatedPool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``up`` simulates when no GPU is found and nothing else is said."""

    nodes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 2
    gpus_per_node: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    model: str = "A100_SXM_80G"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a control plane. Durations are seconds.

    Attributes:
        plugin_settings: Plugin name to its own block.
        backend: Backend to use; empty means a real GPU's if one is found, else the simulator.
        hypervisor: Where nodes are served: ``embedded`` in the control plane's own process, or by
            ``agents``, one `tensorfusion hypervisor` per node.
        auto_migration: Which pods with native GPU requests are taken over: ``enable``, and scopes
            ``includes`` and ``excludes``; see the how-to guide on migration.
        metric_store: Name of the metric store plugin.
        sample_seconds: How often hypervisors read devices and workers; less often where a reading
            takes longer than a third of that.
        autoscale_seconds: Pause between passes of the autoscaler.
        alert_seconds: Pause between evaluations of the alert rules, at least one sample's.
        event_ttl_seconds: How long an event stays after it last happened.
    """

    plugins: PluginSettings = PluginSettings()
    plugin_settings: dict[str, dict[str, Any]] = {}
    backend: str = ""
    hypervisor: Literal["embedded", "agents"] = "embedded"
    simulated: SimulatedPool = SimulatedPool()
    auto_migration: dict[str, Any] = {}
    metric_store: str = "embedded"
    metrics_retention_seconds: Seconds = 8 * 86400.0
    sample_seconds: Seconds = 1.0
    autoscale_seconds: Seconds = 10.0
    alert_seconds: Seconds = 5.0
    resync_seconds: Seconds = 300.0
    event_ttl_seconds: Seconds = 3600.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read settings.

    Args:
        path: The YAML file; None means defaults only.
        environment: Overrides such as ``TENSORFUSION_SAMPLE_SECONDS=0.5`` for scalar fields;
            ``TENSORFUSION_PLUGINS_DENY=a,b`` blocks plugins in an emergency.

    Raises:
        ConfigError: The file cannot be read, or a value is wrong; names path, field and value.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path}: expected a mapping, got {type(loaded).__name__}")
        data = loaded or {}
    overrides = os.environ if environment is None else environment
    sources: dict[str, str] = {}
    for field in msgspec.structs.fields(Settings):
        variable = ENVIRONMENT_PREFIX + field.name.upper()
        text = overrides.get(variable)
        if text is not None and field.name not in (
            "plugins",
            "plugin_settings",
            "simulated",
            "auto_migration",
        ):
            data[field.name] = text
            sources[field.name] = variable
    denied = overrides.get(ENVIRONMENT_PREFIX + "PLUGINS_DENY")
    if denied:
        plugins = dict(data.get("plugins") or {})
        plugins["deny"] = [*plugins.get("deny", []), *(n.strip() for n in denied.split(","))]
        data["plugins"] = plugins
    try:
        return msgspec.convert(data, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), data, str(path or "settings"), sources)) from error


def _explain(message: str, data: Mapping[str, Any], path: str, sources: Mapping[str, str]) -> str:
    """Say where a bad value comes from, which field has it, what it is and what is allowed."""
    what, _, place = message.partition(" - at `$")
    steps = place.strip("`").lstrip(".").split(".") if place else []
    struct: Any = Settings
    value: Any = data
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
        fields = {f.name: f.type for f in msgspec.structs.fields(struct)} if _is(struct) else {}
        struct = fields.get(step)
    source = sources.get(steps[0], path) if steps else path
    if "unknown field" in what and _is(struct):
        known = [f.name for f in msgspec.structs.fields(struct)]
        unknown = what.split("`")[1] if "`" in what else ""
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
        where = ".".join([*steps, unknown])
        return f"{source}: {where}: there is no such setting; {hint}"
    if get_origin(struct) is Literal:
        what = f"allowed: {', '.join(map(str, get_args(struct)))}"
    return f"{source}: {'.'.join(steps) or 'settings'}: got {value!r}; {what}"


def _is(struct: Any) -> bool:
    return isinstance(struct, type) and issubclass(struct, msgspec.Struct)
