"""The conformance suite on this backend, as it is installed."""

from tensorfusion.testing.conformance import BackendConformance


class TestAcme(BackendConformance):
    vendor = "acme"
