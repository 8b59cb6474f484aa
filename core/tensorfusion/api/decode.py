"""Between decoded JSON and typed views of it."""

from typing import Any, TypeVar, cast

import msgspec

from tensorfusion.api.fields import Wire
from tensorfusion.api.resource import JsonObject
from tensorfusion.errors import BadRequest

T = TypeVar("T")


def decode(struct: type[T], obj: Any) -> T:
    """View an object as a struct. Unknown fields are ignored, absent ones get their defaults.

    Raises:
        BadRequest: A field has the wrong type; the message names it.
    """
    try:
        return msgspec.convert(obj, struct)
    except msgspec.ValidationError as error:
        kind = obj.get("kind", struct.__name__) if isinstance(obj, dict) else struct.__name__
        raise BadRequest(f"{kind} cannot be read: {error}") from error


def to_json(value: Wire) -> JsonObject:
    """Print a struct as JSON: absent fields are left out, schema defaults are written.

    The detour over bytes turns tuples into lists, so that the result equals what a store returns.
    """
    return cast("JsonObject", msgspec.json.decode(msgspec.json.encode(value)))
