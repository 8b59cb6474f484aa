"""`tensorfusion simulate` on objects: what would become of pods on a cluster that is not there yet."""

import json

import pytest
from rig.scheduling import World

from tensorfusion.app.snapshot import read_objects
from tensorfusion.cli.main import run

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web, tensor-fusion.ai/enabled: "true"}
      annotations: {tensor-fusion.ai/tflops-request: "150", tensor-fusion.ai/vram-request: 8Gi}
    spec:
      containers: [{name: main, image: x}]
"""


@pytest.fixture
def world(cluster, tmp_path):
    """One node with one card of 312 TFLOPS; `first` has most of it, `second` waits."""
    found = World(cluster, tmp_path)
    found.nodes(a=1)
    found.start()
    found.pod("first", 200)
    found.settle(2)
    found.clock.advance(5)
    found.pod("second", 200)
    found.settle(2)
    assert found.bound() == {"first": "a"}
    return found


@pytest.fixture
def simulate(world, tmp_path, capsys):
    file = tmp_path / "cluster.json"
    body = {"apiVersion": "v1", "kind": "List", "items": read_objects(world.store)}
    file.write_text(json.dumps(body))

    def invoke(*arguments, output="json", code=0):
        options = ["simulate", "--snapshot", str(file), *arguments, "-o", output]
        assert run(options) == code
        found = capsys.readouterr()
        return json.loads(found.out) if output == "json" and not code else found.out + found.err

    return invoke


def nodes_of(outcome):
    return {pod["pod"]: pod["node"] for pod in outcome["pods"]}


def test_what_waits_still_waits_on_the_cluster_as_it_is(simulate):
    (outcome,) = simulate()["outcomes"]
    assert nodes_of(outcome) == {"default/second": None}
    assert "1 insufficient compute" in outcome["pods"][0]["why"]
    assert outcome["allocatedComputePercent"] == pytest.approx(100 * 200 / 312)


def test_an_added_node_takes_what_waits(simulate, world):
    (outcome,) = simulate("--add", "A100_SXM_80G:2")["outcomes"]
    assert nodes_of(outcome) == {"default/second": "added-0"}
    assert (outcome["gpus"], outcome["nodes"], outcome["placed"]) == (3, 2, 1)
    assert world.bound() == {"first": "a"}, "nothing is changed"


def test_manifests_come_after_what_waits_a_pod_for_each_replica(simulate, tmp_path):
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "web.yaml").write_text(DEPLOYMENT)
    answer = simulate("--manifests", str(folder), "--add", "A100_SXM_80G:2")
    (outcome,) = answer["outcomes"]
    placed = nodes_of(outcome)
    assert list(placed) == ["default/second", *(f"default/web-{n}" for n in range(3))]
    assert list(placed.values()) == ["added-0", "added-0", "added-0", None]
    assert answer["refused"] == []


def test_refused_manifest_is_named(simulate, tmp_path):
    bad = DEPLOYMENT.replace('"150"', '"a lot"')
    (tmp_path / "web.yaml").write_text(bad)
    (refused,) = simulate("--manifests", str(tmp_path / "web.yaml"))["refused"]
    assert refused.startswith("Deployment web: ")
    assert "a lot" in refused


def test_other_policies_place_everything_anew_oldest_first(simulate):
    answer = simulate(
        "--anew", "--policy", "low-load-first,compact-first", "--add", "A100_SXM_80G:1"
    )
    spread, packed = answer["outcomes"]
    assert (spread["policy"], packed["policy"]) == ("low-load-first", "compact-first")
    for outcome in (spread, packed):
        assert set(nodes_of(outcome).values()) == {"a", "added-0"}
        assert list(nodes_of(outcome)) == ["default/first", "default/second"]
    text = simulate("--anew", "--policy", "fgd", output="table")
    assert "GPUS IN USE" in text
    assert "default/first" in text


@pytest.mark.parametrize(
    ("arguments", "output", "code", "message"),
    [
        (["--add", "A100_SXM_80G"], "json", 1, "allowed is MODEL:GPUS"),
        (["--add", "A1000:2"], "json", 1, "'A1000' is not in the catalogue"),
        (["--policy", "none"], "json", 2, "'none' is not installed"),
        ([], "csv", 2, "allowed here: table, json"),
    ],
)
def test_bad_input_is_named(simulate, arguments, output, code, message):
    assert message in simulate(*arguments, output=output, code=code)


def test_without_any_cluster_it_says_what_is_needed(capsys, tmp_path):
    (tmp_path / "web.yaml").write_text(DEPLOYMENT)
    assert run(["simulate", "--manifests", str(tmp_path / "web.yaml")]) == 2
    assert "--snapshot FILE, or --add" in capsys.readouterr().err
    assert run(["simulate"]) == 2
    assert "--example DIR" in capsys.readouterr().err
