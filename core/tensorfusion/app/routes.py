"""What the wire serves beside Kubernetes' own paths: alerts, plugins, usage, ledger, logs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tensorfusion.api import pod_view
from tensorfusion.apiserver import PodLogRequest, Request, Response, json_response
from tensorfusion.clock import parse_timestamp
from tensorfusion.errors import BadRequest, NotFound
from tensorfusion.hypervisor.pods import choose_container
from tensorfusion.hypervisor.series import HeldWorker
from tensorfusion.model.history import SUBJECTS, Subject
from tensorfusion.spi.backend import DeviceMetrics, WorkerUsage

if TYPE_CHECKING:
    from tensorfusion.app.control_plane import ControlPlane


class Routes:
    """Handlers over a control plane; each takes a few milliseconds at most."""

    def __init__(self, plane: "ControlPlane") -> None:
        self._plane = plane

    def table(self) -> dict[str, Callable[[Request], Response]]:
        """Path to handler."""
        return {
            "tensorfusion/alerts": self._alerts,
            "tensorfusion/plugins": self._plugins,
            "tensorfusion/backend": self._backend,
            "tensorfusion/counters": self._counters,
        }

    def slow(self) -> dict[str, Callable[[Request], Response]]:
        """Path to handlers that read files, or look at every worker."""
        return {
            "tensorfusion/history": self._history,
            "tensorfusion/ledger": self._ledger,
            "tensorfusion/usage": self._usage,
        }

    def _history(self, request: Request) -> Response:
        kind, name = request.query.text("kind"), request.query.text("name")
        if kind not in SUBJECTS or not name:
            raise BadRequest(
                f"kind must be one of {', '.join(SUBJECTS)} and name must not be empty,"
                f" got kind {kind!r} and name {name!r}"
            )
        subject = msgspec.convert(
            {"kind": kind, "name": name, "namespace": request.query.text("namespace")}, Subject
        )
        until: float | None = None
        if "at" in request.query:
            try:
                until = parse_timestamp(request.query.text("at"))
            except ValueError as error:
                raise BadRequest(f"at: {error}") from error
        found = self._plane.placer.history(subject, until)
        return json_response(msgspec.to_builtins(found))

    def pod_logs(self, request: PodLogRequest) -> Iterator[bytes]:
        """Read a pod's output; a pod without processes says what stands in for them."""
        pod = self._plane.informers.pods.get(f"{request.namespace}/{request.name}")
        if pod is None:
            raise NotFound(f'pods "{request.name}" not found')
        if not pod_view.node_name(pod):
            raise BadRequest(f"pod {request.name} is not bound to a node yet")
        hypervisor, node = self._plane.hypervisor, pod_view.node_name(pod)
        runner, elsewhere = hypervisor.runner, node not in hypervisor.sessions
        if elsewhere or (runner is not None and runner.has(node, pod.metadata.uid)):
            if request.timestamps:
                raise BadRequest("timestamps are not recorded; leave timestamps=true out")
            if elsewhere or runner is None:
                name = choose_container(pod, request.container)
                chunks = self._plane.agents.logs(
                    node, pod.metadata.uid, name, previous=request.previous, follow=request.follow
                )
            else:
                chunks = runner.logs(
                    pod, node, request.container, previous=request.previous, follow=request.follow
                )
            return chunks if request.tail_lines is None else _tail(chunks, request.tail_lines)
        backend = self._plane.hypervisor.backend.name
        line = (
            f"pod {request.namespace}/{request.name} runs on node {pod_view.node_name(pod)}"
            f" as a load profile of the {backend} backend; it starts no process and prints nothing\n"
        )
        return iter([line.encode()])

    def _alerts(self, _request: Request) -> Response:
        alerts = sorted(self._plane.alerts.active(), key=lambda a: (a.rule, a.fingerprint))
        return json_response({"alerts": [msgspec.to_builtins(a) for a in alerts]})

    def _plugins(self, _request: Request) -> Response:
        return json_response({"plugins": plugin_rows(self._plane.host.records())})

    def _backend(self, _request: Request) -> Response:
        """The backend in use, its nodes, and what holds workers to their limits, by isolation."""
        hypervisor = self._plane.hypervisor
        isolation = hypervisor.backend.capabilities().isolation
        return json_response(
            {
                "name": hypervisor.backend.name,
                "nodes": len(hypervisor.sessions),
                "isolation": {mode: enforced.value for mode, enforced in isolation.items()},
            }
        )

    def _usage(self, _request: Request) -> Response:
        """What is used now, as of the nodes here; as last read, of those that have agents."""
        workers: list[dict[str, Any]] = []
        devices: list[dict[str, Any]] = []
        sessions = self._plane.hypervisor.sessions
        for node, session in sessions.items():
            workers += usage_rows(node, map(HeldWorker.of, session.workers()), session.usage())
            devices += device_rows(node, session.metrics())
        for node, reading in self._plane.agent_readings.latest().items():
            if reading is not None and node not in sessions:
                workers += usage_rows(node, reading.workers, reading.usage or ())
                devices += device_rows(node, reading.devices or ())
        return json_response({"workers": workers, "devices": devices})

    def _ledger(self, _request: Request) -> Response:
        return json_response(self._plane.placer.fingerprint())

    def _counters(self, _request: Request) -> Response:
        counters = self._plane.store.counters
        names = [n for n in dir(counters) if not n.startswith("_")]
        values = {n: getattr(counters, n) for n in names}
        whole = {k: v for k, v in values.items() if isinstance(v, int)}
        return json_response({**whole, "allocations": len(self._plane.placer.ledger.allocations)})


