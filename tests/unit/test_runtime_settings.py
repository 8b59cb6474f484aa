"""Settings: what is read from where, and which words a wrong one gets."""

import io
import json
import logging

import pytest

from tensorfusion.errors import ConfigError
from tensorfusion.runtime import logs
from tensorfusion.runtime.settings import Settings, load


def write(folder, text):
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_defaults_need_no_file():
    assert load(None, {}) == Settings()


def test_file_and_environment_are_laid_over_the_defaults(tmp_path):
    path = write(tmp_path, "sample_seconds: 2\nalert_seconds: 3\nplugins: {deny: [a]}\n")
    environment = {
        "TENSORFUSION_SAMPLE_SECONDS": "0.5",
        "TENSORFUSION_PLUGINS_DENY": "b, c",
        "TENSORFUSION_LOG_LEVEL": "debug",
        "TENSORFUSION_UNRELATED": "x",
    }
    loaded = load(path, environment)

    assert (loaded.sample_seconds, loaded.alert_seconds) == (0.5, 3)
    assert loaded.plugins.deny == ("a", "b", "c")
    assert loaded.log_level == "debug"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample_seconds: fast", ["sample_seconds: got 'fast'", "Expected `float`"]),
        ("sample_seconds: 0", ["sample_seconds: got 0", "> 0.0"]),
        (
            "sample_secs: 1",
            ["sample_secs: there is no such setting", "did you mean sample_seconds?"],
        ),
        ("zzz: 1", ["zzz: there is no such setting", "allowed: plugins, "]),
        ("log_level: loud", ["log_level: got 'loud'", "allowed: debug, info, warning, error"]),
        ("simulated: {nodes: 0}", ["simulated.nodes: got 0", ">= 1"]),
        ("simulated: {node: 1}", ["simulated.node: there is no such", "did you mean nodes?"]),
        ("plugins: {deny: a}", ["plugins.deny: got 'a'", "Expected `array`"]),
        ("- a", ["expected a mapping, got list"]),
        ("a: [", ["not YAML"]),
        ("a: \x00", ["not YAML"]),
    ],
)
def test_wrong_setting_names_file_field_value_and_what_is_allowed(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})

    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_wrong_variable_is_named_instead_of_the_file(tmp_path):
    path = write(tmp_path, "alert_seconds: 3\n")
    with pytest.raises(ConfigError, match=r"^TENSORFUSION_SAMPLE_SECONDS: sample_seconds: got 'x'"):
        load(path, {"TENSORFUSION_SAMPLE_SECONDS": "x"})


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "binary"])
def test_file_that_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {})

    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def emit(form):
    stream = io.StringIO()
    logs.configure("info", form, stream)
    log = logging.getLogger("tensorfusion.test")
    log.debug("not shown")
    try:
        raise ValueError("a defect")
    except ValueError:
        log.exception("it failed", extra={"key": "default/a", "seconds": 1.5, "odd": object})
    return stream.getvalue()


def test_json_log_is_one_object_a_line(root_logger):
    line = json.loads(emit("json"))

    assert line["msg"] == "it failed"
    assert (line["level"], line["logger"]) == ("error", "tensorfusion.test")
    assert (line["key"], line["seconds"]) == ("default/a", 1.5)
    assert "ValueError: a defect" in line["error"]
    assert line["ts"].endswith("Z")


def test_text_log_shows_pairs_and_the_trace(root_logger):
    text = emit("text")

    assert "ERROR   it failed  key=default/a seconds=1.5" in text
    assert "ValueError: a defect" in text
    assert "not shown" not in text
