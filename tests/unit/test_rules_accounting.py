"""Rules of accounting: what a card and a node have left, what is shown of it, how a worker grows."""

import msgspec
import pytest

from tensorfusion.api.decode import decode
from tensorfusion.api.gpu import GPU
from tensorfusion.controllers.capacity import of_gpu, to_status, total
from tensorfusion.model.demand import Amount, Demand, Shape
from tensorfusion.model.device import (
    Device,
    NodeInfo,
    Oversubscription,
    with_oversubscription,
)
from tensorfusion.model.engine import Engine
from tensorfusion.model.explain import NoFit
from tensorfusion.model.hardware import cards
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.quota import Quota, QuotaAmount
from tensorfusion.model.takes import AllocationRefused
from tensorfusion.scheduling.gpu_status import gpu_status
from tensorfusion.testing import build
from tensorfusion_plugins.policies import load

GIB = 2**30


A100 = cards()["A100_SXM_80G"]


def card(uuid="g0", **fields):
    values = {
        "uuid": uuid,
        "node": "n1",
        "pool": "p",
        "capacity_gflops": 100_000,
        "capacity_vram_bytes": 80 * GIB,
    }
    return Device(**{**values, **fields})


def pod(uid, gflops=10_000, gib=10, workload="", namespace="ns", qos="medium", **shape):
    shape.setdefault("request", Amount(gflops, gib * GIB))
    return Demand(
        namespace=namespace,
        name=uid,
        uid=uid,
        workload=workload,
        qos=qos,
        shape=Shape(pool="p", **shape),
    )


def ledger_with(*devices):
    ledger = Ledger()
    for device in devices or (card(),):
        ledger.set_device(device)
    return ledger


