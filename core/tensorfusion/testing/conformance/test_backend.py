"""The suite on the installed backend that ``--vendor`` names."""

from tensorfusion.testing.conformance import BackendConformance


class TestBackend(BackendConformance):
    """Everything that is asked of a backend, asked of an installed one."""
