"""Opaque continue tokens of lists."""

import base64
import binascii
from typing import Final

import msgspec

from tensorfusion.errors import BadRequest

_MAX_TOKEN_CHARACTERS: Final = 2_048


class ContinueToken(msgspec.Struct, array_like=True, frozen=True):
    """Where the next page of a list starts.

    Attributes:
        version: The version of the first page, which all pages report.
        namespace: Namespace of the last object that was delivered.
        name: Its name.
    """

    version: int
    namespace: str
    name: str

    def encoded(self) -> str:
        """Return the token as text for a URL."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


def decode_token(text: str) -> ContinueToken:
    """Read a token.

    Raises:
        BadRequest: It was not made by this server.
    """
    try:
        if len(text) > _MAX_TOKEN_CHARACTERS:
            raise ValueError("too long")
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        token = msgspec.json.decode(
            base64.b64decode(padded, altchars=b"-_", validate=True), type=ContinueToken
        )
        token.name.encode()
        if not 0 <= token.version < 2**62:
            raise ValueError("no version")
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequest("continue key is not valid: pass on the token of the last page") from error
    return token
