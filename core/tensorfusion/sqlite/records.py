"""What the store keeps of an object: its key, its version and its JSON bytes."""

from typing import Any, Final, NamedTuple

import msgspec

from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import BadRequest

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Key(NamedTuple):
    """Where an object lives.

    Attributes:
        resource: ``plural.group`` (`Resource.qualified`).
        namespace: Empty for cluster-scoped kinds.
        name: The object's name.
    """

    resource: str
    namespace: str
    name: str


class Record:
    """One version of one object, as bytes and, once somebody asked, as decoded JSON.

    The decoded object is shared by all who ask; nobody may change it.
    """

    __slots__ = ("_obj", "raw", "uid", "version")

    def __init__(self, version: int, uid: str, raw: bytes, obj: JsonObject | None = None) -> None:
        self.version = version
        self.uid = uid
        self.raw = raw
        self._obj = obj

    @property
    def obj(self) -> JsonObject:
        """The decoded object; decoded once and kept."""
        obj = self._obj
        if obj is None:
            obj = self._obj = _decode(self.raw)
        return obj

    def forget(self) -> None:
        """Drop the decoded form, to be decoded again when somebody asks."""
        self._obj = None


def encode_object(obj: JsonObject) -> bytes:
    """Encode an object as the store keeps it.

    Raises:
        BadRequest: It has values that JSON on the wire cannot carry.
    """
    try:
        return _encode(obj)
    except (OverflowError, UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the object cannot be stored as JSON: {error}") from error


def at_version(obj: JsonObject, version: int) -> Record:
    """Return a record of ``obj`` with its resourceVersion set to ``version``."""
    metadata = {**obj["metadata"], "resourceVersion": str(version)}
    stamped = {**obj, "metadata": metadata}
    return Record(version, metadata.get("uid", ""), encode_object(stamped), stamped)
