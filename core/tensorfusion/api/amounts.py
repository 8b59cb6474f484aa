"""GPU amounts as custom resources write them, and the enums that several kinds share."""

from typing import Annotated

from tensorfusion.api.fields import Amount, Doc, Quantity, Wire

QOS_LEVELS = ("low", "medium", "high", "critical")
ISOLATION_MODES = ("shared", "soft", "hard", "partitioned")

Qos = Annotated[str, Doc(enum=QOS_LEVELS)]
Isolation = Annotated[str, Doc(enum=ISOLATION_MODES)]


class Resource(Wire, frozen=True, kw_only=True):
    """An amount of GPU, per device; compute is given in TFLOPS or in percent, not both."""

    tflops: Annotated[Amount | None, Doc("Dense FP16 TFLOPS per GPU device.")] = None
    vram: Annotated[Amount | None, Doc("Video memory per GPU device, in bytes.")] = None
    compute: Annotated[
        Amount | None,
        Doc("Percent of one GPU device's compute, 0 to 100; instead of tflops."),
    ] = None


class Resources(Wire, frozen=True, kw_only=True):
    """What a worker is guaranteed and what it may use at most, per GPU device."""

    requests: Annotated[Resource | None, Doc("What is guaranteed.")] = None
    limits: Annotated[Resource | None, Doc("What may be used at most.")] = None


class ObservedResource(Wire, frozen=True, kw_only=True):
    """A counted amount of GPU; free amounts go below zero on an over-committed device."""

    tflops: Annotated[Quantity | None, Doc("Dense FP16 TFLOPS.")] = None
    vram: Annotated[Quantity | None, Doc("Video memory in bytes.")] = None
    compute: Annotated[Quantity | None, Doc("Percent of one GPU device's compute.")] = None


class PodUsage(Wire, frozen=True, kw_only=True):
    """A pod that holds a share of a GPU."""

    name: Annotated[str, Doc("Name of the pod.")] = ""
    namespace: Annotated[str, Doc("Namespace of the pod.")] = ""
    uid: Annotated[str, Doc("Unique id of the pod.")] = ""
    requests: Annotated[Resource | None, Doc("What the pod is guaranteed, per device.")] = None
    limits: Annotated[Resource | None, Doc("What the pod may use at most, per device.")] = None
    qos: Annotated[Qos, Doc("Quality of service of the pod.")] = ""
    is_external: Annotated[
        bool | None, Doc("The pod got its GPU from another device plugin, not from us.")
    ] = None


class GpuUsageSummary(Wire, frozen=True, kw_only=True):
    """A workload that runs on a GPU."""

    name: Annotated[str, Doc("Name of the workload.")] = ""
    namespace: Annotated[str, Doc("Namespace of the workload.")] = ""
    count: Annotated[int, Doc("Workers of the workload on this GPU.", minimum=0)]
    pods: Annotated[tuple[PodUsage, ...], Doc("The pods behind those workers.")] = ()


class ClassReference(Wire, frozen=True, kw_only=True):
    """A node class of this group or of a node provisioner."""

    group: Annotated[str, Doc("API group of the class.")]
    kind: Annotated[str, Doc("Kind of the class.")]
    name: Annotated[str, Doc("Name of the class.")]
    version: Annotated[str, Doc("API version of the class.")]
