"""The plugin host: what loads, what is refused with which words, what a failure leaves alone."""

import logging
from types import SimpleNamespace

import msgspec
import pytest

from tensorfusion import hookimpl
from tensorfusion.errors import ConfigError
from tensorfusion.host import PluginHost
from tensorfusion.spi.alerts import Delivery


class Sink:
    def __init__(self, name="quiet"):
        self.name = name
        self.settings = None

    def send(self, alerts):
        return [Delivery(a.fingerprint, True) for a in alerts]

    def configure(self, settings):
        if settings.limit > 100:
            raise ConfigError("limit: at most 100")
        self.settings = settings


class SinkSettings(msgspec.Struct, forbid_unknown_fields=True):
    limit: int = 1
    token: str = ""


def plugin(**hooks):
    """A plugin as the host sees a module: functions that carry hookimpl marks."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def sink_plugin(name="quiet", **hooks):
    return plugin(tensorfusion_alert_sinks=lambda: [Sink(name)], **hooks)


def failing():
    raise RuntimeError("driver not found\nsecond line")


def exiting():
    raise SystemExit(3)


def load(host, name, what, **kwargs):
    host.add(name, lambda: what, distribution=f"dist-{name}", **kwargs)
    return {r.name: r for r in host.records()}[name]


def test_host_lists_what_a_plugin_offers():
    host = PluginHost()
    record = load(host, "p", sink_plugin(), version="1.2")

    assert (record.state, record.kinds, record.version) == ("loaded", ["alert-sink"], "1.2")
    assert record.offers == {"alert-sink": ["quiet"]}
    assert list(host.alert_sinks()) == ["quiet"]


@pytest.mark.parametrize(
    ("allow", "deny", "state"),
    [
        ((), (), "loaded"),
        (("p",), (), "loaded"),
        (("other",), (), "denied"),
        ((), ("p",), "denied"),
        (("p",), ("p",), "denied"),
    ],
)
def test_host_loads_what_is_allowed_and_deny_wins(allow, deny, state):
    host = PluginHost(allow=allow, deny=deny)

    assert load(host, "p", sink_plugin()).state == state
    assert bool(host.alert_sinks()) == (state == "loaded")


def test_host_does_not_import_a_denied_plugin():
    host = PluginHost(deny=["p"])
    host.add("p", failing)

    assert host.records()[0].state == "denied"


BROKEN = {
    "raises at import": (failing, "RuntimeError: driver not found"),
    "exits at import": (exiting, "SystemExit: 3"),
    "raises in a hook": (lambda: plugin(tensorfusion_alert_sinks=failing), "driver not found"),
    "misspelt hook": (
        lambda: plugin(tensorfusion_alert_sink=lambda: []),  # noqa: PIE807 - pluggy marks functions
        "there is no such hook; did you mean tensorfusion_alert_sinks?",
    ),
    "object without the protocol": (
        lambda: plugin(tensorfusion_alert_sinks=lambda: [SimpleNamespace(name="x")]),
        "is not a AlertSink; it lacks send",
    ),
    "same name twice": (
        lambda: plugin(tensorfusion_alert_sinks=lambda: [Sink("a"), Sink("a")]),
        "the alert-sink 'a' is already offered by 'bad'",
    ),
    "name of another plugin's object": (
        lambda: sink_plugin("taken"),
        "the alert-sink 'taken' is already offered by 'good'",
    ),
    "answer that is no list": (
        lambda: plugin(tensorfusion_alert_sinks=lambda: 7),
        "'int' object is not iterable",
    ),
}


@pytest.mark.parametrize(("make", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_host_isolates_a_broken_plugin_and_says_why(make, reason, caplog):
    host = PluginHost()
    load(host, "good", sink_plugin("taken"))
    with caplog.at_level(logging.WARNING):
        host.add("bad", make)
    load(host, "later", sink_plugin("later"))

    bad = {r.name: r for r in host.records()}["bad"]
    assert bad.state == "failed"
    assert reason in bad.error
    assert "\n" not in bad.error
    assert bad.trace
    assert bad.kinds == []
    assert set(host.alert_sinks()) == {"taken", "later"}


def test_host_refuses_a_second_plugin_of_one_name():
    host = PluginHost()
    load(host, "p", sink_plugin("first"))
    host.add("p", lambda: sink_plugin("second"), distribution="imposter")

    failed = [r for r in host.records() if r.state == "failed"]
    assert [r.name for r in failed] == ["p (imposter)"]
    assert "taken by dist-p" in failed[0].error
    assert set(host.alert_sinks()) == {"first"}


def configurable(sink):
    return plugin(
        tensorfusion_alert_sinks=lambda: [sink], tensorfusion_settings=lambda: [SinkSettings]
    )


def test_host_hands_a_plugin_its_settings():
    sink = Sink()
    load(PluginHost(settings={"p": {"limit": 7}}), "p", configurable(sink))

    assert sink.settings == SinkSettings(limit=7)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"limit": "seven"}, "plugin_settings.p: Expected `int`, got `str` - at `$.limit`"),
        ({"limits": 7}, "plugin_settings.p: Object contains unknown field `limits`"),
        ({"limit": 700}, "limit: at most 100"),
    ],
)
def test_host_names_the_path_of_a_bad_setting(block, reason):
    record = load(PluginHost(settings={"p": block}), "p", configurable(Sink()))

    assert record.state == "failed"
    assert reason in record.error


def test_host_never_prints_the_value_of_a_setting():
    settings = {"p": {"limit": "hunter2", "token": "hunter2"}}
    record = load(PluginHost(settings=settings), "p", configurable(Sink()))

    assert record.state == "failed"
    assert "hunter2" not in record.error


def test_host_refuses_settings_for_a_plugin_that_has_none():
    record = load(PluginHost(settings={"p": {"limit": 7}}), "p", sink_plugin())

    assert "plugin_settings.p: the plugin has no settings, got ['limit']" in record.error


def test_host_warns_of_settings_without_a_plugin(caplog):
    with caplog.at_level(logging.WARNING):
        PluginHost(settings={"simulatd": {}}).load()

    assert (
        "plugin_settings.simulatd: there is no such plugin; did you mean simulated?" in caplog.text
    )


def test_observer_that_raises_does_not_stop_the_others(caplog):
    told = []
    host = PluginHost()
    load(host, "a", plugin(tensorfusion_alert_changed=lambda alert: failing()))
    load(host, "b", plugin(tensorfusion_alert_changed=lambda alert: told.append(alert)))
    load(host, "c", plugin(tensorfusion_alert_changed=lambda: told.append("no argument")))
    with caplog.at_level(logging.WARNING):
        host.notify("tensorfusion_alert_changed", alert="fire")

    assert sorted(told) == ["fire", "no argument"]
    broken = host.records()[0]
    assert broken.state == "loaded"
    assert broken.error == "tensorfusion_alert_changed: RuntimeError: driver not found"
    assert host.records()[1].kinds == ["observer"]
