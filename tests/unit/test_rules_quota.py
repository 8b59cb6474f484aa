"""Rules of quotas between object and model: what an object means, and what its status says."""

import pytest

from tensorfusion.api import registry
from tensorfusion.api.decode import decode
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.validation import prune_and_default, validate
from tensorfusion.model.quota import Quota, QuotaAmount, Usage
from tensorfusion.scheduling.quota_status import alert_condition, quota_status
from tensorfusion.scheduling.translate import quota_of

GIB = 2**30


def stored(spec):
    """A quota as the store keeps it: pruned, with defaults, valid."""
    obj = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "GPUResourceQuota",
        "metadata": {"name": "q", "namespace": "ns"},
        "spec": spec,
    }
    made, unknown = prune_and_default(registry.QUOTAS, obj)
    assert not unknown
    return made


READ = [
    # spec, field of the model, value
    ({}, "max_workers", None),
    ({"total": {}}, "max_workers", 32_768),
    ({"total": {"maxWorkers": 0}}, "max_workers", 0),
    ({"total": {}}, "alert_threshold_percent", 95),
    ({"total": {"requests": {"tflops": "10"}}}, "total_requests", QuotaAmount(gflops=10_000)),
    ({"total": {"requests": {"tflops": "0"}}}, "total_requests", QuotaAmount(gflops=0)),
    ({"total": {"limits": {"vram": "1Gi"}}}, "total_limits", QuotaAmount(vram_bytes=GIB)),
    ({"total": {"requests": {"tflops": "1500m"}}}, "total_requests", QuotaAmount(gflops=1_500)),
    ({"single": {"maxRequests": {"tflops": "0"}}}, "single_max_requests", QuotaAmount()),
    ({"single": {"maxLimits": {"vram": "2Gi"}}}, "single_max_limits", QuotaAmount(None, 2 * GIB)),
    ({"single": {"maxRequests": {"compute": "50"}}}, "single_max_request_share", 50_000),
    ({"single": {"maxGPUCount": 0}}, "max_gpu_count", None),
    ({"single": {"maxGPUCount": 2}}, "max_gpu_count", 2),
]


@pytest.mark.parametrize(("spec", "field", "value"), READ)
def test_quota_is_read_from_its_object(spec, field, value):
    assert getattr(quota_of(decode(GPUResourceQuota, stored(spec))), field) == value


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"total": {"requests": {"tflops": "-1"}}}, "spec.total.requests.tflops"),
        ({"total": {"limits": {"vram": "-1Gi"}}}, "spec.total.limits.vram"),
        ({"total": {"maxWorkers": -1}}, "spec.total.maxWorkers"),
        ({"total": {"alertThresholdPercent": 101}}, "spec.total.alertThresholdPercent"),
        ({"single": {"maxGPUCount": -1}}, "spec.single.maxGPUCount"),
    ],
)
def test_quota_that_means_nothing_is_refused_and_not_skipped(spec, field):
    found = validate(registry.QUOTAS, stored(spec))
    assert [item.field for item in found] == [field]


QUOTA = Quota(
    namespace="ns",
    name="q",
    total_requests=QuotaAmount(100_000, 100 * GIB),
    total_limits=QuotaAmount(200_000, 200 * GIB),
    max_workers=100,
)
NOTHING = Usage()


@pytest.mark.parametrize(
    ("usage", "dimension", "left"),
    [
        (Usage(request_gflops=95_001), "requests.tflops", "4.99"),
        (Usage(request_vram_bytes=96 * GIB), "requests.vram", "4.00"),
        (Usage(limit_gflops=190_100), "limits.tflops", "4.95"),
        (Usage(limit_vram_bytes=191 * GIB), "limits.vram", "4.50"),
        (Usage(workers=96), "workers", "4.00"),
    ],
)
def test_alert_names_the_bound_that_runs_out(usage, dimension, left):
    status = quota_status(QUOTA, usage)
    whole = dict.fromkeys(status["availablePercent"], "100.00")
    assert status["availablePercent"] == {**whole, dimension: left}
    found = alert_condition(QUOTA, status)
    assert (found["status"], found["reason"]) == ("False", "AlertThresholdReached")
    assert found["message"] == f"less than 5 % is left of {dimension}"


@pytest.mark.parametrize(
    ("quota", "usage", "ready"),
    [
        pytest.param(QUOTA, Usage(request_gflops=95_000), True, id="exactly-at-the-threshold"),
        pytest.param(QUOTA, Usage(request_gflops=120_000), False, id="beyond-a-lowered-bound"),
        pytest.param(Quota(namespace="ns", name="q"), Usage(10**9), True, id="unbounded"),
        pytest.param(
            Quota(namespace="ns", name="q", total_requests=QuotaAmount(gflops=0)),
            NOTHING,
            True,
            id="zero-forbids-and-cannot-run-out",
        ),
        pytest.param(
            Quota(namespace="ns", name="q", max_workers=10, alert_threshold_percent=50),
            Usage(workers=6),
            False,
            id="own-threshold",
        ),
    ],
)
def test_alert_fires_beyond_the_threshold(quota, usage, ready):
    found = alert_condition(quota, quota_status(quota, usage))
    assert (found["status"] == "True") == ready
    if ready:
        assert found["reason"] == "CapacitySufficient"


def test_status_prints_use_and_what_is_left():
    quota = Quota(namespace="ns", name="q", total_requests=QuotaAmount(3_000, 0), max_workers=4)
    status = quota_status(quota, Usage(1_000, 0, 2_500, GIB, 5))
    assert status == {
        "used": {
            "requests": {"tflops": "1", "vram": "0"},
            "limits": {"tflops": "2500m", "vram": "1Gi"},
            "workers": 5,
        },
        "availablePercent": {
            "requests.tflops": "66.66",
            "requests.vram": "0.00",
            "limits.tflops": "100",
            "limits.vram": "100",
            "workers": "0.00",
        },
    }
