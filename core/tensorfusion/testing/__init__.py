"""The public test kit: fakes, builders and conformance suites."""
