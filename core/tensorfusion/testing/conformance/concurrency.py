"""Concurrency: every method may be called from any thread."""

import threading
from collections.abc import Callable, Sequence

from tensorfusion.spi.backend import DeviceInfo, NodeBackend, WorkerSpec
from tensorfusion.testing.conformance.base import Conformance, Rig, seats, worker_spec
from tensorfusion.testing.conformance.calls import call
from tensorfusion.testing.conformance.readings import metrics_of, usage_of

THREADS = 8
ROUNDS = 10
REQUIREMENT = "a session must be safe from any thread"


def together(rig: Rig, jobs: Sequence[Callable[[], None]]) -> list[str]:
    """Run jobs at the same time and return what they raised, one line each."""
    start = threading.Barrier(len(jobs))
    errors: list[str] = []

    def run(job: Callable[[], None]) -> None:
        start.wait()
        try:
            job()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            errors.append(f"{type(error).__name__}: {error}")

    def all_of_them() -> None:
        threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    call(rig.call_seconds * 3, f"{len(jobs)} threads together", all_of_them)
    return errors


class ConcurrencyConformance(Conformance):
    """What is asked of sessions that many threads share."""

    def test_threads_do_not_disturb_each_other(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Workers come and go on every thread while all of them read."""

        def life(spec: WorkerSpec) -> Callable[[], None]:
            def run() -> None:
                for _ in range(ROUNDS):
                    session.prepare(spec)
                    usage_of(rig, session)
                    assert spec in session.workers(), f"{spec.worker} was prepared and is missing"
                    metrics_of(rig, session)
                    session.release(spec.worker)
                    assert spec not in session.workers(), f"{spec.worker} was released and is there"

            return run

        specs = [
            worker_spec(rig.capabilities, device, worker=f"conformance-{n}")
            for n, device in enumerate(seats(rig.capabilities, devices, THREADS))
        ]
        errors = together(rig, [life(spec) for spec in specs])
        assert not errors, f"{REQUIREMENT}: {'; '.join(errors[:3])}"
        left = session.workers()
        assert not left, f"{REQUIREMENT}: all workers were released, workers() lists {left}"
        assert not usage_of(rig, session), f"{REQUIREMENT}: usage() has rows of released workers"

    def test_threads_prepare_different_workers(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """None is lost."""
        specs = [
            worker_spec(rig.capabilities, device, worker=f"conformance-{n}")
            for n, device in enumerate(seats(rig.capabilities, devices, THREADS))
        ]

        def prepare(spec: WorkerSpec) -> Callable[[], None]:
            return lambda: void(session.prepare(spec))

        errors = together(rig, [prepare(spec) for spec in specs])
        assert not errors, f"{REQUIREMENT}: {'; '.join(errors[:3])}"
        listed = sorted(spec.worker for spec in session.workers())
        wanted = sorted(spec.worker for spec in specs)
        assert listed == wanted, (
            f"{REQUIREMENT}: {len(wanted)} threads prepared a worker each, workers() lists {listed}"
        )

    def test_threads_prepare_the_same_worker(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """It is one worker all the same."""
        spec = worker_spec(rig.capabilities, devices[0])
        errors = together(rig, [lambda: void(session.prepare(spec)) for _ in range(THREADS)])
        assert not errors, f"{REQUIREMENT}: {'; '.join(errors[:3])}"
        assert list(session.workers()) == [spec], (
            f"{REQUIREMENT}: {THREADS} threads prepared one worker, workers() lists"
            f" {session.workers()}"
        )


def void(_result: object) -> None:
    """Drop a result."""
