"""Bad input gets one clear line and a non-zero exit code."""

import socket
import sys
from pathlib import Path

import pytest

from tensorfusion.cli.main import COMMANDS

POD = """
apiVersion: v1
kind: Pod
metadata:
  name: bad
  labels: {tensor-fusion.ai/enabled: "true"}
  annotations: {%s}
spec:
  containers: [{name: main, image: busybox}]
"""


def one_line(result) -> str:
    """The single line that the program wrote to stderr, after it failed."""
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.mark.parametrize("command", [n for n in COMMANDS if n != "config"])
def test_every_command_has_help_with_an_example(cli, command) -> None:
    result = cli(command, "--help")

    assert result.returncode == 0
    assert "Example" in result.stdout
    assert "tensorfusion" in result.stdout


def test_unknown_command_is_named(cli) -> None:
    result = cli("frobnicate")

    assert result.returncode == 2
    assert "frobnicate" in result.stderr


def test_no_server_says_how_to_start_one(cli, tmp_path) -> None:
    line = one_line(cli("get", "pods"))

    assert "tensorfusion up" in line


def test_missing_file_is_named(on_plane) -> None:
    assert "nowhere.yaml" in one_line(on_plane("apply", "-f", "nowhere.yaml"))


def test_bad_yaml_names_file_and_line(on_plane, tmp_path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: [unclosed\nx: 1\n")

    line = one_line(on_plane("apply", "-f", str(tmp_path / "bad.yaml")))

    assert "bad.yaml" in line
    assert "line 2" in line


def test_unknown_kind_is_named(on_plane) -> None:
    line = one_line(on_plane("apply", "-f", "-", stdin="apiVersion: v1\nkind: Gizmo\n"))

    assert "Gizmo" in line


def test_unknown_resource_word_gets_a_suggestion(on_plane) -> None:
    line = one_line(on_plane("get", "gpupool5"))

    assert "gpupool" in line


def test_unknown_field_is_named(on_plane) -> None:
    pod = POD % "" + "  gpuz: 1\n"

    assert "gpuz" in one_line(on_plane("apply", "-f", "-", stdin=pod))


def test_bad_quantity_names_field_value_and_form(on_plane) -> None:
    pod = POD % 'tensor-fusion.ai/tflops-request: "1", tensor-fusion.ai/vram-request: 4 GB'

    line = one_line(on_plane("apply", "-f", "-", stdin=pod))

    assert "vram-request" in line
    assert "4 GB" in line


def test_unknown_annotation_is_a_warning_with_a_suggestion(kubectl) -> None:
    pod = POD % (
        'tensor-fusion.ai/tflops-request: "1", tensor-fusion.ai/vram-request: 1Gi,'
        ' tensor-fusion.ai/gpu-cout: "1"'
    )

    result = kubectl("apply", "-f", "-", stdin=pod.replace("name: bad", "name: warned"))

    assert result.returncode == 0
    assert "gpu-cout" in result.stderr
    assert "gpu-count" in result.stderr


def test_second_up_on_the_same_data_names_the_process(on_plane) -> None:
    line = one_line(on_plane("up"))

    assert "in use by process" in line
    assert "tensorfusion down" in line


def test_port_in_use_is_named(cli, tmp_path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = cli(
            "up", "--data", str(tmp_path / "d"), "--port", str(port), "--log-level", "error"
        )

    assert str(port) in one_line(result)


def test_bad_settings_name_file_field_and_value(cli, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text("sample_seconds: soon\n")

    line = one_line(cli("up", "--data", str(tmp_path / "d"), "--config", str(tmp_path / "s.yaml")))

    assert "s.yaml" in line
    assert "sample_seconds" in line


def test_down_without_a_control_plane_says_so(cli, tmp_path) -> None:
    assert "no control plane" in one_line(cli("down", "--data", str(tmp_path / "d")))


def test_unreachable_server_is_named(cli, tmp_path) -> None:
    config = tmp_path / "k"
    config.write_text(
        "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\n"
        "users: [{name: a, user: {token: x}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "current-context: a\n"
    )

    line = one_line(cli("get", "pods", "--kubeconfig", str(config)))

    assert "127.0.0.1:1" in line


def test_full_disk_is_one_clear_line_and_loses_nothing(tmp_path) -> None:
    """A file system of a few pages stands for the full disk."""
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        from tensorfusion.api.registry import CONFIG_MAPS
        from tensorfusion.errors import ApiError
        from tensorfusion.sqlite import SQLiteStore

        store = SQLiteStore(small / "state.db")
        body = {"metadata": {"name": "first"}, "data": {"x": "y"}}
        store.create(CONFIG_MAPS, body, "default")

        def fill() -> None:
            for number in range(200):
                big = {"metadata": {"name": f"big-{number}"}, "data": {"x": "y" * 50_000}}
                store.create(CONFIG_MAPS, big, "default")

        with pytest.raises(ApiError, match=r"(?i)disk|space|full"):
            fill()
        assert store.get(CONFIG_MAPS, "first", "default")["data"] == {"x": "y"}
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_help_is_fast_to_import() -> None:
    """The figure itself is in the benchmarks; here: nothing heavy is imported for it."""
    import subprocess

    code = (
        "import sys\nfrom tensorfusion.cli.main import run\nrun(['--help'])\n"
        "heavy = {'numpy', 'kubernetes', 'uvicorn', 'cryptography', 'sqlite3', 'msgspec'}\n"
        "print('HEAVY', sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )

    assert result.stdout.splitlines()[-1] == "HEAVY []"


def test_data_folder_is_private(plane: Path) -> None:
    assert plane.stat().st_mode & 0o077 == 0
    for name in ("kubeconfig", "state.db", "decisions.log"):
        assert (plane / name).stat().st_mode & 0o077 == 0, name
