"""Processes of workers: who is at the other end of a socket, and which worker it belongs to.

The kernel tells the process id of a peer (SO_PEERCRED, unix(7)). To which worker that process
belongs is found by what it cannot choose: its cgroup, which a kubelet made, or the process that
leads its container, which we started. Only where there is neither, its environment counts.
"""

import os
import struct
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tensorfusion.clock import Clock
from tensorfusion.errors import Forbidden
from tensorfusion.hypervisor.proc import (
    Stat,
    decode_cgroup,
    decode_environment,
    decode_stat,
)

WORKER_VARIABLE: Final = "TENSORFUSION_WORKER"
CONTAINER_VARIABLE: Final = "TENSORFUSION_CONTAINER"
MOST_ANCESTORS: Final = 64
LEAST_KEPT: Final = 64
"""Registered processes that are kept without a look whether they still run."""
PEER: Final = struct.Struct("3i")
"""``struct ucred``: process, user, group."""
Evidence = Literal["cgroup", "container", "environment"]


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket."""

    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        worker: The worker that it may speak for; empty for an operator, who may ask for all.
        pid: Its process; 0 for one who came with the token.
    """

    worker: str = ""
    pid: int = 0
    start_ticks: int = 0
    evidence: str = ""

    def may_see(self, worker: str) -> bool:
        """Whether a worker is its own, or it is an operator."""
        return not self.worker or self.worker == worker


@dataclass(frozen=True, slots=True)
class Registered:
    """A process of a worker; a process id alone may be used again."""

    pid: int
    start_ticks: int
    worker: str
    evidence: str
    since: float


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a process comes from: process ids, and the worker of its cgroup or else of its claim."""

    parent: int = 0
    session: int = 0
    worker: str = ""


def decode_peer(data: bytes) -> Peer | None:
    """Read the kernel's answer to SO_PEERCRED; None when there is no process of ours to see."""
    if len(data) != PEER.size:
        return None
    pid, uid, _ = PEER.unpack(data)
    return Peer(pid, uid) if pid > 0 else None


