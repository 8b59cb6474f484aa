"""Pods, contexts and shorthands for admission tests."""

from typing import Any

from tensorfusion import names
from tensorfusion.admission import AdmissionContext, Admitted, admit_pod
from tensorfusion.admission.providers import providers_of
from tensorfusion.api.decode import decode
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.provider_config import ProviderConfig
from tensorfusion.api.quota import GPUResourceQuota
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.app.defaults import default_pool_spec, provider_configs
from tensorfusion.scheduling.translate import quota_of

PREFIX = names.PREFIX
PROVIDERS = providers_of(decode(ProviderConfig, config) for config in provider_configs())
BASIC = {"tflops-request": "10", "vram-request": "4Gi"}


def keyed(short: dict[str, str]) -> dict[str, str]:
    """Put our domain in front of the keys that have none."""
    return {key if "/" in key else PREFIX + key: text for key, text in short.items()}


def pod(
    annotations: dict[str, str] | None = None,
    *,
    labels: dict[str, str] | None = None,
    containers: tuple[str, ...] = ("main",),
    enabled: bool = True,
    **metadata: Any,
) -> dict[str, Any]:
    """A pod with short annotation keys; labelled unless told otherwise."""
    marked = {"enabled": "true"} if enabled else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "team",
            "labels": keyed({**marked, **(labels or {})}),
            "annotations": keyed(BASIC if annotations is None else annotations),
            **metadata,
        },
        "spec": {"containers": [{"name": name, "image": "busybox"} for name in containers]},
    }


def native_pod(resources: dict[str, str], *, enabled: bool = False, **given: Any) -> dict[str, Any]:
    """A pod whose one container asks for GPUs the native way, by limits alone."""
    made = pod(given.pop("annotations", {}), enabled=enabled, **given)
    made["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1", **resources}}
    return made


def pool(name: str = "main", **spec: Any) -> GPUPool:
    """A pool; ``main`` is marked as default by `context`."""
    return decode(
        GPUPool,
        {
            "metadata": {"name": name},
            "spec": {**default_pool_spec(), "schedulingConfigTemplate": "", **spec},
        },
    )


def profile(name: str = "prof", **spec: Any) -> WorkloadProfile:
    """A WorkloadProfile."""
    return decode(WorkloadProfile, {"metadata": {"name": name, "namespace": "team"}, "spec": spec})


def quota(**spec: Any) -> GPUResourceQuota:
    """A quota named ``q``."""
    return decode(GPUResourceQuota, {"metadata": {"name": "q", "namespace": "team"}, "spec": spec})


def context(
    *,
    pools: tuple[GPUPool, ...] = (),
    profiles: tuple[WorkloadProfile, ...] = (),
    quotas: tuple[GPUResourceQuota, ...] = (),
    workloads: tuple[dict[str, Any], ...] = (),
    owners: tuple[dict[str, Any], ...] = (),
    **others: Any,
) -> AdmissionContext:
    """A context with the pools ``main`` (default) and ``spare`` unless told otherwise."""
    by_profile = {p.metadata.name: p for p in profiles}
    by_workload = {w["metadata"]["name"]: w for w in workloads}
    by_owner = {(o["kind"], o["metadata"]["name"]): o for o in owners}
    return AdmissionContext(
        **{
            "namespace": {"metadata": {"name": "team", "labels": {"tier": "gold"}}},
            "pools": {p.metadata.name: p for p in (pool(), pool("spare"), *pools)},
            "default_pool": "main",
            "profile": by_profile.get,
            "quota_objects": quotas,
            "quotas": tuple(quota_of(q) for q in quotas),
            "workload": by_workload.get,
            "owner": lambda kind, name: by_owner.get((kind, name)),
            "providers": PROVIDERS,
            **others,
        }
    )


def admit(annotations: dict[str, str] | None = None, **given: Any) -> Admitted:
    """Admit a pod with these annotations; ``ctx`` is the context, the rest describes the pod."""
    ctx = given.pop("ctx", None) or context()
    return admit_pod(pod(annotations, **given), ctx)


def written(admitted: Admitted) -> dict[str, str]:
    """The annotations after admission, without our domain."""
    found = admitted.pod["metadata"]["annotations"]
    return {key.removeprefix(PREFIX): text for key, text in found.items()}
