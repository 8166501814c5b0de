"""Sessions and turns, as lists: what programs named, and what conversations were held."""

from datetime import datetime
from uuid import UUID

import asyncpg

from memory.identify import text_id
from memory.nouns import NIL, Place, Session, TurnEntry

# A conversation that names its session belongs to it; another one is a session by its own id.
ALL = (
    "with spoken as (select session, count(*) as turns from infold.turns where tenant = $1 group by session),"
    " every as ("
    " select s.name as id, s.created_at, (select count(*) from infold.items i"
    "  where i.tenant = $1 and i.session = s.id and i.status < 2) as items, 0 as turns"
    " from infold.states s where s.tenant = $1 and ($2::text is null or s.name = $2)"
    " union all select coalesce(c.label, c.id), c.created_at, 0, coalesce(spoken.turns, 0)"
    " from infold.sessions c left join spoken on spoken.session = c.id"
    " where c.tenant = $1 and ($2::text is null or coalesce(c.label, c.id) = $2))"
    " select id, min(created_at) as created_at, sum(items)::bigint as items, sum(turns)::bigint as turns"
    " from every group by id"
)


async def list_sessions(
    connection: asyncpg.Connection, tenant: bytes, name: str | None, before: tuple[datetime, str] | None, limit: int
) -> list[Session]:
    """Newest first; with a name that one alone."""
    time, id = before or (None, None)
    rows = await connection.fetch(
        f"select * from ({ALL}) as s where $3::timestamptz is null or (created_at, id) < ($3, $4)"
        " order by created_at desc, id desc limit $5",
        tenant, name, time, id, limit,
    )  # fmt: skip
    return [Session(id=r["id"], items=r["items"], turns=r["turns"], created_at=r["created_at"]) for r in rows]


async def list_turns(
    connection: asyncpg.Connection,
    tenant: bytes,
    session: str | None,
    before: tuple[datetime, bytes] | None,
    limit: int,
) -> list[TurnEntry]:
    """Newest first; with a session those of its conversations alone."""
    time, node = before or (None, None)
    rows = await connection.fetch(
        "select node, session, model, status, created_at from infold.turns where tenant = $1"
        " and ($2::text is null or session in"
        "  (select id from infold.sessions where tenant = $1 and (label = $2 or label is null and id = $2)))"
        " and ($3::timestamptz is null or (created_at, node) < ($3, $4)) order by created_at desc, node desc limit $5",
        tenant, session, time, node, limit,
    )  # fmt: skip
    return [
        TurnEntry(id=text_id(r["node"]), session=r["session"], model=r["model"], status=r["status"],
                  created_at=r["created_at"])
        for r in rows
    ]  # fmt: skip


async def delete_board(connection: asyncpg.Connection, place: Place) -> None:
    """A session's tasks, agents and questions. Belongs into a transaction."""
    for table in ("tasks", "agents", "human_requests"):
        await connection.execute(
            f"delete from infold.{table} where tenant = $1 and session = $2", place.tenant, place.id
        )


async def item_ids(connection: asyncpg.Connection, place: Place) -> list[UUID]:
    """A session's items that are not in quarantine, in the order in which items are locked."""
    assert place.id != NIL
    rows = await connection.fetch(
        "select id from infold.items where tenant = $1 and session = $2 and status < 2 order by id",
        place.tenant, place.id,
    )  # fmt: skip
    return [row["id"] for row in rows]
