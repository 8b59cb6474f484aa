"""Merging what several recommenders propose. Pure."""

from collections.abc import Iterable
from dataclasses import replace

from tensorfusion.spi.recommender import Amounts, Proposal


def merge(proposals: Iterable[Proposal]) -> dict[str, Proposal]:
    """Keep one proposal per workload: per resource the larger request wins and brings its limit.

    A proposal that changes nothing never competes with one that does.
    """
    merged: dict[str, Proposal] = {}
    for proposal in proposals:
        other = merged.get(proposal.key)
        merged[proposal.key] = proposal if other is None else _merge_two(other, proposal)
    return merged


def _merge_two(a: Proposal, b: Proposal) -> Proposal:
    compute = a if a.request.gflops >= b.request.gflops else b
    vram = a if a.request.vram_bytes >= b.request.vram_bytes else b
    lead = a if changes(a) or not changes(b) else b
    whys = [p.why for p in (a, b) if changes(p) and p.why]
    return replace(
        lead,
        request=Amounts(compute.request.gflops, vram.request.vram_bytes),
        limit=Amounts(compute.limit.gflops, vram.limit.vram_bytes),
        why="; ".join(whys) or lead.why,
        expires=min(a.expires, b.expires),
    )


def changes(proposal: Proposal) -> bool:
    """Whether the proposal wants anything changed."""
    return bool(proposal.request.gflops or proposal.request.vram_bytes)


def overlay(present: Amounts, wanted: Amounts) -> Amounts:
    """Lay wanted amounts over present ones; a zero keeps what is there."""
    return Amounts(wanted.gflops or present.gflops, wanted.vram_bytes or present.vram_bytes)
