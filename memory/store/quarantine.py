"""Quarantine in PostgreSQL: contexts, the items they took away, seals and the audit.

An item in quarantine keeps its row, and nothing that was made of it. Locks come in the order items, tenants, states.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from memory.check import metadata_of
from memory.forms import form_tokens
from memory.identify import new_id
from memory.nouns import ItemForm, ItemStatus, Place, QuarantinedContext, QuarantineState
from memory.seal import pieces

DOOR_SECONDS, LOCK_SECONDS = "30s", "5s"

CONTEXTS = (
    "select q.id, q.thread, q.state, q.context_type, q.reason, q.tokens, q.items, q.session, q.created_at,"
    " q.updated_at, q.metadata, s.name as session_name from infold.quarantine q"
    " join infold.states s on s.tenant = q.tenant and s.id = q.session where q.tenant = $1"
)


async def save_context(
    connection: asyncpg.Connection,
    place: Place,
    context: QuarantinedContext,
    content: str,
    items: Sequence[UUID],
    metadata: str | None,
) -> bool:
    """Again with the same id changes nothing; whether it is new."""
    status = await connection.execute(
        "insert into infold.quarantine (tenant, id, thread, session, state, context_type, reason, content, tokens,"
        " items, created_at, updated_at, metadata, plain, escaped)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14) on conflict do nothing",
        place.tenant, UUID(context.id), context.thread_id, place.id, context.state, context.context_type,
        context.reason_for_isolation, content, context.token_count, items, context.created_at, metadata,
        *pieces(content),
    )  # fmt: skip
    return str(status) == "INSERT 0 1"


async def list_contexts(connection: asyncpg.Connection, place: Place) -> tuple[QuarantinedContext, ...]:
    """Isolated and proposed ones of a session, newest first, without content."""
    rows = await connection.fetch(
        f"{CONTEXTS} and q.session = $2 and q.state <> 'released' order by q.created_at desc, q.id desc",
        place.tenant, place.id,
    )  # fmt: skip
    return tuple(context_of(row) for row in rows)


async def load_context(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> QuarantinedContext | None:
    row = await connection.fetchrow(f"{CONTEXTS} and q.id = $2", tenant, id)
    return context_of(row) if row else None


async def lock_thread(connection: asyncpg.Connection, tenant: bytes, thread: str) -> asyncpg.Record | None:
    """All of a context by its thread, with the content and its session's name; held until the transaction ends."""
    return await connection.fetchrow(
        "select q.*, s.name as session_name from infold.quarantine q"
        " join infold.states s on s.tenant = q.tenant and s.id = q.session"
        " where q.tenant = $1 and q.thread = $2 for update of q",
        tenant, thread,
    )  # fmt: skip


async def close_proposal(connection: asyncpg.Connection, tenant: bytes, id: UUID, now: datetime) -> None:
    """What was proposed is isolated now, and is not proposed again when a person releases it."""
    await connection.execute(
        "update infold.quarantine set state = 'released', updated_at = $3"
        " where tenant = $1 and id = $2 and state = 'proposed'",
        tenant, id, now,
    )  # fmt: skip


async def set_released(connection: asyncpg.Connection, tenant: bytes, id: UUID, now: datetime) -> None:
    """The content goes: it is back where it came from."""
    await connection.execute(
        "update infold.quarantine set state = 'released', content = '', updated_at = $3 where tenant = $1 and id = $2",
        tenant, id, now,
    )  # fmt: skip


async def oldest_writer(connection: asyncpg.Connection) -> str:
    """A transaction id: rows that older transactions wrote are seen by every query from now on."""
    found: str = await connection.fetchval(
        "select (pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296)::text"
    )
    return found


async def shut_the_door(connection: asyncpg.Connection, tenant: bytes) -> None:
    """Nobody else writes texts of this tenant, or what was made of them, until the transaction ends."""
    await connection.execute("select set_config('lock_timeout', $1, true)", DOOR_SECONDS)
    await connection.execute("select pg_advisory_xact_lock(infold.door($1))", tenant)
    await connection.execute("select set_config('lock_timeout', $1, true)", LOCK_SECONDS)


