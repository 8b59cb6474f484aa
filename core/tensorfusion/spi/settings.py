"""How a plugin gets its settings: a struct it declares, decoded from its block of the file."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Configurable(Protocol):
    """An offered object that wants its plugin's settings before it is used.

    The plugin offers the struct through ``tensorfusion_settings``; the host decodes the block
    ``plugin_settings.<plugin name>`` of the configuration into it and calls `configure` once.
    """

    def configure(self, settings: Any) -> None:
        """Take the decoded settings; raise ``ConfigError`` for values that make no sense."""
        ...
