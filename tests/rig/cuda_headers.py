"""The vendor's headers, for tests only: fetched once from the packages that carry them, into a cache outside the tree."""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CUDA_PACKAGES = {
    "11.8": "nvidia-cuda-runtime-cu11==11.8.89",
    "12.4": "nvidia-cuda-runtime-cu12==12.4.127",
    "12.9": "nvidia-cuda-runtime-cu12==12.9.79",
    "13.0": "nvidia-cuda-runtime==13.0.96",
}
"""CUDA version to the package with its ``cuda.h`` and ``cudaTypedefs.h``."""
NVML_PACKAGES = {
    "12.9": "nvidia-nvml-dev-cu12==12.9.79",
    "13.5": "nvidia-nvml-dev==13.5.37",
}
"""Version to the package with its ``nvml.h``."""
DEADLINE_S = 30
"""Wall time after which the registry counts as out of reach."""


_failures: list[str] = []


class HeadersMissingError(Exception):
    """The headers are not here and could not be fetched; the message says why."""


def cache_folder() -> Path:
    """Return where packages are kept between runs."""
    root = os.environ.get("TENSORFUSION_TEST_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if not root and not os.access(base if base.exists() else base.parent, os.W_OK):
        base = Path(tempfile.gettempdir())
    return base / "tensorfusion" / "headers"


def installer(package: str, target: Path) -> list[str]:
    """Return the command that unpacks a package: uv's where there is one, else pip's."""
    uv = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    options = ["--quiet", "--no-deps", "--target", str(target), package]
    if uv:
        return [uv, "pip", "install", "--python", sys.executable, *options]
    return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]


def include_folder(package: str, header: str) -> Path:
    """Return the folder of a package that has ``header``, after fetching it where needed.

    Raises:
        HeadersMissingError: It is not in the cache and the registry did not give it.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / package.replace("==", "-")
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            if _failures:
                # A registry that is out of reach is asked once, or every test would wait for it.
                raise HeadersMissingError(_failures[0])
            _fetch(package, target)
    found = sorted(target.glob(f"**/{header}"))
    if not found:
        raise HeadersMissingError(f"{package} has no {header}")
    return found[0].parent


def _fetch(package: str, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    environment = os.environ | {
        "UV_SYSTEM_CERTS": "1",
        "UV_NATIVE_TLS": "1",
        "UV_CACHE_DIR": str(part / ".uv-cache"),
    }
    try:
        done = subprocess.run(
            installer(package, part),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
        reason = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed, reason = True, [f"no answer within {DEADLINE_S} s"]
    if failed:
        shutil.rmtree(part, ignore_errors=True)
        _failures.append(f"{package} could not be fetched: {' '.join(reason).strip()}")
        raise HeadersMissingError(_failures[-1])
    shutil.rmtree(part / ".uv-cache", ignore_errors=True)
    part.rename(target)
