"""Named sessions: their counters, and the forms of what stands in their prompts."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from memory.forms import Standing, form_tokens
from memory.hygiene import Case
from memory.nouns import NIL, ItemForm, ItemStatus, Place
from memory.store.items import be_patient
from memory.store.usage import Spent
from memory.working import HEAD_CHARS, Held

HELD = (
    "id, content_type, tokens, summary_tokens, form, priority, pinned, last_accessed, created_at,"
    f" left(content, {HEAD_CHARS}) as head"
)


class StateRow(msgspec.Struct, frozen=True):
    """A session's counters; all 0 for one that holds nothing yet."""

    tokens: int = 0  # of the active items, in full
    used: int = 0  # of the active items, each in its form
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    compressions: int = 0
    decompressions: int = 0
    cache_hits: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    model: str = ""  # that it began with


async def load_state(connection: asyncpg.Connection, place: Place) -> StateRow:
    row = await connection.fetchrow(
        "select tokens, used, input_tokens, output_tokens, cost_usd, compressions, decompressions, cache_hits,"
        " created_at, updated_at, model from infold.states where tenant = $1 and id = $2",
        place.tenant, place.id,
    )  # fmt: skip
    return StateRow() if row is None else StateRow(*row)


async def load_names(connection: asyncpg.Connection, tenant: bytes, ids: Sequence[UUID]) -> dict[UUID, str]:
    """The names of sessions."""
    rows = await connection.fetch("select id, name from infold.states where tenant = $1 and id = any($2)", tenant, ids)
    return {row["id"]: row["name"] for row in rows}


async def list_places(connection: asyncpg.Connection, tenant: bytes) -> list[Place]:
    """All sessions of a tenant that hold or held items."""
    rows = await connection.fetch("select name, id from infold.states where tenant = $1 order by id", tenant)
    return [Place(tenant, row["name"], row["id"]) for row in rows]


async def be_alone(connection: asyncpg.Connection, place: Place) -> None:
    """Until the transaction ends nobody else settles or tidies this session."""
    await be_patient(connection)
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 3))", str(place.id))


async def load_standing(connection: asyncpg.Connection, place: Place) -> list[Standing]:
    """The active items of a session that stand in its prompt in some form."""
    rows = await connection.fetch(
        "select id, tokens, summary_tokens, priority, content_type, last_accessed, form, pinned,"
        " auto_compress as yields from infold.items where tenant = $1 and session = $2 and status = 0 and form < 3",
        place.tenant, place.id,
    )  # fmt: skip
    return [Standing(**{**dict(row), "form": ItemForm(row["form"])}) for row in rows]


async def set_forms(
    connection: asyncpg.Connection, place: Place, changes: Mapping[UUID, ItemForm], now: datetime
) -> int:
    """Give items other forms, and count it; how many became smaller. Belongs into a transaction."""
    if not changes:
        return 0
    rows = await connection.fetch(
        "select id, tokens, summary_tokens, form from infold.items"
        " where tenant = $1 and id = any($2) and status = 0 order by id for update",
        place.tenant, list(changes),
    )  # fmt: skip
    moved = {row["id"]: (row, changes[row["id"]]) for row in rows if row["form"] != changes[row["id"]]}
    used = sum(
        form_tokens(row["tokens"], row["summary_tokens"], form)
        - form_tokens(row["tokens"], row["summary_tokens"], ItemForm(row["form"]))
        for row, form in moved.values()
    )
    smaller: int = sum(form > row["form"] for row, form in moved.values())
    await connection.execute(
        "update infold.items i set form = new.form from unnest($2::uuid[], $3::smallint[]) as new (id, form)"
        " where i.tenant = $1 and i.id = new.id",
        place.tenant, list(moved), [int(form) for _, form in moved.values()],
    )  # fmt: skip
    await connection.execute(
        "update infold.states set used = used + $3, compressions = compressions + $4, updated_at = $5"
        " where tenant = $1 and id = $2",
        place.tenant, place.id, used, smaller, now,
    )  # fmt: skip
    return smaller


async def load_held(connection: asyncpg.Connection, place: Place) -> list[Held]:
    """What a working context is chosen from: the session's items in its prompt, and shared ones of other sessions."""
    rows = await connection.fetch(
        f"select {HELD} from infold.items where tenant = $1 and session = $2 and status = 0 and form < 3"
        f" union all select {HELD} from infold.items where tenant = $1 and shared and session <> $2 and status = 0"
        " and form < 3",
        place.tenant, place.id,
    )  # fmt: skip
    return [held_of(row) for row in rows]


