"""Namespace quotas: totals, single caps, unset dimensions, several quotas, percentages."""

import pytest

from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import Device
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.quota import Quota, QuotaAmount, available_percent
from tensorfusion.model.takes import AllocationRefused

GIB = 2**30
NOTHING = Amount()


def ledger_with(*quotas):
    ledger = Ledger()
    for index in range(4):
        ledger.set_device(
            Device(
                uuid=f"g{index}", node="n", capacity_gflops=100_000, capacity_vram_bytes=80 * GIB
            )
        )
    for number, fields in enumerate(quotas):
        ledger.quotas.put(Quota(namespace="ns", name=f"q{number}", **fields))
    return ledger


def pod(uid, gflops=0, gib=0, *, namespace="ns", limit=NOTHING, percent=0, **shape):
    request = Amount(gflops, gib * GIB, percent)
    return Demand(
        namespace=namespace,
        name=uid,
        uid=uid,
        shape=Shape(request=request, limit=limit, **shape),
    )


def violations(ledger, demand, devices):
    with pytest.raises(AllocationRefused) as caught:
        ledger.allocate(demand, devices)
    return [item.resource for item in caught.value.violations], str(caught.value)


@pytest.mark.parametrize(
    ("quota", "resource"),
    [
        ({"total_requests": QuotaAmount(gflops=10_000)}, "total.max.tflops.request"),
        ({"total_requests": QuotaAmount(vram_bytes=GIB)}, "total.max.vram.request"),
        ({"total_limits": QuotaAmount(gflops=20_000)}, "total.max.tflops.limit"),
        ({"total_limits": QuotaAmount(vram_bytes=2 * GIB)}, "total.max.vram.limit"),
        ({"max_workers": 0}, "total.max.workers.limit"),
        ({"single_max_requests": QuotaAmount(gflops=10_000)}, "single.max.tflops.request"),
        ({"single_max_requests": QuotaAmount(vram_bytes=GIB)}, "single.max.vram.request"),
        ({"single_max_limits": QuotaAmount(gflops=20_000)}, "single.max.tflops.limit"),
        ({"single_max_limits": QuotaAmount(vram_bytes=2 * GIB)}, "single.max.vram.limit"),
        ({"max_gpu_count": 0}, "single.max.gpuCount.limit"),
    ],
)
def test_quota_each_dimension_refuses_alone_and_by_name(quota, resource):
    demand = pod("a", 11_000, 2, limit=Amount(21_000, 3 * GIB))
    assert violations(ledger_with(quota), demand, ["g0"])[0] == [resource]
    ledger_with({}).allocate(demand, ["g0"])


def test_quota_unset_dimension_is_unlimited():
    ledger = ledger_with({"total_requests": QuotaAmount(gflops=10_000)})
    ledger.allocate(pod("a", 10_000, 70), ["g0"])


def test_quota_message_has_all_figures_in_usual_units():
    ledger = ledger_with({"total_requests": QuotaAmount(gflops=15_000)})
    ledger.allocate(pod("a", 10_000), ["g0"])
    message = violations(ledger, pod("b", 5_001), ["g0"])[1]
    assert message == (
        "quota q0 of namespace ns exceeded for total.max.tflops.request: "
        "requested 5.001 TFLOPS, used 10 TFLOPS, limit 15 TFLOPS"
    )


def test_quota_totals_count_once_per_gpu():
    ledger = ledger_with({"total_limits": QuotaAmount(gflops=29_999)})
    demand = pod("a", 10_000, gpu_count=3)
    assert violations(ledger, demand, ["g0", "g1", "g2"])[0] == ["total.max.tflops.limit"]


def test_quota_percent_counts_as_real_compute():
    ledger = ledger_with({"total_requests": QuotaAmount(gflops=49_999)})
    demand = pod("a", percent=50_000)
    assert ledger.quotas.precheck(demand, 0) == []
    assert [item.resource for item in ledger.quotas.precheck(demand, 100_000)] == [
        "total.max.tflops.request"
    ]
    assert violations(ledger, demand, ["g0"])[0] == ["total.max.tflops.request"]


def test_quota_whole_card_counts_as_the_card():
    ledger = ledger_with({"total_requests": QuotaAmount(vram_bytes=79 * GIB)})
    assert violations(ledger, pod("a", isolation="shared"), ["g0"])[0] == ["total.max.vram.request"]


def test_quota_all_quotas_of_a_namespace_must_hold():
    ledger = ledger_with(
        {"total_requests": QuotaAmount(gflops=100_000)},
        {"total_requests": QuotaAmount(gflops=1_000)},
    )
    assert "quota q1" in violations(ledger, pod("a", 2_000), ["g0"])[1]
    ledger.quotas.remove("ns", "q1")
    ledger.allocate(pod("a", 2_000), ["g0"])


