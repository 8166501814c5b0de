"""What happens, told as it happens: server-sent events of the caller's tenant."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
from starlette.responses import Response, StreamingResponse

from memory.errors import Conflict, StoreError
from memory.nouns import Event
from memory.store.signals import events_after
from proxy.rest.asking import Asking

KINDS = frozenset(
    "rollover job human_request human_answer human_expired quarantine_proposed quarantine task session_deleted".split()
)
WHOLE_SECONDS = 60.0  # then a stream ends and its reader comes again, so that a server which stops need not wait
PING_SECONDS = 15.0
MOST_LISTENERS = 100  # in a process
PAGE = 1_000


async def stream(asking: Asking) -> Response:
    """From now on, or behind the event that `Last-Event-ID` names. No content is told, only ids and numbers."""
    if len(asking.parts.listeners) >= MOST_LISTENERS:
        raise Conflict(f"{MOST_LISTENERS} programs listen already")
    last = last_seen(asking)
    if last is None:
        last = await newest(asking)
    return StreamingResponse(tell(asking, last), media_type="text/event-stream", headers={"cache-control": "no-store"})


def last_seen(asking: Asking) -> UUID | None:
    given = asking.exchange.header(b"last-event-id") or b""
    try:
        return UUID(given.decode("latin-1"))
    except ValueError:
        return None


async def newest(asking: Asking) -> UUID | None:
    last = None
    while page := await read(asking, last):
        last = UUID(page[-1].id)
    return last


async def read(asking: Asking, after: UUID | None) -> tuple[Event, ...]:
    async with asking.parts.pool.tenant(asking.tenant) as connection:
        return await events_after(connection, asking.tenant, after, PAGE)


async def tell(asking: Asking, last: UUID | None) -> AsyncIterator[bytes]:
    """Subscribe, read, wait, read again: nothing falls between. The database keeps what a slow reader has not taken."""
    me, end = object(), asyncio.get_running_loop().time() + WHOLE_SECONDS
    asking.parts.listeners.add(me)
    try:
        with asking.memory.signals.watch(asking.tenant, KINDS) as watch:
            yield b"retry: 1000\n\n"
            while (left := end - asyncio.get_running_loop().time()) > 0:
                try:
                    for event in await read(asking, last):
                        last = UUID(event.id)
                        yield written(event)
                except StoreError:  # the next ping asks again
                    pass
                if not await watch.wait(min(left, PING_SECONDS)):
                    yield b": ping\n\n"
    finally:
        asking.parts.listeners.discard(me)


def written(event: Event) -> bytes:
    return f"id: {event.id}\nevent: {event.kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