async def load_listed(connection: asyncpg.Connection, place: Place, limit: int) -> list[Held]:
    """Active items of a session: those in its prompt, then the newest others."""
    rows = await connection.fetch(
        f"select {HELD} from infold.items where tenant = $1 and session = $2 and status = 0 and form < 3",
        place.tenant, place.id,
    )  # fmt: skip
    if len(rows) < limit:
        rows += await connection.fetch(
            f"select {HELD} from infold.items where tenant = $1 and session = $2 and status = 0 and form = 3"
            " order by created_at desc, id desc limit $3",
            place.tenant, place.id, limit - len(rows),
        )  # fmt: skip
    return [held_of(row) for row in rows]


def held_of(row: asyncpg.Record) -> Held:
    return Held(**{**dict(row), "form": ItemForm(row["form"])})


async def has_items(connection: asyncpg.Connection, tenant: bytes, session: UUID) -> bool:
    """Whether a session has active items; the session NIL has those that all of the tenant's see."""
    some = "select exists (select from infold.items where tenant = $1 and status = 0 and {})"
    if session == NIL:
        shared: bool = await connection.fetchval(some.format("shared"), tenant)
        return shared
    own: bool = await connection.fetchval(some.format("session = $2"), tenant, session)
    return own


async def track_usage(connection: asyncpg.Connection, place: Place, spent: Spent) -> bool:
    """Write down a call and count it in its session, in one statement; False where it was written down before.

    A connection may be lost between the commit and its word, so whoever tries again must not count twice.
    """
    await connection.execute(
        "select infold.enter($1, $2, $3, $4, $5)", place.tenant, place.id, place.name, spent.model, spent.at
    )
    status = await connection.execute(
        "with new as (insert into infold.usage (tenant, attempt, at, session, model, input_tokens, output_tokens,"
        " cost_usd, direct_usd) values ($1, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing"
        " returning input_tokens, output_tokens, cost_usd)"
        " update infold.states s set input_tokens = s.input_tokens + new.input_tokens,"
        " output_tokens = s.output_tokens + new.output_tokens, cost_usd = s.cost_usd + coalesce(new.cost_usd, 0),"
        " updated_at = $4 from new where s.tenant = $1 and s.id = $2",
        place.tenant, place.id, spent.attempt, spent.at, place.name, spent.model, spent.input_tokens,
        spent.output_tokens, spent.cost_usd, spent.direct_usd,
    )  # fmt: skip
    return str(status) == "UPDATE 1"


async def load_cases(connection: asyncpg.Connection, place: Place, limit: int, archived: bool) -> list[Case]:
    """The items of a session that hygiene may have something to do with, those first that were read longest ago."""
    rows = await connection.fetch(
        "select id, status, form, priority, content_type, pinned, last_accessed, created_at from infold.items"
        " where tenant = $1 and session = $2 and (status = 0 or $4 and status = 1) order by last_accessed limit $3",
        place.tenant, place.id, limit, archived,
    )  # fmt: skip
    return [Case(**{**dict(row), "status": ItemStatus(row["status"]), "form": ItemForm(row["form"])}) for row in rows]


async def recount(connection: asyncpg.Connection, place: Place, now: datetime) -> None:
    """Make a session's counters anew from its rows, so that no error of theirs lasts.

    Locked first: whoever has changed an item meanwhile adds the difference after us.
    """
    await connection.execute(
        "select from infold.states where tenant = $1 and id = $2 for update", place.tenant, place.id
    )
    await connection.execute(
        "update infold.states set tokens = sums.tokens, used = sums.used, untidied = 0, updated_at = $3,"
        " embedded = (select count(*) from infold.vectors v join infold.items i"
        "  on i.tenant = v.tenant and i.id = v.item where v.tenant = $1 and i.tenant = $1 and i.session = $2)"
        " from (select coalesce(sum(tokens), 0) as tokens, coalesce(sum(case form when 0 then tokens"
        "  when 1 then least(tokens, summary_tokens) when 2 then least(tokens, 40) else 0 end), 0) as used"
        "  from infold.items where tenant = $1 and session = $2 and status = 0) as sums"
        " where tenant = $1 and id = $2",
        place.tenant, place.id, now,
    )  # fmt: skip


async def load_calendar(connection: asyncpg.Connection) -> list[bytes]:
    """The tenants that have items, those first that were tidied longest ago. Ids alone, so any connection may ask."""
    rows = await connection.fetch("select tenant from infold.calendar order by tidied nulls first, tenant")
    return [row["tenant"] for row in rows]


async def load_overdue(connection: asyncpg.Connection, now: datetime, oldest_event: datetime) -> list[bytes]:
    """The tenants whose questions have expired by `now`, or that have events from before `oldest_event`."""
    rows = await connection.fetch("select tenant from infold.overdue($1, $2)", now, oldest_event)
    return [row["tenant"] for row in rows]


async def mark_tidied(connection: asyncpg.Connection, tenant: bytes, now: datetime) -> None:
    await connection.execute("update infold.calendar set tidied = $2 where tenant = $1", tenant, now)
