"""What every vendor backend must do, as tests whose failures read like the missing requirement.

Two ways to run it, both without anything but the core, the vendor's package and pytest::

    pytest --pyargs tensorfusion.testing.conformance --vendor acme [--settings FILE]

tests the installed backend of that name. In a vendor's own test folder a subclass does the same,
and may offer a backend that is not installed, or one on a fake driver::

    from tensorfusion.testing.conformance import BackendConformance

    class TestAcme(BackendConformance):
        vendor = "acme"

The suite is skipped, with the backend's own reason, where the machine has no such devices, and
for no other reason. It asks for the specification of `tensorfusion.spi.backend`, no more.
"""

from tensorfusion.testing.conformance.base import Conformance
from tensorfusion.testing.conformance.capabilities import CapabilitiesConformance
from tensorfusion.testing.conformance.concurrency import ConcurrencyConformance
from tensorfusion.testing.conformance.discovery import DiscoveryConformance
from tensorfusion.testing.conformance.freezing import FreezingConformance
from tensorfusion.testing.conformance.isolation import IsolationConformance
from tensorfusion.testing.conformance.readings import ReadingsConformance
from tensorfusion.testing.conformance.restart import RestartConformance
from tensorfusion.testing.conformance.workers import WorkersConformance


class BackendConformance(
    DiscoveryConformance,
    ReadingsConformance,
    WorkersConformance,
    IsolationConformance,
    FreezingConformance,
    CapabilitiesConformance,
    ConcurrencyConformance,
    RestartConformance,
):
    """Everything that is asked of a backend."""


__all__ = ["BackendConformance", "Conformance"]
