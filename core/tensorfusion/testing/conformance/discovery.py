"""Discovery: devices, their identity, their units, the links between them."""

import re
from collections.abc import Sequence

from tensorfusion.errors import ConfigError
from tensorfusion.model.hardware import GIB, Card, find_card
from tensorfusion.spi.backend import Backend, DeviceInfo, NodeBackend
from tensorfusion.testing.conformance.base import Conformance, Rig

OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""RFC 1123 subdomain, as names of Kubernetes objects are."""

LEAST_GFLOPS = 3_000
MOST_GFLOPS = 100_000_000
"""Dense FP16 of any accelerator worth sharing lies between: 3 TFLOPS is less than the smallest
card of the catalogue, and a rate written in TFLOPS falls below, one in FLOP/s above."""

LEAST_VRAM = GIB
MOST_VRAM = 4096 * GIB


def catalogue_card(info: DeviceInfo) -> Card | None:
    """The catalogue's entry for a device, if it has one."""
    for name in (info.full_model, info.model):
        try:
            return find_card(name)
        except ConfigError:
            continue
    return None


class DiscoveryConformance(Conformance):
    """What is asked of ``nodes``, ``discover`` and ``topology``."""

    def test_backend_names_itself_and_its_nodes(self, rig: Rig, backend: Backend) -> None:
        """Names are what objects and settings are keyed by."""
        assert OBJECT_NAME.fullmatch(backend.name), (
            f"a backend's name must be lower case letters, digits and hyphens, got {backend.name!r}"
        )
        nodes = list(rig.backend.nodes(rig.settings))
        assert nodes, "nodes() must name at least one node where available() is true"
        assert len(set(nodes)) == len(nodes), f"nodes() must not name a node twice, got {nodes}"
        wrong = [name for name in nodes if not OBJECT_NAME.fullmatch(name)]
        assert not wrong, f"a node's name must be a valid object name (RFC 1123), got {wrong}"

    def test_devices_come_in_index_order(self, session: NodeBackend) -> None:
        """The index is the driver's ordinal."""
        indices = [info.index for info in session.discover()]
        assert indices == sorted(set(indices)), (
            f"discover() must list devices in index order, each index once, got {indices}"
        )
        assert all(index >= 0 for index in indices), f"an index must not be negative: {indices}"

    def test_uuid_is_a_valid_object_name(self, session: NodeBackend) -> None:
        """The uuid in lower case names the GPU object."""
        uuids = [info.uuid for info in session.discover()]
        wrong = [uuid for uuid in uuids if not OBJECT_NAME.fullmatch(uuid.lower())]
        assert not wrong, (
            f"a uuid must be a valid object name (RFC 1123) in lower case, got {wrong}"
        )
        folded = [uuid.lower() for uuid in uuids]
        assert len(set(folded)) == len(folded), f"a uuid must name one device only, got {uuids}"

    def test_uuid_stays_over_calls(self, session: NodeBackend) -> None:
        """Same device, same uuid, every time."""
        first, second = identity(session.discover()), identity(session.discover())
        assert first == second, (
            f"a device must keep its uuid from one discover() to the next:"
            f" first {first}, then {second}"
        )

    def test_uuid_stays_over_restarts(self, rig: Rig, session: NodeBackend) -> None:
        """Bound pods name devices by uuid; a restart must find the same ones."""
        first = identity(session.discover())
        second = identity(rig.restart(session).discover())
        assert first == second, (
            f"a device must keep its uuid over a restart: first {first}, then {second}"
        )

    def test_device_names_vendor_and_model(self, session: NodeBackend, backend: Backend) -> None:
        """Placement filters by vendor and model."""
        for info in session.discover():
            for field in ("vendor", "model", "full_model"):
                assert getattr(info, field), f"device {info.uuid} must name its {field}"
            assert not backend.vendor or info.vendor == backend.vendor, (
                f"device {info.uuid} must have the backend's vendor {backend.vendor!r},"
                f" got {info.vendor!r}"
            )

    def test_unhealthy_device_says_why(self, session: NodeBackend) -> None:
        """People see the message in ``kubectl get gpus``."""
        silent = [i.uuid for i in session.discover() if not i.healthy and not i.message.strip()]
        assert not silent, f"an unhealthy device must say why in its message: {silent}"

    def test_vram_is_in_bytes(self, session: NodeBackend) -> None:
        """Placement adds bytes."""
        for info in session.discover():
            assert isinstance(info.vram_bytes, int), "vram_bytes must be an integer"
            assert LEAST_VRAM <= info.vram_bytes <= MOST_VRAM, (
                f"vram must be in bytes: {info.vram_bytes} of device {info.uuid} ({info.model})"
                f" is not between {LEAST_VRAM} (1 GiB) and {MOST_VRAM} (4 TiB)"
            )
            card = catalogue_card(info)
            assert card is None or 0.5 < info.vram_bytes / card.vram_bytes < 2, (
                f"vram must be in bytes: the catalogue has {card and card.vram_bytes} for"
                f" {info.model}, device {info.uuid} says {info.vram_bytes}"
            )

    def test_compute_is_in_gflops(self, session: NodeBackend) -> None:
        """Placement adds GFLOP/s. A device whose rate is not known takes no work."""
        for info in session.discover():
            if info.compute_gflops == 0 and not info.healthy:
                continue
            assert isinstance(info.compute_gflops, int), "compute_gflops must be an integer"
            assert LEAST_GFLOPS <= info.compute_gflops <= MOST_GFLOPS, (
                f"compute must be in GFLOP/s (1 TFLOPS is 1000): {info.compute_gflops} of device"
                f" {info.uuid} ({info.model}) is not between {LEAST_GFLOPS} and {MOST_GFLOPS}"
            )
            card = catalogue_card(info)
            assert card is None or 0.5 < info.compute_gflops / card.compute_gflops < 2, (
                "compute must be in GFLOP/s (1 TFLOPS is 1000), dense FP16: the catalogue has"
                f" {card and card.compute_gflops} for {info.model}, device {info.uuid} says"
                f" {info.compute_gflops}"
            )

    def test_topology_links_known_devices_alike(self, session: NodeBackend) -> None:
        """A link is the same from both of its ends."""
        known = {info.uuid for info in session.discover()}
        seen: dict[frozenset[str], tuple[str, int, int]] = {}
        for link in session.topology():
            ends = frozenset((link.source, link.target))
            assert ends <= known, f"topology() must link discovered devices only, got {link}"
            assert len(ends) == 2, f"topology() must not link a device with itself, got {link}"
            assert link.kind, f"a link must name its kind, got {link}"
            assert link.tier in (0, 1, 2), f"a link's tier must be 0, 1 or 2, got {link}"
            assert link.bandwidth_mbps > 0, f"a link must have a bandwidth in MB/s, got {link}"
            facts = (link.kind, link.tier, link.bandwidth_mbps)
            assert seen.setdefault(ends, facts) == facts, (
                f"a link must look the same from both ends: {link}, and {seen[ends]}"
            )

    def test_topology_stays_over_calls(self, session: NodeBackend) -> None:
        """Links are a fact of the machine."""
        assert set(session.topology()) == set(session.topology()), (
            "topology() must answer the same from one call to the next"
        )


def identity(found: Sequence[DeviceInfo]) -> dict[int, str]:
    """Index to uuid."""
    return {info.index: info.uuid for info in found}
