"""Limits that an operator set by hand, which hold until the pod asks for something else."""

from tensorfusion.spi.backend import Share


class Overrides:
    """What was set by hand, by worker.

    Concurrency: one thread asks for shares; `put` may come from any.
    """

    def __init__(self) -> None:
        self._wanted: dict[str, Share] = {}
        self._asked: dict[str, Share] = {}

    def put(self, worker: str, share: Share) -> None:
        """Note what an operator wants, in place of what the pod asks for now."""
        self._wanted[worker] = share

    def share(self, worker: str, asked: Share) -> Share:
        """What holds for a worker whose pod asks for ``asked``."""
        if self._asked.get(worker) != asked:
            self._asked[worker] = asked
            self._wanted.pop(worker, None)
        return self._wanted.get(worker, asked)

    def forget(self, worker: str) -> None:
        """Drop a worker that ended."""
        self._wanted.pop(worker, None)
        self._asked.pop(worker, None)
