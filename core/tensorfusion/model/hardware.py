"""The hardware catalogue: what accelerators can do, as data with a source per figure."""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tensorfusion.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTemplate:
    """One shape of hardware partition.

    Attributes:
        id: The vendor's name of the profile, such as ``3g.40gb``.
        profile: NVML GPU instance profile number.
        slices: Compute slices taken out of ``total_slices``.
        max_instances: How many fit on one card.
        starts: Memory slots at which an instance may begin.
        width: Memory slots an instance takes.
    """

    id: str
    profile: int
    vram_bytes: int
    slices: int
    total_slices: int
    max_instances: int
    starts: tuple[int, ...]
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model of accelerator.

    Attributes:
        compute_gflops: Dense FP16 rate, GFLOP/s.
        multiprocessors: SMs, compute units or AI cores.
        link_count: Direct interconnect links; ``link_mbps`` is their sum one way, MB/s.
        power_watts: Power limit.
        hourly_price: US dollars.
        source: Where the figures are published.
    """

    vendor: str
    model: str
    full_model: str
    compute_gflops: int
    vram_bytes: int
    multiprocessors: int
    power_watts: int
    link_count: int
    link_mbps: int
    hourly_price: float
    templates: tuple[PartitionTemplate, ...]
    source: str


@cache
def cards() -> dict[str, Card]:
    """Return every card by its model name."""
    data = tomllib.loads(files("tensorfusion.model").joinpath("hardware.toml").read_text())
    families: dict[str, list[PartitionTemplate]] = {}
    for row in data["template"]:
        families.setdefault(row["family"], []).append(_template(row))
    return {row["model"]: _card(row, families) for row in data["card"]}


def find_card(name: str) -> Card:
    """Find a card by model or full name, in any case.

    Raises:
        ConfigError: There is none; names the closest ones.
    """
    wanted = name.casefold()
    for card in cards().values():
        if wanted in (card.model.casefold(), card.full_model.casefold()):
            return card
    close = difflib.get_close_matches(name, cards(), n=3, cutoff=0.3) or sorted(cards())
    raise ConfigError(f"GPU model {name!r} is not in the catalogue; close: {', '.join(close)}")


def _card(row: dict[str, Any], families: dict[str, list[PartitionTemplate]]) -> Card:
    return Card(
        vendor=row["vendor"],
        model=row["model"],
        full_model=row["full"],
        compute_gflops=round(row["tflops"] * 1000),
        vram_bytes=row["vram"] * GIB,
        multiprocessors=row["sms"],
        power_watts=row["watts"],
        link_count=row.get("links", 0),
        link_mbps=row.get("link_gbps", 0) * 1000,
        hourly_price=row["price"],
        templates=tuple(families[row["mig"]]) if "mig" in row else (),
        source=row["source"],
    )


def _template(row: dict[str, Any]) -> PartitionTemplate:
    return PartitionTemplate(
        id=row["id"],
        profile=row["profile"],
        vram_bytes=row["gib"] * GIB,
        slices=row["slices"],
        total_slices=row["of"],
        max_instances=row["instances"],
        starts=tuple(row["starts"]),
        width=row["width"],
    )
