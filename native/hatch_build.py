"""Builds the libraries into the wheel. An editable install builds nothing: it finds what `make native` built."""

import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeLibraries(BuildHookInterface):  # type: ignore[type-arg]
    """Runs CMake, whose programs come with the build requirements; only a C compiler must be there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the files are gathered."""
        if version == "editable":
            return
        if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
            raise RuntimeError("tensorfusion-native needs a C compiler: install gcc or clang")
        root = Path(self.root)
        self._folder = tempfile.TemporaryDirectory(prefix="tensorfusion-native-")
        work, built = (Path(self._folder.name) / name for name in ("work", "built"))
        ninja = shutil.which("ninja")
        assert ninja, "ninja is a build requirement"
        for command in (
            ["cmake", "-S", str(root), "-B", str(work), "-G", "Ninja",
             "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={ninja}"],
            ["cmake", "--build", str(work)],
            ["cmake", "--install", str(work), "--prefix", str(built), "--strip"],
        ):  # fmt: skip
            subprocess.run(command, check=True)
        build_data["force_include"][str(built)] = "tensorfusion_native/lib"
        # Libraries of the C ABI: any Python, one platform.
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built, once it is in the wheel."""
        if version != "editable":
            self._folder.cleanup()
