"""The path grammar of the Kubernetes REST API: from a URL path to what it means."""

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tensorfusion.api.registry import by_plural
from tensorfusion.api.resource import Resource
from tensorfusion.errors import BadRequest, NotFound


@dataclass(frozen=True, slots=True)
class Target:
    """What a resource path names.

    Attributes:
        resource: The kind.
        namespace: Empty for cluster-scoped kinds and for all namespaces.
        name: Empty for the collection.
        subresource: ``status``, ``scale``, ``binding``, ``log``, ... or empty.
    """

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def split_path(raw_path: bytes) -> list[str]:
    """Decode a URL path into its segments, each percent-decoded once.

    Raises:
        BadRequest: A segment is not UTF-8, is empty in the middle, or has control characters.
    """
    segments = []
    for part in raw_path.strip(b"/").split(b"/"):
        try:
            text = unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("the URL path is not valid UTF-8") from error
        if not text.isprintable():
            raise BadRequest("the URL path has control characters")
        segments.append(text)
    return segments


def no_route() -> NotFound:
    """Return the error for a path that means nothing here."""
    return NotFound("the server could not find the requested resource")


def resource_target(segments: list[str]) -> Target:
    """Read ``/api/v1/...`` and ``/apis/GROUP/VERSION/...`` paths.

    Raises:
        NotFound: The path names no resource that the server has.
        BadRequest: A name cannot be one.
    """
    if segments[0] == "api" and len(segments) >= 3:
        group, version, rest = "", segments[1], segments[2:]
    elif segments[0] == "apis" and len(segments) >= 4:
        group, version, rest = segments[1], segments[2], segments[3:]
    else:
        raise no_route()
    namespace = ""
    # "namespaces/NAME" alone is the namespace itself; its subresources are not other kinds.
    if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
        if not namespace:
            raise no_route()
    resource = by_plural(group, version, rest[0])
    if len(rest) > 3 or (namespace and not resource.namespaced):
        raise no_route()
    name = rest[1] if len(rest) > 1 else ""
    if len(rest) > 1 and (not name or "/" in name or "%" in name or name in (".", "..")):
        raise BadRequest(f"{name[:100]!r} is not a valid name for {resource.qualified}")
    return Target(resource, namespace, name, rest[2] if len(rest) > 2 else "")
