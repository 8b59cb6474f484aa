"""NVLink: which devices reach each other directly, and how fast."""

from collections.abc import Sequence
from typing import Any

from tensorfusion.spi.backend import Link
from tensorfusion_nvidia.devices import Found, catalogue_card
from tensorfusion_nvidia.nvml import Nvml, text

LINK_MBPS = {1: 20_000, 2: 25_000, 3: 25_000, 4: 25_000, 5: 25_000, 6: 25_000, 7: 50_000}
"""NVML's version number of a link to MB/s in one direction: NVLink 1.0, 2.0, 2.2, 3.0, 3.1, 4.0
and 5.0. Sources: NVIDIA's architecture white papers of P100 (160 GB/s over 4 links, both ways),
V100 (300 over 6), A100 (600 over 12), H100 (900 over 18) and the Blackwell brief (1800 over 18)."""

MOST_LINKS = 18
"""Links of the largest device so far; asking for more is refused by the driver."""


def find_links(nvml: Nvml, devices: Sequence[Found]) -> list[Link]:
    """List each pair of devices that NVLink joins, once.

    Links that end in a switch reach every other device on the switch with all of their rate.
    """
    by_bus = {device.info.pci_bus_id.lower(): device.info.uuid for device in devices}
    direct: dict[frozenset[str], int] = {}
    switched: dict[str, int] = {}
    for device in devices:
        for link in _active(nvml, device):
            rate = _rate(nvml, device, link)
            if _ends_in_switch(nvml, device.handle, link):
                switched[device.info.uuid] = switched.get(device.info.uuid, 0) + rate
                continue
            peer = by_bus.get(_remote_bus(nvml, device.handle, link), "")
            if peer and peer > device.info.uuid:  # the other end tells the same link again
                pair = frozenset((device.info.uuid, peer))
                direct[pair] = direct.get(pair, 0) + rate
    found = [_link(min(pair), max(pair), rate) for pair, rate in direct.items()]
    reached = sorted(switched)
    for i, first in enumerate(reached):
        found += [_link(first, b, min(switched[first], switched[b])) for b in reached[i + 1 :]]
    return sorted(found, key=lambda link: (link.source, link.target))


def _link(source: str, target: str, rate: int) -> Link:
    return Link(source=source, target=target, kind="NVLink", tier=0, bandwidth_mbps=rate)


def _active(nvml: Nvml, device: Found) -> list[int]:
    return [n for n in range(MOST_LINKS) if nvml.ask("nvmlDeviceGetNvLinkState", device.handle, n)]


def _rate(nvml: Nvml, device: Found, link: int) -> int:
    version = nvml.ask("nvmlDeviceGetNvLinkVersion", device.handle, link)
    if version in LINK_MBPS:
        return LINK_MBPS[version]
    card = catalogue_card(device.info.full_model)
    if card is not None and card.link_count:
        return card.link_mbps // card.link_count
    return LINK_MBPS[2]


def _ends_in_switch(nvml: Nvml, handle: Any, link: int) -> bool:
    kind = nvml.ask("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
    return bool(kind == nvml.constant("NVML_NVLINK_DEVICE_TYPE_SWITCH", 2))


def _remote_bus(nvml: Nvml, handle: Any, link: int) -> str:
    remote = nvml.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
    return "" if remote is None else text(remote.busId).lower()
