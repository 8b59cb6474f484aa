"""Limits of a node session's workers: what a vendor's backend asks of the limiter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Mount, Pressure, WorkerSpec
from tensorfusion.spi.limited import Attested, LimiterFaults
from tensorfusion_native.attestation import read_attestations
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.states import State, decode_state
from tensorfusion_native.workers import WorkerRecord, Workers

NO_PRESSURE = Pressure()


@dataclass(frozen=True, slots=True)
class Counters:
    """What the limiter counted of a worker on a device; bytes as its ledger has them."""

    throttled_seconds: float = 0.0
    denied: int = 0
    used_bytes: int = 0
    charged_seconds: float = 0.0
    pressure: Pressure | None = None


class Enforcer:
    """Holds workers to their shares by the limiter.

    Args:
        folder: ``native`` in the session's state folder.
        context_bytes: What the driver takes for a context; 0 where it is not known.

    Concurrency: the session's lock guards it.
    """

    def __init__(self, folder: Path, libraries: Libraries, context_bytes: int = 0) -> None:
        self._libraries = libraries
        self._context_bytes = context_bytes
        self._workers = Workers(folder / "workers")
        self._counted: dict[tuple[str, int], tuple[bytes, Counters]] = {}

    def put(self, spec: WorkerSpec, whole_gflops: int) -> None:
        """Make a worker's files, or put its changed share in force at once.

        Args:
            spec: Its limits hold on each of its devices.
            whole_gflops: Rate of one of them.

        Raises:
            BackendError: The files cannot be written.
        """
        ratio = spec.share.limit_gflops / whole_gflops if whole_gflops else 0.0
        record = WorkerRecord(
            name=spec.worker,
            devices=list(spec.devices),
            vram_bytes=spec.share.limit_vram_bytes,
            compute_ratio=min(1.0, ratio) or 1.0,
            context_bytes=self._context_bytes,
            command=[f"{spec.namespace}/{spec.name}"],
            full=spec.when_full.policy.value,
            full_wait_seconds=spec.when_full.wait_seconds,
            spill_bytes=spec.when_full.host_bytes,
        )
        try:
            self._workers.put(record)
        except (OSError, ValueError) as error:
            raise BackendError(
                "limiter", f"worker {spec.namespace}/{spec.name}: {error}"
            ) from error

    def environment(self, worker: str) -> Mapping[str, str]:
        """The variables that put a process under the worker's limits."""
        return self._workers.environment(worker, self._libraries)

    def mounts(self, worker: str) -> tuple[Mount, ...]:
        """What a container needs to see, at the same paths."""
        library, folder = str(self._libraries.limiter), str(self._workers.path(worker))
        return (Mount(library, library), Mount(folder, folder, read_only=False))

    def counters(self, spec: WorkerSpec, uuid: str) -> Counters:
        """Read the counters of one device; zeros where the files cannot be read.

        The same object as last time as long as nothing changed.
        """
        try:
            row = spec.devices.index(uuid)
            raw = self._workers.state(spec.worker, row)
            key = (spec.worker, row)
            known = self._counted.get(key)
            if known is not None and known[0] == raw:
                return known[1]
            state = decode_state(raw)
            # Waiting ends without a trace where the process that waits is killed.
            wanted = self._workers.wanted(spec.worker, row) if state.wanted_bytes else 0
        except (OSError, ValueError, IndexError):
            return Counters()
        found = _counters(state, wanted)
        if not wanted:
            self._counted[key] = (raw, found)
        return found

    def beat(self) -> None:
        """Give every worker a sign of life."""
        self._workers.beat()

    def attest(self, worker: str) -> list[Attested]:
        """Read what the processes of a worker wrote of themselves that still run."""
        return read_attestations(self._workers.path(worker))

    def faults(self, worker: str) -> LimiterFaults:
        """Read a worker's counters of faults; zeros where its files cannot be read."""
        try:
            found = self._workers.faults(worker)
        except (OSError, ValueError):
            return LimiterFaults()
        return LimiterFaults(found.fail_open, found.fail_closed, found.recovered, found.bad_limits)

    def remove(self, worker: str) -> None:
        """Forget a worker; one that is not known is fine."""
        self._workers.remove(worker)
        self._counted = {key: known for key, known in self._counted.items() if key[0] != worker}

    def close(self) -> None:
        """Unmap the files; the workers keep running under their limits."""
        self._workers.close()


def _counters(state: State, wanted: int) -> Counters:
    pressure = NO_PRESSURE
    if wanted or state.was_full():
        pressure = Pressure(
            wanted_bytes=wanted,
            spilled_bytes=state.spilled_bytes,
            spilled_bytes_total=state.spilled_total_bytes,
            waits_total=state.full_waits,
            waited_seconds_total=state.full_waited_ns / 1e9,
            evict_requests_total=state.evict_requests,
            denied_total=state.full_denied,
        )
    return Counters(
        state.throttled_ns / 1e9,
        state.denied,
        state.used_bytes,
        state.charged_ns * state.trim_ratio / 1e9,
        pressure,
    )
