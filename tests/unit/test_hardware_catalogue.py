"""The hardware catalogue: every figure has a source, every partition fits its card."""

import pytest

from tensorfusion.errors import ConfigError
from tensorfusion.model.hardware import GIB, cards, find_card

CARDS = list(cards().values())
WITH_TEMPLATES = [card for card in CARDS if card.templates]
MIG = [card for card in WITH_TEMPLATES if card.vendor == "NVIDIA"]
SLOTS = {7: 8, 4: 4}
"""Compute slices of a family to its memory slots (NVIDIA Multi-Instance GPU User Guide)."""


def of(card):
    return card.model


@pytest.mark.parametrize("card", CARDS, ids=of)
def test_card_has_a_source_and_positive_figures(card):
    assert len(card.source) > 20, "a source names the document and the figure"
    assert card.vendor
    assert 5_000 < card.compute_gflops < 10_000_000, "GFLOP/s, dense"
    assert 8 * GIB <= card.vram_bytes <= 1024 * GIB
    assert card.multiprocessors > 0
    assert 20 < card.power_watts < 2_000
    assert 0 < card.hourly_price < 100


@pytest.mark.parametrize("card", CARDS, ids=of)
def test_card_has_links_with_a_bandwidth_or_none(card):
    assert (card.link_count == 0) == (card.link_mbps == 0)
    if card.link_count:
        assert 10_000 <= card.link_mbps / card.link_count <= 100_000, "one way, per link"


def test_names_are_unique_in_any_case():
    rows = [name.casefold() for card in CARDS for name in {card.model, card.full_model}]
    assert len(set(rows)) == len(rows)


def test_catalogue_has_the_vendors_and_range_that_are_promised():
    assert {card.vendor for card in CARDS} >= {"NVIDIA", "AMD", "Ascend", "PPU", "MooreThreads"}
    assert {card.model for card in CARDS} >= {"T4", "A100_SXM_80G", "H100_SXM", "H200", "B200"}


@pytest.mark.parametrize("card", CARDS, ids=of)
def test_card_is_found_by_either_name_in_any_case(card):
    for name in (card.model, card.full_model, card.model.upper(), card.full_model.lower()):
        assert find_card(name) is card


def test_unknown_card_names_the_closest_ones():
    with pytest.raises(
        ConfigError, match=r"'A100_SXM_80' is not in the catalogue; close: .*A100_SXM_80G"
    ):
        find_card("A100_SXM_80")


@pytest.mark.parametrize("card", WITH_TEMPLATES, ids=of)
def test_templates_fit_their_card(card):
    ids = [template.id for template in card.templates]
    profiles = [t.profile for t in card.templates if t.profile is not None]
    assert len(set(ids)) == len(ids)
    assert len(set(profiles)) == len(profiles)
    engines = dict(card.geometry.engines)
    for template in card.templates:
        slots = card.geometry.slots
        assert 1 <= template.slices <= template.total_slices
        assert template.starts
        assert list(template.starts) == sorted(set(template.starts))
        assert min(template.starts) >= 0
        assert max(template.starts) + template.width <= slots
        assert 0 < template.vram_bytes <= card.vram_bytes
        assert dict(template.engines).keys() <= engines.keys()
        assert all(amount <= engines[name] for name, amount in template.engines)


@pytest.mark.parametrize("card", MIG, ids=of)
def test_name_of_a_mig_template_says_what_it_is(card):
    for template in card.templates:
        assert card.geometry.slots == SLOTS[template.total_slices]
        assert template.profile is not None
        # Slices, memory, media engine.
        assert template.id.startswith(f"{template.slices}g.{template.vram_bytes // GIB}gb")


@pytest.mark.parametrize("card", MIG, ids=of)
def test_as_many_instances_fit_as_a_template_says(card):
    for template in card.templates:
        taken, end = 0, 0
        for start in template.starts:
            if start >= end:
                taken, end = taken + 1, start + template.width
        by_slices = template.total_slices // template.slices
        most = 1 if template.id.endswith("+me") else min(taken, by_slices)
        assert template.max_instances == most, template.id
        # A profile's name rounds its memory up to whole GiB: 3g.71gb is half of 141 GiB.
        least = template.vram_bytes - GIB
        assert template.max_instances * least < card.vram_bytes, template.id


@pytest.mark.parametrize("card", MIG, ids=of)
def test_one_template_is_the_whole_card(card):
    whole = [t for t in card.templates if t.slices == t.total_slices]
    assert [t.vram_bytes for t in whole] == [card.vram_bytes]
    assert [t.width for t in whole] == [SLOTS[whole[0].total_slices]]
