"""GPUResourceQuota: how much GPU a namespace may use."""

from typing import Annotated

from tensorfusion.api.amounts import ObservedResource, Resource
from tensorfusion.api.fields import Doc, Int32, Time, Wire, defaulted, named
from tensorfusion.api.meta import Conditions, Metadata, ObservedGeneration
from tensorfusion.names import API_VERSION


class QuotaTotal(Wire, frozen=True, kw_only=True):
    """Bounds of a whole namespace."""

    requests: Annotated[Resource | None, Doc("Most that may be requested in total.")] = None
    limits: Annotated[Resource | None, Doc("Most that limits may add up to.")] = None
    max_workers: Annotated[Int32, Doc("Most workers at a time.", minimum=0)] = defaulted(32768)
    alert_threshold_percent: Annotated[
        Int32, Doc("Use in percent from which an alert fires.", minimum=0, maximum=100)
    ] = defaulted(95)


class QuotaSingle(Wire, frozen=True, kw_only=True):
    """Bounds and defaults of one worker, per GPU device."""

    max_requests: Annotated[Resource | None, Doc("Most that one worker may request.")] = None
    max_limits: Annotated[Resource | None, Doc("Largest limit of one worker.")] = None
    max_gpu_count: Annotated[Int32 | None, Doc("Most GPU devices of one worker.", minimum=0)] = None
    default_requests: Annotated[Resource | None, Doc("Requests of a worker that names none.")] = (
        None
    )
    default_limits: Annotated[Resource | None, Doc("Limits of a worker that names none.")] = None


class GPUResourceQuotaSpec(Wire, frozen=True, kw_only=True):
    """Bounds of a namespace and of each worker in it."""

    total: Annotated[QuotaTotal | None, Doc("Bounds of the whole namespace.")] = None
    single: Annotated[QuotaSingle | None, Doc("Bounds and defaults of one worker.")] = None


class QuotaUsed(Wire, frozen=True, kw_only=True):
    """What is in use."""

    requests: Annotated[ObservedResource | None, Doc("Sum of all requests.")] = None
    limits: Annotated[ObservedResource | None, Doc("Sum of all limits.")] = None
    workers: Annotated[Int32 | None, Doc("Workers that exist.")] = None


class QuotaAvailablePercent(Wire, frozen=True, kw_only=True):
    """What is left, in percent of each bound."""

    requests_tflops: Annotated[str, Doc("Percent of requested TFLOPS left.")] = named(
        "requests.tflops", ""
    )
    requests_vram: Annotated[str, Doc("Percent of requested VRAM left.")] = named(
        "requests.vram", ""
    )
    limits_tflops: Annotated[str, Doc("Percent of TFLOPS limits left.")] = named(
        "limits.tflops", ""
    )
    limits_vram: Annotated[str, Doc("Percent of VRAM limits left.")] = named("limits.vram", "")
    workers: Annotated[str, Doc("Percent of workers left.")] = ""


class GPUResourceQuotaStatus(Wire, frozen=True, kw_only=True):
    """What is used and what is left."""

    used: Annotated[QuotaUsed | None, Doc("What is in use.")] = None
    available_percent: Annotated[QuotaAvailablePercent | None, Doc("What is left, in percent.")] = (
        None
    )
    conditions: Conditions = ()
    last_update_time: Annotated[Time | None, Doc("When the sums were last taken.")] = None
    observed_generation: ObservedGeneration = None


class GPUResourceQuota(Wire, frozen=True, kw_only=True):
    """How much GPU a namespace may use, in total and per worker."""

    api_version: str = defaulted(API_VERSION)
    kind: str = defaulted("GPUResourceQuota")
    metadata: Metadata
    spec: Annotated[GPUResourceQuotaSpec | None, Doc("Bounds and defaults.")] = None
    status: Annotated[GPUResourceQuotaStatus | None, Doc("What is used and left.")] = None
