"""The worker controller: pods that are bound to our nodes become prepared workers, and end.

It plays the kubelet's part in the embedded mode: it reports a pod's phase and removes a deleted
pod once its worker is released. Where a backend names a command that stands in for containers,
they run as processes of this machine; otherwise none is started.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.registry import PODS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp, parse_timestamp
from tensorfusion.errors import BackendError, ConfigError, NotFound
from tensorfusion.hypervisor import partitions
from tensorfusion.hypervisor.exits import ExitWatch
from tensorfusion.hypervisor.overrides import Overrides
from tensorfusion.hypervisor.pod_status import is_reported, process_status, running_status
from tensorfusion.hypervisor.pods import PodRunner
from tensorfusion.model.worker_annotations import cuts_of, gpu_ids_of, limit_of, request_of
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.spi.backend import (
    Capabilities,
    DeviceInfo,
    NodeBackend,
    PreparedWorker,
    Share,
    WhenFull,
    WorkerSpec,
)
from tensorfusion.store.informer import Change, Informer, split_key
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-hypervisor"
WATCH_SECONDS = 1.0
"""How often processes are looked at whose end nobody tells."""
WATCHED_SECONDS = 60.0
"""How often the others are, for what nobody thought of."""
STOP_SECONDS = 0.2
"""How often processes are looked at that were asked to end."""
KILL_SECONDS, KILL_POLL_SECONDS = 5.0, 0.05
"""How long, and how often, it is looked whether processes are gone that were killed."""


class WorkerController:
    """Prepares, adjusts and releases the workers of all sessions.

    Args:
        runner: Runs containers as processes; None where a kubelet runs them.
        env: Variables that every worker's processes get.
    """

    def __init__(
        self,
        store: Store,
        sessions: Mapping[str, NodeBackend],
        pods: Informer[Pod],
        capabilities: Capabilities,
        *,
        clock: Clock,
        events: EventRecorder,
        runner: PodRunner | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._env = dict(env or {})
        self._sessions = sessions
        self._pods = pods
        self._capabilities = capabilities
        self._clock = clock
        self._events = events
        self._specs: dict[str, WorkerSpec] = {}
        self._node_of: dict[str, str] = {}
        self._promised: dict[str, list[WorkerSpec]] = {}
        """What `promised` answers; another one after every change."""
        self._prepared: dict[str, PreparedWorker] = {}
        self._started: dict[str, tuple[str, str]] = {}
        """Pod to its node and uid, of those with processes."""
        self._known_devices: dict[str, DeviceInfo] = {}
        self._overrides = Overrides()
        self.when_full: Callable[[str, str, Share], WhenFull] = lambda _node, _qos, _share: (
            WhenFull()
        )
        """What a node's pool says of full cards, by quality of service; set by the composition."""
        self._users: dict[str, set[str]] = {}
        """Worker to the keys of the pods that use it."""
        self.controller = Controller("hypervisor-workers", self.reconcile, clock=clock)
        chore = runner.trim_logs if runner is not None else lambda: None
        self.exits = ExitWatch(self.controller.queue.add, chore, clock)
        pods.subscribe(self._changed)

    def _changed(self, change: Change[Pod]) -> None:
        if change.new is None:
            if change.old is not None and pod_view.node_name(change.old) in self._sessions:
                self.controller.queue.add(change.key)
        elif pod_view.node_name(change.new) in self._sessions:
            self.controller.queue.add(change.key)

    def recover(self) -> None:
        """Release workers of an earlier run whose pod is gone; called once informers are synced."""
        users: dict[str, list[str]] = {}
        self._adopt()
        for pod in self._pods.values():
            users.setdefault(worker_of(pod)[0], []).append(pod_view.key(pod))
        for node, session in self._sessions.items():
            for spec in session.workers():
                for key in users.get(spec.worker, ()):
                    self._remember(key, spec, node)
                if spec.worker not in users:
                    try:
                        session.release(spec.worker)
                    except BackendError as error:
                        extra = {"node": node, "worker": spec.worker, "error": str(error)}
                        log.warning("worker of an earlier run not released", extra=extra)

    def _adopt(self) -> None:
        """Take over the processes of an earlier run; those whose pod is gone end."""
        if self._runner is None:
            return
        keys = {pod.metadata.uid: pod_view.key(pod) for pod in self._pods.values()}
        for node in self._sessions:
            for uid in self._runner.uids(node):
                if uid in keys:
                    self._started[keys[uid]] = (node, uid)
                else:
                    self._remove_orphan(self._runner, node, uid)

    def _remove_orphan(self, runner: PodRunner, node: str, uid: str) -> None:
        deadline, never = self._clock.monotonic() + KILL_SECONDS, threading.Event()
        while not runner.stop(node, uid, kill_at=0):
            if self._clock.monotonic() > deadline:
                extra = {"node": node, "pod": uid}
                log.warning("processes of an earlier run do not end", extra=extra)
                return
            self._clock.wait(never, KILL_POLL_SECONDS)
        runner.remove(node, uid)

    def reconcile(self, key: str) -> Result:
        """Bring one pod's worker in line with the pod."""
        pod = self._pods.get(key)
        known = self._specs.get(key)
        _, uid = self._started.get(key, ("", ""))
        replaced = pod is not None and (
            (known is not None and worker_of(pod)[0] != known.worker)
            or (uid and uid != pod.metadata.uid)
        )
        if pod is None or replaced:
            if not self._end(key, kill_at=0):
                return Result(STOP_SECONDS)
            self._release(key)
            if pod is None:
                return DONE
        node = pod_view.node_name(pod)
        if node not in self._sessions:
            return DONE
        if pod.metadata.deletion_timestamp:
            if not self._end(key, kill_at=parse_timestamp(pod.metadata.deletion_timestamp)):
                return Result(STOP_SECONDS)
            self._release(key)
            self._finish_deletion(key)
            return DONE
        if pod_view.is_finished(pod):
            self._release(key)
            return DONE
        if gpu_ids_of(pod.metadata.annotations):
            return self._prepare(key, pod, node)
        if not self._is_running(pod):
            self._report_running(pod)
        return DONE

    def _prepare(self, key: str, pod: Pod, node: str) -> Result:
        session = self._sessions[node]
        try:
            spec = self.spec_of(pod, node)
            if spec.isolation == partitions.ISOLATION:
                spec = self._cut_for(session, spec, pod, node)
            known, prepared = self._specs.get(key), self._prepared.get(key)
            watched = key in self._started
            if known == spec and self._is_running(pod) and not watched:
                return DONE
            same = known is not None and _same_but_share(known, spec)
            if not same or (watched and prepared is None):
                found = session.prepare(spec)
                prepared = dataclasses.replace(found, env={**found.env, **self._env})
                self._prepared[key] = prepared
            elif (known != spec or not watched) and not spec.partitions:
                session.set_limits(spec.worker, spec.share)
        except (BackendError, ConfigError) as error:
            self._events.event(
                pod_view.reference(pod), "WorkerNotPrepared", f"node {node}: {error}", warning=True
            )
            raise
        self._remember(key, spec, node)
        if prepared is not None and prepared.command and self._runner is not None:
            return self._run(self._runner, key, pod, prepared)
        if not self._is_running(pod):
            self._report_running(pod)
        return DONE

    def _cut_for(self, session: NodeBackend, spec: WorkerSpec, pod: Pod, node: str) -> WorkerSpec:
        annotations = pod.metadata.annotations
        devices = [self._device(node, name) for name in gpu_ids_of(annotations)]
        return partitions.cut_for(session, spec, devices, cuts_of(annotations))

    def _run(self, runner: PodRunner, key: str, pod: Pod, prepared: PreparedWorker) -> Result:
        """Keep the processes of a pod's containers running, and report how they are."""
        node = pod_view.node_name(pod)
        self._started[key] = (node, pod.metadata.uid)
        try:
            states = runner.step(pod, node, prepared)
        except BackendError as error:
            self._events.event(
                pod_view.reference(pod), "ContainerNotStarted", str(error), warning=True
            )
            raise
        status = process_status(states, format_timestamp(self._clock.now()))
        if not is_reported(pod, status):
            self._report(pod, status)
        if status["phase"] in pod_view.FINISHED:
            return DONE
        if self.exits.watched(key) == len(states):
            return Result(WATCHED_SECONDS)
        leaders = runner.leaders(node, pod.metadata.uid)
        if len(leaders) < len(states):
            return Result(WATCH_SECONDS)  # one is not there yet, or waits to be started again
        for pid in leaders:
            self.exits.watch(key, pid)
        return Result(WATCHED_SECONDS)

    def _end(self, key: str, kill_at: float) -> bool:
        """End a pod's processes; True once they are gone, with their files."""
        if key not in self._started or self._runner is None:
            return True
        node, uid = self._started[key]
        if not self._runner.stop(node, uid, kill_at):
            return False
        self._runner.remove(node, uid)
        del self._started[key]
        return True

    def look_again(self) -> None:
        """Bring every worker in line once more, because its pool may have changed."""
        for key in self._specs.copy():
            self.controller.queue.add(key)

    def promised(self, node: str) -> Sequence[WorkerSpec]:
        """The workers of a node as their pods ask for them; safe from any thread.

        The same object as last time as long as nothing changed.
        """
        lists = self._promised
        if node not in lists:
            nodes = self._node_of.copy()
            lists[node] = [s for key, s in self._specs.copy().items() if nodes.get(key) == node]
        return lists[node]

    def override(self, worker: str, gflops: int | None, vram_bytes: int | None) -> Share:
        """Change a running worker's limits until its pod asks for something else.

        Args:
            gflops: Limit of compute on each device; None leaves it.
            vram_bytes: Likewise of memory.

        Raises:
            NotFound: No pod of ours uses that worker.
            BackendError: The limits could not be changed.
        """
        spec, node = next(
            ((s, self._node_of[k]) for k, s in self._specs.copy().items() if s.worker == worker),
            (None, ""),
        )
        if spec is None:
            raise NotFound(f"worker {worker!r} is not known on this node")
        share = dataclasses.replace(
            spec.share if gflops is None else spec.share.limited_to(gflops),
            limit_vram_bytes=spec.share.limit_vram_bytes if vram_bytes is None else vram_bytes,
        )
        self._overrides.put(worker, share)
        self._sessions[node].set_limits(worker, share)
        for key in self._users.get(worker, set()).copy():
            self.controller.queue.add(key)
        return share

    def worker_of_pod(self, uid: str) -> str:
        """The worker that the pod of a uid uses; empty when it uses none of ours."""
        for key, spec in self._specs.copy().items():
            pod = self._pods.get(key)
            if pod is not None and pod.metadata.uid == uid:
                return spec.worker
        return ""

    def worker_led_by(self, pid: int) -> str:
        """The worker whose container a process leads; empty for any other process."""
        spec = self._specs.get(self.exits.key_of(pid))
        return spec.worker if spec is not None else ""

    def spec_of(self, pod: Pod, node: str) -> WorkerSpec:
        """Build the worker that an admitted, bound pod stands for."""
        annotations = pod.metadata.annotations
        devices = [self._device(node, name) for name in gpu_ids_of(annotations)]
        first = devices[0]
        request, limit = request_of(annotations), limit_of(annotations)
        asked = Share(
            request_gflops=request.gflops_on(first.compute_gflops),
            request_vram_bytes=request.vram_bytes,
            limit_gflops=limit.gflops_on(first.compute_gflops) or first.compute_gflops,
            limit_vram_bytes=limit.vram_bytes or first.vram_bytes,
            request_milli_percent=request.milli_percent,
            limit_milli_percent=limit.milli_percent,
        )
        worker, name = worker_of(pod)
        share = self._overrides.share(worker, asked)
        qos = annotations.get(names.QOS, "medium")
        return WorkerSpec(
            worker=worker,
            namespace=pod.metadata.namespace,
            name=name,
            workload=pod.metadata.labels.get(names.WORKLOAD, ""),
            devices=tuple(device.uuid for device in devices),
            share=share,
            isolation=annotations.get(names.ISOLATION, "soft"),
            qos=qos,
            partition_template=annotations.get(names.PARTITION_ID, ""),
            when_full=self.when_full(node, qos, share),
            annotations={k: v for k, v in annotations.items() if k == names.SIMULATED_LOAD},
        )

    def _device(self, node: str, name: str) -> DeviceInfo:
        """Find a device by its object's name; asks the driver only for one it never saw."""
        if name not in self._known_devices:
            found = {info.uuid.lower(): info for info in self._sessions[node].discover()}
            self._known_devices.update(found)
        try:
            return self._known_devices[name]
        except KeyError:
            raise BackendError("hypervisor", f"node {node!r} has no device {name!r}") from None

    def _is_running(self, pod: Pod) -> bool:
        return pod_view.phase(pod) == "Running"

    def _report_running(self, pod: Pod) -> None:
        self._report(pod, running_status(pod, format_timestamp(self._clock.now())))

    def _report(self, pod: Pod, status: JsonObject) -> None:
        namespace, name = pod.metadata.namespace, pod.metadata.name
        self._store.patch(
            PODS,
            name,
            {"status": status},
            namespace,
            subresource="status",
            field_manager=MANAGER,
        )

    def _remember(self, key: str, spec: WorkerSpec, node: str) -> None:
        self._specs[key] = spec
        self._node_of[key] = node
        self._users.setdefault(spec.worker, set()).add(key)
        self._promised = {}

    def _release(self, key: str) -> None:
        """Let a pod go; its worker ends with the last pod that uses it.

        Raises:
            BackendError: The worker could not be released; nothing is forgotten, so that the
                next reconcile tries again.
        """
        spec = self._specs.get(key)
        if spec is None:
            return
        if not self._users[spec.worker] - {key}:
            self._sessions[self._node_of[key]].release(spec.worker)
            self._users.pop(spec.worker)
            self._overrides.forget(spec.worker)
        else:
            self._users[spec.worker].discard(key)
        del self._specs[key], self._node_of[key]
        self._promised = {}
        self._prepared.pop(key, None)

    def _finish_deletion(self, key: str) -> None:
        namespace, name = split_key(key)
        try:
            self._store.delete(PODS, name, namespace, grace_period_seconds=0)
        except NotFound:
            log.debug("pod is gone already", extra={"key": key})


def _same_but_share(a: WorkerSpec, b: WorkerSpec) -> bool:
    return (a.worker, a.devices, a.isolation, a.when_full) == (
        b.worker,
        b.devices,
        b.isolation,
        b.when_full,
    )


def worker_of(pod: Pod) -> tuple[str, str]:
    """The uid and name of the pod whose worker this pod uses: its own, unless it shares one."""
    key, _, name = pod.metadata.annotations.get(names.WORKER, "").partition("/")
    return key or pod.metadata.uid, name or pod.metadata.name
