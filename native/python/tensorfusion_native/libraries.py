"""Where the native libraries are: in the package, or in the build folder of the checkout."""

import os
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.errors import ConfigError

BUILD_VARIABLE = "TENSORFUSION_NATIVE_BUILD"


@dataclass(frozen=True, slots=True)
class Libraries:
    """The built files.

    Attributes:
        limiter: Preloaded into the processes of a worker.
        simulated: Folder with the simulated ``libcuda.so.1`` and ``libnvidia-ml.so.1``.
        load: ``tf-load``, a load on any driver.
    """

    limiter: Path
    simulated: Path
    load: Path

    @classmethod
    def of(cls, folder: Path) -> "Libraries":
        """Name the files of a build folder."""
        return cls(folder / "libtensorfusion_limiter.so", folder / "simulated", folder / "tf-load")

    def complete(self) -> bool:
        """Whether everything is there."""
        wanted = (self.limiter, self.load, *(self.simulated / n for n in SIMULATED_NAMES))
        return all(path.is_file() for path in wanted)


VIEW = "libtensorfusion_view.so"
"""The management library once more, without a name that a loader could take for the real one's."""
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
