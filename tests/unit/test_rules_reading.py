"""Rules of reading: what pods, cards, nodes and pools mean to placement."""

import pytest

from tensorfusion import names
from tensorfusion.api.core.cluster import PriorityClass
from tensorfusion.api.core.node import Node
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.api.gpu import GPU
from tensorfusion.api.pool import GPUPool
from tensorfusion.clock import parse_timestamp
from tensorfusion.errors import ConfigError
from tensorfusion.model.demand import Amount
from tensorfusion.model.device import Device
from tensorfusion.model.hardware import cards
from tensorfusion.model.topology import TopologyWish
from tensorfusion.scheduling.disruption import is_protected
from tensorfusion.scheduling.gang_pods import GangSpec, gang_key, gang_spec
from tensorfusion.scheduling.priority import Priorities
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


TOPOLOGY = [
    ({}, None),
    ({"require-gpu-topology": "true"}, (True, 1, "auto")),
    ({"require-gpu-topology": "false"}, (False, 1, "auto")),
    ({"gpu-topology-max-tier": "0"}, (False, 0, "auto")),
    ({"require-gpu-topology": "true", "gpu-topology-max-tier": "0"}, (True, 0, "auto")),
    ({"gpu-topology-source": "numa"}, (False, 1, "numa")),
]


@pytest.mark.parametrize(("annotations", "wish"), TOPOLOGY)
def test_topology_is_read_from_annotations(annotations, wish):
    found = demand_of(decode(Pod, build.pod(annotations=annotations))).shape.topology
    expected = None if wish is None else TopologyWish(
        required=wish[0], max_tier=wish[1], source=wish[2]
    )  # fmt: skip
    assert found == expected


def asks(cpu=None, memory=None, **more):
    found = {key: text for key, text in (("cpu", cpu), ("memory", memory)) if text is not None}
    return {"name": "c", "image": "i", "resources": {"requests": found}, **more}


HOSTS = [
    pytest.param([], [], {}, (0, 0), id="nothing"),
    pytest.param([asks("250m", "1Gi"), asks("1")], [], {}, (1250, GIB), id="containers-add-up"),
    pytest.param([asks("100u")], [], {}, (1, 0), id="fractions-round-up"),
    pytest.param([asks("1", "1Gi")], [asks("2"), asks("1500m", "4Gi")], {}, (2000, 4 * GIB),
                 id="of-the-steps-before-only-the-largest-counts"),
    pytest.param([asks("1")], [asks("500m", restartPolicy="Always"), asks("3")], {}, (3500, 0),
                 id="sidecars-run-beside-later-steps-and-the-containers"),
    pytest.param([asks("1")], [asks("3"), asks("500m", restartPolicy="Always")], {}, (3000, 0),
                 id="sidecar-that-starts-later"),
    pytest.param([asks("1")], [], {"overhead": {"cpu": "100m", "memory": "8Mi"}},
                 (1100, 8 * 2**20), id="overhead"),
    pytest.param([asks("1", resources={"limits": {"cpu": "2"}})], [], {}, (2000, 0),
                 id="limits-alone"),
    pytest.param([asks("1")], [], {"shares": True}, (0, 0), id="shared-worker"),
]  # fmt: skip


@pytest.mark.parametrize(("containers", "before", "more", "expected"), HOSTS)
def test_cpu_and_memory_are_counted_as_kubernetes_counts_them(containers, before, more, expected):
    fields = {"overhead": more["overhead"]} if "overhead" in more else {}
    shared = {"workload": "model"} if more.get("shares") else {}
    made = build.pod(annotations=shared, initContainers=before, **fields)
    made["spec"]["containers"] = containers
    shape = demand_of(decode(Pod, made)).shape
    assert (shape.cpu_milli, shape.memory_bytes) == expected


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


