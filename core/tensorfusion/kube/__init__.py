"""The Store over HTTP: the only importer of the Kubernetes client, for transport only."""

from tensorfusion.kube.http_store import HttpStore

__all__ = ["HttpStore"]
