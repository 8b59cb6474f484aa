"""Defaults and rules of the core kinds that a schema cannot say.

They follow what the real API server does, as far as the embedded mode relies on it.
"""

import base64
import re
from collections.abc import Callable
from typing import Any, Final

from tensorfusion.api.compiled import invalid, required, show
from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import Cause
from tensorfusion.units import QuantityError, parse_quantity

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DATA_KEY: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_CONTAINER_LISTS: Final = ("initContainers", "containers")
_MUTABLE_CONTAINER_FIELDS: Final = ("image", "resources")
_MUTABLE_SPEC_FIELDS: Final = (
    "activeDeadlineSeconds",
    "ephemeralContainers",
    "nodeName",
    "priority",
    "schedulingGates",
    "terminationGracePeriodSeconds",
    "tolerations",
)


def default(kind: str, obj: JsonObject) -> None:
    """Add defaults that depend on other fields. ``obj`` is a fresh copy and is changed."""
    if kind == "Pod":
        spec = obj.get("spec")
        _default_pod_spec(spec)
        if isinstance(spec, dict):
            spec.setdefault("enableServiceLinks", True)  # of pods only, not of templates
    elif kind in ("Deployment", "ReplicaSet"):
        spec = obj.get("spec")
        template = spec.get("template") if isinstance(spec, dict) else None
        if isinstance(template, dict):
            _default_pod_spec(template.get("spec"))
    elif kind == "Secret" and isinstance(obj.get("stringData"), dict):
        _merge_string_data(obj)


def _merge_string_data(secret: JsonObject) -> None:
    """Encode ``stringData`` into ``data``, where it wins."""
    texts = secret["stringData"]
    if all(isinstance(value, str) for value in texts.values()):
        del secret["stringData"]
        data = secret.get("data")
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in texts.items()}
        secret["data"] = {**(data if isinstance(data, dict) else {}), **encoded}


def _default_pod_spec(spec: Any) -> None:
    if not isinstance(spec, dict):
        return
    spec.setdefault("securityContext", {})
    for key in _CONTAINER_LISTS:
        containers = spec.get(key)
        for container in containers if isinstance(containers, list) else ():
            if isinstance(container, dict):
                _default_container(container)


def _default_container(container: JsonObject) -> None:
    image = container.get("image")
    if isinstance(image, str) and image and not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = _pull_policy(image)
    resources = container.setdefault("resources", {})
    if isinstance(resources, dict) and isinstance(resources.get("limits"), dict):
        requests = resources.get("requests")
        if requests is None or isinstance(requests, dict):
            # Resources may be shared with the caller's object: replace, never write into them.
            container["resources"] = {
                **resources,
                "requests": {**resources["limits"], **(requests or {})},
            }