def member(annotations, **labels):
    given = {
        "gang-enabled": "true",
        "gang-desired-members": "4",
        "gang-required-members": "3",
        "gang-group-key": "default/job",
        **annotations,
    }
    return decode(Pod, build.pod(annotations=given, labels=labels))


GANGS = [
    ({}, "default/job", GangSpec(4, 3, 0.0, "any")),
    ({"gang-enabled": "false"}, "", None),
    ({"gang-required-members": "1"}, "", None),
    ({"gang-required-members": "x"}, "", None),
    ({"gang-group-key": ""}, "", None),
    ({"gang-desired-members": "x"}, "default/job", GangSpec(3, 3, 0.0, "any")),
    ({"gang-timeout": "5m"}, "default/job", GangSpec(4, 3, 300.0, "any")),
    ({"gang-timeout": "0s"}, "default/job", GangSpec(4, 3, 0.0, "any")),
    ({"gang-timeout": "soon"}, "default/job", GangSpec(4, 3, 0.0, "any")),
    ({"require-gpu-topology": "true"}, "default/job", GangSpec(4, 3, 0.0, "require")),
    ({"require-gpu-topology": "false"}, "default/job", GangSpec(4, 3, 0.0, "prefer")),
]


@pytest.mark.parametrize(("annotations", "key", "spec"), GANGS)
def test_gang_is_read_from_annotations_alone(annotations, key, spec):
    pod_ = member(annotations, workload="elsewhere")
    assert gang_key(pod_) == key
    if spec is not None:
        assert gang_spec(pod_) == spec


class Classes:
    """The part of an informer that priorities read."""

    def __init__(self, *found):
        self._found = {one.metadata.name: one for one in found}
        self.get = self._found.get
        self.values = self._found.values


def priority_class(name, value, **more):
    return decode(PriorityClass, {"metadata": {"name": name}, "value": value, **more})


CLASSES = Classes(priority_class("mine", 7), priority_class("patient", 9, preemptionPolicy="Never"))


PRIORITIES = [
    # qos, spec, priority, may others be evicted for it
    ("critical", {}, 100_000, True),
    ("high", {}, 10_000, True),
    ("medium", {}, 0, True),
    ("low", {}, -1000, True),
    ("", {}, 0, True),
    ("critical", {"priorityClassName": "mine"}, 7, True),
    ("critical", {"priorityClassName": "unknown"}, 100_000, True),
    ("high", {"priorityClassName": "patient"}, 9, False),
    ("low", {"priority": 3}, 3, True),
    ("high", {"preemptionPolicy": "Never"}, 10_000, False),
]


@pytest.mark.parametrize(("qos", "spec", "priority", "preempts"), PRIORITIES)
def test_priority_is_the_pods_own_then_its_class_then_its_quality_of_service(
    qos, spec, priority, preempts
):
    found = decode(Pod, build.pod(annotations={"qos": qos} if qos else {}, **spec))
    priorities = Priorities(CLASSES)
    assert (priorities.of(found), priorities.preempts(found)) == (priority, preempts)


def test_class_that_is_the_default_of_the_cluster_counts_for_pods_without_one():
    default = priority_class("usual", 55, globalDefault=True)
    assert Priorities(Classes(default)).of(decode(Pod, build.pod())) == 55


CREATED = "2025-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("protection", "age", "protected"),
    [
        (None, 0, False),
        ("10m", 0, True),
        ("10m", 599, True),
        ("10m", 600, False),
        ("1h30m", 5_000, True),
        ("for a while", 0, False),
    ],
)
@pytest.mark.parametrize("qos", ["low", "critical"])
def test_protection_counts_from_creation_whatever_the_quality_of_service(
    protection, age, protected, qos
):
    annotations = {"qos": qos}
    if protection is not None:
        annotations["eviction-protection"] = protection
    made = build.pod(annotations=annotations)
    made["metadata"]["creationTimestamp"] = CREATED
    assert is_protected(decode(Pod, made), parse_timestamp(CREATED) + age) == protected
