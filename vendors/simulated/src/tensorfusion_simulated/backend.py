"""The simulated backend, fidelity ``model``: arithmetic only, any number of cards, no compiler."""

from collections.abc import Mapping, Sequence

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Capabilities, NodeBackend, NodeContext
from tensorfusion_simulated.description import (
    CardGroup,
    SimulatedSettings,
    expand,
    read_settings,
)
from tensorfusion_simulated.session import ENFORCEMENT, SimulatedSession


class SimulatedBackend:
    """Cards from the hardware catalogue, of any vendor, on any number of nodes."""

    name = "simulated"
    vendor = ""

    def __init__(self) -> None:
        self._settings = SimulatedSettings()
        self._block: dict[str, object] = {}
        self._machines: dict[str, list[CardGroup]] | None = None

    def configure(self, settings: SimulatedSettings) -> None:
        """Take the description of what to simulate."""
        self._machines = expand(settings)
        self._settings = settings

    def available(self) -> tuple[bool, str]:
        """Always: it needs nothing."""
        return True, ""

    def capabilities(self) -> Capabilities:
        """Tell what the model does; its limits bind because the model respects them."""
        return Capabilities(
            isolation=ENFORCEMENT,
            metrics=True,
            process_usage=True,
            live_limits=True,
        )

    def nodes(self, settings: Mapping[str, object]) -> Sequence[str]:
        """Name the described machines; ``settings`` may override the plugin's block.

        Raises:
            ConfigError: The description is wrong; names the field.
        """
        self._machines = None
        return list(self._described(settings))

    def open(self, context: NodeContext) -> NodeBackend:
        """Start a session for one described machine."""
        groups = self._described(context.settings).get(context.node)
        if groups is None:
            raise BackendError("simulated", f"node {context.node!r} is not described")
        return SimulatedSession(context, groups)

    def _described(self, settings: Mapping[str, object]) -> dict[str, list[CardGroup]]:
        """Expand the description once, not again for each of thousands of nodes."""
        block = dict(settings)
        if self._machines is None or block != self._block:
            self._machines = expand(read_settings(block) if block else self._settings)
            self._block = block
        return self._machines
