"""Restart: what a session knew, the next one knows."""

from collections.abc import Sequence

from tensorfusion.spi.backend import DeviceInfo, NodeBackend
from tensorfusion.testing.conformance.base import LOAD_SECONDS, Conformance, Rig, worker_spec
from tensorfusion.testing.conformance.calls import works
from tensorfusion.testing.conformance.readings import fallen, metrics_of, usage_of


class RestartConformance(Conformance):
    """What is asked of ``close`` and of the session after it."""

    def test_workers_outlive_the_session(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Prepared workers keep running while the hypervisor restarts."""
        spec = worker_spec(rig.capabilities, *devices[:2])
        first = session.prepare(spec)
        session = rig.restart(session)
        assert list(session.workers()) == [spec], (
            f"after a restart workers() must list the same specs: expected {spec}, got"
            f" {session.workers()}"
        )
        again = session.prepare(spec)
        assert again == first, (
            f"after a restart the same spec must prepare alike: first {first}, now {again}"
        )
        session.release(spec.worker)
        session = rig.restart(session)
        assert not session.workers(), "a released worker must stay released over a restart"

    def test_workers_outlive_a_crash(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """A hypervisor that is killed closes nothing; what was prepared is on record already."""
        spec = worker_spec(rig.capabilities, devices[0])
        session.prepare(spec)
        after = rig.open()
        assert list(after.workers()) == [spec], (
            f"after a crash workers() must list what was prepared: expected {spec}, got"
            f" {after.workers()}"
        )

    def test_changed_limits_outlive_the_session(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """A resize is not undone by a restart."""
        if not rig.capabilities.live_limits:
            return
        spec = worker_spec(rig.capabilities, devices[0])
        share = type(spec.share)(1000, 1 << 30, 2000, 1 << 31)
        session.prepare(spec)
        session.set_limits(spec.worker, share)
        listed = [listed.share for listed in rig.restart(session).workers()]
        assert listed == [share], (
            f"limits that were changed must stay over a restart: expected {share}, got {listed}"
        )

    def test_totals_outlive_the_session(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Memory and counters go on where they were; a restart of ours is none of the worker."""
        prepared = session.prepare(worker_spec(rig.capabilities, devices[0]))
        with rig.load(prepared):
            usage_of(rig, session)
            rig.pass_time(LOAD_SECONDS)
            energy = {r.uuid: r.energy_joules_total for r in metrics_of(rig, session)}
            before = {(r.worker, r.uuid): r for r in usage_of(rig, session)}
            session = rig.restart(session)
            after = {(r.worker, r.uuid): r for r in usage_of(rig, session)}
            energy_after = {r.uuid: r.energy_joules_total for r in metrics_of(rig, session)}
        assert after.keys() == before.keys(), (
            f"after a restart usage() must have the same rows: {sorted(before)}, got"
            f" {sorted(after)}"
        )
        for key, old in before.items():
            new = after[key]
            assert fallen(old, new) == "", (
                f"totals must not start again after a restart: {fallen(old, new)}"
            )
            assert new.vram_bytes >= old.vram_bytes * 0.9, (
                f"memory that a worker holds must not vanish in a restart: {old}, then {new}"
            )
        for uuid, joules in energy.items():
            assert joules is None or (energy_after.get(uuid) or 0) >= joules, (
                f"totals must not start again after a restart: energy_joules_total of {uuid} went"
                f" from {joules} to {energy_after.get(uuid)}"
            )

    def test_sessions_do_not_depend_on_each_other(self, rig: Rig, session: NodeBackend) -> None:
        """Closing one leaves every other one working."""
        nodes = list(rig.backend.nodes(rig.settings))
        other = rig.open(nodes[-1], folder="other")
        rig.close(session)
        with works("a session must keep working when another one is closed"):
            assert other.discover(), "a session must keep its devices when another one is closed"
            metrics_of(rig, other)
            usage_of(rig, other)
