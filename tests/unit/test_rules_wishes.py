"""Rules of reading: topology, gangs, CPU and memory, priority and protection of a pod."""

import pytest

from tensorfusion.api.core.cluster import PriorityClass
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import decode
from tensorfusion.clock import parse_timestamp
from tensorfusion.model.topology import TopologyWish
from tensorfusion.scheduling.disruption import is_protected
from tensorfusion.scheduling.gang_pods import GangSpec, gang_key, gang_spec
from tensorfusion.scheduling.priority import Priorities
from tensorfusion.scheduling.translate import (
    demand_of,
)
from tensorfusion.testing import build

GIB = 2**30


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
