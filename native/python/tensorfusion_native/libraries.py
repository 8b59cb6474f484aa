"""Where the native libraries are: in the package, or in the build folder of the checkout."""

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorfusion.errors import ConfigError
from tensorfusion_native import layout

BUILD_VARIABLE = "TENSORFUSION_NATIVE_BUILD"


@dataclass(frozen=True, slots=True)
class Libraries:
    """The built files.

    Attributes:
        limiter: Preloaded into the processes of a worker.
        simulated: Folder with the simulated ``libcuda.so.1`` and ``libnvidia-ml.so.1``.
        load: ``tf-load``, a load on any driver.
        region: The Python module that reads and writes a worker's files.
    """

    limiter: Path
    simulated: Path
    load: Path
    region: Path

    @classmethod
    def of(cls, folder: Path) -> "Libraries":
        """Name the files of a build folder."""
        return cls(
            folder / "libtensorfusion_limiter.so",
            folder / "simulated",
            folder / "tf-load",
            folder / REGION,
        )

    def complete(self) -> bool:
        """Whether everything is there."""
        wanted = (
            self.limiter,
            self.load,
            self.region,
            *(self.simulated / n for n in SIMULATED_NAMES),
        )
        return all(path.is_file() for path in wanted)


VIEW = "libtensorfusion_view.so"
"""The management library once more, without a name that a loader could take for the real one's."""
REGION = "_region.abi3.so"
SIMULATED_NAMES = ("libcuda.so.1", "libnvidia-ml.so.1", VIEW)


def libraries() -> Libraries:
    """Find the libraries.

    The folder of the variable ``TENSORFUSION_NATIVE_BUILD`` goes first, then the package, then
    the checkout.

    Raises:
        ConfigError: They were not built; says what to do.
    """
    given = os.environ.get(BUILD_VARIABLE)
    if given:
        found = Libraries.of(Path(given))
        if not found.complete():
            raise ConfigError(f"{BUILD_VARIABLE}: {given} has no complete build of native/")
        return found
    package = Path(__file__).resolve().parent
    for folder in (package / "lib", package.parents[2] / "build" / "native-release"):
        found = Libraries.of(folder)
        if found.complete():
            return found
    raise ConfigError(
        "the limiter is not built: install a C compiler and run `make native`, or install a"
        " prebuilt wheel of tensorfusion-native"
    )


def built() -> bool:
    """Whether the libraries are there."""
    try:
        libraries()
    except ConfigError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Compiled:
    """The module over a worker's files: its declarations and its functions, see ``native/owner/owner.h``."""

    ffi: Any
    lib: Any

    def size(self, name: str) -> int:
        """The bytes of a struct of the layout, such as ``limits``."""
        found: int = self.ffi.sizeof(f"struct tf_{name}")
        return found


@functools.cache
def compiled() -> Compiled:
    """Load the module that reads and writes a worker's files, once per process.

    It lies beside the limiter, built together with it, so an editable install needs no copy that
    could be older.

    Raises:
        ConfigError: It was not built, or for another layout; says what to do.
    """
    path = libraries().region
    spec = importlib.util.spec_from_file_location("_region", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.lib.TF_LAYOUT_HASH != layout.LAYOUT_HASH:
        raise ConfigError(
            f"{path}: built for layout {module.lib.TF_LAYOUT_HASH}, this package has"
            f" {layout.LAYOUT_HASH}; run `make native`"
        )
    return Compiled(module.ffi, module.lib)