def usage_rows(
    node: str, workers: Iterable[HeldWorker], usage: Sequence[WorkerUsage]
) -> Iterator[dict[str, Any]]:
    """What the workers of a node use, with what they may."""
    by_name = {worker.worker: worker for worker in workers}
    for use in usage:
        worker = by_name.get(use.worker)
        if worker is not None:
            yield {
                "node": node,
                "namespace": worker.namespace,
                "name": worker.name,
                "workload": worker.workload,
                "gpu": use.uuid.lower(),
                "computeGflops": use.compute_gflops,
                "limitGflops": worker.share.limit_gflops,
                "requestGflops": worker.share.request_gflops,
                "vramBytes": use.vram_bytes,
                "limitVramBytes": worker.share.limit_vram_bytes,
                "throttledSeconds": use.throttled_seconds_total,
                "vramDenials": use.oom_total,
            }


def device_rows(node: str, readings: Sequence[DeviceMetrics]) -> Iterator[dict[str, Any]]:
    """What was read of the devices of a node."""
    for read in readings:
        yield {
            "node": node,
            "gpu": read.uuid.lower(),
            "utilizationRatio": read.utilization_ratio,
            "vramUsedBytes": read.vram_used_bytes,
            "temperatureCelsius": read.temperature_celsius,
            "powerWatts": read.power_watts,
        }


def _tail(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Leave out what is before the last ``count`` lines of what there is already."""
    head: deque[bytes] = deque(maxlen=count + 1)
    rest = b""
    for chunk in chunks:
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        head.extend(line + b"\n" for line in lines)
    shown = [*head, rest] if rest else list(head)
    yield b"".join(shown[-count:] if count else ())
    yield from chunks


def plugin_rows(records: Any) -> list[dict[str, Any]]:
    """Print plugin records for tables and JSON."""
    return [
        {
            "name": r.name,
            "distribution": r.distribution,
            "version": r.version,
            "module": r.module,
            "state": r.state,
            "kinds": r.kinds,
            "offers": r.offers,
            "loadSeconds": round(r.load_seconds, 4),
            "error": r.error,
        }
        for r in records
    ]
