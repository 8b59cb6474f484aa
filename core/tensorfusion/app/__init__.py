"""Composition: wires the parts that `up`, `hypervisor` and the CLI run."""
