"""The sign of life of a node's agent towards the control plane: a Lease, as a kubelet keeps one.

Names, pauses and durations are the kubelet's: a Lease with the node's name in the namespace
``kube-node-lease``, renewed every 10 s, good for 40 s.
"""

import logging
import threading
from typing import Final

from tensorfusion.api.registry import LEASES, NAMESPACES, NODES
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_micro_timestamp
from tensorfusion.errors import AlreadyExists, ApiError, NotFound
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
NAMESPACE: Final = "kube-node-lease"
RENEW_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 2.0
"""Pause after a renewal that failed."""
DURATION_SECONDS: Final = 40
MANAGER: Final = "tensorfusion-hypervisor"


class NodeLease:
    """Renews the Lease of one node.

    Concurrency: one thread.
    """

    def __init__(self, store: Store, node: str, clock: Clock) -> None:
        self._store = store
        self._node = node
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Renew until ``stop`` is set."""
        while not stop.is_set():
            pause = RENEW_SECONDS
            try:
                self.renew()
            except ApiError as error:
                pause = AGAIN_SECONDS
                log.warning("lease not renewed", extra={"node": self._node, "error": str(error)})
            self._clock.wait(stop, pause)

    def renew(self) -> None:
        """Renew once; the first time, make the Lease.

        Raises:
            NotFound: There is no Node object yet.
            ApiError: The server cannot be asked.
        """
        spec = {"renewTime": format_micro_timestamp(self._clock.now())}
        try:
            self._store.patch(LEASES, self._node, {"spec": spec}, NAMESPACE, field_manager=MANAGER)
        except NotFound:
            self._create(spec)

    def _create(self, spec: JsonObject) -> None:
        node = self._store.get(NODES, self._node)
        owner = {
            "apiVersion": "v1",
            "kind": "Node",
            "name": self._node,
            "uid": node["metadata"]["uid"],
        }
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._node,
                "namespace": NAMESPACE,
                # It goes with its node.
                "ownerReferences": [owner],
            },
            "spec": {
                "holderIdentity": self._node,
                "leaseDurationSeconds": DURATION_SECONDS,
                **spec,
            },
        }
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        try:
            self._store.create(NAMESPACES, namespace, field_manager=MANAGER)
        except AlreadyExists:
            log.debug("namespace exists", extra={"namespace": NAMESPACE})
        self._store.create(LEASES, lease, field_manager=MANAGER)
