"""Eight ways to get a backend wrong, each a small change of the vendor template.

The conformance suite is run on each of them, to see that it says what is missing. The template's
sources must be importable; `tensorfusion_backends` is the hook of a plugin made of this module.
"""

import dataclasses
import threading
import uuid as uuids
from collections.abc import Sequence

import msgspec
from tensorfusion_acme.backend import AcmeBackend
from tensorfusion_acme.session import AcmeSession, State, Tenant

from tensorfusion import hookimpl
from tensorfusion.spi.backend import (
    Backend,
    Capabilities,
    DeviceInfo,
    Link,
    NodeContext,
    PreparedWorker,
    WorkerSpec,
    WorkerUsage,
)


class Leaky(AcmeSession):
    """Keeps the usage rows of workers that were released."""

    def __init__(self, context: NodeContext) -> None:
        super().__init__(context)
        self._left: list[WorkerUsage] = []

    def release(self, worker: str) -> None:
        self._left += [row for row in super().usage() if row.worker == worker]
        super().release(worker)

    def usage(self) -> Sequence[WorkerUsage]:
        return [*super().usage(), *self._left]


class WrongUnit(AcmeSession):
    """Tells TFLOPS where GFLOP/s are asked for."""

    def discover(self) -> Sequence[DeviceInfo]:
        return [
            dataclasses.replace(info, compute_gflops=info.compute_gflops // 1000)
            for info in super().discover()
        ]


class StartsAnew(AcmeSession):
    """Forgets a worker's totals when it is prepared again."""

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        self.release(spec.worker)
        return super().prepare(spec)


class Hanging(AcmeSession):
    """Waits for a driver that never answers."""

    def topology(self) -> Sequence[Link]:
        threading.Event().wait()
        return super().topology()


class NewNames(AcmeSession):
    """Names its devices anew in every session."""

    def __init__(self, context: NodeContext) -> None:
        self._suffix = uuids.uuid4().hex[:8]
        super().__init__(context)

    def discover(self) -> Sequence[DeviceInfo]:
        return [
            dataclasses.replace(info, uuid=f"{info.uuid}-{self._suffix}")
            for info in super().discover()
        ]


class Racing(AcmeSession):
    """Reads, pauses and writes back without a lock."""

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        tenants = dict(self._state.tenants)
        prepared = super().prepare(spec)
        threading.Event().wait(0.01)
        tenants.setdefault(spec.worker, Tenant(spec))
        self._state.tenants = tenants
        return prepared


class ForgetsTotals(AcmeSession):
    """Keeps the workers over a restart and not what they have counted."""

    def _load(self) -> State:
        state = super()._load()
        tenants = {worker: Tenant(tenant.spec) for worker, tenant in state.tenants.items()}
        return msgspec.structs.replace(state, tenants=tenants, joules={})


class Variant(AcmeBackend):
    """The template's backend under another name, with other sessions."""

    def __init__(self, name: str, session: type[AcmeSession]) -> None:
        self.name = name
        self._session = session

    def open(self, context: NodeContext) -> AcmeSession:
        return self._session(context)


class Boastful(Variant):
    """Claims snapshots and has none."""

    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities(), snapshot=True)


@hookimpl
def tensorfusion_backends() -> Sequence[Backend]:
    return [
        Variant("leak", Leaky),
        Variant("unit", WrongUnit),
        Variant("prepare-twice", StartsAnew),
        Boastful("false-claim", AcmeSession),
        Variant("hang", Hanging),
        Variant("unstable-ids", NewNames),
        Variant("threads", Racing),
        Variant("totals", ForgetsTotals),
    ]
