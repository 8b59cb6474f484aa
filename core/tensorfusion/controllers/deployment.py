"""Deployments: replica sets of the present and of past templates, rolled over (embedded mode)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tensorfusion.api.core.apps import Deployment, ReplicaSet
from tensorfusion.api.decode import to_json
from tensorfusion.api.registry import DEPLOYMENTS, REPLICA_SETS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock
from tensorfusion.controllers.owned import owner_reference, safe_hash
from tensorfusion.errors import AlreadyExists
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store

MANAGER = "tensorfusion-controller"
HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"


class DeploymentController:
    """Rolls templates over; ``replica_sets`` is indexed by ``owner`` (uid of the controller)."""

    def __init__(
        self,
        store: Store,
        deployments: Informer[Deployment],
        replica_sets: Informer[ReplicaSet],
        *,
        clock: Clock,
        events: EventRecorder,
    ) -> None:
        self._store = store
        self._deployments = deployments
        self._replica_sets = replica_sets
        self._clock = clock
        self._events = events
        self.controller = Controller("deployments", self.reconcile, clock=clock)
        deployments.subscribe(self.controller.enqueue)
        replica_sets.subscribe(self._replica_set_changed)

    def _replica_set_changed(self, change: Change[ReplicaSet]) -> None:
        rs = change.new or change.old
        if rs is None:
            return
        for owner in rs.metadata.owner_references:
            if owner.controller and owner.kind == "Deployment":
                self.controller.queue.add(f"{rs.metadata.namespace}/{owner.name}")

    def reconcile(self, key: str) -> Result:
        """Move a rollout one step."""
        deployment = self._deployments.get(key)
        if deployment is None or deployment.metadata.deletion_timestamp:
            return DONE
        owned = self._replica_sets.by_index("owner", deployment.metadata.uid)
        template = to_json(deployment.spec.template)
        wanted_hash = safe_hash(template)
        new = next((r for r in owned if r.metadata.labels.get(HASH_LABEL) == wanted_hash), None)
        old = sorted(
            (r for r in owned if r is not new), key=lambda r: _revision(r.metadata.annotations)
        )
        if new is None and not deployment.spec.paused:
            self._create(deployment, template, wanted_hash, old)
            return DONE
        if new is not None:
            self._adopt_revision(deployment, new, old)
        if deployment.spec.paused:
            self._scale(deployment, plan_paused(deployment, new, old), (new, *old))
        elif new is not None:
            self._scale(deployment, plan_sizes(deployment, new, old), (new, *old))
            self._prune(deployment, old)
        self._write_status(deployment, new, old)
        return DONE

    def _create(
        self, deployment: Deployment, template: JsonObject, digest: str, old: list[ReplicaSet]
    ) -> None:
        labels = {**template.get("metadata", {}).get("labels", {}), HASH_LABEL: digest}
        metadata = {**template.get("metadata", {}), "labels": labels}
        selector = to_json(deployment.spec.selector)
        match = {**selector.get("matchLabels", {}), HASH_LABEL: digest}
        first = first_size(deployment, sum(r.spec.replicas for r in old))
        name = f"{deployment.metadata.name}-{digest}"
        body: JsonObject = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": deployment.metadata.namespace,
                "labels": labels,
                "annotations": {REVISION: str(_next_revision(old))},
                "ownerReferences": [owner_reference(to_json(deployment))],
            },
            "spec": {
                "replicas": first,
                "selector": {**selector, "matchLabels": match},
                "template": {**template, "metadata": metadata},
            },
        }
        try:
            self._store.create(
                REPLICA_SETS, body, deployment.metadata.namespace, field_manager=MANAGER
            )
        except AlreadyExists:
            return
        self._events.event(
            to_json(deployment), "ScalingReplicaSet", f"Scaled up replica set {name} to {first}"
        )

    def _adopt_revision(
        self, deployment: Deployment, new: ReplicaSet, old: list[ReplicaSet]
    ) -> None:
        revision = max(_revision(new.metadata.annotations), _next_revision(old))
        patch = {"metadata": {"annotations": {REVISION: str(revision)}}}
        namespace = deployment.metadata.namespace
        if _revision(new.metadata.annotations) != revision:
            self._store.patch(REPLICA_SETS, new.metadata.name, patch, namespace)
        if _revision(deployment.metadata.annotations) != revision:
            self._store.patch(DEPLOYMENTS, deployment.metadata.name, patch, namespace)

    def _scale(
        self,
        deployment: Deployment,
        sizes: Mapping[str, int],
        replica_sets: Iterable[ReplicaSet | None],
    ) -> None:
        for rs in replica_sets:
            size = sizes.get(rs.metadata.name) if rs is not None else None
            if rs is None or size is None or rs.spec.replicas == size:
                continue
            self._store.patch(
                REPLICA_SETS,
                rs.metadata.name,
                {"spec": {"replicas": size}},
                rs.metadata.namespace,
                field_manager=MANAGER,
            )
            verb = "up" if size > rs.spec.replicas else "down"
            self._events.event(
                to_json(deployment),
                "ScalingReplicaSet",
                f"Scaled {verb} replica set {rs.metadata.name} from {rs.spec.replicas} to {size}",
            )

    def _prune(self, deployment: Deployment, old: list[ReplicaSet]) -> None:
        limit = deployment.spec.revision_history_limit
        idle = [r for r in old if r.spec.replicas == 0 and not _count(r, "replicas")]
        for rs in idle[: max(0, len(idle) - (10 if limit is None else limit))]:
            self._store.delete(REPLICA_SETS, rs.metadata.name, rs.metadata.namespace)

    def _write_status(
        self, deployment: Deployment, new: ReplicaSet | None, old: list[ReplicaSet]
    ) -> None:
        everyone = [r for r in (new, *old) if r is not None]
        wanted = deployment.spec.replicas
        available = sum(_count(r, "available_replicas") for r in everyone)
        updated = _count(new, "replicas") if new is not None else 0
        total = sum(_count(r, "replicas") for r in everyone)
        complete = updated == wanted and available >= wanted and total == wanted
        conditions = [
            condition(
                "Available",
                available >= wanted - max_unavailable(deployment),
                "MinimumReplicasAvailable"
                if available >= wanted - max_unavailable(deployment)
                else "MinimumReplicasUnavailable",
                f"{available} of {wanted} replicas are available.",
            ),
            condition(
                "Progressing",
                True,
                "NewReplicaSetAvailable" if complete else "ReplicaSetUpdated",
                f"{updated} of {wanted} replicas are updated.",
            ),
        ]
        failures = [
            to_json(c)
            for r in everyone
            for c in (r.status.conditions if r.status else ())
            if c.type == "ReplicaFailure"
        ]
        present = [to_json(c) for c in deployment.status.conditions] if deployment.status else []
        if not failures:
            present = [c for c in present if c["type"] != "ReplicaFailure"]
        status: JsonObject = {
            "observedGeneration": deployment.metadata.generation,
            "replicas": total,
            "updatedReplicas": updated,
            "readyReplicas": sum(_count(r, "ready_replicas") for r in everyone),
            "availableReplicas": available,
            "unavailableReplicas": max(0, wanted - available),
            "conditions": merge(present, [*conditions, *failures[:1]], self._clock.now()),
        }
        shown = to_json(deployment.status) if deployment.status is not None else {}
        if all(shown.get(key, 0) == value for key, value in status.items()):
            return
        self._store.patch(
            DEPLOYMENTS,
            deployment.metadata.name,
            {"status": status},
            deployment.metadata.namespace,
            subresource="status",
            field_manager=MANAGER,
        )


def plan_sizes(deployment: Deployment, new: ReplicaSet, old: list[ReplicaSet]) -> dict[str, int]:
    """Decide how large each replica set may be now.

    The total never exceeds wanted plus surge, and what is available never falls below wanted
    minus what may be unavailable.
    """
    wanted = deployment.spec.replicas
    sizes = {r.metadata.name: r.spec.replicas for r in (new, *old)}
    old_total = sum(r.spec.replicas for r in old)
    if deployment.spec.strategy.type == "Recreate":
        sizes.update({r.metadata.name: 0 for r in old})
        still_there = sum(_count(r, "replicas") for r in old)
        sizes[new.metadata.name] = 0 if still_there else wanted
        return sizes
    ceiling = wanted + max_surge(deployment)
    sizes[new.metadata.name] = min(wanted, max(new.spec.replicas, ceiling - old_total))
    if new.spec.replicas > wanted:
        sizes[new.metadata.name] = wanted
    floor = wanted - max_unavailable(deployment)
    available = sum(_available(r) for r in (new, *old))
    spare = max(0, available - floor)
    for rs in old:
        # What is not available serves nobody: it goes first and costs no availability.
        broken = rs.spec.replicas - _available(rs)
        drop = min(rs.spec.replicas, broken + spare)
        spare -= max(0, drop - broken)
        sizes[rs.metadata.name] = rs.spec.replicas - drop
    return sizes


def plan_paused(
    deployment: Deployment, new: ReplicaSet | None, old: list[ReplicaSet]
) -> dict[str, int]:
    """Decide sizes while a deployment is paused: it may be scaled, but not rolled over.

    The difference goes to the newest replica set that has pods.
    """
    sets = [*old, *([new] if new is not None else [])]
    active = [r for r in sets if r.spec.replicas] or sets
    sizes = {r.metadata.name: r.spec.replicas for r in sets}
    missing = deployment.spec.replicas - sum(sizes.values())
    for rs in reversed(active):
        size = max(0, rs.spec.replicas + missing)
        missing -= size - rs.spec.replicas
        sizes[rs.metadata.name] = size
        if not missing:
            break
    return sizes


def first_size(deployment: Deployment, old_total: int) -> int:
    """The size a new replica set starts with."""
    if deployment.spec.strategy.type == "Recreate":
        return 0 if old_total else deployment.spec.replicas
    room = deployment.spec.replicas + max_surge(deployment) - old_total
    return max(0, min(deployment.spec.replicas, room))


def max_surge(deployment: Deployment) -> int:
    """Pods above the wanted number; a percentage is rounded up."""
    rolling = deployment.spec.strategy.rolling_update
    value = rolling.max_surge if rolling else "25%"
    return _resolve(value, deployment.spec.replicas, math.ceil)


def max_unavailable(deployment: Deployment) -> int:
    """Pods that may be missing; a percentage is rounded down.

    Without a surge at least one, as in Kubernetes: otherwise nothing could ever move.
    """
    rolling = deployment.spec.strategy.rolling_update
    value = rolling.max_unavailable if rolling else "25%"
    missing = _resolve(value, deployment.spec.replicas, math.floor)
    return max(missing, 0 if max_surge(deployment) else 1)


def _resolve(value: Any, total: int, rounding: Any) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return int(rounding(int(value[:-1]) * total / 100))
    return int(value)


def _revision(annotations: dict[str, str]) -> int:
    return int(annotations.get(REVISION, "0"))


def _next_revision(old: list[ReplicaSet]) -> int:
    return max((_revision(r.metadata.annotations) for r in old), default=0) + 1


def _available(rs: ReplicaSet) -> int:
    """Pods that will go on serving: a status that lags still counts those that are to go."""
    return min(rs.spec.replicas, _count(rs, "available_replicas"))


def _count(rs: ReplicaSet, field: str) -> int:
    return int(getattr(rs.status, field) or 0) if rs.status is not None else 0
