"""Workers: prepare, change, release, and what is left afterwards (nothing)."""

import dataclasses
from collections.abc import Sequence

from tensorfusion.spi.backend import DeviceInfo, Enforcement, NodeBackend, PreparedWorker
from tensorfusion.testing.conformance.base import (
    LOAD_SECONDS,
    Conformance,
    Rig,
    quarter,
    worker_spec,
)
from tensorfusion.testing.conformance.calls import refused, works
from tensorfusion.testing.conformance.readings import fallen, metrics_of, usage_of

CYCLES = 5
UNKNOWN_DEVICE = "conformance-no-such-device"


class WorkersConformance(Conformance):
    """What is asked of ``prepare``, ``workers`` and ``release``."""

    def test_prepared_worker_is_listed(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """`workers` is how the hypervisor recovers after a restart."""
        spec = worker_spec(rig.capabilities, devices[0])
        with works(f"a worker with isolation {spec.isolation} must be prepared, it is offered"):
            prepared = session.prepare(spec)
        assert list(session.workers()) == [spec], (
            f"workers() must list what was prepared: expected {spec}, got {session.workers()}"
        )
        self.check_prepared(prepared)

    def check_prepared(self, prepared: PreparedWorker) -> None:
        """What the node gives to processes must be usable as it is."""
        assert isinstance(prepared.enforcement, Enforcement), (
            f"prepare() must say what really binds, got {prepared.enforcement!r}"
        )
        for key, value in prepared.env.items():
            assert isinstance(value, str), f"env must map text to text, got {key}={value!r}"
            valid = key and not {"=", "\0"} & set(key) and "\0" not in value
            assert valid, f"env must be valid for a process, got {key!r}={value!r}"
        paths = [*prepared.device_paths, *(m.host_path for m in prepared.mounts)]
        wrong = [path for path in paths if not path.startswith("/")]
        assert not wrong, f"device_paths and mounts must be absolute paths, got {wrong}"

    def test_prepare_is_idempotent(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """The hypervisor prepares again whenever it is not sure."""
        spec = worker_spec(rig.capabilities, devices[0])
        first = session.prepare(spec)
        rig.pass_time(LOAD_SECONDS)
        before = usage_of(rig, session)
        second = session.prepare(spec)
        after = usage_of(rig, session)
        assert first == second, (
            f"prepare must be idempotent: the same spec gave {first}, then {second}"
        )
        listed = list(session.workers())
        assert listed == [spec], (
            f"prepare must be idempotent: the same spec again changes nothing, but workers() has"
            f" {len(listed)} entries"
        )
        assert [(r.worker, r.uuid) for r in before] == [(r.worker, r.uuid) for r in after], (
            f"prepare must be idempotent: the same spec again changes nothing, but usage() went"
            f" from {before} to {after}"
        )
        for old, new in zip(before, after, strict=True):
            assert fallen(old, new) == "", (
                f"prepare must be idempotent: the same spec again must not restart totals:"
                f" {fallen(old, new)}"
            )
            assert new.vram_bytes >= old.vram_bytes * 0.9, (
                f"prepare must be idempotent: the same spec again must not take memory away:"
                f" {old}, then {new}"
            )
        session.release(spec.worker)
        assert not session.workers(), (
            "prepare must be idempotent: one release undoes any number of prepares"
        )

    def test_release_is_complete(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """After any number of cycles the node is as it was."""
        vram = {r.uuid: r.vram_used_bytes for r in metrics_of(rig, session)}
        for n in range(CYCLES):
            spec = worker_spec(rig.capabilities, *devices, worker=f"conformance-{n % 2}")
            session.prepare(spec)
            rig.pass_time(1)
            usage_of(rig, session)
            session.release(spec.worker)
        rig.pass_time(1)
        left = session.workers()
        assert not left, f"release must be complete: workers() still lists {left}"
        rows = usage_of(rig, session)
        assert not rows, f"release must be complete: usage() still has rows {rows}"
        if rig.is_model:
            after = {r.uuid: r.vram_used_bytes for r in metrics_of(rig, session)}
            assert after == vram, (
                f"release must be complete: used memory was {vram} bytes before and is {after}"
            )
        with works("release must be complete: a device that was released takes the next worker"):
            session.prepare(worker_spec(rig.capabilities, *devices, worker="conformance-next"))

    def test_release_forgets_totals(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """A worker's totals end with it; the next one of that name starts at nothing."""
        spec = worker_spec(rig.capabilities, devices[0])
        session.prepare(spec)
        rig.pass_time(LOAD_SECONDS)
        usage_of(rig, session)
        session.release(spec.worker)
        session.prepare(spec)
        for row in usage_of(rig, session):
            totals = (row.throttled_seconds_total, row.oom_total)
            assert totals == (0, 0), (
                f"release must be complete: totals of a released worker came back in {row}"
            )

    def test_release_of_an_unknown_worker_is_fine(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """The hypervisor releases again whenever it is not sure."""
        spec = worker_spec(rig.capabilities, devices[0])
        session.prepare(spec)
        with works("release of a worker that is not known, or no longer, must be accepted"):
            session.release("conformance-nobody")
            session.release(spec.worker)
            session.release(spec.worker)

    def test_release_leaves_neighbours_alone(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """One worker's end is nobody else's."""
        neighbour = devices[-1]
        stays = worker_spec(rig.capabilities, devices[0], worker="conformance-stays")
        goes = worker_spec(rig.capabilities, neighbour, worker="conformance-goes")
        if stays.isolation == "shared" and neighbour is devices[0]:
            goes = stays  # a whole single device has no room for a neighbour
        session.prepare(stays)
        if goes is not stays:
            session.prepare(goes)
            session.release(goes.worker)
        assert list(session.workers()) == [stays], (
            f"release must leave other workers alone, got {session.workers()}"
        )

    def test_unknown_device_is_refused(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """And the known devices of the same worker are not left behind."""
        spec = worker_spec(rig.capabilities, devices[0])
        for names in ((UNKNOWN_DEVICE,), (devices[0].uuid, UNKNOWN_DEVICE)):
            with refused("prepare must refuse an unknown device"):
                session.prepare(dataclasses.replace(spec, devices=names))
        left = session.workers()
        assert not left, f"a refused worker must leave nothing behind, workers() lists {left}"
        assert not usage_of(rig, session), "a refused worker must leave no usage behind"

    def test_limits_of_an_unknown_worker_are_refused(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """A limit that binds nobody must not look as if it did."""
        with refused("set_limits must refuse a worker that was not prepared"):
            session.set_limits("conformance-nobody", quarter(devices[0]))
