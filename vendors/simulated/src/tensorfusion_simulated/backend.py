"""The simulated backend: cards as arithmetic (``model``), or behind a simulated driver (``driver``)."""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType

from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.spi.backend import Capabilities, NodeBackend, NodeContext, Tier
from tensorfusion_simulated.description import (
    CardGroup,
    SimulatedSettings,
    expand,
    read_settings,
)
from tensorfusion_simulated.partitions import ISOLATION
from tensorfusion_simulated.session import ENFORCEMENT, SimulatedSession


def driver_module() -> ModuleType:
    """Import the fidelity ``driver``, which needs the native part.

    Raises:
        BackendError: The native part is not installed.
    """
    try:
        return importlib.import_module("tensorfusion_simulated.driver")
    except ImportError as error:
        raise BackendError(
            "simulated", f"the fidelity driver needs tensorfusion-native: {error}"
        ) from error


class SimulatedBackend:
    """Cards from the hardware catalogue, of any vendor, on any number of nodes."""

    name = "simulated"
    vendor = ""

    def __init__(self) -> None:
        self._settings = SimulatedSettings()
        self._block: dict[str, object] = {}
        self._fidelity = self._settings.fidelity
        self._machines: dict[str, list[CardGroup]] | None = None

    def configure(self, settings: SimulatedSettings) -> None:
        """Take the description of what to simulate."""
        self._machines = expand(settings)
        self._settings = settings
        self._fidelity = settings.fidelity

    def available(self) -> tuple[bool, str]:
        """Always with the fidelity ``model``; ``driver`` needs the native part, built."""
        if self._fidelity == "driver":
            try:
                driver_module().libraries()
            except (BackendError, ConfigError) as error:
                return False, str(error).removeprefix("simulated: ")
        return True, ""

    def capabilities(self) -> Capabilities:
        """Tell what the model or the driver does; of the settings that were last used.

        The driver cuts the cards that are set up for it, as a real one does; without such cards no partitions are offered.
        """
        isolation = ENFORCEMENT
        tiers: tuple[Tier, ...] = ()
        if self._fidelity == "driver":
            isolation = driver_module().ENFORCEMENT
            tiers = driver_module().TIERS
            if not self._sets_up_partitions():
                isolation = {mode: how for mode, how in isolation.items() if mode != ISOLATION}
        return Capabilities(
            isolation=isolation,
            partitions=ISOLATION in isolation,
            metrics=True,
            process_usage=True,
            live_limits=True,
            freeze=tiers,
            tells_waiting=bool(tiers),
            snapshot=bool(tiers),
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
        if self._fidelity == "driver":
            session: NodeBackend = driver_module().DriverSession(context, groups)
            return session
        return SimulatedSession(context, groups)

    def _sets_up_partitions(self) -> bool:
        return any(g.partitioned for groups in (self._machines or {}).values() for g in groups)

    def _described(self, settings: Mapping[str, object]) -> dict[str, list[CardGroup]]:
        """Expand the description once, not again for each of thousands of nodes."""
        block = dict(settings)
        if self._machines is None or block != self._block:
            described = read_settings(block) if block else self._settings
            self._machines = expand(described)
            self._fidelity = described.fidelity
            self._block = block
        return self._machines