class Registry:
    """Tells who a peer is, and keeps those who registered.

    Args:
        workers: Names of the workers of this node.
        worker_of_pod: Names the worker that a pod's uid stands for; empty when none of ours.
        pods: Folder below which containers have their files; see `hypervisor.pods`.
        owner: User who runs the agent.

    Concurrency: safe from any thread.
    """

    def __init__(
        self,
        workers: Callable[[], Collection[str]],
        worker_of_pod: Callable[[str], str],
        pods: Path,
        clock: Clock,
        *,
        proc: Path = Path("/proc"),
        owner: int | None = None,
    ) -> None:
        self._workers = workers
        self._worker_of_pod = worker_of_pod
        self._pods = pods.resolve()
        self._clock = clock
        self._proc = proc
        self._owner = os.geteuid() if owner is None else owner
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], Registered] = {}
        self._look_at = LEAST_KEPT
        """At so many it is looked which of them still run: each time at twice as many as did."""
        # Where the agent itself runs in a pod, so do the containers that it starts.
        self._own_pod = decode_cgroup(self._read(os.getpid(), "cgroup"))

    def caller(self, peer: Peer) -> Caller:
        """Say who a peer is.

        Raises:
            Forbidden: It belongs to no worker of this node and is neither root nor the agent's
                user; or it claims to be of another worker than it is of.
        """
        stat = self._stat(peer.pid)
        if stat is None:
            raise Forbidden(f"process {peer.pid} is gone")
        worker, evidence = self._identify(peer.pid, stat)
        if worker:
            return Caller(worker, peer.pid, stat.start_ticks, evidence)
        if peer.uid in (0, self._owner):
            return Caller(pid=peer.pid, start_ticks=stat.start_ticks)
        raise Forbidden(
            f"process {peer.pid} of user {peer.uid} belongs to no worker of this node; others than"
            f" workers must be root or user {self._owner}"
        )

    def origin(self, pid: int) -> Origin:
        """Where any process comes from, as far as it shows by itself; the rest is its parent's and its session's."""
        stat = self._stat(pid)
        if stat is None:
            return Origin()
        uid = decode_cgroup(self._read(pid, "cgroup"))
        if uid and uid != self._own_pod:
            return Origin(stat.parent, stat.session, self._worker_of_pod(uid))
        claimed = decode_environment(self._read(pid, "environ")).get(WORKER_VARIABLE, "")
        worker = claimed if claimed and claimed in self._workers() else ""
        return Origin(stat.parent, stat.session, worker)

    def register(self, caller: Caller) -> Registered:
        """Note a process of a worker; again is fine.

        Raises:
            Forbidden: The caller is an operator, who is no process of a worker.
        """
        if not caller.worker:
            raise Forbidden("only a process of a worker can register itself")
        key = (caller.pid, caller.start_ticks)
        if len(self._known) >= self._look_at:
            self._look_at = max(LEAST_KEPT, 2 * len(self.processes()))
        with self._lock:
            known = self._known.get(key)
            if known is None or known.worker != caller.worker:
                now = self._clock.now()
                known = Registered(*key, caller.worker, caller.evidence, now)
                self._known[key] = known
        return known

    def processes(self) -> list[Registered]:
        """Registered processes that still run, by process id; the others are forgotten."""
        with self._lock:
            known = list(self._known.items())
        gone = [key for key, row in known if not self._runs(row)]
        with self._lock:
            for key in gone:
                self._known.pop(key, None)
            return sorted(self._known.values(), key=lambda row: row.pid)

    def _runs(self, row: Registered) -> bool:
        stat = self._stat(row.pid)
        return stat is not None and stat.start_ticks == row.start_ticks

    def _identify(self, pid: int, stat: Stat) -> tuple[str, str]:
        """The worker of a process and how that is known; two empty strings when it has none."""
        environment = decode_environment(self._read(pid, "environ"))
        claimed = environment.get(WORKER_VARIABLE, "")
        uid = decode_cgroup(self._read(pid, "cgroup"))
        if uid and uid != self._own_pod:
            found, evidence = self._worker_of_pod(uid), "cgroup"
            if not found and claimed:
                raise Forbidden(f"process {pid} is in a pod without a worker of this node")
        else:
            found = self._by_container(pid, stat, environment.get(CONTAINER_VARIABLE, ""))
            evidence = "container"
        if found and claimed and claimed != found:
            raise Forbidden(f"process {pid} says that it is of another worker than it is of")
        if found:
            return found, evidence
        return (claimed, "environment") if claimed in self._workers() else ("", "")

    def _by_container(self, pid: int, stat: Stat, mark: str) -> str:
        """The worker of the pod whose container's leader is an ancestor, or leads the session."""
        path = Path(mark)
        if not mark or not path.is_relative_to(self._pods):
            return ""
        parts = path.relative_to(self._pods).parts
        if len(parts) != 4 or ".." in parts:  # UID/containers/NAME/NUMBER
            return ""
        try:
            leader = int(path.with_name(f"{path.name}.pid").read_text()[:12])
        except (OSError, ValueError):
            return ""
        if leader != stat.session and leader not in self._ancestors(pid):
            raise Forbidden(f"process {pid} is not of the container that it says it is of")
        return self._worker_of_pod(parts[0])

    def _ancestors(self, pid: int) -> list[int]:
        found = [pid]
        while len(found) < MOST_ANCESTORS:
            stat = self._stat(found[-1])
            if stat is None or stat.parent <= 1:
                break
            found.append(stat.parent)
        return found

    def _stat(self, pid: int) -> Stat | None:
        return decode_stat(self._read(pid, "stat"))

    def _read(self, pid: int, name: str) -> bytes:
        try:
            # No Path: it interns each process id, which Python 3.12 then keeps for ever.
            with open(f"{self._proc}/{pid}/{name}", "rb") as file:
                return file.read()
        except OSError:
            return b""
