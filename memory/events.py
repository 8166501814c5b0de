"""What happens to a tenant, read as it happens, or again behind any event that is still kept."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from uuid import UUID

from memory.nouns import Event
from memory.store.pool import Pool
from memory.store.signals import Signals, Watch, events_after, newest_event

KINDS = frozenset(
    "rollover job human_request human_answer human_expired quarantine_proposed quarantine task session_deleted".split()
)
WAIT_SECONDS = 5.0
LATE_MS = 10_000  # an event may be committed so long after others that were begun later
PAGE = 1_000


class Events:
    def __init__(self, pool: Pool, signals: Signals) -> None:
        self._pool = pool
        self._signals = signals

    def watch(self, tenant: bytes) -> AbstractContextManager[Watch]:
        return self._signals.watch(tenant, KINDS)

    async def reading(self, tenant: bytes, last: UUID | None = None) -> "Reading":
        """From behind an event; None: from now on.

        Raises:
            StoreError: the database did not answer.
        """
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            start = last or await newest_event(connection, tenant)
            near = await events_after(connection, tenant, before(start), PAGE) if start else ()
        given = {id for id in (UUID(event.id) for event in near) if start and id <= start}
        return Reading(self._pool, tenant, start, given)


class Reading:
    """One listener's place in a tenant's events."""

    def __init__(self, pool: Pool, tenant: bytes, newest: UUID | None, given: set[UUID]) -> None:
        self._pool = pool
        self._tenant = tenant
        self._newest = newest
        self._given = given  # those that may be read again

    async def more(self) -> AsyncIterator[Event]:
        """The events that were not given yet, mostly oldest first.

        Ids are in the order in which events were begun. So what lies a little before the newest is read again: one
        that was begun early and committed late is not missed.

        Raises:
            StoreError: the database did not answer.
        """
        behind = before(self._newest) if self._newest else None
        full = True
        while full:
            page = await self._page(behind)
            for event in page:
                behind = UUID(event.id)
                if behind not in self._given:
                    self._given.add(behind)
                    self._newest = max(behind, self._newest or behind)
                    yield event
            full = len(page) == PAGE
        if self._newest:
            oldest = before(self._newest)
            self._given = {id for id in self._given if id > oldest}

    async def _page(self, behind: UUID | None) -> tuple[Event, ...]:
        async with self._pool.tenant(self._tenant, WAIT_SECONDS) as connection:
            return await events_after(connection, self._tenant, behind, PAGE)


def before(id: UUID) -> UUID:
    """A place LATE_MS before an id. The first 48 bits of a UUID version 7 are its milliseconds."""
    return UUID(int=max(0, (id.int >> 80) - LATE_MS) << 80)
