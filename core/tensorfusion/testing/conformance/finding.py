"""Finds the backend under test among the installed plugins, and reads its settings."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tensorfusion.errors import ConfigError
from tensorfusion.host import PluginHost
from tensorfusion.spi.backend import Backend


def read_settings(path: str) -> dict[str, Any]:
    """Read the plugin's block of the settings; without a path it is empty.

    Raises:
        ConfigError: The file cannot be read or is no mapping.
    """
    if not path:
        return {}
    try:
        block = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--settings {path}: {error}") from error
    if not isinstance(block, dict):
        raise ConfigError(f"--settings {path}: expected a mapping, got {type(block).__name__}")
    return block


def plugin_of(host: PluginHost, vendor: str) -> str:
    """Name the plugin that offers a backend.

    Raises:
        ConfigError: No plugin does; names those that do offer one, and those that failed.
    """
    for record in host.records():
        if vendor in record.offers.get("backend", ()) and record.state == "loaded":
            return record.name
    failed = [f"{r.name}: {r.error}" for r in host.records() if r.state == "failed"]
    raise ConfigError(
        f"no backend {vendor!r} is installed; installed: {', '.join(host.backends()) or 'none'}"
        + (f"; failed to load: {'; '.join(failed)}" if failed else "")
    )


def find_backend(vendor: str, settings: Mapping[str, Any]) -> Backend:
    """Load an installed backend through the plugin host, as the product does.

    Raises:
        ConfigError: It is not installed, or its plugin fails with these settings.
    """
    host = PluginHost()
    host.load()
    plugin = plugin_of(host, vendor)
    if not settings:
        return host.backends()[vendor]
    configured = PluginHost(allow=[plugin], settings={plugin: settings})
    configured.load()
    plugin_of(configured, vendor)
    return configured.backends()[vendor]


@cache
def installed_backend(vendor: str, settings_path: str) -> Backend:
    """Load an installed backend once for a test run."""
    return find_backend(vendor, read_settings(settings_path))