def test_card_that_comes_back_from_zero_still_counts_its_partitions():
    whole = card(
        capacity_gflops=A100.compute_gflops,
        capacity_vram_bytes=A100.vram_bytes,
        geometry=A100.geometry,
    )
    ledger = ledger_with(whole)
    ledger.allocate(pod("a", 0, 0, isolation="partitioned", partition="3g.40gb"), ["g0"])
    before = (ledger.devices["g0"].free_gflops, ledger.devices["g0"].free_vram_bytes)
    (cut,) = ledger.devices["g0"].cuts
    ledger.set_device(msgspec.structs.replace(whole, capacity_gflops=0, capacity_vram_bytes=0))
    ledger.set_device(whole)
    usage = ledger.devices["g0"]
    assert (usage.free_gflops, usage.free_vram_bytes) == before
    assert (usage.cuts, cut.template) == ((cut,), "3g.40gb")
    assert before == (A100.compute_gflops - A100.compute_gflops * 3 // 7, 40 * GIB)
    assert ledger.check_invariants() == []


@pytest.mark.parametrize(
    ("before", "after", "free"),
    [(100_000, 120_000, 110_000), (100_000, 8_000, -2_000), (0, 100_000, 90_000)],
)
def test_change_of_capacity_moves_what_is_free_by_as_much(before, after, free):
    ledger = ledger_with(card())
    ledger.allocate(pod("a"), ["g0"])
    for capacity in (before, after):
        ledger.set_device(card(capacity_gflops=capacity))
    assert ledger.devices["g0"].free_gflops == free


def shown(ledger, uuid="g0"):
    usage = ledger.devices[uuid]
    return gpu_status(usage, [ledger.allocations[key] for key in sorted(usage.members)])


def test_status_lists_every_worker_with_its_quality_of_service():
    ledger = ledger_with()
    ledger.allocate(pod("a", workload="web", qos="high", limit=Amount(20_000)), ["g0"])
    ledger.allocate(pod("b", workload="web", qos="low"), ["g0"])
    status = shown(ledger)
    assert status["available"] == {"tflops": "80", "vram": "60Gi"}
    (app,) = status["runningApps"]
    assert (app["name"], app["namespace"], app["count"]) == ("web", "ns", 2)
    assert [(p["name"], p["qos"]) for p in app["pods"]] == [("a", "high"), ("b", "low")]
    assert app["pods"][0]["limits"] == {"tflops": "20", "vram": "10Gi"}
    assert app["pods"][1]["requests"] == {"tflops": "10", "vram": "10Gi"}


def test_status_drops_exactly_the_worker_that_left():
    ledger = ledger_with()
    for uid, workload, namespace in (
        ("a", "web", "ns"),
        ("b", "web", "other"),
        ("c", "batch", "ns"),
    ):
        ledger.allocate(pod(uid, workload=workload, namespace=namespace), ["g0"])
    ledger.release("a")
    left = [(app["namespace"], app["name"]) for app in shown(ledger)["runningApps"]]
    assert left == [("ns", "batch"), ("other", "web")]


def test_status_says_which_mode_a_card_is_locked_to_and_when_workers_disagree():
    ledger = ledger_with(card(isolation_policy="dynamic"))
    change = ledger.allocate(pod("a", isolation="hard"), ["g0"])
    assert (shown(ledger)["activeIsolationMode"], shown(ledger)["dynamicIsolationConflict"]) == (
        "hard",
        None,
    )
    ledger.restore(msgspec.structs.replace(change.after, key="b", holders=("b",), isolation="soft"))
    assert shown(ledger)["dynamicIsolationConflict"] is True


@pytest.mark.parametrize("found", [("hard", "soft"), ("soft", "partitioned"), ("partitioned",)])
def test_card_whose_recovered_workers_exclude_each_other_takes_nobody(found):
    engine = Engine(load.compact_first())
    engine.upsert_node(NodeInfo(name="n1", pool="p"))
    engine.upsert_device(card(isolation_policy="dynamic"))
    change = engine.ledger.allocate(pod("x", 1), ["g0"])
    engine.ledger.release("x")
    for number, mode in enumerate(found):
        key = f"r{number}"
        fields = {"key": key, "holders": (key,), "isolation": mode}
        engine.ledger.restore(msgspec.structs.replace(change.after, **fields))
    for mode in ("shared", "soft", "hard", "partitioned"):
        assert isinstance(engine.place(pod("new", 1, isolation=mode)), NoFit), mode


@pytest.mark.parametrize(
    ("worker", "request_", "limit", "fits", "used"),
    [
        pytest.param({}, Amount(80_000, GIB), Amount(), True, 80_000, id="grows"),
        pytest.param({}, Amount(101_000, GIB), Amount(), False, 10_000, id="beyond-the-card"),
        pytest.param(
            {"request": Amount(0, GIB, 10_000)},
            Amount(0, GIB, 30_000),
            Amount(),
            True,
            30_000,
            id="percent-moves-what-is-free",
        ),
        pytest.param(
            {"isolation": "shared"}, Amount(90_000, GIB), Amount(), True, 100_000, id="stays-whole"
        ),
        pytest.param(
            {"isolation": "shared"}, Amount(101_000), Amount(), False, 100_000, id="whole-too-large"
        ),
        pytest.param({}, Amount(10_000), Amount(101_000), False, 10_000, id="limit-beyond-virtual"),
    ],
)
def test_worker_grows_in_place_within_its_card(worker, request_, limit, fits, used):
    ledger = ledger_with()
    ledger.allocate(pod("a", **worker), ["g0"])
    if fits:
        ledger.resize("a", request_, limit)
    else:
        with pytest.raises(AllocationRefused):
            ledger.resize("a", request_, limit)
    assert ledger.devices["g0"].used_gflops == used


@pytest.mark.parametrize(
    ("quota", "resource"),
    [
        ({"max_workers": 1}, None),
        ({"total_requests": QuotaAmount(gflops=40_000)}, None),
        ({"total_requests": QuotaAmount(gflops=39_999)}, "total.max.tflops.request"),
        ({"single_max_requests": QuotaAmount(gflops=20_000)}, None),
        ({"single_max_requests": QuotaAmount(gflops=19_999)}, "single.max.tflops.request"),
    ],
)
def test_growth_counts_totals_per_gpu_and_single_caps_absolute(quota, resource):
    ledger = ledger_with(card("g0"), card("g1"))
    ledger.allocate(pod("a", gpu_count=2), ["g0", "g1"])
    ledger.quotas.put(Quota(namespace="ns", name="q", **quota))
    if resource is None:
        ledger.resize("a", Amount(20_000, 10 * GIB), Amount())
        assert ledger.quotas.usage("ns").request_gflops == 40_000
        assert ledger.quotas.usage("ns").workers == 1
        return
    with pytest.raises(AllocationRefused) as caught:
        ledger.resize("a", Amount(20_000, 10 * GIB), Amount())
    assert [violation.resource for violation in caught.value.violations] == [resource]


@pytest.mark.parametrize(
    ("ratios", "gflops", "vram"),
    [
        (Oversubscription(), 200_000, 160 * GIB),
        (Oversubscription(compute_percent=500), 1_000_000, 160 * GIB),
        (
            Oversubscription(vram_to_host_memory_percent=50, vram_to_host_disk_percent=70),
            200_000,
            (160 + 50 + 140) * GIB,
        ),
    ],
)
def test_virtual_capacity_of_a_node(ratios, gflops, vram):
    node = NodeInfo(name="n1", host_memory_bytes=100 * GIB, host_disk_bytes=200 * GIB)
    found = with_oversubscription([card("g0"), card("g1")], node, ratios)
    assert sum(device.limit_gflops for device in found) == gflops
    assert sum(device.limit_vram_bytes for device in found) == vram


def test_node_counts_the_limits_of_a_worker_once_per_gpu():
    ledger = ledger_with(*(card(uuid, virtual_gflops=150_000) for uuid in ("g0", "g1")))
    ledger.allocate(pod("a", limit=Amount(40_000, 20 * GIB), gpu_count=2), ["g0", "g1"])
    parts = []
    for uuid in ("g0", "g1"):
        made = build.gpu(uuid, "n1")
        made["status"] |= {"capacity": {"tflops": "100", "vram": "80Gi"}, **shown(ledger, uuid)}
        parts.append(of_gpu(decode(GPU, made), ledger.devices[uuid].device))
    status = to_status(total(parts))
    assert (status["totalTFlops"], status["availableTFlops"]) == ("200", "180")
    assert (status["virtualTFlops"], status["virtualAvailableTFlops"]) == ("300", "220")
    assert status["virtualAvailableVRAM"] == "120Gi"
