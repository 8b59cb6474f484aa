"""The hardware catalogue: what accelerators can do, as data with a source per figure."""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tensorfusion.errors import ConfigError
from tensorfusion.model.partitions import Geometry, PartitionTemplate

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One model of accelerator.

    Attributes:
        compute_gflops: Dense FP16 rate, GFLOP/s.
        multiprocessors: SMs, compute units or AI cores.
        link_count: Direct interconnect links; ``link_mbps`` is their sum one way, MB/s.
        power_watts: Power limit.
        hourly_price: US dollars.
        geometry: How it may be cut into partitions; None when it may not.
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
    geometry: Geometry | None
    source: str

    @property
    def templates(self) -> tuple[PartitionTemplate, ...]:
        """Shapes of partition the card may be cut into; empty when it may not."""
        return self.geometry.templates if self.geometry is not None else ()


@cache
def cards() -> dict[str, Card]:
    """Return every card by its model name."""
    data = tomllib.loads(files("tensorfusion.model").joinpath("hardware.toml").read_text())
    templates: dict[str, list[PartitionTemplate]] = {}
    for row in data["template"]:
        templates.setdefault(row["family"], []).append(_template(row))
    families = {row["family"]: _geometry(row, templates[row["family"]]) for row in data["family"]}
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


def geometry_of(model: str, full_model: str) -> Geometry | None:
    """Return how cards of a model may be cut; None when they may not, or are not known."""
    known = _geometries()
    return known.get(model.casefold()) or known.get(full_model.casefold())


@cache
def _geometries() -> dict[str, Geometry]:
    return {
        name.casefold(): card.geometry
        for card in cards().values()
        for name in (card.model, card.full_model)
        if card.geometry is not None
    }


def _card(row: dict[str, Any], families: dict[str, Geometry]) -> Card:
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
        geometry=families[row["partitions"]] if "partitions" in row else None,
        source=row["source"],
    )


def _geometry(row: dict[str, Any], templates: list[PartitionTemplate]) -> Geometry:
    return Geometry(
        templates=tuple(templates),
        slots=row["slots"],
        max_partitions=row["max"],
        divides_memory=row["slots_are"] == "memory",
        engines=tuple(row.get("engines", {}).items()),
    )


def _template(row: dict[str, Any]) -> PartitionTemplate:
    return PartitionTemplate(
        id=row["id"],
        profile=row.get("profile"),
        vram_bytes=row["gib"] * GIB,
        slices=row["slices"],
        total_slices=row["of"],
        max_instances=row["instances"],
        starts=tuple(row["starts"]),
        width=row["width"],
        per_slot=row.get("per_slot", 1),
        engines=tuple(row.get("engines", {}).items()),
    )
