"""Questions that a program asks a person, and the answer on its way back to whoever waits."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from memory import check
from memory.errors import Conflict, NotFound
from memory.identify import new_id
from memory.nouns import Clock, HumanRequest, HumanStatus, Place, Principal
from memory.store.board import enter
from memory.store.humans import expire, list_pending, load_request, save_answer, save_request
from memory.store.pool import Pool
from memory.store.signals import Signals, Watch, tell

WAIT_SECONDS = 10.0
READ_SECONDS = 5.0  # how often a waiter reads though nothing was told: a connection may have been lost
MOST_PENDING_WAIT = 60
MOST_WAIT = 7 * 24 * 3600
MOST_TEXT_CHARS = 1_000_000
TOLD = ("human_request", "human_answer", "human_expired")

T = TypeVar("T")


class Humans:
    def __init__(self, pool: Pool, clock: Clock, signals: Signals, expiry: timedelta) -> None:
        self._pool = pool
        self._clock = clock
        self._signals = signals
        self._expiry = expiry

    async def ask(
        self, place: Place, question: object, priority: object = 0, metadata: object = None, *, id: UUID | None = None
    ) -> HumanRequest:
        """A new question; with an id that is there already, the one that is there."""
        now, id, stored = self._clock(), id or new_id(), check.metadata(metadata)
        asked = HumanRequest(
            id=str(id), session_id=place.name, question=check.text(question, "question", MOST_TEXT_CHARS),
            response=None, status=HumanStatus.PENDING, priority=check.integer(priority, "priority", 0, 10),
            created_at=now, answered_at=None, metadata=check.metadata_of(stored), expires_at=now + self._expiry,
        )  # fmt: skip
        async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
            await enter(connection, place, now)
            if already := await load_request(connection, place.tenant, id, now):
                return already
            await save_request(connection, place, asked, stored)
            data = {"hil_id": asked.id, "priority": asked.priority}
            await tell(connection, place.tenant, "human_request", place.name, data, now)
        return asked

    async def answer(self, tenant: bytes, hil_id: object, response: object, principal: Principal) -> HumanRequest:
        """Answer a question; the same words again change nothing.

        Raises:
            NotFound: no such question.
            Conflict: it has another answer, or has expired.
        """
        id, said, now = (
            check.item_id(hil_id, "hil_id"),
            check.text(response, "response", MOST_TEXT_CHARS),
            self._clock(),
        )
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            first = await save_answer(connection, tenant, id, said, now)
            asked = await load_request(connection, tenant, id, now)
            if asked is None:
                raise NotFound.of("hil_id")
            if asked.response != said:
                raise Conflict(f"the request is {asked.status} already")
            if first:
                data = {"hil_id": asked.id, "by": principal.actor}
                await tell(connection, tenant, "human_answer", asked.session_id, data, now)
        return asked

    async def pending(self, place: Place, wait_seconds: object = 0) -> tuple[HumanRequest, ...]:
        """What waits for an answer, by priority, oldest first; waits until there is something, or the program stops."""

        async def read() -> tuple[HumanRequest, ...]:
            async with self._pool.tenant(place.tenant, WAIT_SECONDS) as connection:
                return await list_pending(connection, place, self._clock())

        seconds = check.number(wait_seconds, "wait", 0, MOST_PENDING_WAIT)
        with self._signals.watch(place.tenant, TOLD) as watch:
            return await until(read, bool, watch, seconds)

    async def wait(self, tenant: bytes, hil_id: object, timeout_seconds: object) -> HumanRequest:
        """A question once it is answered or has expired; still pending when the time is over.

        Raises:
            NotFound: no such question.
        """
        id, seconds = check.item_id(hil_id, "hil_id"), check.number(timeout_seconds, "timeout_seconds", 0, MOST_WAIT)

        async def read() -> HumanRequest:
            async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                asked = await load_request(connection, tenant, id, self._clock())
            if asked is None:
                raise NotFound.of("hil_id")
            return asked

        with self._signals.watch(tenant, TOLD) as watch:
            return await until(read, lambda asked: asked.status is not HumanStatus.PENDING, watch, seconds)

    async def expire(self, tenant: bytes) -> int:
        """Write down what has expired and tell who waits; gives how many. A job calls it."""
        now = self._clock()
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows = await expire(connection, tenant, now)
            for row in rows:
                await tell(connection, tenant, "human_expired", row["name"], {"hil_id": str(row["id"])}, now)
        return len(rows)


async def until(read: Callable[[], Awaitable[T]], is_enough: Callable[[T], bool], watch: Watch, seconds: float) -> T:
    """Read until it is enough, the time is over or the program stops; each reading waits for something to be told."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        found = await read()
        left = end - asyncio.get_running_loop().time()
        if is_enough(found) or left <= 0 or watch.ended:
            return found
        await watch.wait(min(left, READ_SECONDS))
