"""The cost of a call behind the limiter, in instructions: noise cannot move them."""

import platform
import shutil

import pytest
from native.hook_cost import BOUNDS, instructions, times


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the bounds are instructions of x86-64")
@pytest.mark.skipif(not shutil.which("valgrind"), reason="counting instructions needs valgrind")
@pytest.mark.parametrize("share", sorted({bound.share for bound in BOUNDS}))
def test_a_call_takes_no_more_instructions_than_its_bound(build, share):
    counted = instructions(build, share)

    for bound in (bound for bound in BOUNDS if bound.share == share):
        bare, hooked = counted[bound.kind]
        assert 0 < hooked - bare <= bound.instructions, bound.name


def test_the_timing_program_reports_every_kind_of_call(build):
    measured = times(build, 0.5)

    assert set(measured) == {"launch", "memory_info", "allocate_and_free"}
    assert all(0 < row["bare_ns"] < row["hooked_ns"] for row in measured.values())
