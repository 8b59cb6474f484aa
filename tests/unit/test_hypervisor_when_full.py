"""What a pool says of full cards: the defaults, its rules, and the host memory they may take."""

import pytest

from tensorfusion.api.decode import decode
from tensorfusion.api.pool import GPUPool
from tensorfusion.hypervisor.when_full import when_full
from tensorfusion.spi.backend import FullPolicy, Share, WhenFull

GIB = 1 << 30
SHARE = Share(0, 0, 0, 8 * GIB)


def pool(oversubscription):
    spec = {"nodeManagerConfig": {}, "capacityConfig": {"oversubscription": oversubscription}}
    if oversubscription is None:
        spec["capacityConfig"] = {}
    return decode(
        GPUPool,
        {
            "apiVersion": "tensor-fusion.ai/v1",
            "kind": "GPUPool",
            "metadata": {"name": "p"},
            "spec": spec,
        },
    )


@pytest.mark.parametrize("pool", [None, pool(None)], ids=["no pool", "nothing oversold"])
@pytest.mark.parametrize("qos", ["low", "critical"])
def test_who_promises_nothing_refuses(pool, qos):
    assert when_full(pool, qos, SHARE) == WhenFull(FullPolicy.DENY)


@pytest.mark.parametrize(
    ("qos", "expected"),
    [
        ("low", WhenFull(FullPolicy.SPILL, 0.0, 8 * GIB)),
        ("medium", WhenFull(FullPolicy.WAIT, 10.0)),
        ("high", WhenFull(FullPolicy.EVICT, 10.0)),
        ("critical", WhenFull(FullPolicy.EVICT, 30.0)),
        ("unheard-of", WhenFull(FullPolicy.WAIT, 10.0)),
    ],
)
def test_the_defaults(qos, expected):
    assert when_full(pool({}), qos, SHARE) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"policy": "deny"}, WhenFull(FullPolicy.DENY)),
        ({"policy": "deny", "timeout": "5s", "hostMemory": "1Gi"}, WhenFull(FullPolicy.DENY)),
        ({"policy": "wait"}, WhenFull(FullPolicy.WAIT, 10.0)),
        ({"policy": "wait", "timeout": "1m30s"}, WhenFull(FullPolicy.WAIT, 90.0)),
        ({"policy": "evict", "timeout": "500ms"}, WhenFull(FullPolicy.EVICT, 0.5)),
        ({"policy": "spill"}, WhenFull(FullPolicy.SPILL, 0.0, 8 * GIB)),
        ({"policy": "spill", "hostMemory": "2Gi"}, WhenFull(FullPolicy.SPILL, 0.0, 2 * GIB)),
        ({"policy": "spill", "hostMemory": 0}, WhenFull(FullPolicy.SPILL)),
    ],
)
def test_a_rule_of_the_pool_comes_first(rule, expected):
    found = pool({"vramFull": [{"qos": "high", "policy": "deny"}, {"qos": "low", **rule}]})

    assert when_full(found, "low", SHARE) == expected
    assert when_full(found, "high", SHARE) == WhenFull(FullPolicy.DENY)
    assert when_full(found, "medium", SHARE) == WhenFull(FullPolicy.WAIT, 10.0)
