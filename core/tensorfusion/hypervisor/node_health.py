"""The health of a node's devices on its Node object: a condition, and a taint where none is left.

A single broken device is kept from new work by its own GPU object. The condition tells people and
other controllers; the taint keeps pods away that would find no device at all.
"""

import logging
from collections.abc import Iterable, Sequence

from tensorfusion import names
from tensorfusion.api.registry import NODES
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp
from tensorfusion.errors import Conflict, NotFound
from tensorfusion.spi.backend import DeviceInfo
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
CONDITION = "GPUsHealthy"
ATTEMPTS = 5
"""Writes of others that a change gives way to before it is left to the next pass."""


class NodeHealth:
    """Writes what changed since the last pass.

    Concurrency: one thread.
    """

    def __init__(self, store: Store, clock: Clock, manager: str) -> None:
        self._store = store
        self._clock = clock
        self._manager = manager
        self._told: dict[str, str] = {}

    def remember(self, nodes: Iterable[JsonObject]) -> None:
        """Take in what an earlier run wrote."""
        for node in nodes:
            condition = _condition_of(node)
            if condition is not None and condition.get("status") == "False":
                self._told[node["metadata"]["name"]] = str(condition.get("message", ""))

    def report(self, node: str, devices: Sequence[DeviceInfo]) -> None:
        """Bring a node's condition and taint in line with its devices; a healthy node costs nothing.

        Raises:
            ApiError: They could not be written.
        """
        message = explain(devices)
        if message == self._told.get(node, ""):
            return
        dead = bool(devices) and not any(info.healthy for info in devices)
        for _ in range(ATTEMPTS):
            try:
                self._write(node, message, dead=dead)
            except Conflict:
                continue
            except NotFound:
                log.warning("no such node", extra={"node": node})
            self._told[node] = message
            return
        log.warning("node changes too often to write its health", extra={"node": node})

    def _write(self, node: str, message: str, *, dead: bool) -> None:
        found = self._store.get(NODES, node)
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        spec = found.get("spec") or {}
        before = spec.get("taints") or []
        taints = [t for t in before if t.get("key") != names.UNHEALTHY_TAINT]
        if dead:
            taints.append({"key": names.UNHEALTHY_TAINT, "effect": "NoSchedule"})
        if taints != before:
            body = {"metadata": version, "spec": {"taints": taints}}
            found = self._store.patch(NODES, node, body, field_manager=self._manager)
            version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        conditions = [c for c in _conditions(found) if c.get("type") != CONDITION]
        now = format_timestamp(self._clock.now())
        conditions.append(
            {
                "type": CONDITION,
                "status": "False" if message else "True",
                "reason": "DeviceUnhealthy" if message else "DevicesHealthy",
                "message": message or "every device is healthy",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
        )
        body = {"metadata": version, "status": {"conditions": conditions}}
        self._store.patch(NODES, node, body, subresource="status", field_manager=self._manager)


def explain(devices: Sequence[DeviceInfo]) -> str:
    """Name the devices that take no work, and why; empty when all do."""
    broken = [info for info in devices if not info.healthy]
    if not broken:
        return ""
    reasons = "; ".join(f"{info.uuid}: {info.message or 'unhealthy'}" for info in broken)
    return f"{len(broken)} of {len(devices)} devices take no work: {reasons}"


def _conditions(node: JsonObject) -> list[JsonObject]:
    return list((node.get("status") or {}).get("conditions") or [])


def _condition_of(node: JsonObject) -> JsonObject | None:
    return next((c for c in _conditions(node) if c.get("type") == CONDITION), None)
