"""Isolation: modes that are not claimed are refused, levels that are claimed are shown under load."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pytest

from tensorfusion import names
from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import (
    DeviceInfo,
    Enforcement,
    NodeBackend,
    Partition,
    Share,
    WorkerUsage,
)
from tensorfusion.testing.conformance.base import (
    ISOLATION_MODES,
    LOAD_SECONDS,
    Conformance,
    Rig,
    worker_spec,
)
from tensorfusion.testing.conformance.calls import refused, works
from tensorfusion.testing.conformance.capabilities import partition_template
from tensorfusion.testing.conformance.readings import usage_of

EXACT = 1.05
CONTROLLED = 1.10
"""What a claimed limit may be overrun by on average: 5 % on a model and by a driver, 10 % where
a control loop inside the application holds it."""

LOAD_ATTEMPTS = 3
IDLE = {names.SIMULATED_LOAD: "constant,compute=0%,vram=0"}
"""Annotations of a load that wants nothing, for backends that simulate it."""


class IsolationConformance(Conformance):
    """What is asked of isolation modes and of the enforcement that they claim."""

    def test_unknown_isolation_is_refused(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """A mode that nobody knows enforces nothing."""
        spec = worker_spec(rig.capabilities, devices[0], isolation="no-such-mode")
        with refused("prepare must refuse the unknown isolation mode 'no-such-mode'"):
            session.prepare(spec)
        assert not session.workers(), "a refused worker must leave nothing behind"

    @pytest.mark.parametrize("mode", ISOLATION_MODES)
    def test_isolation_mode_is_as_claimed(
        self,
        rig: Rig,
        session: NodeBackend,
        devices: Sequence[DeviceInfo],
        device_to_cut: DeviceInfo,
        request: pytest.FixtureRequest,
        mode: str,
    ) -> None:
        """Refused where it is not claimed; with the claimed level, shown under load, where it is."""
        level = rig.capabilities.isolation.get(mode)
        device = device_to_cut if mode == "partitioned" else devices[0]
        spec = worker_spec(rig.capabilities, device, isolation=mode)
        if level is None:
            with refused(f"prepare must refuse isolation {mode}, which is not claimed"):
                session.prepare(spec)
            assert not session.workers(), "a refused worker must leave nothing behind"
            return
        made: Partition | None = None
        if mode == "partitioned":
            template = partition_template(device, request)
            with works("isolation partitioned is claimed, so create_partition() must work"):
                made = session.create_partition(device.uuid, template)
            spec = dataclasses.replace(spec, partitions=(made.uuid,), partition_template=template)
        with works(f"isolation {mode} is claimed, so prepare() must accept it"):
            prepared = session.prepare(spec)
        assert prepared.enforcement == level, (
            f"isolation {mode} is claimed with enforcement {level}, so prepare() must say the"
            f" same, it says {prepared.enforcement}"
        )
        if level is not Enforcement.NONE:
            before = held_bytes(rig, session) if made is not None else None
            with rig.load(prepared):
                what = f"enforcement {level} of isolation {mode}"
                rows = self.loaded_usage(rig, session, what, before=before)
            slack = CONTROLLED if level is Enforcement.COOPERATIVE else EXACT
            amounts = (made.compute_gflops, made.vram_bytes) if made else ()
            share = Share(*amounts, *amounts) if amounts else spec.share
            check_within(rows, share, slack, f"enforcement {level} of isolation {mode}")
        if made is not None:
            with refused("remove_partition must refuse a partition that a worker uses"):
                session.remove_partition(made.uuid)
        session.release(spec.worker)
        if made is not None:
            session.remove_partition(made.uuid)

    def test_partition_is_metered_for_its_worker_alone(
        self,
        rig: Rig,
        session: NodeBackend,
        device_to_cut: DeviceInfo,
        request: pytest.FixtureRequest,
    ) -> None:
        """What a load takes counts while it runs, for the worker of its partition and for no neighbour."""
        if "partitioned" not in rig.capabilities.isolation or not rig.capabilities.process_usage:
            return
        device, template = device_to_cut, partition_template(device_to_cut, request)
        made = [session.create_partition(device.uuid, template)]
        with suppress(BackendError):  # some templates fit on a card once
            made.append(session.create_partition(device.uuid, template))
        specs = [
            worker_spec(
                rig.capabilities,
                device,
                worker=f"conformance-{name}",
                isolation="partitioned",
                partitions=(one.uuid,),
                partition_template=template,
                **changes,
            )
            for one, name, changes in zip(
                made, ("busy", "idle"), ({}, {"annotations": IDLE}), strict=False
            )
        ]
        prepared = [session.prepare(spec) for spec in specs]
        before = held_bytes(rig, session)
        with rig.load(prepared[0]):
            rows = self.loaded_usage(rig, session, "use of a partition", before=before)
        used = {row.worker: row for row in rows}
        assert sorted(row.worker for row in rows) == sorted(spec.worker for spec in specs), (
            f"usage() must have one row per worker of a partition, got {rows}"
        )
        for spec in specs[1:]:
            other = used[spec.worker]
            assert (other.compute_gflops, other.vram_bytes) == (0, before[spec.worker]), (
                f"what is used on a partition must not count for its neighbour: the one without load"
                f" says {other}"
            )
        if rig.load_command:
            self.memory_is_back(rig, session, before)
        for spec, one in zip(specs, made, strict=True):
            session.release(spec.worker)
            session.remove_partition(one.uuid)

    def memory_is_back(self, rig: Rig, session: NodeBackend, before: Mapping[str, int]) -> None:
        """Ask that nothing is held any more for a load that was ended."""
        for _ in range(LOAD_ATTEMPTS):
            rig.pass_time(1)
            now = {row.worker: row.vram_bytes for row in session.usage()}
            if now == before:
                return
        raise AssertionError(
            f"memory on a partition must be given back when its program ends: held before"
            f" {dict(before)}, now {now}"
        )

    def test_changed_limits_bind(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo]
    ) -> None:
        """A new limit takes effect within a second; without the capability it is refused."""
        spec = worker_spec(rig.capabilities, devices[0])
        share = spec.share
        less = Share(
            share.request_gflops // 2,
            share.request_vram_bytes,
            share.limit_gflops // 2,
            share.limit_vram_bytes,
        )
        prepared = session.prepare(spec)
        if not rig.capabilities.live_limits:
            with refused("set_limits must be refused, capability live_limits is not claimed"):
                session.set_limits(spec.worker, less)
            return
        with rig.load(prepared):
            rig.pass_time(1)
            with works("capability live_limits is claimed, so set_limits() must work"):
                session.set_limits(spec.worker, less)
            listed = [listed.share for listed in session.workers()]
            assert listed == [less], (
                f"capability live_limits is claimed, so workers() must show the new share {less},"
                f" got {listed}"
            )
            level = rig.capabilities.isolation[spec.isolation]
            if level is Enforcement.NONE:
                return
            rig.pass_time(1)
            what = f"a changed limit, within a second, under enforcement {level},"
            rows = self.loaded_usage(rig, session, what)
        slack = CONTROLLED if level is Enforcement.COOPERATIVE else EXACT
        check_within(rows, less, slack, what)

    def loaded_usage(
        self, rig: Rig, session: NodeBackend, claim: str, *, before: Mapping[str, int] | None = None
    ) -> Sequence[WorkerUsage]:
        """Read usage under load; a claim that no load can show is not shown.

        Args:
            before: On partitions, the bytes that each worker held before the load. To hold more is
                use enough there: a driver need not tell a partition's compute.
        """
        assert rig.capabilities.process_usage, (
            f"{claim} must be shown under load, which needs the capability process_usage"
        )
        for _ in range(LOAD_ATTEMPTS):
            session.usage()
            rig.pass_time(LOAD_SECONDS)
            rows = session.usage()
            if any(
                row.compute_gflops > 0
                or (before is not None and row.vram_bytes > before.get(row.worker, 0))
                for row in rows
            ):
                return rows
        raise AssertionError(
            f"{claim} must be shown under load, but usage() shows no use;"
            " a real device needs --load-command"
        )


def held_bytes(rig: Rig, session: NodeBackend) -> dict[str, int]:
    """Read what each worker holds of its device."""
    return {row.worker: row.vram_bytes for row in usage_of(rig, session)}


def check_within(rows: Sequence[WorkerUsage], share: Share, slack: float, claim: str) -> None:
    """Ask that a worker that wants everything stays within its limits."""
    for row in rows:
        assert row.compute_gflops <= share.limit_gflops * slack, (
            f"{claim} must hold the compute limit: {row.compute_gflops:.0f} of"
            f" {share.limit_gflops} GFLOP/s were used"
        )
        assert row.vram_bytes <= share.limit_vram_bytes, (
            f"{claim} must hold the memory limit: {row.vram_bytes} of"
            f" {share.limit_vram_bytes} bytes were used"
        )
