"""What this machine has of Acme, and what the backend can do with it."""

import socket
from collections.abc import Mapping, Sequence

from tensorfusion.spi.backend import Capabilities, NodeBackend, NodeContext
from tensorfusion_acme.session import ENFORCEMENT, AcmeSession


class AcmeBackend:
    """Support of Acme accelerators."""

    name = "acme"
    vendor = "Acme"

    def available(self) -> tuple[bool, str]:
        """Tell whether a device is here; a real backend asks its driver, and says what failed."""
        return True, ""

    def capabilities(self) -> Capabilities:
        """Tell what the backend can do; the conformance suite tries every claim."""
        return Capabilities(
            isolation=ENFORCEMENT,
            metrics=True,
            process_usage=True,
            live_limits=True,
        )

    def nodes(self, settings: Mapping[str, object]) -> Sequence[str]:
        """Name this machine, in the form of an object name."""
        return [socket.gethostname().lower()]

    def open(self, context: NodeContext) -> NodeBackend:
        """Start a session with this machine's devices."""
        return AcmeSession(context)
