"""The public test kit: a clock that is moved by hand, object builders, conformance suites.

- `tensorfusion.testing.clock`: `FakeClock`.
- `tensorfusion.testing.build`: API objects with keyword defaults.
- `tensorfusion.testing.conformance`: what a vendor's backend must do, as tests.

This package stays empty so that pytest, which loads `tensorfusion.testing.pytest_plugin` in every
environment that has the core installed, starts as fast as before.
"""
