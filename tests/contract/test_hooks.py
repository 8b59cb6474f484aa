"""Hook specifications against the implementations that come with the product."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from tensorfusion import hookspecs
from tensorfusion.host import PluginHost
from tensorfusion.host.plugin_host import PROTOCOLS, protocol_members

POINTS = sorted(entry_points(group="tensorfusion"), key=lambda p: p.name)
OURS = [p for p in POINTS if p.value.startswith("tensorfusion_")]
HEAVY = ("numpy", "pandas", "scipy", "statsmodels", "kubernetes", "influxdb_client", "pynvml")


@pytest.fixture(scope="module")
def host():
    loaded = PluginHost()
    loaded.load()
    return loaded


def test_every_installed_plugin_loads(host):
    assert {r.name: r.error for r in host.records() if r.state != "loaded"} == {}


def test_every_kind_of_offer_has_a_builtin(host):
    kinds = {kind for record in host.records() for kind in record.kinds}

    assert set(hookspecs.OFFERS.values()) - kinds == set()


@pytest.mark.parametrize("point", OURS, ids=lambda p: p.name)
def test_hook_signatures_are_those_of_the_specification(point):
    module = point.load()
    found = [name for name in dir(module) if name in hookspecs.hook_names()]

    assert found, "a plugin without hooks"
    for name in found:
        ours = inspect.signature(getattr(module, name))
        spec = inspect.signature(getattr(hookspecs, name))
        assert printed(ours) == printed(spec), f"{point.value}.{name}"


def printed(signature):
    """Without quotes and module paths: an annotation may be a string or a class."""
    return re.sub(r"['\"]|\b[a-z_.]+\.", "", str(signature))


@pytest.mark.parametrize("point", OURS, ids=lambda p: p.name)
def test_importing_a_hook_module_is_cheap(point):
    program = (
        f"import sys, {point.value}; "
        f"print(*(m for m in {HEAVY!r} if m in sys.modules), len(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    *heavy, count = result.stdout.split()

    assert heavy == []
    assert int(count) < 400


@pytest.mark.parametrize("hook", hookspecs.hook_names())
def test_every_hook_is_documented(hook):
    function = getattr(hookspecs, hook)

    assert inspect.getdoc(function)
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("kind", sorted(PROTOCOLS.keys() - {"alert-rules"}))
def test_every_protocol_member_is_documented(kind):
    protocol = PROTOCOLS[kind]
    for member in protocol_members(protocol):
        function = getattr(protocol, member, None)
        if callable(function):
            assert inspect.getdoc(function), f"{protocol.__name__}.{member}"
