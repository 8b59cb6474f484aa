"""TensorFusion: GPU virtualization and pooling on Kubernetes or on one machine.

The package root carries what a plugin author needs before anything else: the
``hookimpl`` marker and the version. Everything else is imported from the layer
that owns it (see ``docs/explanation/architecture.md``).
"""

from importlib.metadata import PackageNotFoundError, version

import pluggy

hookimpl = pluggy.HookimplMarker("tensorfusion")
"""Marks a function as an implementation of a hook declared in ``tensorfusion.hookspecs``."""

try:
    __version__ = version("tensorfusion")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "hookimpl"]
