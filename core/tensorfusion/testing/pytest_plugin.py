"""Options of the conformance suite, for pytest.

pytest loads this module in every environment that has the core installed, so it imports nothing
but pytest and does nothing until the suite is asked for.
"""

import pytest

SUITE = "tensorfusion.testing.conformance"
CALL_SECONDS = 10.0
"""The SPI's bound on every call of a backend."""

pytest.register_assert_rewrite(SUITE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("tensorfusion", "TensorFusion backend conformance")
    group.addoption(
        "--vendor", metavar="NAME", default="", help="installed backend that the suite tests"
    )
    group.addoption(
        "--settings",
        metavar="FILE",
        default="",
        help="YAML file with the backend plugin's block of the settings",
    )
    group.addoption(
        "--load-command",
        metavar="COMMAND",
        default="",
        help="command that loads every device it sees; shows on real devices that limits bind",
    )
    group.addoption(
        "--partition-template",
        metavar="ID",
        default="",
        help="partition template to try where the hardware catalogue knows none",
    )
    group.addoption(
        "--call-seconds",
        metavar="SECONDS",
        type=float,
        default=CALL_SECONDS,
        help="longest time that a call of the backend may take (default: %(default)s)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ask for ``--vendor``, the name of an installed backend, when the suite itself is run."""
    modules = (getattr(getattr(item, "module", None), "__name__", "") for item in items)
    if f"{SUITE}.test_backend" not in modules:
        return
    from tensorfusion.errors import ConfigError
    from tensorfusion.testing.conformance.finding import installed_backend

    vendor: str = config.getoption("--vendor")
    if not vendor:
        raise pytest.UsageError(
            f"{SUITE} tests one installed backend: name it with --vendor NAME"
            " (`tensorfusion plugins` lists them)"
        )
    try:
        installed_backend(vendor, config.getoption("--settings"))
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
