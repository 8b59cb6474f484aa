"""A control plane that is killed again and again loses nothing; `bench/kill_nine.py` does it 200 times."""

import pytest
from rig.killing import run


@pytest.mark.timeout(240)
def test_kill_at_random_moments_loses_nothing(tmp_path) -> None:
    report = run(tmp_path, rounds=8, seed=7)

    assert report.rounds == 8
    assert report.created > 20
