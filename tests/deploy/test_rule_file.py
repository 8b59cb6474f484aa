"""The generated rule file, by Prometheus's own tool."""

import shutil
import subprocess

import pytest
import yaml
from rig.rule_cases import CASES, STEP_SECONDS

from tensorfusion.spi.rules import AlertRule
from tensorfusion_dashboards import rule_file
from tensorfusion_dashboards.rules import RULES

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)"
)
BY_NAME: dict[str, AlertRule] = {rule.name: rule for rule in RULES}


def run(*arguments, cwd):
    return subprocess.run(
        [PROMTOOL, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.yaml").write_text(rule_file.generate()[rule_file.PATH])
    return tmp_path


def test_rules_are_known_by_their_file():
    document = yaml.safe_load(rule_file.generate()[rule_file.PATH])

    assert [r["alert"] for g in document["groups"] for r in g["rules"]] == [r.name for r in RULES]


@needs_promtool
def test_promtool_finds_no_fault(rules):
    result = run("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", cwd=rules)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(RULES)} rules found" in result.stdout


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_prometheus_fires_by_the_same_table(rules, case):
    (rules / "tests.yaml").write_text(yaml.safe_dump(unit_test(case)))
    result = run("test", "rules", "tests.yaml", cwd=rules)

    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_would_notice_a_wrong_expectation(rules):
    """The tests above can fail: with the expectations of a quiet case a loud one does."""
    loud = unit_test(CASES[0])
    loud["tests"][0]["alert_rule_test"][1]["exp_alerts"] = []
    (rules / "tests.yaml").write_text(yaml.safe_dump(loud))

    assert run("test", "rules", "tests.yaml", cwd=rules).returncode == 1


def unit_test(case):
    test = {
        "interval": f"{STEP_SECONDS}s",
        "input_series": [
            {
                "series": f"{s.metric}{{{', '.join(f'{k}={v!r}' for k, v in s.labels.items())}}}",
                "values": " ".join([*(f"{v:.10g}" for v in s.values), "stale"]),
            }
            for s in case.series
        ],
        "alert_rule_test": [
            {
                "eval_time": f"{time}s",
                "alertname": case.rule,
                "exp_alerts": [alert(BY_NAME[case.rule], *found) for found in firing],
            }
            for time, firing in case.firing.items()
        ],
    }
    return {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{STEP_SECONDS}s",
        "tests": [test],
    }


def alert(rule, labels, value):
    return {
        "exp_labels": {**labels, "severity": rule.severity},
        "exp_annotations": {
            "summary": rule.summary,
            "description": rule.description.replace("{value}", value).format(**labels),
            "runbook_url": rule.runbook,
        },
    }
