"""Numbers a pod owns alone: a device-plugin index and a host port.

An index from 0 to 127 is told to the device plugin as an amount of a dummy resource: sixteen
names ``index_0`` to ``index_f``, eight amounts each.
"""

from collections.abc import Mapping

from tensorfusion import names
from tensorfusion.admission.context import INDEX_COUNT, Claims
from tensorfusion.admission.raw import containers, mapping, objects, spec_of
from tensorfusion.admission.refusal import RefusedValue, label_field
from tensorfusion.api.resource import JsonObject

AMOUNTS_PER_NAME = 8


def encode_index(index: int) -> tuple[str, int]:
    """Return resource name and amount of an index.

    Raises:
        ValueError: The index is not within 0 to 127.
    """
    if not 0 <= index < INDEX_COUNT:
        raise ValueError(f"index is {index}, allowed are 0 to {INDEX_COUNT - 1}")
    digit, rest = divmod(index, AMOUNTS_PER_NAME)
    return f"{names.INDEX_RESOURCE_PREFIX}{digit:x}", rest + 1


def decode_index(resource: str, amount: int) -> int:
    """Return the index that a resource name and amount stand for.

    Raises:
        ValueError: They stand for none.
    """
    digit = resource.removeprefix(names.INDEX_RESOURCE_PREFIX)
    known = resource.startswith(names.INDEX_RESOURCE_PREFIX) and digit in set("0123456789abcdef")
    if not known or not 1 <= amount <= AMOUNTS_PER_NAME:
        raise ValueError(f"{resource}: {amount} is no index claim")
    return int(digit, 16) * AMOUNTS_PER_NAME + amount - 1


def claimed_index(pod: JsonObject) -> int | None:
    """The index that a pod claims already."""
    for container in containers(pod):
        for resource, amount in mapping(mapping(container.get("resources")).get("limits")).items():
            if resource.startswith(names.INDEX_RESOURCE_PREFIX):
                try:
                    return decode_index(resource, int(amount))
                except (TypeError, ValueError):
                    continue
    return None


def next_index(claims: Claims) -> int:
    """The next free index, going around; when all are taken, the one whose turn it is."""
    for step in range(INDEX_COUNT):
        index = (claims.next_index + step) % INDEX_COUNT
        if index not in claims.indices:
            return index
    return claims.next_index % INDEX_COUNT


def with_index(pod: JsonObject, index: int, chosen: tuple[str, ...]) -> JsonObject:
    """Return a pod whose chosen containers claim an index."""
    resource, amount = encode_index(index)
    spec = dict(spec_of(pod))
    spec["containers"] = [
        _claiming(c, resource, amount) if c.get("name") in chosen else c for c in containers(pod)
    ]
    return {**pod, "spec": spec}


def _claiming(container: JsonObject, resource: str, amount: int) -> JsonObject:
    block = mapping(container.get("resources"))
    # The API wants requests of an extended resource to equal its limits, and sets them so.
    limits = {**mapping(block.get("limits")), resource: str(amount)}
    return {**container, "resources": {**block, "limits": limits}}


def claim_port(
    pod: JsonObject, labels: Mapping[str, str], claims: Claims
) -> tuple[JsonObject, str]:
    """Give the named container port a host port, if the pod asks for one.

    Returns:
        The pod, and the port for its annotation; empty when it asks for none.

    Raises:
        RefusedValue: The labels are wrong, or no port is free.
    """
    wish = labels.get(names.HOST_PORT)
    if wish is None:
        return pod, ""
    if wish != "auto":
        raise RefusedValue(label_field(names.HOST_PORT), wish, 'must be "auto"')
    name = labels.get(names.PORT_NAME, "")
    known = [p for c in containers(pod) for p in objects(c.get("ports")) if p.get("name")]
    if not name or all(port["name"] != name for port in known):
        present = ", ".join(str(port["name"]) for port in known) or "none"
        raise RefusedValue(
            label_field(names.PORT_NAME),
            name,
            f"must name a container port, which {names.HOST_PORT} opens on the host;"
            f" the pod's named ports: {present}",
        )
    held = next(port for port in known if port["name"] == name).get("hostPort")
    if type(held) is int and held > 0:
        return pod, str(held)
    first, end = claims.ports
    number = next((port for port in range(first, end) if not claims.port_taken(port)), None)
    if number is None:
        raise RefusedValue(
            label_field(names.HOST_PORT), wish, f"no host port from {first} to {end - 1} is free"
        )
    spec = dict(spec_of(pod))
    spec["containers"] = [_opened(c, name, number) for c in containers(pod)]
    return {**pod, "spec": spec}, str(number)


def _opened(container: JsonObject, name: str, number: int) -> JsonObject:
    ports = objects(container.get("ports"))
    if all(port.get("name") != name for port in ports):
        return container
    return {
        **container,
        "ports": [{**p, "hostPort": number} if p.get("name") == name else p for p in ports],
    }
