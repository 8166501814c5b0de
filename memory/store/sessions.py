"""Sessions and turns, as lists: what programs named, and what conversations were held."""

from datetime import datetime

import asyncpg

from memory.forms import form_tokens
from memory.identify import text_id
from memory.nouns import NIL, ItemForm, ItemStatus, Place, Session, TurnEntry
from memory.store.items import be_patient, count
from memory.store.passages import affected

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


async def delete_items(connection: asyncpg.Connection, place: Place, most: int, now: datetime) -> int:
    """Remove up to `most` of a session's items that are not in quarantine, and all that was made of them; how many.

    Belongs into a transaction; items are locked in the order in which all do.
    """
    assert place.id != NIL
    await be_patient(connection)
    rows = await connection.fetch(
        "select id, status, form, tokens, summary_tokens from infold.items where tenant = $1 and session = $2"
        " and status < 2 order by id limit $3 for update",
        place.tenant, place.id, most,
    )  # fmt: skip
    ids, active = [row["id"] for row in rows], [row for row in rows if row["status"] == ItemStatus.ACTIVE]
    gone = {}
    for table, key in (("vectors", "item"), ("passages", "item"), ("items", "id")):
        delete = f"delete from infold.{table} where tenant = $1 and {key} = any($2)"
        gone[table] = affected(await connection.execute(delete, place.tenant, ids))
    tokens = sum(row["tokens"] for row in active)
    used = sum(form_tokens(row["tokens"], row["summary_tokens"], ItemForm(row["form"])) for row in active)
    await count(connection, place.tenant, place.id, (-tokens, -used), -gone["passages"], -gone["vectors"], now)
    return gone["items"]
