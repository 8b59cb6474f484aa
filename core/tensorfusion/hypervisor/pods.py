"""Pods whose containers are processes of this machine: start, restart, stop, and what they say.

The kubelet's part for the embedded mode. Images are not pulled and volumes are not mounted: a
container's command runs as it is on this machine, as the user of the control plane.
"""

import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorfusion import names
from tensorfusion.api.core.container import Container as ContainerSpec
from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError, BadRequest, NotFound
from tensorfusion.hypervisor.containers import Attempt, Container
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.spi.backend import PreparedWorker

log = logging.getLogger(__name__)
INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What a container gets of the control plane's own environment: nothing that may be a secret."""
FIRST_BACKOFF_SECONDS = 10.0
LONGEST_BACKOFF_SECONDS = 300.0
"""Pauses before the second and later restarts, as the kubelet makes them."""
IDLE = ("sleep", "infinity")
"""What a further container without a command does: only the first plays the load."""
FOLLOW_SECONDS = 0.25
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container now.

    Attributes:
        last: The newest attempt; None before the first.
        waits_until: When it is started again, seconds since the epoch; 0 when it is not.
    """

    spec: ContainerSpec
    last: Attempt | None
    waits_until: float = 0.0

    def running(self) -> bool:
        """Whether its process runs."""
        return self.last is not None and self.last.exit_code is None

    def over(self) -> bool:
        """Whether it ended for good."""
        return self.last is not None and self.last.exit_code is not None and not self.waits_until


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a container's output.

    Attributes:
        attempt: The number of the attempt that it is of.
        offset: Where the next piece begins.
        ended: Nothing is written any more.
    """

    attempt: int
    offset: int
    data: bytes
    ended: bool


class PodRunner:
    """The processes of all pods.

    Args:
        folder: Holds a folder per node; a pod's files are in ``NODE/pods/UID``: its
            working directory ``work``, and ``containers``.

    Concurrency: `step`, `stop` and `remove` belong to one thread, `trim_logs` to one that may be
    another; `logs` may be called from any.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._containers: dict[tuple[str, str, str], Container] = {}
        self._asked: set[str] = set()
        """Pods whose processes were asked to end."""

    def has(self, node: str, uid: str) -> bool:
        """Whether a pod has processes, or had."""
        return self._path(node, uid).is_dir()

    def step(self, pod: Pod, node: str, prepared: PreparedWorker) -> list[ContainerState]:
        """Start what should run and does not.

        Raises:
            BackendError: A container cannot be started; names it and why.
        """
        assert pod.spec is not None
        states = []
        for index, spec in enumerate(pod.spec.containers):
            container = self._container(node, pod.metadata.uid, spec.name)
            last = container.last()
            due = self._due(pod.spec.restart_policy, last)
            if last is None or 0 < due <= self._clock.now():
                self._start(pod, node, container, index, prepared)
                last = container.last()
                due = self._due(pod.spec.restart_policy, last)  # it may have ended already
            states.append(ContainerState(spec, last, due))
        return states

    def _due(self, policy: str, last: Attempt | None) -> float:
        """When an attempt that ended is followed by the next; 0: never, or it has not ended."""
        if last is None or last.exit_code is None or policy == "Never":
            return 0.0
        if policy == "OnFailure" and last.exit_code == 0:
            return 0.0
        if last.number == 0:
            return last.finished
        pause = FIRST_BACKOFF_SECONDS * 2.0 ** min(last.number - 1, 10)
        return last.finished + min(pause, LONGEST_BACKOFF_SECONDS)

    def _start(
        self, pod: Pod, node: str, container: Container, index: int, prepared: PreparedWorker
    ) -> None:
        assert pod.spec is not None
        spec = pod.spec.containers[index]
        environment = _environment(pod, spec, prepared)
        command = _command(pod, index, prepared, environment)
        work = self._path(node, pod.metadata.uid) / "work"
        folder = Path(spec.working_dir) if spec.working_dir else work
        try:
            work.mkdir(parents=True, exist_ok=True)
            container.start(command, environment, folder)
        except OSError as error:
            raise BackendError(
                "hypervisor",
                f"container {spec.name!r} of pod {pod.metadata.namespace}/{pod.metadata.name}:"
                f" {error.filename or command[0]}: {error.strerror}",
            ) from error

    def stop(self, node: str, uid: str, kill_at: float) -> bool:
        """Ask a pod's processes to end, kill them when it is time; True once all are gone.

        Args:
            kill_at: Seconds since the epoch.
        """
        containers = self._all(node, uid)
        left = [c for c in containers if _runs(c)]
        if self._clock.now() >= kill_at:
            for container in left:
                container.send(signal.SIGKILL)
        elif uid not in self._asked:
            self._asked.add(uid)
            for container in left:
                container.send(signal.SIGTERM)
        # What is left may still write into the pod's folder.
        return not left and not any(c.kill_leftovers() for c in containers)

    def remove(self, node: str, uid: str) -> None:
        """Remove a pod's files; its processes must have ended."""
        for container in self._all(node, uid):
            container.remove()
        shutil.rmtree(self._path(node, uid), ignore_errors=True)
        self._containers = {k: c for k, c in self._containers.items() if k[1] != uid}
        self._asked.discard(uid)

    def trim_logs(self) -> None:
        """Shorten the logs that have grown too long."""
        for container in self._containers.copy().values():
            container.trim()

    def leaders(self, node: str, uid: str) -> list[int]:
        """Processes that lead a pod's containers, of those that run."""
        found = (container.running_leader() for container in self._all(node, uid))
        return [pid for pid in found if pid]

    def uids(self, node: str) -> list[str]:
        """Pods that have files."""
        folder = self._folder / node / "pods"
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def logs(
        self, pod: Pod, node: str, name: str, *, previous: bool, follow: bool
    ) -> Iterator[bytes]:
        """Read the output of a container.

        Raises:
            BadRequest: There are several containers and none is named, or it did not run before.
            NotFound: There is no such container.
        """
        name = choose_container(pod, name)
        container = self._reading(node, pod.metadata.uid, name)
        number = _attempt(container, name, "previous" if previous else "newest")
        return _read(container, number, self._clock, follow=follow and not previous)

    def read_log(self, node: str, uid: str, name: str, attempt: str, offset: int) -> LogChunk:
        """Read one piece of a container's output, for who asks from elsewhere; any thread.

        Args:
            attempt: ``newest``, ``previous`` or a number.
            offset: Where the piece begins; the end where the log is shorter by now.

        Raises:
            BadRequest: The container did not run, or not so often.
            NotFound: There is no such pod here.
        """
        if not self._path(node, uid).is_dir():
            raise NotFound(f"pod {uid[:80]!r} has no process on node {node}")
        container = self._reading(node, uid, name)
        number = _attempt(container, name, attempt)
        ended = container.attempt(number).exit_code is not None
        with container.log(number).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(min(offset, size))
            data = file.read(CHUNK_BYTES)
        return LogChunk(number, start + len(data), data, ended)

    def _path(self, node: str, uid: str) -> Path:
        return self._folder / node / "pods" / uid

    def _container(self, node: str, uid: str, name: str) -> Container:
        key = (node, uid, name)
        if key not in self._containers:
            self._containers[key] = self._reading(node, uid, name)
        return self._containers[key]

    def _reading(self, node: str, uid: str, name: str) -> Container:
        return Container(self._path(node, uid) / "containers" / name, self._clock)

    def _all(self, node: str, uid: str) -> list[Container]:
        path = self._path(node, uid) / "containers"
        found = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
        return [self._container(node, uid, name) for name in found]


