"""How a card is divided: properties that hold for any set of workers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion_simulated.contention import Claim, divide_compute, grow_memory

rates = st.floats(0, 1e6, allow_nan=False)
claims = st.lists(st.builds(Claim, wanted=rates, request=rates, limit=rates), max_size=12)
capacities = st.floats(0, 1e6, allow_nan=False)
SLACK = 1e-6


@settings(max_examples=300)
@given(capacities, claims)
def test_nobody_gets_more_than_wanted_limit_or_card(capacity, found):
    given_ = divide_compute(capacity, found)
    assert sum(given_) <= capacity * (1 + SLACK) + SLACK
    for got, claim in zip(given_, found, strict=True):
        assert -SLACK <= got <= min(claim.wanted, claim.limit) * (1 + SLACK) + SLACK


@settings(max_examples=300)
@given(capacities, claims)
def test_requests_are_honoured_first(capacity, found):
    promised = [min(c.wanted, c.limit, c.request) for c in found]
    if sum(promised) > capacity:
        return
    for got, promise in zip(divide_compute(capacity, found), promised, strict=True):
        assert got >= promise * (1 - SLACK) - SLACK


@settings(max_examples=300)
@given(capacities, claims)
def test_nothing_is_left_while_somebody_wants_it(capacity, found):
    wanted = sum(min(c.wanted, c.limit) for c in found)
    assert sum(divide_compute(capacity, found)) == pytest.approx(
        min(capacity, wanted), rel=1e-6, abs=1e-3
    )


@given(capacities, claims, st.randoms())
def test_order_of_workers_does_not_matter(capacity, found, random):
    order = list(range(len(found)))
    random.shuffle(order)
    straight = divide_compute(capacity, found)
    shuffled = divide_compute(capacity, [found[i] for i in order])
    assert [straight[i] for i in order] == pytest.approx(shuffled, rel=1e-6, abs=1e-3)


def test_what_is_left_is_divided_by_request():
    hungry = [Claim(100, 10, 100), Claim(100, 30, 100)]
    assert divide_compute(80, hungry) == pytest.approx([20, 60])


def test_throttled_card_shrinks_everyone_alike():
    assert divide_compute(20, [Claim(40, 40, 40), Claim(10, 10, 10)]) == pytest.approx([16, 4])


sizes = st.integers(0, 1 << 40)


@settings(max_examples=300)
@given(sizes, st.lists(st.tuples(sizes, sizes), max_size=8), st.data())
def test_memory_stays_within_card_and_limits(capacity, workers, data):
    held, left = [], capacity
    for _, limit in workers:
        held.append(data.draw(st.integers(0, max(0, min(left, limit)))))
        left -= held[-1]
    wanted, limits = [w for w, _ in workers], [limit for _, limit in workers]
    holdings, refused = grow_memory(capacity, held, wanted, limits)
    assert sum(holdings) <= capacity
    for now, before, want, limit, no in zip(holdings, held, wanted, limits, refused, strict=True):
        assert now <= limit
        assert now >= min(before, want), "nobody loses what it holds and still wants"
        assert no == (now < want)


def test_memory_is_first_come_first_served():
    holdings, refused = grow_memory(100, [60, 0], [60, 80], [100, 100])
    assert (holdings, refused) == ([60, 40], [False, True])


def test_lower_limit_takes_no_memory_away():
    assert grow_memory(100, [60], [60], [40]) == ([60], [False])
