"""Freezing: what is claimed takes a worker off its devices and brings it back, all or nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tensorfusion.spi.backend import DeviceInfo, FrozenWorker, NodeBackend, Tier
from tensorfusion.testing.conformance.base import LOAD_SECONDS, Conformance, Rig, worker_spec
from tensorfusion.testing.conformance.calls import refused, works
from tensorfusion.testing.conformance.readings import metrics_of

LEFT_RATIO = 0.02
"""What may stay on a device of what a worker had there."""


def frozen_of(session: NodeBackend) -> dict[str, FrozenWorker]:
    """The frozen workers by name, each once."""
    rows = list(session.frozen())
    found = {row.worker: row for row in rows}
    assert len(found) == len(rows), f"frozen() must list a worker once, got {rows}"
    return found


def used_on(rig: Rig, session: NodeBackend, uuid: str) -> int:
    """Bytes in use on a device; skips nothing where the device cannot tell: then it is 0."""
    return next(r.vram_used_bytes or 0 for r in metrics_of(rig, session) if r.uuid == uuid)


class FreezingConformance(Conformance):
    """What is asked of ``freeze``, ``thaw`` and ``frozen``."""

    @contextmanager
    def running(self, rig: Rig, session: NodeBackend, *devices: DeviceInfo) -> Iterator[str]:
        """A worker with work on its devices."""
        spec = worker_spec(rig.capabilities, *devices)
        with rig.load(session.prepare(spec)):
            rig.pass_time(LOAD_SECONDS)
            yield spec.worker

    def test_freezing_is_as_claimed(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """What is not claimed is refused, and nobody is frozen to begin with."""
        spec = worker_spec(rig.capabilities, devices[0])
        session.prepare(spec)
        assert not session.frozen(), f"frozen() must be empty at first, got {session.frozen()}"
        assert Tier.HOT not in rig.capabilities.freeze, "no worker is frozen to the tier hot"
        for tier in Tier:
            if tier not in rig.capabilities.freeze:
                with refused(f"freeze to {tier} must be refused, it is not claimed"):
                    session.freeze(spec.worker, tier)
        if rig.capabilities.freeze:
            with works("a worker that is not frozen must be left alone by thaw"):
                assert session.thaw(spec.worker) == 0, "thaw of a hot worker takes no time"
        else:
            with refused("thaw must be refused, capability freeze is not claimed"):
                session.thaw(spec.worker)
        for call in (lambda: session.freeze("nobody", Tier.WARM), lambda: session.thaw("nobody")):
            with refused("freeze and thaw must refuse a worker that was not prepared"):
                call()

    def test_a_frozen_worker_leaves_its_device(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Memory is given back at every tier, and taken again."""
        uuid = devices[0].uuid
        for tier in rig.capabilities.freeze:
            empty = used_on(rig, session, uuid)
            with self.running(rig, session, devices[0]) as worker:
                full = used_on(rig, session, uuid)
                assert full > empty, "the load of this suite must hold device memory"
                with works(f"freeze to {tier} is claimed, so it must work"):
                    session.freeze(worker, tier)
                    session.freeze(worker, tier)
                row = frozen_of(session).get(worker)
                assert row is not None, f"frozen() must list {worker} once it is frozen"
                assert row.tier is tier, f"frozen() must tell the tier {tier}, got {row}"
                tells = rig.capabilities.tells_waiting
                assert (row.waiting is not None) is tells, (
                    f"frozen() must tell who waits exactly if tells_waiting is claimed, got {row}"
                )
                assert row.vram_bytes > 0, f"frozen() must tell what is off the device, got {row}"
                left = used_on(rig, session, uuid) - empty
                assert left <= (full - empty) * LEFT_RATIO, (
                    f"a frozen worker must give its device memory back: {left} bytes are left"
                )
                with works("thaw must bring a frozen worker back"):
                    seconds = session.thaw(worker)
                assert seconds > 0, f"thaw must tell what it took, got {seconds}"
                assert not session.frozen(), "frozen() must not list a worker that was thawed"
                assert used_on(rig, session, uuid) >= full, (
                    "a worker that was thawed must have its device memory again"
                )
            session.release(worker)

    def test_frozen_workers_outlive_the_session(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """The hypervisor may end while workers are frozen; the next one thaws them."""
        for tier in rig.capabilities.freeze:
            with self.running(rig, session, devices[0]) as worker:
                session.freeze(worker, tier)
                session = rig.restart(session)
                row = frozen_of(session).get(worker)
                assert row is not None, "after a restart frozen() must list the same workers"
                assert row.tier is tier, f"after a restart the tier must be {tier}, got {row}"
                with works("a worker that another session froze must be thawed"):
                    session.thaw(worker)
            session.release(worker)
            assert not session.frozen(), "release must end what is frozen"

    def test_a_worker_moves_between_tiers(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """From host memory to disk after longer idling, and back."""
        tiers = rig.capabilities.freeze
        if len(tiers) < 2:
            return
        with self.running(rig, session, devices[0]) as worker:
            for tier in (*tiers, tiers[0]):
                session.freeze(worker, tier)
                assert frozen_of(session)[worker].tier is tier, f"freeze must reach tier {tier}"
            session.thaw(worker)