def test_quota_of_one_namespace_does_not_bind_another():
    ledger = ledger_with({"max_workers": 0})
    ledger.allocate(pod("a", namespace="other"), ["g0"])


def test_quota_created_late_counts_what_runs():
    ledger = ledger_with()
    ledger.allocate(pod("a", 10_000), ["g0"])
    ledger.quotas.put(Quota(namespace="ns", name="late", max_workers=1))
    assert violations(ledger, pod("b"), ["g0"])[0] == ["total.max.workers.limit"]


def test_quota_lowered_below_use_still_lets_workers_shrink():
    ledger = ledger_with()
    ledger.allocate(pod("a", 10_000, 4), ["g0"])
    ledger.quotas.put(Quota(namespace="ns", name="low", total_requests=QuotaAmount(gflops=1_000)))
    ledger.resize("a", Amount(9_000, 8 * GIB), Amount())
    with pytest.raises(AllocationRefused):
        ledger.resize("a", Amount(9_001, GIB), Amount())


def test_quota_release_restores_usage_exactly():
    ledger = ledger_with()
    ledger.allocate(pod("a", 10_000, 4, gpu_count=2), ["g0", "g1"])
    assert ledger.quotas.usage("ns").request_vram_bytes == 8 * GIB
    ledger.release("a")
    assert ledger.quotas.usages() == {}


@pytest.mark.parametrize(
    ("quota", "used", "resolvable"),
    [
        ({"max_workers": 1}, True, True),
        ({"single_max_requests": QuotaAmount(gflops=1)}, False, False),
        ({"total_requests": QuotaAmount(gflops=1)}, False, False),
    ],
)
def test_quota_violation_says_whether_waiting_helps(quota, used, resolvable):
    ledger = ledger_with(quota)
    if used:
        ledger.allocate(pod("z"), ["g0"])
    found = ledger.quotas.precheck(pod("a", 5_000), 0)
    assert [item.resolvable for item in found] == [resolvable]


@pytest.mark.parametrize(
    ("used", "limit", "text"),
    [(1, 3, "66.66"), (0, 10, "100.00"), (20, 10, "0.00"), (0, None, "100"), (0, 0, "0.00")],
)
def test_quota_available_percent(used, limit, text):
    assert available_percent(used, limit) == text


SHARE_CASES = [
    pytest.param({"single_max_request_share": 50_000}, {"percent": 50_000}, [], id="at-the-cap"),
    pytest.param(
        {"single_max_request_share": 50_000},
        {"percent": 50_001},
        ["single.max.percent.request"],
        id="percent-over",
    ),
    pytest.param(
        {"single_max_request_share": 50_000},
        {"gflops": 50_001},
        ["single.max.percent.request"],
        id="tflops-count-as-their-share-of-the-card",
    ),
    pytest.param(
        {"single_max_limit_share": 60_000},
        {"gflops": 10_000, "limit": Amount(60_001)},
        ["single.max.percent.limit"],
        id="limit",
    ),
    pytest.param(
        {"single_max_request_share": 99_999},
        {"isolation": "shared"},
        ["single.max.percent.request"],
        id="whole-card",
    ),
]


@pytest.mark.parametrize(("quota", "asked", "expected"), SHARE_CASES)
def test_quota_share_of_a_card_is_capped_per_worker(quota, asked, expected):
    ledger = ledger_with(quota)
    demand = pod("a", **asked)
    if not expected:
        ledger.allocate(demand, ["g0"])
        return
    assert violations(ledger, demand, ["g0"])[0] == expected


def test_quota_share_cap_does_not_add_up_over_workers():
    ledger = ledger_with({"single_max_request_share": 50_000})
    for number in range(2):
        ledger.allocate(pod(f"p{number}", percent=50_000), ["g0"])


def test_quota_share_message_is_in_percent():
    ledger = ledger_with({"single_max_request_share": 50_000})
    assert violations(ledger, pod("a", percent=75_000), ["g0"])[1] == (
        "quota q0 of namespace ns exceeded for single.max.percent.request: "
        "requested 75 %, limit 50 %"
    )
    assert [v.resource for v in ledger.quotas.precheck(pod("a", percent=75_000), 0)] == [
        "single.max.percent.request"
    ]


def test_quota_share_holds_when_a_worker_grows():
    ledger = ledger_with({"single_max_request_share": 50_000})
    ledger.allocate(pod("a", 10_000), ["g0"])
    ledger.resize("a", Amount(50_000), Amount())
    with pytest.raises(AllocationRefused, match=r"single\.max\.percent\.request"):
        ledger.resize("a", Amount(50_001), Amount())
