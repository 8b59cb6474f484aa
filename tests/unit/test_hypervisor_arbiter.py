"""Who may use how much of a device: by table, by property, and over time with a made-up session."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.api.scheduling_config import HypervisorScheduling, MultiProcessQueuing
from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.hypervisor.arbiter import (
    IDLE_RATIO,
    IDLE_SECONDS,
    MOST_LENT,
    TICK_SECONDS,
    Arbiter,
    Rules,
    Tenant,
    divide,
    rules_of,
)
from tensorfusion.spi.backend import Share, WorkerSpec, WorkerUsage
from tensorfusion.testing.clock import FakeClock

WHOLE = 100.0


def tenant(key, request, limit, weight=1.0, active=True):
    return Tenant(key, float(request), float(limit), weight, active)


@pytest.mark.parametrize(
    ("tenants", "lends", "expected"),
    [
        ([tenant("a", 20, 30), tenant("b", 40, 60)], False, {"a": 30, "b": 60}),
        ([tenant("a", 20, 80), tenant("b", 40, 80)], False, {"a": 40, "b": 60}),
        ([tenant("a", 20, 80, weight=3), tenant("b", 40, 80)], False, {"a": 50, "b": 50}),
        ([tenant("a", 20, 25), tenant("b", 40, 90)], False, {"a": 25, "b": 75}),
        ([tenant("a", 80, 90), tenant("b", 80, 90)], False, {"a": 50, "b": 50}),
        ([tenant("a", 20, 80), tenant("b", 40, 80, active=False)], False, {"a": 80, "b": 80}),
        ([tenant("a", 20, 30), tenant("b", 40, 60, active=False)], True, {"a": 99, "b": 60}),
        ([tenant("a", 20, 30), tenant("b", 40, 60)], True, {"a": 35, "b": 65}),
        ([tenant("a", 20, 30, weight=4), tenant("b", 40, 60)], True, {"a": 38, "b": 62}),
        ([tenant("a", 0, 30, active=False)], True, {"a": 30}),
        ([tenant("a", 0, 0)], False, {"a": 1}),
    ],
)
def test_a_device_is_divided(tenants, lends, expected):
    assert divide(WHOLE, tenants, lends=lends) == pytest.approx(expected)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 120), st.floats(0, 120), st.sampled_from([1.0, 2.0, 8.0]), st.booleans()
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_nobody_gets_less_than_is_promised_or_more_than_there_is(rows, lends):
    tenants = [
        tenant(str(i), min(request, limit), limit, weight, active)
        for i, (request, limit, weight, active) in enumerate(rows)
    ]
    granted = divide(WHOLE, tenants, lends=lends)
    least = WHOLE * IDLE_RATIO
    active = [t for t in tenants if t.active]
    assert sum(granted[t.key] for t in active) <= WHOLE + least * len(active) + 1e-6
    fits = sum(t.request for t in active) <= WHOLE
    for t in tenants:
        assert granted[t.key] <= WHOLE + 1e-6
        if fits:
            assert granted[t.key] >= min(t.request, WHOLE) - 1e-6
        if not lends:
            assert granted[t.key] <= max(t.limit, least) + 1e-6
    wanted = sum(min(t.limit, WHOLE) for t in active)
    if active and (lends or wanted >= WHOLE):
        least_used = min(WHOLE, max(wanted, MOST_LENT * WHOLE))
        assert sum(granted[t.key] for t in active) >= least_used - 1e-6, "what is wanted is used"


def test_rules_are_read_from_the_template():
    assert rules_of(None) == Rules(lends=False)
    queuing = MultiProcessQueuing(coefficient_low="0.5", coefficient_high="6")
    scheduling = HypervisorScheduling(
        lend_idle_compute=True, multi_process_queuing_parameters=queuing
    )
    rules = rules_of(scheduling)
    assert rules.lends
    assert rules.weights == {"low": 0.5, "medium": 2, "high": 6, "critical": 8}


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan", "inf"])
def test_a_bad_coefficient_is_named(text):
    queuing = MultiProcessQueuing(coefficient_medium=text)
    with pytest.raises(ConfigError, match=r"coefficientMedium is .* allowed are numbers above 0"):
        rules_of(HypervisorScheduling(multi_process_queuing_parameters=queuing))


class Session:
    """Two workers on one card; what they use follows what they want and may have."""

    def __init__(self, clock):
        self.clock = clock
        self.limits = {}
        self.wants = {}
        self.busy = {}
        self.throttled = {}
        self.broken = False

    def advance(self, seconds):
        self.clock.advance(seconds)
        for worker, want in self.wants.items():
            got = min(want, self.limits[worker])
            self.busy[worker] = self.busy.get(worker, 0.0) + seconds * got / WHOLE
            if want > got:
                self.throttled[worker] = self.throttled.get(worker, 0.0) + seconds

    def usage(self):
        if self.broken:
            raise BackendError("made-up", "gone")
        return [
            WorkerUsage(
                worker=w,
                uuid="card",
                time=0.0,
                compute_gflops=0.0,
                vram_bytes=0,
                busy_seconds_total=self.busy.get(w, 0.0),
                throttled_seconds_total=self.throttled.get(w, 0.0),
            )
            for w in self.wants
        ]

    def set_limits(self, worker, share):
        self.limits[worker] = share.limit_gflops


@pytest.fixture
def world():
    clock = FakeClock()
    session = Session(clock)
    specs = {}

    def spec(worker, request, limit, qos="medium", devices=("card",)):
        specs[worker] = WorkerSpec(
            worker=worker,
            namespace="ns",
            name=worker,
            workload="w",
            devices=devices,
            share=Share(request, 1, limit, 1),
            qos=qos,
        )
        session.limits[worker] = limit
        session.wants[worker] = 0

    session.rules = Rules(lends=True)
    arbiter = Arbiter(
        {"node": session},
        promised=lambda _node: list(specs.values()),
        capacities=lambda _node: {"card": int(WHOLE)},
        rules=lambda _node: session.rules,
        clock=clock,
    )

    def run(seconds):
        for _ in range(round(seconds / TICK_SECONDS)):
            session.advance(TICK_SECONDS)
            arbiter.run_once()

    return session, specs, spec, run


def test_idle_compute_is_lent_and_taken_back(world):
    session, _, spec, run = world
    spec("small", 30, 30)
    spec("large", 60, 60)
    session.wants = {"small": 100, "large": 100}
    run(1)
    assert session.limits == {"small": 35, "large": 65}, "what nobody is promised is lent, too"
    session.wants["large"] = 0
    run(IDLE_SECONDS + 2 * TICK_SECONDS)
    assert session.limits["small"] == 99
    assert session.limits["large"] == 60, "an idle worker can begin at once"
    session.wants["large"] = 100
    run(2 * TICK_SECONDS)
    assert session.limits == {"small": 35, "large": 65}


def test_where_all_limits_fit_nobody_is_asked_and_what_was_lent_is_taken_back(world):
    session, specs, spec, run = world
    spec("small", 30, 30)
    spec("large", 60, 60)
    session.wants = {"small": 100, "large": 0}
    run(2)
    assert session.limits["small"] == 99
    session.rules = Rules(lends=False)
    run(2 * TICK_SECONDS)
    assert session.limits == {"small": 30, "large": 60}

    session.broken = True
    session.usage = lambda: pytest.fail("there was nothing to find out")
    run(1)
    specs["large"] = replace(specs["large"], share=Share(60, 1, 80, 1))
    session.limits["large"] = 80
    del session.usage
    session.broken = False
    session.wants["large"] = 100
    run(1)
    assert sum(session.limits.values()) == WHOLE, "together they want more than there is"


def test_a_partition_is_neither_lent_nor_limited(world):
    session, specs, spec, run = world
    spec("cut", 30, 30)
    spec("small", 30, 30)
    specs["cut"] = replace(specs["cut"], isolation="partitioned", partitions=("MIG-1",))
    session.wants = {"cut": 100, "small": 100}
    run(2)
    assert session.limits == {"cut": 30, "small": 99}


def test_a_worker_below_its_limit_is_active_and_a_sleeping_one_is_not(world):
    session, _, spec, run = world
    spec("small", 30, 30)
    spec("large", 60, 60)
    session.wants = {"small": 100, "large": 5}
    run(2)
    assert session.limits["small"] == 35
    session.wants["large"] = 0.5
    run(2)
    assert session.limits["small"] == 99


def test_quality_of_service_decides_what_is_left(world):
    session, _, spec, run = world
    spec("low", 10, 100, qos="low")
    spec("critical", 10, 100, qos="critical")
    session.wants = {"low": 100, "critical": 100}
    run(1)
    assert session.limits["critical"] - 10 == pytest.approx(8 * (session.limits["low"] - 10), abs=5)


def test_a_changed_promise_counts_from_the_next_look(world):
    session, specs, spec, run = world
    spec("one", 20, 20)
    session.wants["one"] = 100
    run(1)
    assert session.limits["one"] == 99
    specs["one"] = replace(specs["one"], share=Share(50, 1, 50, 1))
    session.limits["one"] = 50  # as the controller of workers does
    run(TICK_SECONDS)
    assert session.limits["one"] == 99


@pytest.mark.parametrize(
    ("share", "lent"),
    [
        (Share(20, 1, 20, 1), Share(20, 1, 99, 1)),
        (Share(20, 1, 20, 1, 20_000, 20_000), Share(20, 1, 99, 1, 20_000, 99_000)),
    ],
)
def test_what_is_lent_is_the_same_part_of_each_card(world, share, lent):
    session, specs, spec, run = world
    spec("one", 20, 20)
    specs["one"] = replace(specs["one"], share=share)
    given = []
    put = session.set_limits
    session.set_limits = lambda worker, changed: (given.append(changed), put(worker, changed))
    session.wants["one"] = 100
    run(1)
    assert given[-1] == lent


def test_workers_on_several_devices_and_broken_sessions_are_left_alone(world):
    session, _, spec, run = world
    spec("wide", 30, 30, devices=("card", "other"))
    session.wants["wide"] = 100
    run(1)
    assert session.limits["wide"] == 30
    spec("one", 20, 20)
    session.broken = True
    run(1)
    assert session.limits["one"] == 20
