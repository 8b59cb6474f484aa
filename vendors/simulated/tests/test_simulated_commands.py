"""``tensorfusion simulated``: faults from the command line reach a running session."""

import pytest
from click.testing import CliRunner

from tensorfusion_simulated.commands import group


@pytest.fixture
def invoke(node):
    data = node.folder.parent.parent

    def run(*arguments):
        return CliRunner().invoke(group, [*arguments, "--data", str(data)])

    return run


@pytest.fixture
def session(node):
    return node.open(count=2)


def test_fail_and_restore(invoke, session):
    uuid = session.discover()[0].uuid
    result = invoke("fail", "node", uuid, "--message", "fell off the bus")
    assert (result.exit_code, result.output) == (0, f"{uuid} on node failed: fell off the bus\n")
    assert session.discover()[0].message == "fell off the bus"
    assert invoke("restore", "node", uuid).exit_code == 0
    assert session.discover()[0].healthy


def test_remove_and_add(invoke, session):
    uuid = session.discover()[0].uuid
    assert invoke("remove", "node", uuid).exit_code == 0
    assert invoke("add", "node", "l4").output == "L4 added to node\n"
    assert [info.model for info in session.discover()] == ["A100_SXM_80G", "L4"]


def test_card_that_was_added_can_be_failed(invoke, session):
    assert invoke("add", "node", "L4").exit_code == 0
    uuid = session.discover()[2].uuid
    assert invoke("fail", "node", uuid).exit_code == 0
    assert not session.discover()[2].healthy


def test_throttle_keeps_other_faults(invoke, session):
    uuid = session.discover()[0].uuid
    invoke("fail", "node", uuid)
    assert invoke("throttle", "node", uuid, "0.5").output == f"{uuid} on node runs at 50%\n"
    assert not session.discover()[0].healthy
    assert session.metrics()[0].clock_hertz == pytest.approx(1.41e9 / 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fail", "other", "gpu-1"), "node 'other' is not simulated in"),
        (("fail", "node", "gpu-1"), "node 'node' has no card 'gpu-1'; known: gpu-"),
        (("throttle", "node", "gpu-1", "0"), "0<x<=1"),
        (("add", "node", "NoSuch"), "GPU model 'NoSuch' is not in the catalogue"),
        (("add", "other", "L4"), "known: node"),
    ],
)
def test_wrong_argument_is_one_clear_line(invoke, session, arguments, says):
    result = invoke(*arguments)
    assert result.exit_code != 0
    assert says in result.output
    assert "Traceback" not in result.output


def test_damaged_faults_file_is_named(invoke, session, node):
    node.folder.joinpath("faults.json").write_text("[")
    result = invoke("fail", "node", next(iter(session._cards)))
    assert result.exit_code == 1
    assert "faults.json cannot be read" in result.output


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0
    assert f"tensorfusion simulated {name}" in result.output