async def count_isolation(connection: asyncpg.Connection, tenant: bytes) -> None:
    """What is being made of messages as they were before will not be written."""
    await connection.execute("update infold.tenants set held = held + 1 where tenant = $1", tenant)


HOLDS = (
    r" (btrim(content, E' \t\n\r\f\v') = $2 or not $4 and (position($2 in content) > 0 or"
    " position($3 in metadata) > 0))"
)


async def holding(connection: asyncpg.Connection, tenant: bytes, text: str, whole: bool) -> list[UUID]:
    """Items of all sessions that hold a text; `whole`: those that are it. All are read: none may escape."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1]
    query = f"select id from infold.items where tenant = $1 and {HOLDS}"
    return [row["id"] for row in await connection.fetch(query, tenant, text, inside, whole)]


async def holders(
    connection: asyncpg.Connection, tenant: bytes, text: str, whole: bool, known: Sequence[UUID], since: str
) -> list[asyncpg.Record]:
    """Items that hold a text, locked: of those known to, and of all written `since`."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1]
    rows: list[asyncpg.Record] = await connection.fetch(
        "with few as materialized (select id from infold.items"
        "  where tenant = $1 and (id = any($5) or age(xmin) <= age($6::text::xid)))"
        " select id, session, status, form, tokens, summary_tokens from infold.items"
        f" where tenant = $1 and id in (select id from few) and {HOLDS} order by id for update",
        tenant, text, inside, whole, known, since,
    )  # fmt: skip
    return rows


async def take_away(
    connection: asyncpg.Connection, tenant: bytes, rows: Sequence[asyncpg.Record], now: datetime
) -> None:
    """Put locked items into quarantine: passages and vectors go, the counters follow."""
    fresh = [row for row in rows if row["status"] != ItemStatus.QUARANTINED]
    if not fresh:
        return
    ids, session_of = [row["id"] for row in fresh], {row["id"]: row["session"] for row in fresh}
    await connection.execute(
        "update infold.items set status = 2, form = 3, updated_at = $3 where tenant = $1 and id = any($2)",
        tenant, ids, now,
    )  # fmt: skip
    vectors = await connection.fetch(
        "delete from infold.vectors where tenant = $1 and item = any($2) returning item", tenant, ids
    )
    passages = await connection.fetch(
        "delete from infold.passages where tenant = $1 and item = any($2) returning item", tenant, ids
    )
    await connection.execute(
        "update infold.tenants set passages = passages - $2, embedded = embedded - $3 where tenant = $1",
        tenant, len(passages), len(vectors),
    )  # fmt: skip
    embedded = Counter(session_of[row["item"]] for row in vectors)
    active = [row for row in fresh if row["status"] == ItemStatus.ACTIVE]
    await count(connection, tenant, active, -1, embedded, now)


async def give_back(
    connection: asyncpg.Connection, tenant: bytes, thread: UUID, items: Sequence[UUID], now: datetime
) -> list[UUID]:
    """Make a context's items active again, shortened, unless another holds them; their passages are to be made."""
    rows = await connection.fetch(
        "select id, session, status, 1 as form, tokens, summary_tokens from infold.items i"
        " where tenant = $1 and id = any($2) and status = 2 and not exists (select from infold.quarantine q"
        " where q.tenant = $1 and q.id <> $3 and q.state = 'isolated' and i.id = any(q.items)) order by id for update",
        tenant, items, thread,
    )  # fmt: skip
    ids = [row["id"] for row in rows]
    await connection.execute(
        "update infold.items set status = 0, form = 1, updated_at = $3 where tenant = $1 and id = any($2)",
        tenant, ids, now,
    )  # fmt: skip
    await count(connection, tenant, rows, 1, {}, now)
    return ids