def choose_container(pod: Pod, name: str) -> str:
    """The container that is meant; the only one where none is named.

    Raises:
        BadRequest: There are several and none is named.
        NotFound: There is no such container.
    """
    assert pod.spec is not None
    known = [container.name for container in pod.spec.containers]
    if not name and len(known) > 1:
        raise BadRequest(
            f"a container name must be specified for pod {pod.metadata.name}, choose one of:"
            f" [{' '.join(known)}]"
        )
    name = name or known[0]
    if name not in known:
        raise NotFound(f"container {name} is not valid for pod {pod.metadata.name}")
    return name


def _attempt(container: Container, name: str, attempt: str) -> int:
    """The number of the attempt that is meant."""
    last = container.last()
    if last is None:
        raise BadRequest(f'container "{name}" has not started yet')
    if attempt == "newest":
        return last.number
    if attempt == "previous":
        if last.number == 0:
            raise BadRequest(f'previous terminated container "{name}" not found')
        return last.number - 1
    if not attempt.isascii() or not attempt.isdigit() or int(attempt) > last.number:
        raise BadRequest(
            f"attempt {attempt[:80]!r}: allowed are newest, previous and 0 to {last.number}"
        )
    return int(attempt)


def _runs(container: Container) -> bool:
    last = container.last()
    return last is not None and last.exit_code is None


def _environment(pod: Pod, spec: ContainerSpec, prepared: PreparedWorker) -> dict[str, str]:
    base = {name: os.environ[name] for name in INHERITED if name in os.environ}
    base["HOSTNAME"] = pod.metadata.name
    for variable in spec.env:
        if variable.value_from is None:
            base[variable.name] = _expand(variable.value, base)
    return process_environment(base, prepared.env)


def _command(
    pod: Pod, index: int, prepared: PreparedWorker, environment: Mapping[str, str]
) -> Sequence[str]:
    assert pod.spec is not None
    spec = pod.spec.containers[index]
    described = index == 0 and names.SIMULATED_LOAD in pod.metadata.annotations
    if spec.command and not described:
        return [_expand(word, environment) for word in (*spec.command, *spec.args)]
    return prepared.command if index == 0 else IDLE


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by a variable's value, as the kubelet does; ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else environment.get(name, match.group(0))

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def _read(container: Container, number: int, clock: Clock, *, follow: bool) -> Iterator[bytes]:
    """Read a log to its end; a followed one until its process has ended.

    An empty chunk says that there is nothing new, so that the reader may give up meanwhile.
    """
    never = threading.Event()
    with container.log(number).open("rb") as file:
        while True:
            ended = not follow or container.attempt(number).exit_code is not None
            if file.tell() > container.log(number).stat().st_size:
                file.seek(0, os.SEEK_END)  # it was trimmed
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
            if ended:
                return
            yield b""
            clock.wait(never, FOLLOW_SECONDS)
