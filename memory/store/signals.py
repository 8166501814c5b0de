"""Small events that one process tells the others: written with what they speak of, heard without polling.

A program that waits subscribes, reads, waits and reads again, so nothing falls between; whoever keeps a cache drops it.
"""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

import asyncpg
import structlog

from memory.check import metadata_of
from memory.identify import new_id
from memory.nouns import Event
from memory.store.pool import AWAY, CONNECT_SECONDS, SETTINGS

log = structlog.get_logger()

CHANNEL = "infold_memory"
ALIVE_SECONDS = 10.0  # how often the connection is asked whether it still hears
AGAIN_SECONDS = 0.5  # between two tries to connect
TELL_SECONDS = 60.0  # between two lines about a database that stays away
AGAIN = "again"  # the kind told after each connect: something may have been missed

Call = Callable[
    [bytes | None, str, str], None
]  # tenant, kind, id of the event; None, "again", "": forget what you know


class Watch:
    """Heard since it was made; `wait` gives True as soon as something was told.

    `ended`: the program stops, and whoever waits should not wait on.
    """

    def __init__(self) -> None:
        self.ended = False
        self._told = asyncio.Event()

    def tell(self) -> None:
        self._told.set()

    def end(self) -> None:
        self.ended = True
        self._told.set()

    async def wait(self, timeout_seconds: float) -> bool:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._told.wait()
        except TimeoutError:
            return False
        self._told.clear()
        return True


class Signals:
    """One listening connection for the whole process."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._calls: dict[object, Call] = {}
        self._watches: set[Watch] = set()
        self._ended = False
        self.is_connected = False  # what is told now will be heard; after a gap listeners are told "again"

    def end(self) -> None:
        """The program stops: wake all who wait, now and from now on."""
        self._ended = True
        for watch in tuple(self._watches):
            watch.end()

    async def run(self) -> None:
        """Listen until cancelled; a lost connection is made again."""
        told = -TELL_SECONDS
        while True:
            try:
                await self._hear()
            except (*AWAY, asyncpg.PostgresError) as error:
                if time.monotonic() - told >= TELL_SECONDS:
                    told = time.monotonic()
                    log.info("signals away", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(AGAIN_SECONDS)

    def listen(self, call: Call) -> Callable[[], None]:
        """Call with each event; gives the way to stop."""
        key = object()
        self._calls[key] = call
        return lambda: void(self._calls.pop(key, None))

    @contextmanager
    def watch(self, tenant: bytes, kinds: Collection[str]) -> Iterator[Watch]:
        """Subscribe to a tenant's events of some kinds: enter, read, wait, read again."""
        watch = Watch()

        def call(whose: bytes | None, kind: str, id: str) -> None:
            if whose is None or (whose == tenant and kind in kinds):
                watch.tell()

        stop = self.listen(call)
        self._watches.add(watch)
        if self._ended:
            watch.end()
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            stop()

    async def _hear(self) -> None:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await asyncpg.connect(self._dsn, server_settings=SETTINGS)
        gone = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: gone.set())
            await connection.add_listener(CHANNEL, self._told)
            self.is_connected = True
            self._tell(None, AGAIN, "")
            while not gone.is_set():
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.execute("select 1")
                await pause(gone, ALIVE_SECONDS)
        finally:
            self.is_connected = False
            connection.terminate()

    def _told(self, connection: object, process: int, channel: str, payload: object) -> None:
        tenant, kind, id = str(payload).split(" ")
        self._tell(bytes.fromhex(tenant), kind, id)

    def _tell(self, tenant: bytes | None, kind: str, id: str) -> None:
        for call in tuple(self._calls.values()):
            call(tenant, kind, id)


def void(value: object) -> None:
    """For a lambda that gives nothing."""


async def pause(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def tell(
    connection: asyncpg.Connection,
    tenant: bytes,
    kind: str,
    session_name: str | None,
    data: Mapping[str, object],
    now: datetime,
) -> UUID:
    """Write an event and tell it when the caller's transaction commits. `data` holds ids and numbers, never content."""
    id = new_id()
    await connection.execute(
        "insert into infold.events (tenant, id, session, kind, data, at) values ($1, $2, $3, $4, $5, $6)",
        tenant, id, session_name, kind, json.dumps(data, default=str), now,
    )  # fmt: skip
    await connection.execute("select pg_notify($1, $2)", CHANNEL, f"{tenant.hex()} {kind} {id}")
    return id


async def nudge(connection: asyncpg.Connection, tenant: bytes, kind: str) -> None:
    """Tell the other processes to drop what they know, without an event."""
    await connection.execute("select pg_notify($1, $2)", CHANNEL, f"{tenant.hex()} {kind} -")


async def events_after(
    connection: asyncpg.Connection, tenant: bytes, id: UUID | None, limit: int = 1_000
) -> tuple[Event, ...]:
    """A tenant's events behind one of them, oldest first; None: all that are kept."""
    rows = await connection.fetch(
        "select id, kind, session, data, at from infold.events where tenant = $1 and ($2::uuid is null or id > $2)"
        " order by id limit $3",
        tenant, id, limit,
    )  # fmt: skip
    return tuple(event(row) for row in rows)


async def newest_event(connection: asyncpg.Connection, tenant: bytes) -> UUID | None:
    id: UUID | None = await connection.fetchval(
        "select id from infold.events where tenant = $1 order by id desc limit 1", tenant
    )
    return id


async def load_event(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> Event | None:
    row = await connection.fetchrow(
        "select id, kind, session, data, at from infold.events where tenant = $1 and id = $2", tenant, id
    )
    return event(row) if row else None


async def delete_events(connection: asyncpg.Connection, tenant: bytes, before: datetime) -> None:
    await connection.execute("delete from infold.events where tenant = $1 and at < $2", tenant, before)


def event(row: asyncpg.Record) -> Event:
    return Event(str(row["id"]), row["kind"], row["session"], metadata_of(row["data"]), row["at"])
