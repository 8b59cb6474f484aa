"""The smallest changes that make a request fit, proven by trying everything smaller."""

import pytest
from oracles.relax_check import check
from oracles.relax_world import random_world

SEEDS = range(150)
"""A sample; the benchmark of the same name tries ten thousand."""


@pytest.mark.parametrize("start", range(0, len(SEEDS), 25))
def test_random_requests_get_the_minimum_of_every_kind(start):
    worlds = [w for seed in SEEDS[start : start + 25] if (w := random_world(seed)) is not None]
    assert worlds
    kinds = set()
    for world in worlds:
        answer = check(world)
        kinds |= {step.kind for step in answer.alone}
    assert kinds
