"""The metric catalogue: conventions of its names, and code that writes exactly what it lists."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.catalogue import BY_NAME, LATENCY_BUCKETS, METRICS

ROOT = Path(__file__).parents[2]
SUFFIX = {
    "bytes": "_bytes",
    "flops": "_flops",
    "ratio": "_ratio",
    "seconds": "_seconds",
    "celsius": "_celsius",
    "watts": "_watts",
    "joules": "_joules",
}
BUILT_NAMES = {
    "core/tensorfusion/scheduling/quota_status.py": re.compile(r"tensorfusion_quota_.*"),
}
"""Files that put names together from parts; their tests run them against the catalogue."""
NO_METRICS = frozenset({"tensorfusion_native", "tensorfusion_plugins", "tensorfusion_dashboards"})


@pytest.mark.parametrize("info", METRICS, ids=lambda info: info.name)
def test_metric_keeps_the_conventions(info):
    assert re.fullmatch(r"tensorfusion_[a-z]+(_[a-z]+)*", info.name)
    base = info.name.removesuffix("_total")
    assert (info.kind == "counter") == info.name.endswith("_total")
    if info.unit in SUFFIX:
        assert base.endswith(SUFFIX[info.unit])
    else:
        assert info.unit in ("1", "bool")
        assert not base.endswith(tuple(SUFFIX.values()))
    assert not re.search(r"percent|_(count|sum|bucket)$|milli|mega|giga|kilo", info.name)
    assert info.help[0].isupper() or info.help.startswith("1 while")
    assert info.help.endswith(".")
    assert len(set(info.labels)) == len(info.labels)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in info.labels)
    if info.kind == "histogram":
        assert info.unit == "seconds"


def test_names_are_unique_and_buckets_grow():
    assert len(BY_NAME) == len(METRICS)
    assert list(LATENCY_BUCKETS) == sorted(set(LATENCY_BUCKETS))


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)"
)
def test_promtool_has_nothing_to_say_about_the_exposition():
    instruments = Instruments()
    for info in METRICS:
        labels = dict.fromkeys(info.labels, "x")
        write = {
            "gauge": lambda i=info, v=labels: instruments.set(i.name, 1, v),
            "counter": lambda i=info, v=labels: instruments.count(i.name, v),
            "histogram": lambda i=info, v=labels: instruments.observe(i.name, 0.1, v),
        }
        write[info.kind]()
    text = re.sub(rb"(?m)^(# \w+ )?\w+_created.*\n", b"", instruments.exposition())
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )

    assert (result.returncode, result.stderr.decode()) == (0, "")


def sources():
    for folder in ("core", "plugins", "vendors", "dashboards"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).as_posix()
            if "/tests/" not in relative and not relative.endswith("spi/catalogue.py"):
                yield relative, path.read_text()


def written_names():
    """Metric names that the code writes, with the files that write them.

    A name is written by a method of `Instruments`, or by the rows of the hypervisor's sampling;
    rules and dashboards only read, and what the metric store keeps is not written there.
    """
    written: dict[str, set[str]] = {}
    for path, text in sources():
        if path.startswith("dashboards/") or "metric_stores/" in path:
            continue
        found = [t for t in strings(text) if t.startswith("tensorfusion_")]
        if path.endswith(("hypervisor/sampling.py", "hypervisor/series.py")):
            # Its STORED set names what is kept; what is written are the rows.
            found = [f"tensorfusion_{t}" for t in row_names(text)]
        pattern = BUILT_NAMES.get(path)
        if pattern:
            found += [name for name in BY_NAME if pattern.fullmatch(name)]
        for name in found:
            written.setdefault(name, set()).add(path)
    return written


def strings(text):
    return [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def row_names(text):
    names = re.compile(r"(gpu|worker|hypervisor)_[a-z_]+")
    return [t for t in strings(text) if names.fullmatch(t) and t != "gpu_uuid"]


HOOKS = re.compile(r"tensorfusion_(backends|placement_policies|recommenders|alert_\w+|metric_stores"
                   r"|settings|commands|allocated|released|device_changed)")  # fmt: skip


def test_every_metric_of_the_catalogue_is_written_somewhere():
    assert sorted(BY_NAME.keys() - written_names().keys()) == []


def test_every_metric_that_is_written_is_in_the_catalogue():
    unknown = {
        name: sorted(paths)
        for name, paths in written_names().items()
        if name not in BY_NAME
        and name not in NO_METRICS
        and re.fullmatch(r"tensorfusion_[a-z_]+[a-z]", name)
        and not HOOKS.fullmatch(name)
    }

    # Names of modules, database tables and context variables look alike; they are not metrics.
    assert {
        n for n in unknown if n.endswith(("_total", "_seconds", "_bytes", "_flops", "_ratio"))
    } == set()
    assert unknown.keys() <= {
        "tensorfusion_store_warnings",
        "tensorfusion_simulated",
        "tensorfusion_nvidia",
    }
