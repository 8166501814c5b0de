"""What happens, told as it happens: server-sent events of the caller's tenant."""

from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from memory.errors import StoreError
from memory.events import Reading
from memory.nouns import Event
from memory.store.signals import Watch
from proxy.errors import TooManyListeners
from proxy.rest.asking import Asking

PING_SECONDS = 15.0
MOST_LISTENERS = 100  # in a process


async def stream(asking: Asking) -> Response:
    """From now on, or behind the event that `Last-Event-ID` names. No content is told, only ids and numbers."""
    reading = await asking.memory.events.reading(asking.tenant, last_seen(asking))
    if len(asking.parts.listeners) >= MOST_LISTENERS:
        raise TooManyListeners(MOST_LISTENERS)
    return EventStream(asking, reading)


class EventStream(StreamingResponse):
    """Counted among the listeners of the process from when it is made until it has ended, however that comes about."""

    def __init__(self, asking: Asking, reading: Reading) -> None:
        super().__init__(listen(asking, reading), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._listeners = asking.parts.listeners
        self._listeners.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listeners.discard(self)


def last_seen(asking: Asking) -> UUID | None:
    given = asking.exchange.header(b"last-event-id") or b""
    try:
        return UUID(given.decode("latin-1"))
    except ValueError:
        return None


async def listen(asking: Asking, reading: Reading) -> AsyncIterator[bytes]:
    with asking.memory.events.watch(asking.tenant) as watch:
        yield b"retry: 1000\n\n"
        async for part in told(reading, watch):
            yield part


async def told(reading: Reading, watch: Watch, ping_seconds: float = PING_SECONDS) -> AsyncIterator[bytes]:
    """Read, wait, read again, until this program stops or the listener leaves.

    The watch was made before, so nothing falls between; the database keeps what a slow reader has not taken.
    """
    while not watch.ended:
        try:
            async for event in reading.more():
                yield written(event)
        except StoreError:  # after the next ping it is asked again
            pass
        if not await watch.wait(ping_seconds):
            yield b": ping\n\n"


def written(event: Event) -> bytes:
    return f"id: {event.id}\nevent: {event.kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
