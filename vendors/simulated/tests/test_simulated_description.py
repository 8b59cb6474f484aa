"""Descriptions of simulated machines, and how a wrong one is refused."""

import pytest

from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.spi.backend import NodeContext
from tensorfusion.testing.clock import FakeClock
from tensorfusion_simulated.backend import SimulatedBackend


def names(text, tmp_path):
    path = tmp_path / "machines.yaml"
    path.write_text(text)
    return SimulatedBackend().nodes({"description": str(path)})


def test_default_is_two_nodes_of_four_cards(tmp_path):
    backend = SimulatedBackend()
    assert backend.nodes({}) == ["sim-node-0", "sim-node-1"]
    context = NodeContext(node="sim-node-0", state_dir=tmp_path, clock=FakeClock())
    assert len(backend.open(context).discover()) == 4


def test_machines_and_cards_come_from_yaml(tmp_path):
    text = """
nodes:
- {name: train, count: 2, gpus: [{model: H100_SXM, count: 8}]}
- {name: edge, gpus: [{model: l4, numa: 0}, {model: Tesla T4}]}
"""
    assert names(text, tmp_path) == ["train-0", "train-1", "edge"]
    settings = {"description": str(tmp_path / "machines.yaml")}
    context = NodeContext(node="edge", state_dir=tmp_path, clock=FakeClock(), settings=settings)
    assert [i.model for i in SimulatedBackend().open(context).discover()] == ["L4", "T4"]


def test_changed_description_is_read_again(tmp_path):
    backend, path = SimulatedBackend(), tmp_path / "machines.yaml"
    for name in ("one", "two"):
        path.write_text(f"nodes: [{{name: {name}, gpus: [{{model: T4}}]}}]")
        assert backend.nodes({"description": str(path)}) == [name]


def test_node_that_is_not_described_is_refused(tmp_path):
    context = NodeContext(node="other", state_dir=tmp_path, clock=FakeClock())
    with pytest.raises(BackendError, match="node 'other' is not described"):
        SimulatedBackend().open(context)


def test_uuids_differ_between_nodes_and_stay(tmp_path):
    backend = SimulatedBackend()

    def uuids(node):
        folder = tmp_path / node
        folder.mkdir(exist_ok=True)
        context = NodeContext(node=node, state_dir=folder, clock=FakeClock())
        return [info.uuid for info in backend.open(context).discover()]

    first, second = uuids("sim-node-0"), uuids("sim-node-1")
    assert len({*first, *second}) == 8
    assert uuids("sim-node-0") == first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes: [", "while parsing"),
        ("machines: []", "unknown field `machines`"),
        ("nodes: [{name: a}]", "missing required field `gpus`"),
        ("nodes: [{name: a, gpus: [{model: NoSuch}]}]", "node 'a': GPU model 'NoSuch' is not in"),
        ("nodes: [{name: a, gpus: [{model: T4, count: 0}]}]", "$.nodes[0].gpus[0].count"),
        ("nodes: [{name: a, gpus: [{model: T4, numa: -1}]}]", "$.nodes[0].gpus[0].numa"),
        ("nodes: [{name: Node_A, gpus: []}]", "$.nodes[0].name"),
        ("nodes: [{name: a, gpus: []}, {name: a, gpus: []}]", "'a' is described twice"),
        (
            "nodes: [{name: a-0, gpus: []}, {name: a, count: 2, gpus: []}]",
            "'a-0' is described twice",
        ),
        ("", "Expected `object`, got `null`"),
    ],
)
def test_wrong_description_is_refused_with_the_field(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        names(text, tmp_path)
    assert says in str(error.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: No such file"):
        SimulatedBackend().nodes({"description": str(tmp_path / "missing.yaml")})
    tmp_path.joinpath("bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"bytes\.yaml"):
        SimulatedBackend().nodes({"description": str(tmp_path / "bytes.yaml")})


def test_unknown_setting_and_double_description_are_refused():
    with pytest.raises(ConfigError, match="unknown field `node`"):
        SimulatedBackend().nodes({"node": []})
    both = {"description": "x.yaml", "nodes": [{"name": "a", "gpus": []}]}
    with pytest.raises(ConfigError, match="description or nodes, not both"):
        SimulatedBackend().nodes(both)
