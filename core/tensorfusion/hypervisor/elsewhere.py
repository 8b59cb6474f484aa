"""What stands in for a backend where the nodes have agents of their own."""

from collections.abc import Mapping, Sequence

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Capabilities, NodeBackend, NodeContext


class ElsewhereBackend:
    """A backend without nodes: each node's agent has the real one."""

    name = "agents"
    vendor = ""

    def available(self) -> tuple[bool, str]:
        """Always."""
        return True, ""

    def capabilities(self) -> Capabilities:
        """None here; what an agent's backend can do is on its GPU objects."""
        return Capabilities(isolation={})

    def nodes(self, settings: Mapping[str, object]) -> Sequence[str]:
        """Name no node."""
        return ()

    def open(self, context: NodeContext) -> NodeBackend:
        """Refuse: there is no node to open."""
        raise BackendError("agents", f"node {context.node!r} is served by an agent of its own")
