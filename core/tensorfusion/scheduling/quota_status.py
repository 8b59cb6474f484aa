"""Writes what the ledger knows of each namespace into its quota objects."""

import logging
import threading

from tensorfusion.api.decode import to_json
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.registry import QUOTAS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.errors import ApiError
from tensorfusion.model.quota import Quota, Usage, available_percent
from tensorfusion.runtime.conditions import Condition, condition, merge
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments, Row
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.translate import quota_of
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store
from tensorfusion.units import format_bytes, format_tflops

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-scheduler"


class QuotaStatusWriter:
    """Keeps quota objects in step with the ledger."""

    def __init__(
        self,
        store: Store,
        placer: Placer,
        quotas: Informer[GPUResourceQuota],
        instruments: Instruments,
        clock: Clock,
        events: EventRecorder,
    ) -> None:
        self._store = store
        self._placer = placer
        self._quotas = quotas
        self._instruments = instruments
        self._clock = clock
        self._events = events
        self._alerting: dict[str, bool] = {}

    def run(self, stop: threading.Event, interval_seconds: float) -> None:
        """Write until ``stop`` is set."""
        while not stop.is_set():
            self.flush()
            self._clock.wait(stop, interval_seconds)

    def flush(self) -> int:
        """Write every quota whose usage changed; returns how many."""
        written = 0
        rows: dict[str, list[Row]] = {}
        for obj in self._quotas.values():
            quota = quota_of(obj)
            with self._placer.lock:
                usage = self._placer.ledger.quotas.usage(quota.namespace)
            _show(rows, quota, usage)
            status = quota_status(quota, usage)
            present = to_json(obj.status) if obj.status is not None else {}
            wanted = [alert_condition(quota, status)]
            self._tell(obj, rows, wanted[0])
            conditions = merge(present.get("conditions", ()), wanted, self._clock.now())
            status["conditions"] = conditions
            if all(present.get(key) == value for key, value in status.items()):
                continue
            status["lastUpdateTime"] = format_timestamp(self._clock.now())
            try:
                self._store.patch(
                    QUOTAS,
                    quota.name,
                    {"status": status},
                    quota.namespace,
                    subresource="status",
                    field_manager=MANAGER,
                )
                written += 1
            except ApiError as error:
                log.info("quota status not written", extra={"quota": quota.name, "why": str(error)})
        for name, found in rows.items():
            self._instruments.replace(name, found)
        return written

    def _tell(self, obj: GPUResourceQuota, rows: dict[str, list[Row]], found: Condition) -> None:
        """Record an event when a quota crosses its threshold, either way."""
        name = f"{obj.metadata.namespace}/{obj.metadata.name}"
        reached = found["status"] == "False"
        labels = (obj.metadata.namespace, obj.metadata.name)
        rows.setdefault("tensorfusion_quota_threshold_reached", []).append((labels, float(reached)))
        if self._alerting.get(name, False) != reached:
            reference = {
                "apiVersion": obj.api_version,
                "kind": obj.kind,
                "metadata": to_json(obj.metadata),
            }
            self._events.event(reference, found["reason"], found["message"], warning=reached)
        self._alerting[name] = reached


def quota_status(quota: Quota, usage: Usage) -> JsonObject:
    """Print usage and what is left of each bound, in percent."""
    used = {
        "requests.tflops": usage.request_gflops,
        "requests.vram": usage.request_vram_bytes,
        "limits.tflops": usage.limit_gflops,
        "limits.vram": usage.limit_vram_bytes,
        "workers": usage.workers,
    }
    return {
        "used": {
            "requests": {
                "tflops": format_tflops(usage.request_gflops),
                "vram": format_bytes(usage.request_vram_bytes),
            },
            "limits": {
                "tflops": format_tflops(usage.limit_gflops),
                "vram": format_bytes(usage.limit_vram_bytes),
            },
            "workers": usage.workers,
        },
        "availablePercent": {
            key: available_percent(used[key], bound) for key, bound in _bounds(quota).items()
        },
    }


def alert_condition(quota: Quota, status: JsonObject) -> Condition:
    """Say whether any bound is used beyond the quota's alert threshold.

    A bound of zero forbids and cannot run out, so it never alerts.
    """
    floor = 100 - quota.alert_threshold_percent
    left = status["availablePercent"]
    short = [key for key, bound in _bounds(quota).items() if bound and float(left[key]) < floor]
    if short:
        message = f"less than {floor} % is left of {', '.join(short)}"
        return condition("Ready", False, "AlertThresholdReached", message)
    return condition("Ready", True, "CapacitySufficient", "every bound is below its threshold")


def _bounds(quota: Quota) -> dict[str, int | None]:
    return {
        "requests.tflops": quota.total_requests.gflops,
        "requests.vram": quota.total_requests.vram_bytes,
        "limits.tflops": quota.total_limits.gflops,
        "limits.vram": quota.total_limits.vram_bytes,
        "workers": quota.max_workers,
    }


def _show(rows: dict[str, list[Row]], quota: Quota, usage: Usage) -> None:
    labels = (quota.namespace, quota.name)
    for name, bound, used, scale in (
        ("compute", quota.total_requests.gflops, usage.request_gflops, 1e9),
        ("vram", quota.total_requests.vram_bytes, usage.request_vram_bytes, 1.0),
        ("workers", quota.max_workers, usage.workers, 1.0),
    ):
        unit = {"compute": "_flops", "vram": "_bytes", "workers": ""}[name]
        series = f"tensorfusion_quota_{name}"
        used_rows = rows.setdefault(f"{series}_used{unit}", [])
        used_rows.append((labels, used * scale))
        if bound is not None:
            rows.setdefault(f"{series}_limit{unit}", []).append((labels, bound * scale))
