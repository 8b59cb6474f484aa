"""PluginHost: loads plugins from entry points, isolates their failures, offers a typed facade.

The composition (``tensorfusion.app`` and the CLI) constructs one; nothing is loaded at import.
A plugin that fails, at whatever step, is recorded with its error and left out; the others work.
"""

import difflib
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import msgspec
import pluggy

from tensorfusion import hookspecs
from tensorfusion.errors import ConfigError, PluginError
from tensorfusion.spi.alerts import AlertSink
from tensorfusion.spi.backend import Backend
from tensorfusion.spi.metrics import MetricStore
from tensorfusion.spi.policy import PlacementPolicy
from tensorfusion.spi.recommender import Recommender
from tensorfusion.spi.rules import AlertRule
from tensorfusion.spi.settings import Configurable

log = logging.getLogger(__name__)
GROUP = "tensorfusion"


@dataclass(slots=True)
class PluginRecord:
    """What ``tensorfusion plugins`` prints of one plugin.

    Attributes:
        state: ``loaded``, ``denied`` or ``failed``.
        kinds: What it offers or observes, in the words of `hookspecs.OFFERS`.
        offers: Kind to the names of the objects it offers.
        error: One line, when it failed. ``trace`` has the whole story.
    """

    name: str
    distribution: str = ""
    version: str = ""
    module: str = ""
    state: str = "loaded"
    kinds: list[str] = field(default_factory=list)
    offers: dict[str, list[str]] = field(default_factory=dict)
    load_seconds: float = 0.0
    error: str = ""
    trace: str = ""


