"""Watches on the wire: one JSON event a line, in the form the client asked for."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Final

from tensorfusion.api.resource import Resource
from tensorfusion.apiserver.negotiation import Form, encode_json, partial, table
from tensorfusion.apiserver.status import failure
from tensorfusion.errors import Gone
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.sqlite.events import Delivery, Subscription, bookmark
from tensorfusion.store.interface import EventType

DEFAULT_TIMEOUT_SECONDS: Final = 3_600
_BATCH_EVENTS: Final = 200


class WatchStream:
    """Turns one subscription into chunks of a response.

    Args:
        store: The store.
        resource: The kind that is watched.
        form: How events look.
        bookmarks: Whether the client reads BOOKMARK events.
        timeout_seconds: When the stream ends by itself.
    """

    def __init__(
        self,
        store: SQLiteStore,
        resource: Resource,
        form: Form,
        *,
        bookmarks: bool,
        timeout_seconds: float,
    ) -> None:
        self._store = store
        self._resource = resource
        self._form = form
        self._bookmarks = bookmarks
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._columns_sent = False

    def notify(self) -> None:
        """Wake the stream; called from the thread that wrote."""
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            # The loop is closed: the server stopped while a writer was publishing.
            return

    async def chunks(self, subscription: Subscription) -> AsyncGenerator[bytes, None]:
        """Yield events until the timeout, the end of the subscription or an error."""
        now = self._loop.time
        end = now() + self._timeout_seconds
        next_bookmark = now() + self._store.bookmark_seconds
        try:
            # An empty first chunk sends the headers: clients wait for them.
            yield b""
            while True:
                self._ready.clear()
                try:
                    deliveries = subscription.take()
                except Gone as error:
                    yield self._line(EventType.ERROR, encode_json(failure(error)))
                    return
                for start in range(0, len(deliveries), _BATCH_EVENTS):
                    yield self._encode(deliveries[start : start + _BATCH_EVENTS])
                if subscription.closed:
                    return
                if now() >= end:
                    return
                if self._bookmarks and now() >= next_bookmark:
                    next_bookmark = now() + self._store.bookmark_seconds
                    version = self._store.settled_version(subscription)
                    if version is not None:
                        record = bookmark(self._resource, version)
                        yield self._encode([Delivery(EventType.BOOKMARK, record)])
                until = min(end, next_bookmark) if self._bookmarks else end
                try:
                    await asyncio.wait_for(self._ready.wait(), max(0.0, until - now()))
                except TimeoutError:
                    continue
        finally:
            self._store.unsubscribe(subscription)

    def _encode(self, deliveries: Iterable[Delivery]) -> bytes:
        return b"".join(
            [self._line(delivery.type, self._object(delivery)) for delivery in deliveries]
        )

    @staticmethod
    def _line(kind: EventType, encoded: bytes) -> bytes:
        return b'{"type":"%b","object":%b}\n' % (kind.value.encode(), encoded)

    def _object(self, delivery: Delivery) -> bytes:
        record, form = delivery.record, self._form
        if form.shape == "object":
            return record.raw
        if form.shape == "metadata":
            return encode_json(partial(record.obj, form.version))
        if delivery.type is EventType.BOOKMARK:
            document = table(self._resource, [], form, 0.0, columns=False)
            document["rows"] = [{"cells": [], "object": partial(record.obj, form.version)}]
        else:
            document = table(
                self._resource,
                [record.obj],
                form,
                self._store.clock.now(),
                columns=not self._columns_sent,
            )
            self._columns_sent = True
        document["metadata"] = {"resourceVersion": str(record.version)}
        return encode_json(document)
