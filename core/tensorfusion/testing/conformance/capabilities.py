"""Capabilities: what is claimed works, what is not claimed is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from tensorfusion.spi.backend import Capabilities, DeviceInfo, Enforcement, NodeBackend
from tensorfusion.testing.conformance.base import ISOLATION_MODES, Conformance, Rig, worker_spec
from tensorfusion.testing.conformance.calls import refused, works
from tensorfusion.testing.conformance.discovery import catalogue_card

CLAIMS = "capabilities"
"""Under this name the report of a run tells what was claimed, as JSON."""
NO_SUCH_SLOT = 10_000


def partition_template(device: DeviceInfo, request: pytest.FixtureRequest) -> str:
    """The template to try: the option's, else the smallest that the catalogue knows."""
    given: str = request.config.getoption("--partition-template")
    if given:
        return given
    card = catalogue_card(device)
    templates = card.templates if card is not None else ()
    assert templates, (
        f"partitions are claimed, but the catalogue knows no partition template of"
        f" {device.model}: name one by --partition-template"
    )
    return min(templates, key=lambda template: template.vram_bytes).id


class CapabilitiesConformance(Conformance):
    """What is asked of claims."""

    def test_capabilities_are_constant(
        self, rig: Rig, record_property: Callable[[str, object], None]
    ) -> None:
        """They are read once, when the process starts."""
        first, second = rig.backend.capabilities(), rig.backend.capabilities()
        assert first == second, f"capabilities() must be constant, got {first}, then {second}"
        assert isinstance(first, Capabilities), f"capabilities() must be Capabilities, got {first}"
        record_property(CLAIMS, msgspec.json.encode(first).decode())

    def test_isolation_claims_are_words_of_the_specification(self, rig: Rig) -> None:
        """Placement and status know these words only."""
        claims = rig.capabilities.isolation
        assert claims, "capabilities().isolation must offer at least one mode"
        for mode, level in claims.items():
            assert mode in ISOLATION_MODES, (
                f"an isolation mode must be one of {', '.join(ISOLATION_MODES)}, got {mode!r}"
            )
            assert isinstance(level, Enforcement), (
                f"isolation {mode} must name an Enforcement, got {level!r}"
            )
        assert "partitioned" not in claims or rig.capabilities.partitions, (
            "isolation partitioned is claimed, so capability partitions must be claimed too"
        )
        most = rig.capabilities.max_workers_per_device
        assert most is None or most >= 1, f"max_workers_per_device must be positive, got {most}"

    def test_partitions_are_as_claimed(
        self,
        rig: Rig,
        session: NodeBackend,
        device_to_cut: DeviceInfo,
        request: pytest.FixtureRequest,
    ) -> None:
        """Cut out, listed with plausible amounts, given back, given back again."""
        device = device_to_cut
        if not rig.capabilities.partitions:
            with refused("create_partition must be refused, capability partitions is not claimed"):
                session.create_partition(device.uuid, "conformance-template")
            with works("remove_partition of one that is gone must be accepted"):
                session.remove_partition("conformance-nothing")
            assert not session.partitions(), "capability partitions is not claimed: list none"
            return
        template = partition_template(device, request)
        with works("capability partitions is claimed, so create_partition() must work"):
            made = session.create_partition(device.uuid, template)
        try:
            assert (made.parent, made.template) == (device.uuid, template), (
                f"a partition must name its device and template, got {made}"
            )
            assert list(session.partitions()) == [made], (
                f"partitions() must list what was made, {made}; got {session.partitions()}"
            )
            with refused("create_partition must refuse a slot that the card does not have"):
                session.create_partition(device.uuid, template, NO_SUCH_SLOT)
            assert 0 < made.vram_bytes <= device.vram_bytes, (
                f"a partition's memory must be in bytes and within its device's, got {made}"
            )
            assert 0 < made.compute_gflops <= device.compute_gflops, (
                f"a partition's compute must be in GFLOP/s and within its device's, got {made}"
            )
        finally:
            with works("capability partitions is claimed, so remove_partition() must work"):
                session.remove_partition(made.uuid)
                session.remove_partition(made.uuid)
        with works(f"create_partition must work at slot {made.start}, which is free again"):
            again = session.create_partition(device.uuid, template, made.start)
        session.remove_partition(again.uuid)
        assert not session.partitions(), "partitions() must not list what was given back"
        with refused("create_partition must refuse an unknown template"):
            session.create_partition(device.uuid, "conformance-no-such-template")

    def test_snapshot_is_as_claimed(
        self, rig: Rig, session: NodeBackend, devices: Sequence[DeviceInfo], tmp_path: Path
    ) -> None:
        """Saved to the path that was asked for, and restored from it."""
        spec = worker_spec(rig.capabilities, devices[0])
        target = tmp_path / "snapshot"
        session.prepare(spec)
        if not rig.capabilities.snapshot:
            with refused("snapshot must be refused, capability snapshot is not claimed"):
                session.snapshot(spec.worker, target)
            with refused("resume must be refused, capability snapshot is not claimed"):
                session.resume(spec.worker, target)
            return
        with works("capability snapshot is claimed, so snapshot() must work"):
            session.snapshot(spec.worker, target)
        assert target.exists(), (
            f"capability snapshot is claimed, so snapshot() must save to {target}"
        )
        with works("capability snapshot is claimed, so resume() must work"):
            session.resume(spec.worker, target)
        with refused("snapshot must refuse a worker that was not prepared"):
            session.snapshot("conformance-nobody", tmp_path / "nobody")

    def test_remoting_is_not_claimed_without_proof(self, rig: Rig) -> None:
        """No call of the interface shows it yet, and what is not shown is not claimed."""
        assert not rig.capabilities.remoting, (
            "capability remoting must not be claimed: no call of the interface can show it yet"
        )

    def test_metrics_are_as_claimed(self, rig: Rig, session: NodeBackend) -> None:
        """A claim with only empty readings is no claim."""
        if not rig.capabilities.metrics:
            return
        with works("capability metrics is claimed, so metrics() must answer"):
            readings = session.metrics()
        silent = [
            reading.uuid
            for reading in readings
            if reading.utilization_ratio is None and reading.vram_used_bytes is None
        ]
        assert not silent, (
            f"capability metrics is claimed, so a reading must have utilization or memory: {silent}"
        )
