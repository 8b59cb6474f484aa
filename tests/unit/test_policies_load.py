"""The three placement modes and their hook."""

import subprocess
import sys

import numpy as np
import pytest

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import (
    CAPACITY_PLANE,
    FREE_SHARE_PLANE,
    HOST_COLUMNS,
    PLANES,
    FleetStatistics,
    Rows,
)
from tensorfusion.spi.policy import PlacementPolicy
from tensorfusion_plugins.policies import load, tensorfusion_placement_policies


def rows_of(free_gflops, free_vram, matching=None):
    nodes, slots = np.shape(free_gflops)
    cells = np.zeros((nodes, PLANES, slots), np.int64)
    cells[:, 0], cells[:, 1] = free_gflops, free_vram
    cells[:, CAPACITY_PLANE : CAPACITY_PLANE + 2] = 100
    cells[:, FREE_SHARE_PLANE : FREE_SHARE_PLANE + 2] = cells[:, :2] * 10_000
    mask = np.ones((nodes, slots), bool) if matching is None else np.array(matching)
    return Rows(cells, np.zeros((nodes, HOST_COLUMNS), np.int64), mask, 1)


ROWS = rows_of([[100, 50], [0, 50]], [[100, 100], [0, 50]])


@pytest.mark.parametrize(
    ("policy", "node_scores", "device_scores"),
    [
        (load.compact_first(), [7.5, 75.0], [[0, 15], [100, 50]]),
        (load.low_load_first(), [92.5, 25.0], [[100, 85], [0, 50]]),
        (load.node_compact_gpu_low_load(), [7.5, 75.0], [[100, 85], [0, 50]]),
    ],
)
def test_policy_scores_weigh_vram_seven_and_compute_three(policy, node_scores, device_scores):
    fleet = FleetStatistics()
    assert policy.score_nodes(Shape(), ROWS, fleet) == pytest.approx(node_scores)
    assert policy.score_devices(Shape(), ROWS, fleet) == pytest.approx(np.array(device_scores))


def test_policy_node_score_counts_matching_cards_only():
    rows = rows_of([[100, 0]], [[100, 0]], [[False, True]])
    assert load.compact_first().score_nodes(Shape(), rows, FleetStatistics()) == [100.0]


def test_policy_node_without_matching_cards_gets_a_finite_score():
    rows = rows_of([[100, 0]], [[100, 0]], [[False, False]])
    assert np.isfinite(load.compact_first().score_nodes(Shape(), rows, FleetStatistics())).all()


def test_hook_offers_every_policy_with_the_names_of_the_custom_resource():
    offered = tensorfusion_placement_policies()
    assert all(isinstance(policy, PlacementPolicy) for policy in offered)
    assert {policy.name: policy.aliases for policy in offered} == {
        "compact-first": ("CompactFirst",),
        "low-load-first": ("LowLoadFirst",),
        "node-compact-gpu-low-load": ("NodeCompactGPULowLoad",),
        "random": ("Random",),
        "dotprod": ("DotProd",),
        "gpuclustering": ("GpuClustering",),
        "gpupacking": ("GpuPacking",),
        "bestfit": ("BestFit",),
        "fgd": ("FGD",),
    }


def test_hook_module_imports_without_numpy():
    code = "import sys, tensorfusion_plugins.policies; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