def _pull_policy(image: str) -> str:
    name = image.rpartition("/")[2]
    if "@" in name:
        return "IfNotPresent"
    tag = name.partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def check(kind: str, obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    """Find what is wrong with an object whose schema is fine."""
    rule = _RULES.get(kind)
    return rule(obj, old) if rule else []


def _check_pod(pod: JsonObject, old: JsonObject | None) -> list[Cause]:
    spec = pod.get("spec")
    if spec is None:
        return [required(path="spec.containers")]
    former = (old or {}).get("spec")
    if former is not None:
        return [] if spec == former else _check_pod_change(spec, former)
    return _check_pod_spec(spec, "spec")


def _check_pod_spec(spec: JsonObject, path: str) -> list[Cause]:
    causes: list[Cause] = []
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        name = volume["name"]
        if name in volumes:
            causes.append(_duplicate(name, f"{path}.volumes[{index}].name"))
        volumes.add(name)
        if not _LABEL.fullmatch(name):
            causes.append(_bad_label(name, f"{path}.volumes[{index}].name"))
    names: set[str] = set()
    for key in _CONTAINER_LISTS:
        for index, container in enumerate(spec.get(key) or ()):
            _check_container(container, f"{path}.{key}[{index}]", names, volumes, causes)
    return causes


def _duplicate(value: str, path: str) -> Cause:
    return Cause(path, "FieldValueDuplicate", f"Duplicate value: {show(value)}")


def _bad_label(value: str, path: str) -> Cause:
    return invalid(
        value,
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
        "start and end with an alphanumeric character and be no longer than 63 characters",
        path,
    )


def _check_container(
    container: JsonObject, path: str, names: set[str], volumes: set[str], causes: list[Cause]
) -> None:
    name = container["name"]
    if not _LABEL.fullmatch(name):
        causes.append(_bad_label(name, f"{path}.name"))
    if name in names:
        causes.append(_duplicate(name, f"{path}.name"))
    names.add(name)
    if not container.get("image"):
        causes.append(required(path=f"{path}.image"))
    places: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if mount["mountPath"] in places:
            text = "must be unique"
            where = f"{path}.volumeMounts[{index}].mountPath"
            causes.append(invalid(mount["mountPath"], text, where))
        places.add(mount["mountPath"])
        if mount["name"] not in volumes:
            causes.append(
                Cause(
                    f"{path}.volumeMounts[{index}].name",
                    "FieldValueNotFound",
                    f"Not found: {show(mount['name'])}",
                )
            )
    resources = container.get("resources")
    if resources:
        _check_resources(resources, f"{path}.resources", causes)


def _check_resources(resources: JsonObject, path: str, causes: list[Cause]) -> None:
    limits = resources.get("limits") or {}
    amounts: dict[str, Any] = {}
    for side in ("limits", "requests"):
        for name, value in (resources.get(side) or {}).items():
            where = f"{path}.{side}[{name}]"
            try:
                amount = parse_quantity(value)
            except QuantityError as error:
                causes.append(invalid(value, str(error), where))
                continue
            if amount < 0:
                causes.append(invalid(value, "must be greater than or equal to 0", where))
            if side == "limits":
                amounts[name] = amount
            elif name in amounts and amount > amounts[name]:
                text = f"must be less than or equal to {name} limit of {limits[name]}"
                causes.append(invalid(value, text, f"{path}.{side}"))


def _frozen_spec(spec: JsonObject) -> JsonObject:
    """A pod spec without the fields that may change."""
    result = {key: value for key, value in spec.items() if key not in _MUTABLE_SPEC_FIELDS}
    for key in _CONTAINER_LISTS:
        result[key] = [
            {
                name: value
                for name, value in container.items()
                if name not in _MUTABLE_CONTAINER_FIELDS
            }
            for container in spec.get(key) or ()
        ]
    return result


def _check_pod_change(spec: JsonObject, former: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    if _frozen_spec(spec) != _frozen_spec(former):
        text = (
            "Forbidden: pod updates may not change fields other than container images and "
            "resources, " + ", ".join(f"`spec.{key}`" for key in _MUTABLE_SPEC_FIELDS)
        )
        causes.append(Cause("spec", "FieldValueForbidden", text))
    if former.get("nodeName") and spec.get("nodeName") != former["nodeName"]:
        causes.append(
            Cause(
                "spec.nodeName",
                "FieldValueForbidden",
                f"Forbidden: the pod is bound to node {former['nodeName']} already",
            )
        )
    for key in _CONTAINER_LISTS:
        for index, container in enumerate(spec.get(key) or ()):
            if container.get("resources"):
                _check_resources(container["resources"], f"spec.{key}[{index}].resources", causes)
    return causes


def _check_replicated(obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    """Rules of Deployment and ReplicaSet."""
    causes: list[Cause] = []
    spec = obj["spec"]
    selector = spec["selector"]
    template = spec.get("template") or {}
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        causes.append(invalid(selector, "empty selector is invalid", "spec.selector"))
    labels = (template.get("metadata") or {}).get("labels") or {}
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        causes.append(
            invalid(
                labels,
                "`selector` does not match template `labels`",
                "spec.template.metadata.labels",
            )
        )
    pod_spec = template.get("spec")
    if pod_spec is None:
        causes.append(required(path="spec.template.spec.containers"))
    else:
        causes += _check_pod_spec(pod_spec, "spec.template.spec")
        if pod_spec.get("restartPolicy") != "Always":
            causes.append(
                Cause(
                    "spec.template.spec.restartPolicy",
                    "FieldValueNotSupported",
                    f"Unsupported value: {show(pod_spec.get('restartPolicy'))}: supported values: "
                    '"Always"',
                )
            )
    if old is not None and old.get("spec", {}).get("selector") != selector:
        causes.append(invalid(selector, "field is immutable", "spec.selector"))
    return causes


def _check_data(obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    """Rules of Secret and ConfigMap."""
    causes: list[Cause] = []
    for field in ("data", "binaryData"):
        for key in obj.get(field) or ():
            if not _DATA_KEY.fullmatch(key):
                text = "a key must consist of alphanumeric characters, '-', '_' or '.'"
                causes.append(invalid(key, text, f"{field}[{key}]"))
    if old is not None and old.get("immutable"):
        for field in ("data", "binaryData", "immutable"):
            if (obj.get(field) or None) != (old.get(field) or None):
                text = "Forbidden: field is immutable when `immutable` is set"
                causes.append(Cause(field, "FieldValueForbidden", text))
    return causes


def _check_priority_class(obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    if old is not None and old.get("value") != obj.get("value"):
        text = "Forbidden: may not be changed in an update."
        return [Cause("value", "FieldValueForbidden", text)]
    return []


def _check_budget(obj: JsonObject, _old: JsonObject | None) -> list[Cause]:
    spec = obj.get("spec")
    if isinstance(spec, dict) and "minAvailable" in spec and "maxUnavailable" in spec:
        text = "minAvailable and maxUnavailable cannot be both set"
        return [invalid("object", text, "spec")]
    return []


def _check_event(obj: JsonObject, _old: JsonObject | None) -> list[Cause]:
    about = (obj.get("involvedObject") or {}).get("namespace") or ""
    namespace = obj["metadata"].get("namespace") or ""
    if about and namespace and about != namespace:
        return [invalid(about, "does not match event.namespace", "involvedObject.namespace")]
    return []


_RULES: Final[dict[str, Callable[[JsonObject, JsonObject | None], list[Cause]]]] = {
    "Pod": _check_pod,
    "Deployment": _check_replicated,
    "ReplicaSet": _check_replicated,
    "Secret": _check_data,
    "ConfigMap": _check_data,
    "PriorityClass": _check_priority_class,
    "PodDisruptionBudget": _check_budget,
    "Event": _check_event,
}
