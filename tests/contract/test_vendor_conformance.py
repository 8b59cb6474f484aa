"""The conformance suite: the vendors of this tree, a stranger's wheel, and eight broken backends."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "vendors" / "_template"
SUITE = [
    "-m", "pytest", "--pyargs", "tensorfusion.testing.conformance",
    "-q", "-p", "no:cacheprovider", "-W", "error",
]  # fmt: skip
OURS = ("PYTHON", "PYTEST", "VIRTUAL_ENV", "COV_", "UV_PROJECT")


def run(
    command: Sequence[str | Path], folder: Path, *, path: Sequence[Path] = (), seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would: in a folder of its own, with nothing of ours set."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
    )


def run_suite(
    vendor: str, folder: Path, *options: str, path: Sequence[Path] = (), seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *SUITE, "--vendor", vendor, *options]
    return run(command, folder, path=path, seconds=seconds)


def add_plugin(folder: Path, name: str, module: str) -> Path:
    """Make a folder that, once it is on the path, counts as an installed plugin."""
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    info.joinpath("entry_points.txt").write_text(f"[tensorfusion]\n{name} = {module}\n")
    return folder


def test_simulated_vendor_passes(tmp_path):
    settings = tmp_path / "simulated.yaml"
    settings.write_text("nodes:\n- {name: a, gpus: [{model: A100_SXM_80G, count: 3}]}\n"
                        "- {name: b, gpus: [{model: T4}]}\n")  # fmt: skip
    done = run_suite("simulated", tmp_path, "--settings", str(settings))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.timeout(600)  # on a real GPU time passes for real
def test_nvidia_vendor_passes_or_skips_with_its_reason(tmp_path):
    done = run_suite("nvidia", tmp_path, "-rs", seconds=600)
    assert done.returncode == 0, done.stdout
    if " passed" not in done.stdout:
        assert "nvidia has no devices on this machine: " in done.stdout


def test_template_passes_from_its_own_tests(tmp_path):
    plugin = add_plugin(tmp_path / "site", "acme", "tensorfusion_acme.plugin")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEMPLATE / "tests"]
    done = run(command, TEMPLATE, path=[plugin, TEMPLATE / "src"])
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_suite_without_a_vendor_says_what_is_missing(tmp_path):
    done = run([sys.executable, *SUITE], tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "name it with --vendor NAME" in done.stderr


def test_suite_on_an_unknown_vendor_names_the_installed_ones(tmp_path):
    done = run_suite("no-such", tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no backend 'no-such' is installed; installed: nvidia, simulated" in done.stderr


def test_suite_with_wrong_settings_names_the_field(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("nodes:\n- {name: a, gpus: [{model: NoSuchCard}]}\n")
    done = run_suite("simulated", tmp_path, "--settings", str(settings))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "simulated node 'a': GPU model 'NoSuchCard' is not in the catalogue" in done.stderr


@pytest.mark.parametrize(
    ("variant", "requirement"),
    [
        ("leak", "release must be complete: usage() still has rows"),
        ("unit", "compute must be in GFLOP/s (1 TFLOPS is 1000): 100 of device acme-0a11"),
        ("prepare-twice", "prepare must be idempotent: the same spec again must not restart"),
        ("false-claim", "capability snapshot is claimed, so snapshot() must work"),
        ("hang", "no call may take longer than 1 s: topology() has not returned"),
        ("unstable-ids", "a device must keep its uuid over a restart"),
        ("threads", "a session must be safe from any thread: "),
        ("totals", "totals must not start again after a restart: throttled_seconds_total"),
    ],
)
def test_broken_backend_fails_with_the_missing_requirement(variant, requirement, tmp_path):
    plugin = add_plugin(tmp_path / "site", "broken", "rig.broken_backends")
    done = run_suite(
        variant,
        tmp_path,
        "--call-seconds=1",
        "--tb=short",
        path=[plugin, TEMPLATE / "src", ROOT / "tests"],
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert requirement in done.stdout, done.stdout
    assert " passed" in done.stdout, "the suite must name one thing, not fall over as a whole"


def uv(folder: Path, *arguments: str | Path) -> None:
    """Run uv from its cache, and with the network only if the cache has not all of it."""
    command = [shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv", *arguments]
    done = run([*command, "--offline"], folder, seconds=300)
    if done.returncode:
        done = run(command, folder, seconds=300)
    assert done.returncode == 0, done.stderr


def copy_template(target: Path, name: str) -> Path:
    """Copy the template and rename it, as its reader is told to."""
    shutil.copytree(TEMPLATE, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for path in sorted(target.rglob("*acme*"), reverse=True):
        path.rename(path.with_name(path.name.replace("acme", name)))
    for path in target.rglob("*"):
        if path.is_file():
            text = path.read_text()
            path.write_text(text.replace("acme", name).replace("Acme", name.title()))
    return target


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_third_party_wheel_passes_in_a_clean_environment(tmp_path):
    wheels = tmp_path / "wheels"
    uv(tmp_path, "build", "--wheel", "--out-dir", wheels, ROOT)
    uv(tmp_path, "build", "--wheel", "--out-dir", wheels, copy_template(tmp_path / "z", "zenith"))
    built = sorted(wheels.glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in built] == ["tensorfusion", "tensorfusion_zenith"]

    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    uv(tmp_path, "pip", "install", "--python", python, *built, "pytest>=9,<10")
    done = run([python, *SUITE, "--vendor", "zenith"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout

    listed = run([python.parent / "tensorfusion", "plugins"], tmp_path).stdout
    assert [line for line in listed.splitlines() if "zenith" in line and "loaded" in line]
