"""Reading pods as decoded JSON before anything validated them: wrong types count as absent."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tensorfusion.admission.refusal import RefusedValue
from tensorfusion.api.resource import JsonObject


def mapping(value: Any) -> JsonObject:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[JsonObject]:
    """The JSON objects in a list; empty for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def metadata_of(obj: JsonObject) -> JsonObject:
    """The metadata of an object."""
    return mapping(obj.get("metadata"))


def spec_of(obj: JsonObject) -> JsonObject:
    """The spec of an object."""
    return mapping(obj.get("spec"))


def texts(value: Any, field: str) -> dict[str, str]:
    """Labels or annotations, which must be strings.

    Raises:
        RefusedValue: One is a number or a boolean: it was not quoted in the manifest.
    """
    found = mapping(value)
    for key, text in found.items():
        if not isinstance(text, str):
            raise RefusedValue(
                f"{field}[{key}]",
                json.dumps(text, default=str),
                "must be a string: quote the value",
            )
    return found


def containers(pod: JsonObject, kind: str = "containers") -> list[JsonObject]:
    """The containers of a pod, or its ``initContainers``."""
    return objects(spec_of(pod).get(kind))


def container_names(pod: JsonObject) -> list[str]:
    """Names of the containers, without init containers."""
    return [str(c["name"]) for c in containers(pod) if c.get("name")]


def controller_of(obj: JsonObject) -> JsonObject | None:
    """The owner reference of the controller, if there is one."""
    owners = objects(metadata_of(obj).get("ownerReferences"))
    return next((owner for owner in owners if owner.get("controller")), None)


def resources(container: JsonObject) -> Iterator[Mapping[str, Any]]:
    """The limits and the requests of a container."""
    block = mapping(container.get("resources"))
    yield mapping(block.get("limits"))
    yield mapping(block.get("requests"))
