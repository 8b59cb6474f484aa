"""Rules of reading: what requests, workers, cards, nodes and pools mean to placement."""

import json

import pytest

from tensorfusion import names
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.gpu import GPU
from tensorfusion.api.pool import GPUPool
from tensorfusion.errors import ConfigError
from tensorfusion.model.demand import Amount
from tensorfusion.model.device import Device
from tensorfusion.model.hardware import cards
from tensorfusion.model.partitions import Cut
from tensorfusion.scheduling.translate import (
    allocation_of,
    demand_of,
    device_of,
    node_info_of,
    oversubscription_of,
)
from tensorfusion.testing import build

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


def read(annotations, labels=None, **fields):
    made = build.pod("p", annotations=annotations, labels=labels, **fields)
    kept = {k: v for k, v in made["metadata"]["annotations"].items() if v}
    made["metadata"] |= {"annotations": kept, "uid": "u"}
    return decode(Pod, made)


NO_TFLOPS = {"tflops-request": "", "tflops-limit": ""}


ASKED = [
    # annotations, field of the shape, value
    ({}, "gpu_count", 1),
    ({"gpu-count": "128"}, "gpu_count", 128),
    ({}, "isolation", "soft"),
    ({"isolation": "shared"}, "isolation", "shared"),
    ({}, "request", Amount(10_000, 4 * GIB)),
    ({**NO_TFLOPS, "compute-percent-request": "12.5"}, "request", Amount(0, 4 * GIB, 12_500)),
    ({"tflops-limit": "20"}, "limit", Amount(20_000, 4 * GIB)),
    ({"gpu-model": "A100|H100"}, "models", ("A100", "H100")),
    ({"gpu-indices": "0,2"}, "indices", (0, 2)),
    ({"vendor": "AMD"}, "vendor", "AMD"),
    ({"partition-id": "1g.10gb"}, "partition", "1g.10gb"),
    ({"gpupool": "other"}, "pool", "other"),
    ({"dedicated-gpu": "true"}, "exclusive", True),
    ({}, "topology", None),
]  # fmt: skip


@pytest.mark.parametrize(("annotations", "field", "value"), ASKED)
def test_request_is_read_from_the_annotations_of_the_pod(annotations, field, value):
    assert getattr(demand_of(read(annotations)).shape, field) == value


