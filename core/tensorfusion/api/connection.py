"""TensorFusionConnection: which worker a client pod talks to."""

from typing import Annotated

from tensorfusion.api.fields import Doc, Wire, defaulted
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION


class ConnectionSpec(Wire, frozen=True, kw_only=True):
    """Who wants to talk to which workload."""

    workload_name: Annotated[str, Doc("Workload of the same namespace.")]
    client_pod: Annotated[str, Doc("Pod that connects.")]


class ConnectionStatus(Wire, frozen=True, kw_only=True):
    """The worker that was chosen."""

    phase: Annotated[str, Doc("State of the worker: Pending, Running or Failed.")] = ""
    connection_url: Annotated[str, Doc("Where the client connects.")] = ""
    worker_name: Annotated[str, Doc("Pod of the worker.")] = ""
    conditions: Annotated[Conditions, Doc(added=True)] = ()
    observed_generation: ObservedGeneration = None


class TensorFusionConnection(Wire, frozen=True, kw_only=True):
    """A binding of one client pod to one worker of a workload."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("TensorFusionConnection")
    metadata: Metadata
    spec: Annotated[ConnectionSpec | None, Doc("Who wants to talk to which workload.")] = None
    status: Annotated[ConnectionStatus | None, Doc("The worker that was chosen.")] = None
