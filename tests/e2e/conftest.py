"""A control plane as a user starts it, and its command line."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


def environment(home: Path) -> dict[str, str]:
    """A user's environment without anything of the developer's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TENSORFUSION_", "KUBE"))}
    return {**kept, "HOME": str(home)}


def call(*arguments: str, home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tensorfusion", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=90,
        env=environment(home),
    )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The program with a home folder of its own and no server."""
    return lambda *arguments, stdin="": call(*arguments, home=tmp_path, stdin=stdin)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running control plane, one per module; the data folder."""
    home = tmp_path_factory.mktemp("plane")
    data = home / "data"
    started = call("up", "--detach", "--data", str(data), home=home)
    assert started.returncode == 0, started.stderr
    yield data
    stopped = call("down", "--data", str(data), home=home)
    assert stopped.returncode == 0, stopped.stderr


@pytest.fixture
def on_plane(plane: Path) -> Cli:
    """The program, talking to the module's control plane."""
    return lambda *arguments, stdin="": call(
        *arguments, "--data", str(plane), home=plane.parent, stdin=stdin
    )


@pytest.fixture
def kubectl(plane: Path) -> Cli:
    """kubectl, talking to the module's control plane."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "--kubeconfig", str(plane / "kubeconfig"), *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            env=environment(plane.parent),
        )

    return run
