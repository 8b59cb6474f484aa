"""Readings: metrics of devices, usage of workers, and what they may say."""

import math
from collections.abc import Sequence

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import DeviceInfo, DeviceMetrics, NodeBackend, WorkerUsage
from tensorfusion.testing.conformance.base import (
    LOAD_SECONDS,
    Conformance,
    Rig,
    seats,
    worker_spec,
)

RECENT_SECONDS = 60.0
SLACK = 1.01
"""Rounding that a sum of rates is allowed."""


def metrics_of(rig: Rig, session: NodeBackend) -> Sequence[DeviceMetrics]:
    """Read the devices; without the capability there must be nothing to read."""
    if rig.capabilities.metrics:
        return session.metrics()
    try:
        rows = session.metrics()
    except BackendError:
        return ()
    assert not rows, "metrics() must refuse or be empty where the capability is not claimed"
    return ()


def usage_of(rig: Rig, session: NodeBackend) -> Sequence[WorkerUsage]:
    """Read the workers; without the capability there must be nothing to read."""
    if rig.capabilities.process_usage:
        return session.usage()
    try:
        rows = session.usage()
    except BackendError:
        return ()
    assert not rows, "usage() must refuse or be empty where process_usage is not claimed"
    return ()


def fallen(old: WorkerUsage, new: WorkerUsage) -> str:
    """Name the totals of a worker that are smaller than before; empty when none is."""
    found = []
    for field in ("throttled_seconds_total", "oom_total"):
        before, after = getattr(old, field), getattr(new, field)
        if after < before:
            found.append(f"{field} of {new.worker} on {new.uuid} fell from {before} to {after}")
    return "; ".join(found)


class ReadingsConformance(Conformance):
    """What is asked of ``metrics`` and ``usage``."""

    def test_every_reading_answers_in_time(self, rig: Rig, session: NodeBackend) -> None:
        """The hypervisor reads all nodes in turn; one that hangs would stop it."""
        session.discover()
        session.topology()
        session.workers()
        metrics_of(rig, session)
        usage_of(rig, session)

    def test_metrics_read_every_device_once(self, rig: Rig, session: NodeBackend) -> None:
        """One reading per device that discovery finds."""
        if not rig.capabilities.metrics:
            metrics_of(rig, session)
            return
        read = [reading.uuid for reading in session.metrics()]
        assert len(set(read)) == len(read), f"metrics() must read a device once, got {read}"
        healthy = {info.uuid for info in session.discover() if info.healthy}
        known = {info.uuid for info in session.discover()}
        assert healthy <= set(read) <= known, (
            f"metrics() must read every healthy device and no other: discovered {sorted(known)},"
            f" read {sorted(read)}"
        )

    def test_metrics_are_in_range(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Base units: ratio 0 to 1, bytes, degrees Celsius, watts, joules, hertz."""
        session.prepare(worker_spec(rig.capabilities, devices[0]))
        metrics_of(rig, session)
        rig.pass_time(1)
        vram = {info.uuid: info.vram_bytes for info in session.discover()}
        for reading in metrics_of(rig, session):
            for field, low, high, unit in (
                ("utilization_ratio", 0, 1, "a ratio from 0 to 1"),
                ("vram_used_bytes", 0, vram[reading.uuid], "bytes, at most the device's"),
                ("temperature_celsius", -40, 150, "degrees Celsius"),
                ("power_watts", 0, 5_000, "watts"),
                ("energy_joules_total", 0, math.inf, "joules"),
                ("clock_hertz", 1e6, 1e11, "hertz"),
            ):
                value = getattr(reading, field)
                assert value is None or low <= value <= high, (
                    f"{field} must be in {unit}; None where the device cannot tell: device"
                    f" {reading.uuid} says {value}"
                )

    def test_readings_are_recent(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Times are wall-clock seconds of the clock that the session was given."""
        session.prepare(worker_spec(rig.capabilities, devices[0]))
        rig.pass_time(2)
        times = {f"device {reading.uuid}": reading.time for reading in metrics_of(rig, session)}
        times |= {f"worker {row.worker}": row.time for row in usage_of(rig, session)}
        for what, time in times.items():
            age = rig.clock.now() - time
            assert -1 <= age <= RECENT_SECONDS, (
                f"a reading's time must be the context clock's wall-clock time in seconds since"
                f" the epoch, at most {RECENT_SECONDS:g} s old: that of {what} is {age:g} s old"
            )

    def test_totals_never_fall(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """What ends in ``_total`` counts up for as long as the worker runs."""
        session.prepare(worker_spec(rig.capabilities, devices[0]))
        energy: dict[str, float] = {}
        rows: dict[str, WorkerUsage] = {}
        for _ in range(3):
            rig.pass_time(1)
            for reading in metrics_of(rig, session):
                total = reading.energy_joules_total
                if total is not None:
                    assert total >= energy.get(reading.uuid, 0), (
                        f"energy_joules_total must never fall, device {reading.uuid} went from"
                        f" {energy[reading.uuid]} to {total}"
                    )
                    energy[reading.uuid] = total
            for row in usage_of(rig, session):
                fell = fallen(rows.get(row.uuid, row), row)
                assert not fell, f"totals must never fall while a worker runs: {fell}"
                rows[row.uuid] = row

    def test_usage_is_empty_without_workers(self, rig: Rig, session: NodeBackend) -> None:
        """Other processes of the machine are nobody's workers."""
        rows = usage_of(rig, session)
        assert not rows, f"usage() must list prepared workers only, got {rows}"

    def test_usage_has_one_row_per_worker_and_device(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Rows are keyed by worker and device."""
        chosen = devices[:2]
        session.prepare(worker_spec(rig.capabilities, *chosen))
        rig.pass_time(1)
        rows = usage_of(rig, session)
        if not rig.capabilities.process_usage:
            return
        found = sorted((row.worker, row.uuid) for row in rows)
        wanted = sorted(("conformance-1", device.uuid) for device in chosen)
        assert found == wanted, (
            f"usage() must have one row per prepared worker and device, expected {wanted},"
            f" got {found}"
        )

    def test_usage_fits_the_device(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """Neighbours that want everything get together no more than there is."""
        specs = [
            worker_spec(rig.capabilities, device, worker=f"conformance-{n}")
            for n, device in enumerate(seats(rig.capabilities, devices[:1], 6))
        ]
        prepared = [session.prepare(spec) for spec in specs]
        with rig.load(*prepared):
            usage_of(rig, session)
            rig.pass_time(LOAD_SECONDS)
            rows = usage_of(rig, session)
        for row in rows:
            assert row.compute_gflops >= 0, f"a rate must not be negative, got {row}"
            assert row.vram_bytes >= 0, f"bytes must not be negative, got {row}"
        compute = sum(row.compute_gflops for row in rows)
        vram = sum(row.vram_bytes for row in rows)
        assert compute <= devices[0].compute_gflops * SLACK, (
            f"the workers of a device must not use more compute than it has:"
            f" {compute} of {devices[0].compute_gflops} GFLOP/s"
        )
        assert vram <= devices[0].vram_bytes, (
            f"the workers of a device must not use more memory than it has:"
            f" {vram} of {devices[0].vram_bytes} bytes"
        )
