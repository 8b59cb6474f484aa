"""What is put into pods that run as containers, so that the soft limiter gets into them.

Only local soft isolation needs anything: shared and partitioned pods have the card or the
partition to themselves. All of it is idempotent.
"""

from tensorfusion.admission.raw import containers, mapping, objects, spec_of
from tensorfusion.admission.resolve import Resolved
from tensorfusion.admission.vendors import limiter_library
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import PODS
from tensorfusion.api.resource import JsonObject
from tensorfusion.store.merge_rules import merge_rules
from tensorfusion.store.patches import strategic_merge

INIT_CONTAINER = "tensorfusion-limiter"
LIMITER_VOLUME, LIMITER_PATH = "tensorfusion-limiter", "/tensorfusion/limiter"
RUN_VOLUME, RUN_HOST_PATH = "tensorfusion-run", "/run/tensorfusion"
SHM_PATH = "/run/tensorfusion/shm"
DEFAULT_PORT = 8000
SMALL = {"cpu": "20m", "memory": "256Mi"}
SWITCHES = {
    "gpu-limiter": "TENSORFUSION_DISABLE_LIMITER",
    "gpu-opt": "TENSORFUSION_DISABLE_GPU_OPT",
    "mem-manager": "TENSORFUSION_DISABLE_MEMORY_MANAGER",
}
"""Feature to the variable that switches it off."""


def injected(
    pod: JsonObject,
    resolved: Resolved,
    pool: GPUPool | None,
    image: str,
    features: tuple[str, ...],
) -> JsonObject:
    """Return the pod with limiter, volumes and environment, and the pool's container patch."""
    result = pod
    if resolved.isolation == "soft":
        limited = "gpu-limiter" not in features
        spec = dict(spec_of(result))
        spec["containers"] = [
            _with_limiter(c, resolved.vendor, pool, features)
            if c.get("name") in resolved.containers
            else c
            for c in containers(result)
        ]
        if limited:
            library = limiter_library(resolved.vendor)
            present = containers(result, "initContainers")
            spec["initContainers"] = _named([_init_container(image, library)], present)
        volumes = [
            {"name": RUN_VOLUME, "hostPath": {"path": RUN_HOST_PATH, "type": "DirectoryOrCreate"}}
        ]
        if limited:
            volumes.append({"name": LIMITER_VOLUME, "emptyDir": {}})
        spec["volumes"] = _named(objects(spec.get("volumes")), volumes)
        result = {**result, "spec": spec}
    return _patched(result, resolved, pool)


def _named(first: list[JsonObject], then: list[JsonObject]) -> list[JsonObject]:
    """Join two lists; of two items with one name the first stays."""
    taken = {item.get("name") for item in first}
    return [*first, *(item for item in then if item.get("name") not in taken)]


def _init_container(image: str, library: str) -> JsonObject:
    # The copy must succeed: a preload path without a library would start the application
    # without any limit.
    script = f"cp -a /build/. {LIMITER_PATH}/ && test -r {LIMITER_PATH}/{library}"
    return {
        "name": INIT_CONTAINER,
        "image": image,
        "command": ["/bin/sh", "-ec", script],
        "resources": {"requests": dict(SMALL), "limits": dict(SMALL)},
        "volumeMounts": [{"name": LIMITER_VOLUME, "mountPath": LIMITER_PATH}],
    }


def _with_limiter(
    container: JsonObject, vendor: str, pool: GPUPool | None, features: tuple[str, ...]
) -> JsonObject:
    limited = "gpu-limiter" not in features
    component = pool.spec.component_config if pool is not None and pool.spec else None
    hypervisor = component.hypervisor if component else None
    port = hypervisor.port_number if hypervisor else DEFAULT_PORT
    env: list[JsonObject] = [
        {"name": "TENSORFUSION_ISOLATION", "value": "soft"},
        {"name": "TENSORFUSION_SHM_PATH", "value": SHM_PATH},
        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CONTAINER_NAME", "value": container.get("name", "")},
        {"name": "HYPERVISOR_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "HYPERVISOR_PORT", "value": str(port)},
    ]
    mounts: list[JsonObject] = [
        {
            "name": RUN_VOLUME,
            "mountPath": SHM_PATH,
            "subPathExpr": "shm/$(POD_NAMESPACE)/$(POD_NAME)",
            "mountPropagation": "HostToContainer",
        }
    ]
    env += [
        {"name": SWITCHES[feature], "value": "true"} for feature in features if feature in SWITCHES
    ]
    own = objects(container.get("env"))
    if limited:
        preload = f"{LIMITER_PATH}/{limiter_library(vendor)}"
        entry = {"name": "LD_PRELOAD", "value": _preload(own, preload)}
        own = [entry if e.get("name") == "LD_PRELOAD" else e for e in own]
        env.append(entry)
        mounts.append({"name": LIMITER_VOLUME, "mountPath": LIMITER_PATH, "readOnly": True})
    return {
        **container,
        "env": _named(own, env),
        "volumeMounts": _mounted(objects(container.get("volumeMounts")), mounts),
    }


def _preload(env: list[JsonObject], path: str) -> str:
    """Put the limiter in front of what the application preloads itself."""
    present = next((e.get("value", "") for e in env if e.get("name") == "LD_PRELOAD"), "")
    parts = [part for part in str(present).replace(":", " ").split() if part != path]
    return ":".join([path, *parts])


def _mounted(own: list[JsonObject], added: list[JsonObject]) -> list[JsonObject]:
    taken = {mount.get("mountPath") for mount in own}
    return [*own, *(mount for mount in added if mount["mountPath"] not in taken)]


def _patched(pod: JsonObject, resolved: Resolved, pool: GPUPool | None) -> JsonObject:
    component = pool.spec.component_config if pool is not None and pool.spec else None
    patch = mapping(component.client.patch_to_container) if component and component.client else {}
    if not patch:
        return pod
    named = [{**patch, "name": name} for name in resolved.containers]
    merged = strategic_merge(pod, {"spec": {"containers": named}}, merge_rules(PODS))
    return merged if isinstance(merged, dict) else pod
