"""``GET .../pods/NAME/log``: text from whoever runs the pods."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tensorfusion.apiserver.exchange import Request, Response
from tensorfusion.apiserver.routes import Target
from tensorfusion.errors import BadRequest

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class PodLogRequest:
    """Which log is asked for.

    Attributes:
        namespace: The pod's namespace.
        name: The pod.
        container: Empty for the only container.
        follow: Keep the stream open while the pod runs.
        tail_lines: Only the last lines; None is all.
        previous: The log of the container's run before this one.
        timestamps: Start each line with its time.
    """

    namespace: str
    name: str
    container: str = ""
    follow: bool = False
    tail_lines: int | None = None
    previous: bool = False
    timestamps: bool = False


PodLogs = Callable[[PodLogRequest], Iterator[bytes]]
"""Returns the chunks of a log; raises `NotFound` or `BadRequest` before the first one."""


def log_response(request: Request, target: Target, source: PodLogs | None) -> Response:
    """Answer a request for a log.

    Raises:
        BadRequest: Nobody runs pods here, or the request is refused by who does.
    """
    query = request.query
    wanted = PodLogRequest(
        namespace=target.namespace,
        name=target.name,
        container=query.text("container"),
        follow=query.flag("follow"),
        tail_lines=query.integer("tailLines"),
        previous=query.flag("previous"),
        timestamps=query.flag("timestamps"),
    )
    if source is None:
        raise BadRequest(f"logs of pod {target.name!r} are not available: no node runs pods here")
    chunks = source(wanted)
    if wanted.follow:
        return Response(content_type=_TEXT, stream=_streamed(chunks))
    return Response(body=b"".join(chunks), content_type=_TEXT)


async def _streamed(chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Pull chunks on a worker thread, since a followed log blocks between them."""
    yield b""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
