"""What the node agent answers: devices, workers, processes, health; one function, no socket.

A tenant sees its own worker and that worker's devices. An operator sees all, and may change the
limits of a worker until its pod asks for something else.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from tensorfusion import __version__
from tensorfusion.clock import Clock
from tensorfusion.errors import (
    BackendError,
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    Unavailable,
)
from tensorfusion.hypervisor.hypervisor import Hypervisor
from tensorfusion.hypervisor.registry import Caller, Registry
from tensorfusion.hypervisor.series import encode_reading
from tensorfusion.hypervisor.wire import Answer, ApiRequest, decode_limits, json_answer
from tensorfusion.spi.backend import DeviceInfo, Share, WorkerSpec, WorkerUsage
from tensorfusion.spi.limited import LimitedWorkers

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]
_OFFSET = re.compile(r"[0-9]{1,15}")
Handler = Callable[[ApiRequest, Caller, Sequence[str]], Answer]


class AgentApi:
    """Routes over the hypervisor of one node.

    Args:
        ready: Checks that do not hold yet, one line each; empty when all do.
        metrics: Prints the exposition.
        stale_seconds: A reading that is older says nothing of now.

    Concurrency: safe from any thread. Everything is read from memory, but for the attestations of
    one worker, which are small files.
    """

    def __init__(
        self,
        node: str,
        hypervisor: Hypervisor,
        registry: Registry,
        *,
        ready: Callable[[], Sequence[str]],
        metrics: Callable[[], bytes],
        stale_seconds: float,
        clock: Clock,
    ) -> None:
        self._node = node
        self._hypervisor = hypervisor
        self._session = hypervisor.sessions[node]
        self._registry = registry
        self._ready = ready
        self._metrics = metrics
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._routes: dict[tuple[str, ...], dict[str, Handler]] = {
            ("metrics",): {"GET": self._exposition},
            ("api", "v1", "health"): {"GET": self._health},
            ("api", "v1", "reading"): {"GET": self._reading},
            ("api", "v1", "devices"): {"GET": self._devices},
            ("api", "v1", "devices", "*"): {"GET": self._device},
            ("api", "v1", "workers"): {"GET": self._workers},
            ("api", "v1", "workers", "*"): {"GET": self._worker},
            ("api", "v1", "workers", "*", "limits"): {"POST": self._limits},
            ("api", "v1", "pods", "*", "logs", "*", "*", "*"): {"GET": self._log},
            ("api", "v1", "processes"): {"GET": self._processes, "POST": self._register},
        }

    def probe(self, name: str) -> Answer:
        """Answer a health probe, for which nobody needs to say who he is."""
        lines = [] if name == "livez" else self._ready()
        text = "\n".join(lines) + "\n" if lines else "ok\n"
        return Answer(503 if lines else 200, text.encode(), "text/plain; charset=utf-8")

    def respond(self, request: ApiRequest, caller: Caller) -> Answer:
        """Answer a request.

        Raises:
            ApiError: What is wrong with it, in one sentence.
        """
        for pattern, handlers in self._routes.items():
            found = _match(pattern, request.segments)
            if found is None:
                continue
            handler = handlers.get(request.method)
            if handler is None:
                raise MethodNotAllowed(
                    f"{request.method} is not supported here; allowed: {', '.join(handlers)}"
                )
            try:
                return handler(request, caller, found)
            except BackendError as error:
                raise Unavailable(str(error)) from error
        raise NotFound(f"there is no /{'/'.join(request.segments)[:200]}")

    def _exposition(self, _request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        _operators_only(caller, "metrics")
        return Answer(200, self._metrics(), "text/plain; version=0.0.4; charset=utf-8")

    def _health(self, _request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        infos = self._visible(caller)
        reading = self._hypervisor.sampling.latest.get(self._node)
        return json_answer(
            {
                "node": self._node,
                "version": __version__,
                "backend": self._hypervisor.backend.name,
                "healthy": all(info.healthy for info in infos),
                "devices": [
                    {"uuid": i.uuid, "healthy": i.healthy, "message": i.message} for i in infos
                ],
                "notReady": list(self._ready()),
                "sampleAgeSeconds": None if reading is None else self._age(reading.time),
            }
        )

    def _reading(self, _request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        _operators_only(caller, "readings")
        reading = self._hypervisor.sampling.reading(self._node)
        if reading is None:
            raise Unavailable("the node could not be read")
        age = self._age(reading.time)
        if age > self._stale_seconds:
            raise Unavailable(f"the last reading is {age} s old")
        return Answer(200, encode_reading(reading))

    def _age(self, time: float) -> float:
        return round(max(0.0, self._clock.now() - time), 3)

    def _devices(self, _request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        return json_answer({"devices": self._device_rows(caller)})

    def _device(self, _request: ApiRequest, caller: Caller, names: Sequence[str]) -> Answer:
        for row in self._device_rows(caller):
            if row["uuid"].lower() == names[0].lower():
                return json_answer(row)
        raise NotFound(f"device {names[0][:80]!r} is not on this node, or not yours to see")

    def _visible(self, caller: Caller) -> list[DeviceInfo]:
        infos = self._hypervisor.discovery.infos.get(self._node, {}).values()
        if not caller.worker:
            return list(infos)
        own = {uuid for spec in self._specs(caller) for uuid in spec.devices}
        return [info for info in infos if info.uuid in own]

    def _device_rows(self, caller: Caller) -> Rows:
        reading = self._hypervisor.sampling.latest.get(self._node)
        metrics = {m.uuid: m for m in reading.devices} if reading is not None else {}
        holders: dict[str, int] = {}
        for spec in self._session.workers():
            for uuid in spec.devices:
                holders[uuid] = holders.get(uuid, 0) + 1
        rows: Rows = []
        for info in self._visible(caller):
            found = metrics.get(info.uuid)
            row = dataclasses.asdict(info)
            row["metrics"] = None if found is None else msgspec.structs.asdict(found)
            if not caller.worker:
                row["workers"] = holders.get(info.uuid, 0)
            rows.append(row)
        return rows

    def _specs(self, caller: Caller) -> list[WorkerSpec]:
        return [spec for spec in self._session.workers() if caller.may_see(spec.worker)]

    def _workers(self, _request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        used: dict[str, list[WorkerUsage]] = {}
        for use in self._hypervisor.sampling.usage(self._node):
            used.setdefault(use.worker, []).append(use)
        specs = self._specs(caller)
        return json_answer({"workers": [_worker_row(s, used.get(s.worker, ())) for s in specs]})

    def _worker(self, _request: ApiRequest, caller: Caller, names: Sequence[str]) -> Answer:
        spec = self._find(caller, names[0])
        usage = self._hypervisor.sampling.usage(self._node)
        row = _worker_row(spec, [use for use in usage if use.worker == spec.worker])
        row["processes"] = list(self._process_rows(spec.worker))
        if isinstance(self._session, LimitedWorkers):
            attested = self._session.attest(spec.worker)
            row["attestation"] = [dataclasses.asdict(a) for a in attested]
            row["faults"] = dataclasses.asdict(self._session.faults(spec.worker))
        return json_answer(row)

    def _find(self, caller: Caller, name: str) -> WorkerSpec:
        if not caller.may_see(name):
            # The same for a worker that is there and one that is not.
            raise Forbidden(f"process {caller.pid} may only ask for its own worker")
        for spec in self._session.workers():
            if spec.worker == name:
                return spec
        raise NotFound(f"worker {name[:80]!r} is not on this node")

    def _limits(self, request: ApiRequest, caller: Caller, names: Sequence[str]) -> Answer:
        _operators_only(caller, "limits")
        change = decode_limits(request.body)
        self._find(caller, names[0])
        share = self._hypervisor.workers.override(
            names[0], change.compute_gflops, change.vram_bytes
        )
        log.info("limits set by hand", extra={"worker": names[0], "pid": caller.pid})
        return json_answer({"worker": names[0], "limits": _limits_of(share)})

    def _log(self, _request: ApiRequest, caller: Caller, names: Sequence[str]) -> Answer:
        _operators_only(caller, "logs")
        uid, container, attempt, offset = names
        if not _OFFSET.fullmatch(offset):
            raise BadRequest(f"offset {offset[:80]!r} must be a number of bytes")
        runner = self._hypervisor.runner
        if runner is None:
            raise NotFound("the pods of this node are the kubelet's")
        chunk = runner.read_log(self._node, uid, container, attempt, int(offset))
        return json_answer(dataclasses.asdict(chunk))

    def _processes(self, _request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        return json_answer({"processes": list(self._process_rows(caller.worker))})

    def _register(self, request: ApiRequest, caller: Caller, _names: Sequence[str]) -> Answer:
        if request.body:
            raise Forbidden("a process registers itself and says nothing more; send no body")
        row = self._registry.register(caller)
        spec = next((s for s in self._session.workers() if s.worker == row.worker), None)
        limits = _limits_of(spec.share) if spec is not None else None
        return json_answer({**dataclasses.asdict(row), "limits": limits})

    def _process_rows(self, worker: str) -> Iterator[dict[str, Any]]:
        for row in self._registry.processes():
            if worker in ("", row.worker):
                yield dataclasses.asdict(row)


def _match(pattern: tuple[str, ...], segments: tuple[str, ...]) -> list[str] | None:
    """The segments at the stars, or None when the path is another."""
    if len(pattern) != len(segments):
        return None
    pairs = list(zip(pattern, segments, strict=True))
    if any(want not in ("*", got) for want, got in pairs):
        return None
    return [got for want, got in pairs if want == "*"]


def _operators_only(caller: Caller, what: str) -> None:
    if caller.worker:
        raise Forbidden(f"{what} are for root and the agent's user, not for processes of workers")


def _limits_of(share: Share) -> dict[str, int]:
    return {"computeGflops": share.limit_gflops, "vramBytes": share.limit_vram_bytes}


def _worker_row(spec: WorkerSpec, usage: Sequence[WorkerUsage]) -> dict[str, Any]:
    return {
        "worker": spec.worker,
        "namespace": spec.namespace,
        "name": spec.name,
        "workload": spec.workload,
        "qos": spec.qos,
        "isolation": spec.isolation,
        "devices": list(spec.devices),
        "requests": {
            "computeGflops": spec.share.request_gflops,
            "vramBytes": spec.share.request_vram_bytes,
        },
        "limits": _limits_of(spec.share),
        "usage": [
            {
                "uuid": use.uuid,
                "computeGflops": use.compute_gflops,
                "vramBytes": use.vram_bytes,
                "busySeconds": use.busy_seconds_total,
                "throttledSeconds": use.throttled_seconds_total,
                "vramDenials": use.oom_total,
            }
            for use in usage
        ],
    }