async def count(
    connection: asyncpg.Connection,
    tenant: bytes,
    rows: Iterable[asyncpg.Record],
    sign: int,
    embedded_less: Mapping[UUID, int],
    now: datetime,
) -> None:
    """Sessions' counters, when items come or go."""
    tokens: Counter[UUID] = Counter()
    used: Counter[UUID] = Counter()
    for row in rows:
        tokens[row["session"]] += sign * row["tokens"]
        used[row["session"]] += sign * form_tokens(row["tokens"], row["summary_tokens"], ItemForm(row["form"]))
    for session in sorted({*tokens, *embedded_less}):
        await connection.execute(
            "update infold.states set tokens = tokens + $3, used = used + $4, embedded = embedded - $5, updated_at = $6"
            " where tenant = $1 and id = $2",
            tenant, session, tokens[session], used[session], embedded_less.get(session, 0), now,
        )  # fmt: skip


async def are_gone(connection: asyncpg.Connection, tenant: bytes, ids: Sequence[UUID]) -> bool:
    """Whether none of some items is left; so also where there are none."""
    row = await connection.fetchrow("select from infold.items where tenant = $1 and id = any($2) limit 1", tenant, ids)
    return row is None


async def contents_of(connection: asyncpg.Connection, tenant: bytes, ids: Sequence[UUID]) -> dict[UUID, str]:
    """Of the active ones."""
    rows = await connection.fetch(
        "select id, content from infold.items where tenant = $1 and id = any($2) and status = 0", tenant, ids
    )
    return {row["id"]: row["content"] for row in rows}


async def save_seals(connection: asyncpg.Connection, tenant: bytes, thread: str, digests: Sequence[bytes]) -> None:
    await connection.execute(
        "insert into infold.seals (tenant, digest, thread) select $1, digest, $3"
        " from unnest($2::bytea[]) as new (digest) on conflict do nothing",
        tenant, digests, thread,
    )  # fmt: skip


async def delete_seals(connection: asyncpg.Connection, tenant: bytes, thread: str) -> None:
    await connection.execute("delete from infold.seals where tenant = $1 and thread = $2", tenant, thread)


async def load_held(connection: asyncpg.Connection, tenant: bytes) -> tuple[int, frozenset[bytes]]:
    """How often something was isolated, and what is sealed; of one moment."""
    row = await connection.fetchrow(
        "select coalesce((select held from infold.tenants where tenant = $1), 0) as number,"
        " array(select distinct digest from infold.seals where tenant = $1) as seals",
        tenant,
    )  # fmt: skip
    return row["number"], frozenset(row["seals"])


async def load_seals(connection: asyncpg.Connection, tenant: bytes) -> frozenset[bytes]:
    rows = await connection.fetch("select distinct digest from infold.seals where tenant = $1", tenant)
    return frozenset(row["digest"] for row in rows)


async def audit(
    connection: asyncpg.Connection,
    tenant: bytes,
    actor: str,
    action: str,
    target: str,
    detail: Mapping[str, int],
    now: datetime,
) -> None:
    """Who did what: ids and counts, never content."""
    await connection.execute(
        "insert into infold.audit (tenant, id, at, actor, action, target, detail) values ($1, $2, $3, $4, $5, $6, $7)",
        tenant, new_id(), now, actor, action, target, json.dumps(detail),
    )  # fmt: skip


def context_of(row: asyncpg.Record, content: str | None = None) -> QuarantinedContext:
    return QuarantinedContext(
        id=str(row["id"]), session_id=row["session_name"], thread_id=row["thread"], context_type=row["context_type"],
        reason_for_isolation=row["reason"], isolated_content=content, token_count=row["tokens"],
        is_active=row["state"] == QuarantineState.ISOLATED, created_at=row["created_at"],
        updated_at=row["updated_at"], metadata=metadata_of(row["metadata"]), state=QuarantineState(row["state"]),
    )  # fmt: skip
