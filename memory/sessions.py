"""A tenant's sessions and turns, to look through."""

import base64
import binascii
from datetime import UTC, datetime

from memory import check
from memory.errors import InvalidRequest, NotFound
from memory.identify import SESSION_NAME, node_of, place
from memory.nouns import Clock, Place, Session, TurnEntry
from memory.store.pool import Pool
from memory.store.sessions import delete_board, delete_items, list_sessions, list_turns
from memory.store.signals import tell

WAIT_SECONDS = 30.0
DELETED_AT_ONCE = 500  # items in a transaction

Before = tuple[datetime, str] | None


class Sessions:
    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def listed(
        self, tenant: bytes, cursor: object = None, limit: object = 100
    ) -> tuple[list[Session], str | None]:
        """A page, newest first, and the cursor of the next."""
        before, most = read_cursor(cursor), check.integer(limit, "limit", 1, check.MOST_LIMIT)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            found = await list_sessions(connection, tenant, None, before, most + 1)
        return found[:most], write_cursor(found[most - 1]) if len(found) > most else None

    async def one(self, tenant: bytes, name: str) -> Session:
        """
        Raises:
            NotFound: nothing was ever stored or said in a session of that name.
        """
        if not SESSION_NAME.fullmatch(name):
            raise NotFound.of("session")
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            found = await list_sessions(connection, tenant, name, None, 1)
        if not found:
            raise NotFound.of("session")
        return found[0]

    async def delete(self, tenant: bytes, name: str) -> int:
        """Delete what programs stored in a session; gives how many items. Conversations and quarantine stay.

        Where it breaks off, what was deleted stays so; called again, it goes on.

        Raises:
            NotFound: see `one`.
        """
        await self.one(tenant, name)
        where, now, deleted = place(tenant, name), self._clock(), 0
        while more := await self._delete_some(where, now):
            deleted += more
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await delete_board(connection, where)
            await tell(connection, tenant, "session_deleted", name, {"items": deleted}, now)
        return deleted

    async def _delete_some(self, where: Place, now: datetime) -> int:
        async with self._pool.tenant(where.tenant, WAIT_SECONDS) as connection:
            return await delete_items(connection, where, DELETED_AT_ONCE, now)

    async def turns(
        self, tenant: bytes, session: str | None = None, cursor: object = None, limit: object = 100
    ) -> tuple[list[TurnEntry], str | None]:
        """A page, newest first, and the cursor of the next."""
        before, most = read_cursor(cursor), check.integer(limit, "limit", 1, check.MOST_LIMIT)
        name = None if session is None else check.text(session, "session", check.MOST_NAME_CHARS)
        try:
            start = (before[0], node_of(before[1])) if before else None
        except ValueError:
            raise InvalidRequest("cursor must be one that an answer of ours held", "cursor") from None
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            found = await list_turns(connection, tenant, name, start, most + 1)
        return found[:most], write_cursor(found[most - 1]) if len(found) > most else None


def write_cursor(last: Session | TurnEntry) -> str:
    """Where a page ended: a place in time, and no tenant."""
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()}|{last.id}".encode()).decode().rstrip("=")


def read_cursor(cursor: object) -> Before:
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(str(cursor) + "=" * (-len(str(cursor)) % 4)).decode()
        time, _, id = text.partition("|")
        return datetime.fromisoformat(time).astimezone(UTC), check.text(id, "cursor")
    except (ValueError, OverflowError, binascii.Error):
        raise InvalidRequest("cursor must be one that an answer of ours held", "cursor") from None
