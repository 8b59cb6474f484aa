"""Limits of a node session's workers: what a vendor's backend asks of the limiter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Mount, Pressure, Share, WorkerSpec
from tensorfusion.spi.limited import Attested, LimiterFaults
from tensorfusion_native.attestation import read_attestations
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.states import DeviceUse, Place, States, decode_state
from tensorfusion_native.workers import WorkerRecord, Workers

NO_PRESSURE = Pressure()
Row = tuple[str, int]
"""A worker, and the place of a device among its devices."""


class Counters(NamedTuple):
    """What the limiter counted of a worker on a device; bytes as its ledger has them.

    Attributes:
        charged_seconds: Device time charged, each piece as the measurement of its time trimmed it;
            never less than at an earlier reading, though corrections take some back.
    """

    throttled_seconds: float = 0.0
    denied: int = 0
    used_bytes: int = 0
    charged_seconds: float = 0.0
    pressure: Pressure | None = None


NOTHING = Counters()


class _Copies:
    """The states of rows; where they lie is looked up when it may have changed."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._rows: Sequence[Row] = ()
        self._states: States | None = None
        self._generation = 0

    def of(self, rows: Sequence[Row]) -> States:
        """Where the states of rows are read; empty ones where the files cannot be read."""
        if (
            self._states is None
            or rows is not self._rows
            or self._workers.generation != self._generation
        ):
            self._states = States([self._find(*row) for row in rows])
            self._rows, self._generation = rows, self._workers.generation
        return self._states

    def _find(self, worker: str, row: int) -> Place | None:
        try:
            return self._workers.place(worker, row)
        except (OSError, ValueError, IndexError):
            return None


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
        self._counted: dict[Row, _Counted] = {}
        self._states = _Copies(self._workers)
        self._wishes = _Copies(self._workers)
        self._limited: list[Row] = []

    def put(self, spec: WorkerSpec, rates: Mapping[str, int]) -> None:
        """Make a worker's files, or put its changed share in force at once.

        Args:
            spec: Its limits hold on each of its devices.
            rates: Compute of each of those, GFLOP/s.

        Raises:
            BackendError: The files cannot be written.
        """
        ratios = [_ratio(spec.share, rates.get(uuid, 0)) for uuid in spec.devices]
        record = WorkerRecord(
            name=spec.worker,
            devices=list(spec.devices),
            vram_bytes=spec.share.limit_vram_bytes,
            compute_ratio=max(ratios, default=1.0),
            compute_ratios=ratios if len(set(ratios)) > 1 else [],
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
        rows = [(spec.worker, row) for row in range(len(spec.devices))]
        if not set(rows) <= set(self._limited):
            self._limited = [*(r for r in self._limited if r[0] != spec.worker), *rows]

    def environment(self, worker: str) -> Mapping[str, str]:
        """The variables that put a process under the worker's limits."""
        return self._workers.environment(worker, self._libraries)

    def mounts(self, worker: str) -> tuple[Mount, ...]:
        """What a container needs to see, at the same paths."""
        library, folder = str(self._libraries.limiter), str(self._workers.path(worker))
        return (Mount(library, library), Mount(folder, folder, read_only=False))

    def counters(self, spec: WorkerSpec, uuid: str) -> Counters:
        """Read the counters of one device; zeros where the files cannot be read."""
        row = (spec.worker, spec.devices.index(uuid) if uuid in spec.devices else -1)
        return self.decode(row, _Copies(self._workers).of([row]).take()[0])

    def copy(self, rows: Sequence[Row]) -> list[bytes]:
        """Copy what the processes of workers share about their devices, as it lies in memory.

        This is what is done many times a second: it costs one call, and a copy per row that changed,
        as long as ``rows`` is the same object, so give it the same one while nothing changed.

        Returns:
            A copy per row, for `decode`; empty where the files cannot be read.
        """
        return self._states.of(rows).take()

    def wants_memory(self) -> bool:
        """Whether some worker waits for memory, or a process of one was killed while it did."""
        return self._wishes.of(self._limited).any_wants()

    def decode(self, row: Row, raw: bytes) -> Counters:
        """Read a copy of a row's state; the same object as last time as long as nothing changed."""
        known = self._counted.get(row)
        if known is not None and known.raw == raw and not known.wanted:
            return known.told
        if not raw:
            return NOTHING
        state = decode_state(raw)
        try:
            # Waiting ends without a trace where the process that waits is killed.
            wanted = self._workers.wanted(*row) if state.wanted_bytes else 0
        except (OSError, ValueError):
            return NOTHING
        before, sum_ns, least = 0, 0, 0.0
        if known is not None:
            before, sum_ns, least = known.paced_ns, known.sum_ns, known.told.charged_seconds
        sum_ns += _signed(state.paced_ns - before)
        told = _counters(state, wanted, max(least, sum_ns / 1e9))
        self._counted[row] = _Counted(raw, wanted, state.paced_ns, sum_ns, told)
        return told

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
        self._counted = {row: known for row, known in self._counted.items() if row[0] != worker}
        self._limited = [row for row in self._limited if row[0] != worker]

    def close(self) -> None:
        """Unmap the files; the workers keep running under their limits."""
        self._workers.close()


def _ratio(share: Share, whole_gflops: int) -> float:
    """Return the part of a device's time that a share may take: above 0, at most 1."""
    limit = share.limit_on(whole_gflops)
    return min(1.0, limit / whole_gflops) if whole_gflops and limit else 1.0


class _Counted(NamedTuple):
    """The last reading of a device: its bytes, what came of them, and the sum of what was charged."""

    raw: bytes
    wanted: int
    paced_ns: int
    sum_ns: int
    told: Counters


def _signed(word: int) -> int:
    """A difference of two words of 64 bit, which corrections make negative at times."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


def _counters(state: DeviceUse, wanted: int, charged_seconds: float) -> Counters:
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
        charged_seconds,
        pressure,
    )
