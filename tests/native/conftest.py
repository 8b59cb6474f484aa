"""The native part is built once per session; without a C compiler its tests are skipped with one line."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TOOLS = ("cc", "cmake", "ninja")
# `make native` puts CMake and Ninja beside Python where the machine has none.
os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
WHAT_FAILED = pytest.StashKey[str]()
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]


def pytest_collection_modifyitems(items):
    if MISSING:
        skip = pytest.mark.skip(reason=f"the native part needs {', '.join(MISSING)}")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


def pytest_collection_finish(session):
    """Build before any test's time runs: whichever comes first would be the one that stalls.

    Everything anew takes a minute on a busy machine, and other sessions wait for it.
    """
    wanted = any("build" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not MISSING and not session.config.option.collectonly:
        session.config.stash[WHAT_FAILED] = make(folder_of_build())


def folder_of_build():
    return Path(os.environ.get("TENSORFUSION_NATIVE_BUILD", ROOT / "build" / "native-release"))


def make(folder):
    """What went wrong; empty when all is built."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        commands = [
            ["cmake", "-S", str(ROOT / "native"), "-B", str(folder), "-G", "Ninja",
             "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"],
            ["cmake", "--build", str(folder)],
        ]  # fmt: skip
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return done.stdout + done.stderr
    return ""


@pytest.fixture(scope="session")
def build(pytestconfig):
    assert not pytestconfig.stash[WHAT_FAILED], pytestconfig.stash[WHAT_FAILED]
    return folder_of_build()


@pytest.fixture
def machine(build, tmp_path):
    from native.machine import Machine

    machine = Machine(build, tmp_path).configure()
    yield machine
    machine.close()
