"""Limits of a node session's workers: what a vendor's backend asks of the limiter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Mount, WorkerSpec
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.workers import WorkerRecord, Workers


@dataclass(frozen=True, slots=True)
class Counters:
    """What the limiter counted of a worker on a device; bytes as its ledger has them."""

    throttled_seconds: float = 0.0
    denied: int = 0
    used_bytes: int = 0
    charged_seconds: float = 0.0


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
        """Read the counters of one device; zeros where the files cannot be read."""
        try:
            use = self._workers.use(spec.worker)[spec.devices.index(uuid)]
        except (OSError, ValueError, IndexError):
            return Counters()
        charged = use.charged_ns * use.trim_ratio / 1e9
        return Counters(use.throttled_ns / 1e9, use.denied, use.used_bytes, charged)

    def remove(self, worker: str) -> None:
        """Forget a worker; one that is not known is fine."""
        self._workers.remove(worker)

    def close(self) -> None:
        """Unmap the files; the workers keep running under their limits."""
        self._workers.close()
