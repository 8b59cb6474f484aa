"""One HTTP/1.1 request as bytes, decoded by a pure function: no socket, no state, no surprise.

The agent answers one request per connection, or one after the other where the client asks for it
and may. Whatever cannot be read exactly is refused: two
programs that read a request differently are how one is smuggled past the other.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from tensorfusion.errors import ApiError, BadRequest, TooLarge

MOST_HEAD_BYTES: Final = 16 << 10
MOST_BODY_BYTES: Final = 64 << 10
_START: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.[01]")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e]*)")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request.

    Attributes:
        segments: The decoded path between slashes; none is empty.
        headers: By lower-case name; each occurs once.
    """

    method: str
    segments: tuple[str, ...]
    headers: Mapping[str, bytes] = field(default_factory=dict)
    body: bytes = b""

    def wants_more(self) -> bool:
        """Whether the client asks to keep the connection for its next request."""
        return self.headers.get("connection", b"").lower() == b"keep-alive"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes
    content_type: str = "application/json"


def decode_request(data: bytes) -> ApiRequest | None:
    """Read a request; None while it is not complete.

    Raises:
        BadRequest: It is no request that we read; says which part.
        TooLarge: Head or body is longer than allowed.
    """
    end = data.find(b"\r\n\r\n")
    if end > MOST_HEAD_BYTES or (end < 0 and len(data) > MOST_HEAD_BYTES):
        raise TooLarge(f"the head of a request may have {MOST_HEAD_BYTES} bytes")
    if end < 0:
        return None
    first, *lines = data[:end].split(b"\r\n")
    start = _START.fullmatch(first)
    if start is None:
        raise BadRequest(f"the request line {first[:80]!r} must be METHOD /PATH HTTP/1.1")
    headers = _headers(lines)
    length = _length(headers)
    body = data[end + 4 :]
    if len(body) < length:
        return None
    if len(body) > length:
        raise BadRequest(f"{len(body) - length} bytes follow the request; one at a time")
    target = start.group(2)
    if b"?" in target or b"#" in target:
        raise BadRequest("the path takes no query and no fragment")
    return ApiRequest(start.group(1).decode(), _segments(target), headers, body)


def _headers(lines: list[bytes]) -> dict[str, bytes]:
    headers: dict[str, bytes] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequest(f"the header {line[:80]!r} must be NAME: VALUE in printable ASCII")
        name = found.group(1).decode().lower()
        if name in headers:
            raise BadRequest(f"the header {name} occurs more than once")
        headers[name] = found.group(2).strip()
    if "transfer-encoding" in headers:
        raise BadRequest("transfer-encoding is not supported; send content-length")
    return headers


def _length(headers: Mapping[str, bytes]) -> int:
    text = headers.get("content-length", b"0")
    if not _LENGTH.fullmatch(text):
        raise BadRequest(f"content-length {text[:20]!r} must be a number of bytes")
    length = int(text)
    if length > MOST_BODY_BYTES:
        raise TooLarge(f"the body has {length} bytes; at most {MOST_BODY_BYTES} are allowed")
    return length


def _segments(target: bytes) -> tuple[str, ...]:
    segments = []
    for part in target[1:].split(b"/"):
        try:
            text = unquote_to_bytes(part).decode()
        except UnicodeDecodeError:
            raise BadRequest(f"the path segment {part[:80]!r} is not UTF-8") from None
        if text in ("", ".", "..") or "/" in text or "\0" in text:
            raise BadRequest(f"the path segment {part[:80]!r} is not a name")
        segments.append(text)
    return tuple(segments)


class LimitsChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may change of a worker, per device; what is left out stays.

    Attributes:
        compute_gflops: Limit in GFLOP/s.
        vram_bytes: Limit in bytes.
    """

    compute_gflops: int | None = None
    vram_bytes: int | None = None


MOST_AMOUNT: Final = (1 << 63) - 1


def decode_limits(body: bytes) -> LimitsChange:
    """Read the body of a change of limits.

    Raises:
        BadRequest: Names the field, its value and what is allowed.
    """
    try:
        change = msgspec.json.decode(body, type=LimitsChange)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"limits: {error}") from error
    for name in ("compute_gflops", "vram_bytes"):
        value = getattr(change, name)
        if value is not None and not 0 < value <= MOST_AMOUNT:
            raise BadRequest(f"limits: {name} is {value}, allowed are 1 to {MOST_AMOUNT}")
    if change.compute_gflops is None and change.vram_bytes is None:
        raise BadRequest("limits: name compute_gflops, vram_bytes or both")
    return change


_PHRASES: Final = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
                   404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
                   413: "Content Too Large", 500: "Internal Server Error",
                   503: "Service Unavailable"}  # fmt: skip


def encode_answer(answer: Answer, *, keep: bool = False) -> bytes:
    """Lay an answer out as bytes; the connection ends with it unless it is kept."""
    head = (
        f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Error')}\r\n"
        f"content-type: {answer.content_type}\r\ncontent-length: {len(answer.body)}\r\n"
        f"cache-control: no-store\r\nconnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    return head.encode() + answer.body


_STATUS: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [\x20-\x7e]*")


def decode_answer_head(data: bytes) -> tuple[int, int, bool]:
    """Read the head of an agent's answer, with the empty line at its end.

    Returns:
        Status, length of the body in bytes, and whether the connection is kept.

    Raises:
        ApiError: It is no answer that an agent gives; says which part.
    """
    first, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise BadRequest(f"the status line {first[:80]!r} must be HTTP/1.1 STATUS PHRASE")
    headers = _headers(lines)
    length = headers.get("content-length", b"none")
    if not _LENGTH.fullmatch(length):
        raise BadRequest(f"content-length {length[:20]!r} must be a number of bytes")
    return int(status.group(1)), int(length), headers.get("connection") == b"keep-alive"


def json_answer(data: object, status: int = 200) -> Answer:
    """Answer with JSON."""
    return Answer(status, msgspec.json.encode(data) + b"\n")


def error_answer(error: ApiError) -> Answer:
    """Answer with one clear error."""
    return json_answer({"reason": error.reason, "message": str(error)}, error.code)
