"""The plugin host: finds, loads, checks and isolates plugins."""

from tensorfusion.host.plugin_host import PluginHost, PluginRecord

__all__ = ["PluginHost", "PluginRecord"]
