"""One request and its answer, as plain data between the ASGI shell and the handlers."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from tensorfusion.apiserver.bodies import Query, media_type
from tensorfusion.apiserver.negotiation import Form, accepted_form, encode_json

JSON: str = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body was read.

    Attributes:
        method: ``GET``, ``POST``, ...
        segments: The path, split and decoded.
        query: The query string.
        headers: Lower-case names to values; of repeated headers the last.
        body: The bytes.
    """

    method: str
    segments: list[str]
    query: Query
    headers: Mapping[bytes, bytes]
    body: bytes

    @property
    def accept(self) -> str:
        """The ``Accept`` header."""
        return self.headers.get(b"accept", b"").decode("latin-1")

    @property
    def content_type(self) -> str:
        """Media type of the body, without parameters."""
        return media_type(self.headers.get(b"content-type", b""))

    @property
    def form(self) -> Form:
        """The form in which objects are wanted."""
        return accepted_form(self.accept, self.query.text("includeObject"))

    @property
    def field_manager(self) -> str:
        """Who owns the fields that a write changes: as given, or the client's name."""
        given = self.query.text("fieldManager")
        if given:
            return given
        agent = self.headers.get(b"user-agent", b"").decode("latin-1").partition("/")[0]
        return "".join(c for c in agent if c.isprintable())[:128] or "unknown"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Attributes:
        status: HTTP status code.
        body: The bytes; ignored when there is a stream.
        content_type: Its media type.
        headers: Further headers.
        stream: Chunks to send as they come; ends with the iterator or the client.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())
    stream: AsyncGenerator[bytes, None] | None = None


def json_response(value: object, status: int = 200) -> Response:
    """Return an answer with a JSON body."""
    return Response(status, encode_json(value))
