"""The simulated backend, fidelity ``model``: arithmetic only, any number of cards, no compiler."""

from collections.abc import Mapping, Sequence

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Capabilities, Enforcement, NodeBackend, NodeContext
from tensorfusion_simulated.description import SimulatedSettings, expand
from tensorfusion_simulated.session import SimulatedSession


class SimulatedBackend:
    """Cards from the hardware catalogue, of any vendor, on any number of nodes."""

    name = "simulated"
    vendor = ""

    def __init__(self) -> None:
        self._settings = SimulatedSettings()

    def configure(self, settings: SimulatedSettings) -> None:
        """Take the description of what to simulate."""
        expand(settings)
        self._settings = settings

    def available(self) -> tuple[bool, str]:
        """Always: it needs nothing."""
        return True, ""

    def capabilities(self) -> Capabilities:
        """Tell what the model does; its limits bind because the model respects them."""
        return Capabilities(
            isolation={"shared": Enforcement.NONE, "soft": Enforcement.SIMULATED},
            metrics=True,
            process_usage=True,
            live_limits=True,
        )

    def nodes(self, settings: Mapping[str, object]) -> Sequence[str]:
        """Name the described machines; ``settings`` may override the plugin's block."""
        return list(expand(self._described(settings)))

    def open(self, context: NodeContext) -> NodeBackend:
        """Start a session for one described machine."""
        groups = expand(self._described(context.settings)).get(context.node)
        if groups is None:
            raise BackendError("simulated", f"node {context.node!r} is not described")
        return SimulatedSession(context, groups)

    def _described(self, settings: Mapping[str, object]) -> SimulatedSettings:
        import msgspec

        return msgspec.convert(dict(settings), SimulatedSettings) if settings else self._settings
