"""What programs stored, read out as JSON lines; and the end of everything of a tenant."""

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from memory.check import metadata_of
from memory.nouns import ItemForm, ItemStatus, Place
from memory.store.items import ItemChanges, be_patient, change_item
from memory.store.states import set_forms

PREFETCH = 200

# kind -> what is read of it. Items in quarantine are left out, of contexts in quarantine all but what is needed to see
# that something is missing.
READ = {
    "session": (
        "select name as id, model, input_tokens, output_tokens, cost_usd, created_at, updated_at from infold.states"
        " where tenant = $1 order by created_at, id"
    ),
    "item": (
        "select i.id, s.name as session_id, i.shared, i.status, i.form, i.priority, i.pinned, i.auto_compress,"
        " i.content_type, i.content, i.tokens as token_count, i.access_count, i.last_accessed, i.created_at,"
        " i.updated_at, i.metadata from infold.items i join infold.states s on s.tenant = i.tenant and s.id = i.session"
        " where i.tenant = $1 and i.status <> 2 order by i.created_at, i.id"
    ),
    "task": (
        "select t.id, s.name as session_id, t.title, t.description, t.status, t.priority, t.assigned_agent, t.progress,"
        " array(select d.needs from infold.dependencies d where d.tenant = t.tenant and d.task = t.id order by d.place)"
        " as dependencies, t.created_at, t.updated_at, t.completed_at, t.metadata from infold.tasks t"
        " join infold.states s on s.tenant = t.tenant and s.id = t.session"
        " where t.tenant = $1 order by t.created_at, t.id"
    ),
    "agent": (
        "select a.id, s.name as session_id, a.name as agent_name, a.type as agent_type, a.capabilities,"
        " a.tools as assigned_tools, a.is_active, a.created_at, a.updated_at, a.metadata from infold.agents a"
        " join infold.states s on s.tenant = a.tenant and s.id = a.session"
        " where a.tenant = $1 order by a.created_at, a.id"
    ),
    "human_request": (
        "select h.id, s.name as session_id, h.question, h.response, h.status, h.priority, h.created_at, h.answered_at,"
        " h.expires_at, h.metadata from infold.human_requests h"
        " join infold.states s on s.tenant = h.tenant and s.id = h.session"
        " where h.tenant = $1 order by h.created_at, h.id"
    ),
    "usage": (
        "select attempt as id, at, session as session_id, model, input_tokens, cached_tokens, output_tokens, cost_usd,"
        " direct_usd, own_usd from infold.usage where tenant = $1 order by at, attempt"
    ),
    "quarantine": (
        "select id, tokens as token_count, created_at from infold.quarantine"
        " where tenant = $1 and state = 'isolated' order by created_at, id"
    ),
}

# Everything with a tenant but the audit. What refers to something comes before it; folders of adapters become litter.
ERASED = (
    "samples", "adapters", "adapter_sources", "trainings", "learners",
    "vectors", "passages", "items", "dependencies", "tasks", "agents", "human_requests", "quarantine", "seals", "usage",
    "events", "folds", "chunks", "attempts", "turns", "sessions", "nodes", "states", "tenants", "calendar",
)  # fmt: skip


async def memory_lines(connection: asyncpg.Connection, tenant: bytes) -> AsyncIterator[bytes]:
    """A JSON object a line, with its kind."""
    for kind, query in READ.items():
        async for row in connection.cursor(query, tenant, prefetch=PREFETCH):
            yield msgspec.json.encode(told(kind, row))


def told(kind: str, row: asyncpg.Record) -> dict[str, object]:
    fields = {"kind": kind, **dict(row)}
    if "metadata" in fields:
        fields["metadata"] = metadata_of(row["metadata"])
    if kind == "item":
        fields["scope"] = "tenant" if fields.pop("shared") else "session"
        fields["status"] = ItemStatus(row["status"]).name.lower()
        fields["form"] = ItemForm(row["form"]).name.lower()
    return fields


async def is_there(connection: asyncpg.Connection, tenant: bytes, table: str, id: UUID) -> bool:
    """`table` is a name of ours."""
    key = "attempt" if table == "usage" else "id"
    found: bool = await connection.fetchval(
        f"select exists (select from infold.{table} where tenant = $1 and {key} = $2)", tenant, id
    )
    return found


async def has_node(connection: asyncpg.Connection, tenant: bytes, node: bytes) -> bool:
    found: bool = await connection.fetchval(
        "select exists (select from infold.nodes where tenant = $1 and node = $2)", tenant, node
    )
    return found


async def save_session(
    connection: asyncpg.Connection, place: Place, model: str, usage: tuple[int, int, float], created: datetime
) -> bool:
    """Whether it is new."""
    known = await is_there(connection, place.tenant, "states", place.id)
    await connection.execute(
        "select infold.enter($1, $2, $3, $4, $5)", place.tenant, place.id, place.name, model, created
    )
    if not known:
        await connection.execute(
            "update infold.states set input_tokens = $3, output_tokens = $4, cost_usd = $5"
            " where tenant = $1 and id = $2",
            place.tenant, place.id, *usage,
        )  # fmt: skip
    return not known


async def set_history(
    connection: asyncpg.Connection,
    place: Place,
    id: UUID,
    pinned: bool,
    archived: bool,
    form: ItemForm,
    history: tuple[int, datetime, datetime],
) -> None:
    """What became of an item before it was exported; `history`: times it was read, when last, when it was changed."""
    await be_patient(connection)
    await set_forms(connection, place, {id: form}, history[2])
    if pinned or archived:
        await change_item(connection, place.tenant, id, ItemChanges(pinned=pinned, archived=archived), history[2])
    await connection.execute(
        "update infold.items set access_count = $3, last_accessed = $4, updated_at = $5 where tenant = $1 and id = $2",
        place.tenant, id, *history,
    )  # fmt: skip


async def erase(connection: asyncpg.Connection, tenant: bytes) -> dict[str, int]:
    """Everything of a tenant, its jobs included; how many rows there were in each table."""
    await connection.execute("select set_config('lock_timeout', '30s', true)")
    counts = {}
    for table in ERASED:
        status = await connection.execute(f"delete from infold.{table} where tenant = $1", tenant)
        counts[table] = int(status.rpartition(" ")[2])
    status = await connection.execute(
        "delete from infold.pgqueuer where position(convert_to($1, 'utf8') in payload) = 1", tenant.hex()
    )
    return counts | {"jobs": int(status.rpartition(" ")[2])}