def test_request_belongs_to_its_workload_and_has_a_quality_of_service():
    plain = demand_of(read({}))
    named = demand_of(read({"qos": "high"}, labels={"workload": "web"}))
    assert (plain.workload, plain.qos) == ("", "medium")
    assert (named.workload, named.qos, named.namespace) == ("web", "high", "default")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"compute-percent-request": "10"}, "as GFLOP/s or as percent of a card, not both"),
        ({"gpu-count": "129"}, "gpu_count is 129, allowed are 0 to 128"),
        ({"vram-request": "4GiBy"}, "vram-request"),
        ({"isolation": "jail"}, "isolation is 'jail', allowed are shared, soft, hard, partitioned"),
        ({"gpu-topology-max-tier": "4"}, "max_tier is 4, allowed are 0 to 3"),
    ],
)
def test_request_that_means_nothing_is_an_error_and_not_zero(annotations, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        demand_of(read(annotations))


BOUND = {"gpu-ids": "g0"}


ON_NODE = {"nodeName": "n1"}


PARTITION = '{"g0": {"template": "1g.10gb", "start": 2}}'


HELD = [
    pytest.param({}, ON_NODE, None, id="no-ids"),
    pytest.param(BOUND, {}, None, id="ids-without-a-node-were-not-bound"),
    pytest.param(BOUND, ON_NODE, (10_000, 4 * GIB), id="amounts"),
    pytest.param({**BOUND, **NO_TFLOPS, "compute-percent-request": "0.5"}, ON_NODE,
                 (1_560, 4 * GIB), id="percent-of-the-card"),
    pytest.param({**BOUND, "isolation": "shared"}, ON_NODE, (312_000, 80 * GIB), id="whole-card"),
    pytest.param({**BOUND, "isolation": "partitioned", "partitions": PARTITION}, ON_NODE,
                 (44_571, 10 * GIB), id="partition-counts-as-its-template"),
    pytest.param({"gpu-ids": "gone"}, ON_NODE, (10_000, 4 * GIB), id="unknown-card"),
]  # fmt: skip


@pytest.mark.parametrize(("annotations", "spec", "amounts"), HELD)
def test_worker_is_rebuilt_from_its_bound_pod(annotations, spec, amounts):
    device = card(
        capacity_gflops=A100.compute_gflops,
        capacity_vram_bytes=A100.vram_bytes,
        geometry=A100.geometry,
    )
    held = allocation_of(read(annotations, **spec), {"g0": device})
    found = None if held is None else (held.takes[0].gflops, held.takes[0].vram_bytes)
    assert found == amounts


@pytest.mark.parametrize(
    ("model", "template", "start"),
    [("A100_SXM_80G", "1g.10gb", 2), ("A100_SXM_80G", "3g.40gb", 4), ("Ascend310P3", "vir01", 1)],
)
def test_partition_is_rebuilt_at_its_slot_or_in_its_group(model, template, start):
    known = cards()[model]
    device = card(
        capacity_gflops=known.compute_gflops,
        capacity_vram_bytes=known.vram_bytes,
        geometry=known.geometry,
    )
    written = json.dumps({"g0": {"template": template, "start": start}})
    annotations = {**BOUND, "isolation": "partitioned", "partitions": written}
    held = allocation_of(read(annotations, **ON_NODE), {"g0": device})
    assert held.cut_on("g0") == Cut(template, start)


@pytest.mark.parametrize(
    ("phase", "deleting", "holds"),
    [
        ("Running", False, True),
        ("Running", True, True),
        ("Succeeded", False, False),
        ("Failed", True, False),
    ],
)
def test_worker_holds_its_card_until_its_pod_has_ended(phase, deleting, holds):
    made = {**build.pod("p", annotations=BOUND, **ON_NODE), "status": {"phase": phase}}
    made["metadata"]["uid"] = "u"
    if deleting:
        made["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    found = decode(Pod, made)
    assert (allocation_of(found, {"g0": card()}) is not None) == holds


def gpu(annotations=None, **status):
    made = build.gpu("g0", "n1", **status)
    made["metadata"]["annotations"] = annotations or {}
    return decode(GPU, made)


CARDS = [
    # status, annotations, field, value
    ({}, {}, "isolation_policy", "dynamic"),
    ({"isolationPolicy": "Static"}, {}, "isolation_policy", "static"),
    ({"isolationMode": "partitioned"}, {}, "isolation_policy", "static"),
    ({"isolationMode": "hard"}, {}, "isolation_mode", ""),
    ({"isolationPolicy": "Static", "isolationMode": "hard"}, {}, "isolation_mode", "hard"),
    ({}, {names.GPU_MISSING_SINCE: "2025-01-01T00:00:00Z"}, "phase", "Unknown"),
    ({"phase": "Pending"}, {}, "phase", "Pending"),
    ({"usedBy": "nvidia-device-plugin"}, {}, "used_by", "nvidia-device-plugin"),
    ({}, {}, "supported_isolation", None),
    ({}, {names.VIRTUALIZATION_CAPABILITIES: '{"SupportsHardIsolation": true}'},
     "supported_isolation", ("hard",)),
]  # fmt: skip


@pytest.mark.parametrize(("status", "annotations", "field", "value"), CARDS)
def test_card_is_read_from_its_object(status, annotations, field, value):
    device = device_of(gpu(annotations, **status), "p", dynamic=True)
    assert getattr(device, field) == value


def test_card_without_a_known_capacity_is_not_in_the_fleet():
    made = build.gpu("g0", "n1")
    del made["status"]["capacity"]
    assert device_of(decode(GPU, made), "p", dynamic=True) is None


def pool_with(**config):
    return decode(GPUPool, build.pool(**config))


RATIOS = [
    pytest.param({}, (100, 0, 0), id="no-block-no-oversubscription"),
    pytest.param({"capacityConfig": {}}, (100, 0, 0), id="empty-block"),
    pytest.param({"capacityConfig": {"oversubscription": {}}}, (500, 50, 70), id="defaults"),
    pytest.param(
        {
            "capacityConfig": {
                "oversubscription": {
                    "tflopsOversellRatio": 200,
                    "vramExpandToHostMem": 10,
                    "vramExpandToHostDisk": 20,
                }
            }
        },
        (200, 10, 20),
        id="as-written",
    ),
]


@pytest.mark.parametrize(("config", "ratios"), RATIOS)
def test_oversubscription_is_the_pools(config, ratios):
    found = oversubscription_of(pool_with(**config))
    assert (
        found.compute_percent,
        found.vram_to_host_memory_percent,
        found.vram_to_host_disk_percent,
    ) == ratios


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"capacity": {"cpu": "8", "memory": "16Gi"}}, (8_000, 16 * GIB)),
        (
            {
                "capacity": {"cpu": "8", "memory": "16Gi"},
                "allocatable": {"cpu": "7500m", "memory": "15Gi"},
            },
            (7_500, 15 * GIB),
        ),
        ({}, (0, 0)),
    ],
)
def test_node_offers_what_it_says_pods_may_request(status, expected):
    info = node_info_of(decode(Node, {**build.node("n1"), "status": status}), "p")
    assert (info.cpu_milli, info.memory_bytes) == expected
