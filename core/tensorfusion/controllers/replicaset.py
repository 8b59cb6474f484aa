"""ReplicaSets: as many pods of one template as are wanted (embedded mode)."""

import secrets

from tensorfusion.api import pod_view
from tensorfusion.api.core.apps import ReplicaSet
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import to_json
from tensorfusion.api.registry import PODS, REPLICA_SETS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock
from tensorfusion.controllers.expectations import FORGET_SECONDS, Expectations
from tensorfusion.controllers.owned import ALPHABET, owner_reference
from tensorfusion.errors import AlreadyExists, ApiError, Forbidden, Invalid, NotFound
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store

MANAGER = "tensorfusion-controller"
BURST = 500
"""Pods created in one pass, as in the Kubernetes controller."""
RETRY_SECONDS = 5.0
"""Pause after a refusal: a quota or an admission rule may let the pod in later."""


class ReplicaSetController:
    """Creates and deletes pods; ``pods`` is indexed by ``owner`` (uid of the controller)."""

    def __init__(
        self,
        store: Store,
        replica_sets: Informer[ReplicaSet],
        pods: Informer[Pod],
        *,
        clock: Clock,
        events: EventRecorder,
    ) -> None:
        self._store = store
        self._replica_sets = replica_sets
        self._pods = pods
        self._clock = clock
        self._events = events
        self._created = Expectations(clock)
        self._deleted = Expectations(clock)
        self.controller = Controller("replicasets", self.reconcile, clock=clock)
        replica_sets.subscribe(self.controller.enqueue)
        pods.subscribe(self._pod_changed)

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.new or change.old
        if pod is None:
            return
        for owner in pod.metadata.owner_references:
            if owner.controller and owner.kind == "ReplicaSet":
                self.controller.queue.add(f"{pod.metadata.namespace}/{owner.name}")

    def reconcile(self, key: str) -> Result:
        """Bring the number of pods to what is wanted."""
        rs = self._replica_sets.get(key)
        if rs is None:
            self._created.forget(key)
            self._deleted.forget(key)
            return DONE
        owned = self._pods.by_index("owner", rs.metadata.uid)
        names = {p.metadata.name for p in owned}
        coming = self._created.settle(key, names)
        going = self._deleted.keep(key, names)
        active = [
            p
            for p in owned
            if not pod_view.is_finished(p)
            and not pod_view.is_deleting(p)
            and p.metadata.name not in going
        ]
        failure = ""
        if not rs.metadata.deletion_timestamp:
            missing = rs.spec.replicas - len(active) - len(coming)
            if missing > 0:
                failure = self._create(key, rs, min(missing, BURST))
            elif missing < 0:
                self._delete(key, active, -missing)
        self._write_status(rs, active, failure)
        if failure:
            return Result(requeue_seconds=RETRY_SECONDS)
        # A pod that came and went unseen is never shown: look again when that is known.
        waits = self._created.waits(key) or self._deleted.waits(key)
        return Result(requeue_seconds=FORGET_SECONDS) if waits else DONE

    def _create(self, key: str, rs: ReplicaSet, count: int) -> str:
        body = pod_of(rs)
        for _ in range(count):
            suffix = "".join(secrets.choice(ALPHABET) for _ in range(5))
            name = f"{rs.metadata.name}-{suffix}"
            pod = {**body, "metadata": {**body["metadata"], "name": name}}
            # Expected before it exists: the informer may be faster than this thread.
            self._created.expect(key, name)
            try:
                self._store.create(PODS, pod, rs.metadata.namespace, field_manager=MANAGER)
            except ApiError as error:
                self._created.settle(key, {name})
                if isinstance(error, AlreadyExists):
                    continue  # the pass that sees what is there draws another name
                if not isinstance(error, Forbidden | Invalid):
                    raise
                self._events.event(
                    to_json(rs), "FailedCreate", f"Error creating: {error}", warning=True
                )
                return str(error)
            self._events.event(to_json(rs), "SuccessfulCreate", f"Created pod: {name}")
        return ""

    def _delete(self, key: str, active: list[Pod], count: int) -> None:
        victims = sorted(active, key=deletion_rank)[:count]
        for pod in victims:
            self._deleted.expect(key, pod.metadata.name)
            try:
                self._store.delete(
                    PODS, pod.metadata.name, pod.metadata.namespace, uid=pod.metadata.uid
                )
            except ApiError as error:
                self._deleted.settle(key, {pod.metadata.name})
                if not isinstance(error, NotFound):
                    raise

    def _write_status(self, rs: ReplicaSet, active: list[Pod], failure: str) -> None:
        ready = sum(pod_view.is_ready(p) for p in active)
        status: JsonObject = {
            "replicas": len(active),
            "fullyLabeledReplicas": len(active),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "observedGeneration": rs.metadata.generation,
        }
        present = [to_json(c) for c in rs.status.conditions] if rs.status else []
        others = [c for c in present if c["type"] != "ReplicaFailure"]
        if failure:
            wanted = [condition("ReplicaFailure", True, "FailedCreate", failure)]
            status["conditions"] = merge(present, wanted, self._clock.now())
        elif len(others) != len(present):
            status["conditions"] = others
        if rs.status is not None and _same(rs, status):
            return
        self._store.patch(
            REPLICA_SETS,
            rs.metadata.name,
            {"status": status},
            rs.metadata.namespace,
            subresource="status",
            field_manager=MANAGER,
        )


def pod_of(rs: ReplicaSet) -> JsonObject:
    """Build a pod of the set's template, without its name."""
    template = to_json(rs.spec.template) if rs.spec.template is not None else {}
    metadata = template.get("metadata", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{rs.metadata.name}-",
            "namespace": rs.metadata.namespace,
            "labels": metadata.get("labels", {}),
            "annotations": metadata.get("annotations", {}),
            "ownerReferences": [owner_reference(to_json(rs))],
        },
        "spec": template.get("spec", {}),
    }


def deletion_rank(pod: Pod) -> tuple[bool, bool, str, str]:
    """Order in which pods go: unbound first, then not ready, then the youngest.

    Source: the ranking of the Kubernetes controller (``ActivePods``), without pod deletion cost.
    """
    created = pod.metadata.creation_timestamp or ""
    youngest_first = "".join(chr(0x10FFFF - ord(c)) for c in created)
    return (
        bool(pod_view.node_name(pod)),
        pod_view.is_ready(pod),
        youngest_first,
        pod.metadata.name,
    )


def _same(rs: ReplicaSet, status: JsonObject) -> bool:
    assert rs.status is not None
    present = to_json(rs.status)
    return all(present.get(key, 0) == value for key, value in status.items())
