"""Which pool a node belongs to and how that pool shares its devices, for an agent of one node."""

import logging
import threading
from collections.abc import Callable

from tensorfusion import names
from tensorfusion.api.decode import decode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import GPU_NODES, GPU_POOLS, SCHEDULING_CONFIGS
from tensorfusion.api.scheduling_config import HypervisorScheduling, SchedulingConfigTemplate
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, ConfigError, NotFound
from tensorfusion.hypervisor.arbiter import Rules, rules_of
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
FIRST_SECONDS, LATER_SECONDS = 1.0, 10.0
"""Pauses between two looks: until a pool has claimed the node, and after."""


class Membership:
    """Looks three objects up now and then; what was found last stays while the server is away.

    A watch would bring every status write of every node of the cluster to each of them.

    Concurrency: one thread refreshes; what was found may be read from any.
    """

    def __init__(self, store: Store, node: str, clock: Clock) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self.pool = ""
        self.rules = Rules()
        self.scheduling: HypervisorScheduling | None = None
        """What the pool's template says of its hypervisors."""
        self.definition: GPUPool | None = None
        """The pool itself, as it was found last."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when the pool is another, or says something else; set by the composition."""

    def run(self, stop: threading.Event) -> None:
        """Refresh until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.refresh()
            except ApiError as error:
                log.warning("pool not looked up", extra={"node": self._node, "error": str(error)})
            self._clock.wait(stop, LATER_SECONDS if self.pool else FIRST_SECONDS)

    def refresh(self) -> None:
        """Look once.

        Raises:
            ApiError: The server cannot be asked.
        """
        name, found, scheduling = "", None, None
        try:
            node = self._store.get(GPU_NODES, self._node)
            name = (node["metadata"].get("labels") or {}).get(names.MANAGED_BY, "")
            found = decode(GPUPool, self._store.get(GPU_POOLS, name)) if name else None
            scheduling = self._scheduling_of(found)
        except NotFound:
            log.debug("no pool", extra={"node": self._node, "pool": name})
        before = (self.pool, self.definition.spec if self.definition else None)
        self.pool, self.definition, self.scheduling = name, found, scheduling
        try:
            self.rules = rules_of(scheduling)
        except ConfigError as error:
            log.warning("rules of sharing not taken", extra={"pool": name, "error": str(error)})
        if before != (name, found.spec if found else None):
            self.on_change()

    def _scheduling_of(self, pool: GPUPool | None) -> HypervisorScheduling | None:
        wanted = pool.spec.scheduling_config_template if pool is not None and pool.spec else ""
        if not wanted:
            return None
        template = decode(SchedulingConfigTemplate, self._store.get(SCHEDULING_CONFIGS, wanted))
        return template.spec.hypervisor if template.spec else None
