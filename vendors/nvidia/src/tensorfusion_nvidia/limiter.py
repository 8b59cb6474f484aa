"""The limiter of tensorfusion-native, if it is installed and built."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tensorfusion.errors import ConfigError
from tensorfusion.spi.backend import Enforcement, NodeContext
from tensorfusion.spi.limited import Attachment

if TYPE_CHECKING:
    from tensorfusion_native.enforcement import Enforcer


def is_there() -> bool:
    """Whether limits can be made to bind."""
    try:
        from tensorfusion_native.libraries import libraries

        libraries()
    except (ImportError, ConfigError):
        return False
    return True


def open_enforcer(context: NodeContext) -> "Enforcer":
    """Open the limits of a node's workers; only where `is_there`.

    What a real driver takes for a context is not known beforehand, so it is not charged.
    """
    from tensorfusion_native.enforcement import Enforcer
    from tensorfusion_native.libraries import libraries

    return Enforcer(context.state_dir / "native", libraries())


def attachment_of(pid: int) -> Attachment:
    """What a process has mapped of driver and limiter; only where `is_there`."""
    from tensorfusion_native.processes import attachment

    return attachment(pid)


def levels(*, limiter: bool, partitions: bool) -> Mapping[str, Enforcement]:
    """Isolation mode to what binds; a shared worker has its devices to itself."""
    soft = Enforcement.COOPERATIVE if limiter else Enforcement.NONE
    cut = {"partitioned": Enforcement.DRIVER} if partitions else {}
    return {"shared": Enforcement.NONE, "soft": soft, **cut}
