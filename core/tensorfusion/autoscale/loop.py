"""The recommendation loop: history in, proposals out, applied in place through the ledger."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from tensorfusion.api import pod_view
from tensorfusion.api.autoscaling import AutoSetResources
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import to_json
from tensorfusion.api.registry import WORKLOADS
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.workload import TensorFusionWorkload
from tensorfusion.autoscale.config import (
    auto_set_of,
    interval_seconds,
    is_applied,
    keep_targets,
    original_of,
    recommender_config,
)
from tensorfusion.autoscale.decide import changes, merge, overlay
from tensorfusion.clock import Clock, parse_timestamp
from tensorfusion.errors import ApiError, Conflict, NotFound, TensorFusionError
from tensorfusion.model.demand import Amount
from tensorfusion.model.worker_annotations import limit_of, request_of
from tensorfusion.runtime.conditions import Condition, condition
from tensorfusion.runtime.conditions import merge as merge_conditions
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments, Row
from tensorfusion.spi.metrics import MetricStore
from tensorfusion.spi.recommender import Amounts, Proposal, Recommender, WorkloadView
from tensorfusion.store.informer import Informer, split_key
from tensorfusion.store.interface import Store
from tensorfusion.units import format_bytes, format_tflops

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-autoscaler"
CONFLICT_TRIES = 3


class Resizer(Protocol):
    """Changes a running worker in place: ledger, decision log and pod together or not at all."""

    def resize(self, pod: Pod, request: Amount, limit: Amount, reason: str) -> None:
        """Resize one worker.

        Raises:
            TensorFusionError: It does not fit; nothing changed.
        """
        ...


class Autoscaler:
    """Runs every recommender over every workload that asks.

    Args:
        workloads: Informer of workloads; ``pods`` is indexed by ``workload``.

    Concurrency: `run` and `run_once` belong to one thread.
    """

    def __init__(
        self,
        store: Store,
        workloads: Informer[TensorFusionWorkload],
        pods: Informer[Pod],
        recommenders: Mapping[str, Recommender],
        metrics: MetricStore,
        resizer: Resizer,
        *,
        clock: Clock,
        events: EventRecorder,
        instruments: Instruments,
        default_interval_seconds: float,
    ) -> None:
        self._store = store
        self._workloads = workloads
        self._pods = pods
        self._recommenders = dict(sorted(recommenders.items()))
        self._metrics = metrics
        self._resizer = resizer
        self._clock = clock
        self._events = events
        self._instruments = instruments
        self._interval = default_interval_seconds
        self._due: dict[str, float] = {}
        self._shown: dict[str, JsonObject] = {}
        self._proposed: dict[str, dict[str, Proposal]] = {}
        """Recommender to the latest proposal for each workload, for the exposition."""

    def run(self, stop: threading.Event) -> None:
        """Look at due workloads, at least once a second, until ``stop`` is set."""
        while not stop.is_set():
            started = self._clock.monotonic()
            try:
                self.run_once()
            except Exception:
                # Hook isolation: the metric store is a plugin; the next pass may work again.
                log.exception("recommendation pass failed")
            self._instruments.observe(
                "tensorfusion_autoscaler_loop_duration_seconds", self._clock.monotonic() - started
            )
            self._clock.wait(stop, min(1.0, self._interval))

    def run_once(self) -> dict[str, Proposal]:
        """Look at every due workload once; return what was proposed for each."""
        now = self._clock.now()
        batch, by_recommender = self._due_views(now)
        if not batch:
            return {}
        start = now - max(v.config.history_seconds for v in batch)
        history = self._metrics.usage_history([v.key for v in batch], start, now)
        proposals: list[Proposal] = []
        for name, recommender in self._recommenders.items():
            views = [*by_recommender.get(name, ()), *by_recommender.get("", ())]
            proposals += self._ask(name, recommender, views, history, now)
        merged = merge(p for p in proposals if p.expires > now)
        for view in batch:
            if view.key in merged:
                self._apply(view, merged[view.key])
        return merged

    def _due_views(self, now: float) -> tuple[list[WorkloadView], dict[str, list[WorkloadView]]]:
        """Return the workloads whose interval is over, all of them and by recommender."""
        batch: list[WorkloadView] = []
        by_recommender: dict[str, list[WorkloadView]] = {}
        asking = {}
        for workload in self._workloads.values():
            block = auto_set_of(workload)
            if block is not None:
                key = f"{workload.metadata.namespace}/{workload.metadata.name}"
                asking[key] = (workload, block)
        self._forget_all_but(asking.keys())
        for key, (workload, block) in asking.items():
            if self._due.get(key, 0.0) > now:
                continue
            self._due[key] = now + interval_seconds(block, self._interval)
            if block.recommender and block.recommender not in self._recommenders:
                self._refuse_recommender(workload, block.recommender)
                continue
            try:
                view = self._view(key, workload, block)
            except TensorFusionError as error:
                log.warning("workload skipped", extra={"workload": key, "error": str(error)})
                continue
            if view.workers:
                batch.append(view)
                by_recommender.setdefault(block.recommender, []).append(view)
        return batch, by_recommender

    def _forget_all_but(self, keys: Collection[str]) -> None:
        """Drop what is remembered of workloads that are gone or no longer ask."""
        for key in self._due.keys() - keys:
            self._due.pop(key)
            self._shown.pop(key, None)
            for name, proposals in self._proposed.items():
                if proposals.pop(key, None) is not None:
                    self._show(name)

    def _ask(
        self,
        name: str,
        recommender: Recommender,
        views: list[WorkloadView],
        history: Mapping[str, object],
        now: float,
    ) -> list[Proposal]:
        if not views:
            return []
        try:
            found = list(recommender.propose(views, history, now))  # type: ignore[arg-type]  # UsageSeries
        except Exception:
            # Hook isolation: one recommender must not stop the others.
            log.exception("recommender failed", extra={"recommender": name})
            return []
        self._proposed.setdefault(name, {}).update({p.key: p for p in found})
        self._show(name)
        return found

    def _show(self, name: str) -> None:
        compute: list[Row] = []
        vram: list[Row] = []
        confidence: list[Row] = []
        for p in self._proposed[name].values():
            namespace, workload = split_key(p.key)
            found = self._workloads.get(p.key)
            pool = found.spec.pool_name if found is not None and found.spec else ""
            labels = (pool, namespace, workload, name)
            confidence.append((labels, p.confidence))
            for bound, amounts in (("target", p.request), ("lower", p.lower), ("upper", p.upper)):
                compute.append(((*labels, bound), amounts.gflops * 1e9))
                vram.append(((*labels, bound), float(amounts.vram_bytes)))
        for metric, rows in (
            ("tensorfusion_autoscaler_recommended_compute_flops", compute),
            ("tensorfusion_autoscaler_recommended_vram_bytes", vram),
            ("tensorfusion_autoscaler_confidence_ratio", confidence),
        ):
            self._instruments.replace(metric, rows, source=name)

    def _workers(self, key: str) -> list[Pod]:
        return [
            pod
            for pod in self._pods.by_index("workload", key)
            if pod_view.node_name(pod)
            and not pod_view.is_finished(pod)
            and not pod_view.is_deleting(pod)
        ]

    def _view(
        self, key: str, workload: TensorFusionWorkload, block: AutoSetResources
    ) -> WorkloadView:
        original_request, original_limit = original_of(workload)
        request, limit = original_request, original_limit
        workers = self._workers(key)
        if workers:
            # The worker that is furthest behind: one that could not be resized is tried again.
            held = [(_held(p, request_of), _held(p, limit_of)) for p in workers]
            request, limit = min(held, key=lambda h: (h[0].gflops, h[0].vram_bytes))
        created = workload.metadata.creation_timestamp
        return WorkloadView(
            key=key,
            config=recommender_config(block),
            request=request,
            limit=limit,
            original_request=original_request if original_request.gflops else request,
            original_limit=original_limit if original_limit.gflops else limit,
            workers=len(workers),
            created=parse_timestamp(created) if created else 0.0,
        )

    def _apply(self, view: WorkloadView, proposal: Proposal) -> None:
        workload = self._workloads.get(view.key)
        block = auto_set_of(workload) if workload is not None else None
        if workload is None or block is None:
            return
        wanted = overlay(view.request, proposal.request)
        ceiling = overlay(view.limit, proposal.limit)
        ready = proposal.reason != "LowConfidence" and changes(proposal)
        applied, refusal = None, ""
        if ready and is_applied(block):
            request = overlay(view.request, keep_targets(proposal.request, block.target_resource))
            limit = overlay(view.limit, keep_targets(proposal.limit, block.target_resource))
            if (request, limit) != (view.request, view.limit):
                applied, refusal = self._resize(view, request, limit, proposal)
                self._record(workload, view, request, proposal, applied, refusal)
        elif ready:
            self._count("recommend")
        self._write_status(workload, wanted, ceiling, proposal, applied, refusal)

    def _resize(
        self, view: WorkloadView, request: Amounts, limit: Amounts, proposal: Proposal
    ) -> tuple[int, str]:
        applied, refusal = 0, ""
        for pod in self._workers(view.key):
            try:
                self._resizer.resize(
                    pod,
                    _resized(request_of(pod.metadata.annotations), request),
                    _resized(limit_of(pod.metadata.annotations), limit),
                    f"autoscaler: {proposal.why}",
                )
                applied += 1
            except TensorFusionError as error:
                refusal = str(error)
        return applied, refusal

    def _record(
        self,
        workload: TensorFusionWorkload,
        view: WorkloadView,
        request: Amounts,
        proposal: Proposal,
        applied: int,
        refusal: str,
    ) -> None:
        reference = {
            "apiVersion": workload.api_version,
            "kind": workload.kind,
            "metadata": {
                "name": workload.metadata.name,
                "namespace": workload.metadata.namespace,
                "uid": workload.metadata.uid,
            },
        }
        if refusal:
            self._count("blocked")
            self._events.event(reference, "ResourceScalingBlocked", refusal, warning=True)
        if not applied:
            return
        grows = request.gflops > view.request.gflops or request.vram_bytes > view.request.vram_bytes
        self._count("raise" if grows else "lower")
        message = f"{applied} worker(s): {proposal.why}"
        self._events.event(
            reference, "ResourceScaledUp" if grows else "ResourceScaledDown", message
        )

    def _count(self, action: str) -> None:
        self._instruments.count(
            "tensorfusion_autoscaler_decisions_total", {"recommender": "merged", "action": action}
        )

    def _write_status(
        self,
        workload: TensorFusionWorkload,
        request: Amounts,
        limit: Amounts,
        proposal: Proposal,
        applied: int | None,
        refusal: str,
    ) -> None:
        message = f"{proposal.why} (confidence {proposal.confidence:.0%})"
        wanted = [condition("RecommendationProvided", True, proposal.reason, message)]
        if refusal:
            wanted.append(condition("ResourceUpdate", False, "Blocked", refusal))
        elif applied is not None:
            wanted.append(condition("ResourceUpdate", True, "Updated", proposal.why))
        status: JsonObject = {
            "recommendation": {
                "requests": _resource(request),
                "limits": _resource(limit),
            },
        }
        if applied is not None:
            status["appliedRecommendedReplicas"] = applied
        self._patch_status(workload, status, wanted)

    def _refuse_recommender(self, workload: TensorFusionWorkload, name: str) -> None:
        known = ", ".join(self._recommenders) or "none"
        message = f"autoSetResources.recommender: {name!r} is not installed; installed: {known}"
        wanted = [condition("RecommendationProvided", False, "UnknownRecommender", message)]
        self._patch_status(workload, {}, wanted)

    def _patch_status(
        self, workload: TensorFusionWorkload, status: JsonObject, wanted: list[Condition]
    ) -> None:
        """Write a status with our conditions over whatever others wrote meanwhile."""
        name, namespace = workload.metadata.name, workload.metadata.namespace
        key = f"{namespace}/{name}"
        told: JsonObject = {"status": status, "conditions": wanted}
        if self._shown.get(key) == told:
            return
        version = workload.metadata.resource_version
        present = [to_json(c) for c in workload.status.conditions] if workload.status else []
        try:
            for _ in range(CONFLICT_TRIES):
                conditions = merge_conditions(present, wanted, self._clock.now())
                patch = {
                    # Others write conditions too: a stale copy must not undo theirs.
                    "metadata": {"resourceVersion": version},
                    "status": {**status, "conditions": conditions},
                }
                try:
                    self._store.patch(
                        WORKLOADS,
                        name,
                        patch,
                        namespace,
                        subresource="status",
                        field_manager=MANAGER,
                    )
                except Conflict:
                    latest = self._store.get(WORKLOADS, name, namespace)
                    version = latest["metadata"]["resourceVersion"]
                    present = latest.get("status", {}).get("conditions", [])
                else:
                    self._shown[key] = told
                    return
            log.info("recommendation not written: too many conflicts", extra={"workload": key})
        except NotFound:
            return
        except ApiError as error:
            log.info("recommendation not written", extra={"workload": key, "error": str(error)})


def _held(pod: Pod, read: Callable[[Mapping[str, str]], Amount]) -> Amounts:
    amount = read(pod.metadata.annotations)
    return Amounts(amount.gflops, amount.vram_bytes)


def _resized(held: Amount, wanted: Amounts) -> Amount:
    """Lay wanted amounts over held ones; compute that is held as a percentage stays one."""
    vram_bytes = wanted.vram_bytes or held.vram_bytes
    if wanted.gflops:
        return Amount(gflops=wanted.gflops, vram_bytes=vram_bytes)
    return Amount(vram_bytes=vram_bytes, gflops=held.gflops, milli_percent=held.milli_percent)


def _resource(amounts: Amounts) -> JsonObject:
    return {
        "tflops": format_tflops(amounts.gflops),
        "vram": format_bytes(amounts.vram_bytes),
    }