class PluginHost:
    """Every plugin of this process.

    Args:
        allow: Load only these names; empty means all.
        deny: Never load these names; beats ``allow``.
        settings: Plugin name to its block of the configuration.

    Concurrency: load from one thread; afterwards everything is read-only but `notify`, which
    may be called from any thread.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        settings: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self._allow = frozenset(allow)
        self._deny = frozenset(deny)
        self._settings = dict(settings or {})
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._records: dict[str, PluginRecord] = {}
        self._objects: dict[str, list[tuple[str, Any]]] = {}

    def load(self, points: Iterable[EntryPoint] | None = None) -> None:
        """Load every plugin of the entry-point group, in the order of their names."""
        found = entry_points(group=GROUP) if points is None else points
        for point in sorted(found, key=lambda p: p.name):
            distribution = point.dist
            self.add(
                point.name,
                point.load,
                distribution=distribution.name if distribution else "",
                version=distribution.version if distribution else "",
                module=point.value,
            )
        for name in sorted(self._settings.keys() - self._records.keys()):
            close = difflib.get_close_matches(name, self._records, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            log.warning("plugin_settings.%s: there is no such plugin%s", name, hint)

    def add(
        self,
        name: str,
        load: Callable[[], object],
        *,
        distribution: str = "",
        version: str = "",
        module: str = "",
    ) -> None:
        """Load one plugin; a failure is recorded, never raised."""
        record = PluginRecord(name, distribution, version, module)
        if name in self._records:
            record.name = f"{name} ({distribution or module})"
            record.state = "failed"
            other = self._records[name]
            record.error = (
                f"the name {name!r} is taken by {other.distribution or other.module or 'another'}"
            )
            self._records[record.name] = record
            return
        self._records[name] = record
        if name in self._deny or (self._allow and name not in self._allow):
            record.state = "denied"
            return
        started = time.perf_counter()
        try:
            self._register(name, load(), record)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - hook isolation: one bad plugin must not stop the rest, not even one that exits
            self._fail(record, error)
        record.load_seconds = time.perf_counter() - started

    def _register(self, name: str, plugin: object, record: PluginRecord) -> None:
        self._check_hook_names(name, plugin)
        self._manager.register(plugin, name)
        staged: dict[str, list[tuple[str, Any]]] = {}
        try:
            struct: type[msgspec.Struct] | None = None
            for hook, kind in hookspecs.OFFERS.items():
                offered = self._call_one(hook, name)
                if offered is None:
                    continue
                record.kinds.append(kind)
                items = list(offered)
                if kind == "settings":
                    struct = items[0] if items else None
                self._check_objects(name, hook, kind, items)
                record.offers[kind] = [object_name(item) for item in items]
                staged[kind] = [(name, item) for item in items]
            self._configure(name, struct, staged)
        except BaseException:
            self._manager.unregister(name=name)
            raise
        for kind, pairs in staged.items():
            self._objects.setdefault(kind, []).extend(pairs)
        observed = [h for h in hookspecs.OBSERVERS if self._implements(h, name)]
        if observed:
            record.kinds.append("observer")
            record.offers["observer"] = [h.removeprefix("tensorfusion_") for h in observed]

    def _check_hook_names(self, name: str, plugin: object) -> None:
        """Refuse a misspelt hook: pluggy itself would ignore it in silence."""
        known = hookspecs.hook_names()
        for attribute in dir(plugin):
            if not attribute.startswith("tensorfusion_") or attribute in known:
                continue
            if not callable(getattr(plugin, attribute)):
                continue
            close = difflib.get_close_matches(attribute, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise PluginError(name, attribute, f"there is no such hook{hint}")

    def _check_objects(self, name: str, hook: str, kind: str, items: Sequence[Any]) -> None:
        protocol = PROTOCOLS.get(kind)
        taken = {object_name(other): owner for owner, other in self._objects.get(kind, [])}
        for item in items:
            if protocol is not None and not isinstance(item, protocol):
                missing = [m for m in protocol_members(protocol) if not hasattr(item, m)]
                raise PluginError(
                    name,
                    hook,
                    f"{item!r} is not a {protocol.__name__}; it lacks {', '.join(missing)}",
                )
            if kind != "settings" and object_name(item) in taken:
                owner = taken[object_name(item)]
                raise PluginError(
                    name, hook, f"the {kind} {object_name(item)!r} is already offered by {owner!r}"
                )
            taken[object_name(item)] = name

    def _configure(
        self,
        name: str,
        struct: type[msgspec.Struct] | None,
        staged: Mapping[str, list[tuple[str, Any]]],
    ) -> None:
        block = self._settings.get(name, {})
        if struct is None:
            if block:
                raise ConfigError(
                    f"plugin_settings.{name}: the plugin has no settings, got {sorted(block)}"
                )
            return
        try:
            settings = msgspec.convert(dict(block), struct)
        except msgspec.ValidationError as error:
            raise ConfigError(f"plugin_settings.{name}: {error}") from error
        for pairs in staged.values():
            for _, item in pairs:
                if isinstance(item, Configurable) and not isinstance(item, type):
                    item.configure(settings)

    def _call_one(self, hook: str, name: str) -> Iterable[Any] | None:
        implementation = self._implementation(hook, name)
        if implementation is None:
            return None
        return cast("Iterable[Any]", implementation())

    def _implementation(self, hook: str, name: str) -> Callable[..., object] | None:
        caller = getattr(self._manager.hook, hook)
        for implementation in caller.get_hookimpls():
            if implementation.plugin_name == name:
                return cast("Callable[..., object]", implementation.function)
        return None

    def _implements(self, hook: str, name: str) -> bool:
        return self._implementation(hook, name) is not None

    def _fail(self, record: PluginRecord, error: BaseException) -> None:
        record.state = "failed"
        record.kinds.clear()
        record.offers.clear()
        record.error = f"{type(error).__name__}: {error}".splitlines()[0]
        record.trace = "".join(traceback.format_exception(error))
        log.warning("plugin failed", extra={"plugin": record.name, "error": record.error})

    def notify(self, hook: str, **arguments: object) -> None:
        """Tell every observer; one that raises is recorded and logged, the rest are told."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            accepted = {k: v for k, v in arguments.items() if k in implementation.argnames}
            try:
                implementation.function(**accepted)
            except Exception as error:  # noqa: BLE001 - hook isolation
                record = self._records[implementation.plugin_name]
                record.error = f"{hook}: {type(error).__name__}: {error}".splitlines()[0]
                record.trace = traceback.format_exc()
                log.warning("observer failed", extra={"plugin": record.name, "hook": hook})

    def records(self) -> list[PluginRecord]:
        """Every plugin found, loaded or not, by name."""
        return sorted(self._records.values(), key=lambda r: r.name)

    def backends(self) -> dict[str, Backend]:
        """Backends by name."""
        return self._offered("backend")

    def placement_policies(self) -> dict[str, PlacementPolicy]:
        """Placement policies by name."""
        return self._offered("placement-policy")

    def recommenders(self) -> dict[str, Recommender]:
        """Recommenders by name."""
        return self._offered("recommender")

    def alert_sinks(self) -> dict[str, AlertSink]:
        """Alert sinks by name."""
        return self._offered("alert-sink")

    def metric_stores(self) -> dict[str, MetricStore]:
        """Metric stores by name."""
        return self._offered("metric-store")

    def alert_rules(self) -> dict[str, AlertRule]:
        """Alert rules by name."""
        return self._offered("alert-rules")

    def commands(self) -> list[Any]:
        """Click commands that plugins add to the program."""
        return [item for _, item in self._objects.get("command", [])]

    def _offered(self, kind: str) -> dict[str, Any]:
        return {object_name(item): item for _, item in self._objects.get(kind, [])}


PROTOCOLS: dict[str, type] = {
    "backend": Backend,
    "placement-policy": PlacementPolicy,
    "recommender": Recommender,
    "alert-sink": AlertSink,
    "metric-store": MetricStore,
    "alert-rules": AlertRule,
}


def protocol_members(protocol: type) -> list[str]:
    """Name what a runtime-checkable Protocol asks of an object."""
    members = getattr(protocol, "__protocol_attrs__", None)
    if members is None:  # Python 3.11 keeps no such attribute
        members = {n for n in dir(protocol) if not n.startswith("_")}
        members |= {n for n in getattr(protocol, "__annotations__", {}) if not n.startswith("_")}
    return sorted(members)


def object_name(item: object) -> str:
    """The name of an offered object: its ``name``, or the class's for a settings struct."""
    if isinstance(item, type):
        return item.__name__
    return str(getattr(item, "name", type(item).__name__))
