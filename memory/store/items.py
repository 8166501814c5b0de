"""Items: text that programs stored, whole. What of it is searched is in `passages.py`, the counters in `states.py`.

Rows are locked in this order everywhere: items, tenants, states. Items in quarantine are nobody's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from memory.errors import Conflict, StoreBusy
from memory.forms import form_tokens
from memory.nouns import ItemForm, ItemStatus, Place
from memory.store.passages import NewPassage, columns_of, delete_passages, insert_passages

HELD = "IF409"  # the error code of `infold.refuse_held`
ANSWER_BYTES = 64 * 2**20  # of contents in one answer; the first comes always, and an item is never larger
LOCK_SECONDS = "5s"  # whoever changes counters waits so long for whoever else does

# Large ones are cut where the first characters are enough.
NAMES = (
    "id, session, shared, status, form, priority, pinned, auto_compress, content_type, digest, content, summary,"
    " tokens, summary_tokens, access_count, last_accessed, created_at, updated_at, metadata"
)
HEADS = NAMES.replace("content, summary", "left(content, 500) as content, summary")  # enough for a summary
CUT = NAMES.replace("content, summary", "case when whole then content else left(content, 500) end as content, summary")


class ItemRow(msgspec.Struct, frozen=True, array_like=True):
    """An item as it is stored."""

    id: UUID
    session: UUID
    shared: bool
    status: int
    form: int
    priority: int
    pinned: bool
    auto_compress: bool
    content_type: str
    digest: bytes
    content: str
    summary: str | None
    tokens: int
    summary_tokens: int
    access_count: int
    last_accessed: datetime
    created_at: datetime
    updated_at: datetime
    metadata: str | None
    whole: bool = True  # False: the answer was full, and `content` is the beginning alone

    @property
    def counted(self) -> tuple[int, int]:
        """What it adds to its session's tokens and to those used; nothing where it is not active."""
        if self.status != ItemStatus.ACTIVE:
            return 0, 0
        return self.tokens, form_tokens(self.tokens, self.summary_tokens, ItemForm(self.form))


class Text(msgspec.Struct, frozen=True):
    """An item's content with all that is made of it."""

    content: str
    digest: bytes
    summary: str | None  # None: the first characters of the content
    tokens: int
    summary_tokens: int
    passages: tuple[NewPassage, ...]


class NewItem(msgspec.Struct, frozen=True):
    id: UUID
    shared: bool
    priority: int
    auto_compress: bool
    content_type: str
    kind: int  # hash of the type
    text: Text
    metadata: str | None
    job: bool  # whether its passages are embedded later
    form: ItemForm = ItemForm.FULL


class Added(msgspec.Struct, frozen=True):
    """A session's counters after an item was added; `added` False: it was there already."""

    tokens: int
    used: int
    untidied: int
    added: bool


class ItemChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an item; UNSET leaves a thing as it is."""

    priority: int | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    metadata: str | UnsetType | None = UNSET
    text: Text | UnsetType = UNSET
    archived: bool | UnsetType = UNSET
    form: ItemForm | UnsetType = UNSET
    kind: int = 0  # hash of the type, for new passages


def item_of(record: asyncpg.Record) -> ItemRow:
    return ItemRow(*record)


async def add_item(connection: asyncpg.Connection, place: Place, model: str, new: NewItem, now: datetime) -> Added:
    """Store an item with its passages, and the job that embeds them; again with the same id changes nothing.

    Raises:
        Conflict: its content or metadata holds what is in quarantine.
        StoreBusy: its session was erased meanwhile; the next try makes it anew.
    """
    text = new.text
    with refusing():
        row = await connection.fetchrow(
            "select * from infold.add_item($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
            " $18, $19, $20, $21, $22, $23, $24, $25)",
            place.tenant, place.id, place.name, model, now, new.id, new.shared, int(new.form), new.priority,
            new.auto_compress, new.content_type, text.digest, text.content, text.summary, text.tokens,
            text.summary_tokens, form_tokens(text.tokens, text.summary_tokens, new.form), new.metadata, new.kind,
            *columns_of(text.passages), new.job, now,
        )  # fmt: skip
    if row is None:
        raise StoreBusy("all of the tenant was erased while the item was added")
    return Added(*row)


async def retrieve_item(
    connection: asyncpg.Connection, tenant: bytes, id: UUID, full: bool, now: datetime, count: bool = True
) -> ItemRow | None:
    """One item of the tenant, counted as read: as a decompression where `full`, else as a cache hit."""
    row = await connection.fetchrow(
        f"select {NAMES} from infold.retrieve_item($1, $2, $3, $4, $5)", tenant, id, full, now, count
    )
    return None if row is None else item_of(row)


async def load_items(
    connection: asyncpg.Connection, tenant: bytes, ids: Sequence[UUID], content: bool = True
) -> dict[UUID, ItemRow]:
    """Items by id, without counting; without `content`, and beyond ANSWER_BYTES, 500 characters stand for it."""
    rows = await connection.fetch(
        f"select {CUT}, whole from (select *, taken <= $4 or taken = octet_length(content) as whole"
        " from (select *, sum(octet_length(content)) over (order by place) as taken from infold.load_items($1, $2, $3)"
        " join unnest($2::uuid[]) with ordinality as asked (id, place) using (id)) as counted) as items",
        tenant, ids, content, ANSWER_BYTES,
    )  # fmt: skip
    return {row["id"]: item_of(row) for row in rows}


async def list_items(
    connection: asyncpg.Connection,
    tenant: bytes,
    session: UUID | None,
    before: tuple[datetime, UUID] | None,
    limit: int,
    status: ItemStatus | None,
    content: bool = True,
) -> tuple[list[ItemRow], bool]:
    """A page of items, newest first, of a session or of all, and whether more follow.

    Args:
        before: where the page above ended.
        limit: of rows; a page ends before its contents have more than ANSWER_BYTES, too.
    """
    given: list[object] = [tenant, limit, ANSWER_BYTES]
    conditions = ["tenant = $1", "status <> 2"]
    for condition, values in (
        ("session = ${}", () if session is None else (session,)),
        ("(created_at, id) < (${}, ${})", before or ()),
        ("status = ${}", () if status is None else (int(status),)),
    ):
        if values:
            conditions.append(condition.format(*range(len(given) + 1, len(given) + 1 + len(values))))
            given.extend(values)
    rows = await connection.fetch(
        f"select {NAMES}, total from (select *, count(*) over () as total, row_number() over above as place,"
        f" sum(octet_length(content)) over above as taken from (select {NAMES if content else HEADS} from infold.items"
        f" where {' and '.join(conditions)} order by created_at desc, id desc limit $2 + 1) as page"
        " window above as (order by created_at desc, id desc)) as items"
        " where place <= $2 and (taken <= $3 or place = 1) order by place",
        *given,
    )
    return [ItemRow(*row[:-1]) for row in rows], bool(rows) and rows[0]["total"] > len(rows)


async def change_item(
    connection: asyncpg.Connection, tenant: bytes, id: UUID, changes: ItemChanges, now: datetime
) -> ItemRow | None:
    """Change an item and the counters it is in; None where there is none. Belongs into a transaction.

    Raises:
        Conflict: the new content or metadata holds what is in quarantine.
    """
    if isinstance(changes.text, Text) or isinstance(changes.metadata, str):
        content = changes.text.content if isinstance(changes.text, Text) else ""
        metadata = changes.metadata if isinstance(changes.metadata, str) else None
        await refuse_held(connection, tenant, content, metadata)
    old = await lock_item(connection, tenant, id)
    if old is None or old.status == ItemStatus.QUARANTINED:
        return None
    status = old.status if changes.archived is UNSET else ItemStatus(changes.archived)
    set_to: dict[str, object] = {
        "priority": changes.priority,
        "pinned": changes.pinned,
        "metadata": changes.metadata,
        "status": int(status),
        "form": changes.form,
        "last_accessed": now if status < old.status else UNSET,  # who brings it back has read it
    }
    if isinstance(changes.text, Text):
        text = changes.text
        set_to |= {
            "content": text.content, "digest": text.digest, "summary": text.summary, "tokens": text.tokens,
            "summary_tokens": text.summary_tokens,
        }  # fmt: skip
    said = {name: value for name, value in set_to.items() if value is not UNSET}
    written = ", ".join(f"{name} = ${number}" for number, name in enumerate(said, 4))
    row = item_of(
        await connection.fetchrow(
            f"update infold.items set {written}, updated_at = $3 where tenant = $1 and id = $2 returning {NAMES}",
            tenant, id, now, *said.values(),
        )
    )  # fmt: skip
    passages, embedded = 0, 0
    if isinstance(changes.text, Text):
        passages, embedded = await delete_passages(connection, tenant, id)
        passages = len(changes.text.passages) - passages
        place = row.session if not row.shared else None
        await insert_passages(connection, tenant, id, place, changes.kind, status == 0, changes.text.passages)
        await want_vectors(connection, tenant, id)
    if status != old.status:
        await show_to_search(connection, tenant, id, status == ItemStatus.ACTIVE)
    await count(connection, tenant, row.session, difference(old, row), passages, -embedded, now)
    return row


async def refuse_held(connection: asyncpg.Connection, tenant: bytes, content: str, metadata: str | None = None) -> None:
    """Before any item is locked: an isolation takes its locks in that order, too.

    Raises:
        Conflict: content or metadata holds what is in quarantine.
    """
    await be_patient(connection)
    with refusing():
        await connection.execute("select infold.refuse_held($1, $2, $3)", tenant, content, metadata)


@contextmanager
def refusing() -> Iterator[None]:
    """Says in our words what `infold.refuse_held` says."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if error.sqlstate != HELD:
            raise
        raise Conflict("content holds text that is held in quarantine; a person has to release it", "content") from None


async def delete_item(connection: asyncpg.Connection, tenant: bytes, id: UUID, now: datetime) -> bool:
    """Remove an item and all that was made of it, unless it is in quarantine. Belongs into a transaction."""
    old = await lock_item(connection, tenant, id)
    if old is None or old.status == ItemStatus.QUARANTINED:
        return False
    passages, embedded = await delete_passages(connection, tenant, id)
    await connection.execute("delete from infold.items where tenant = $1 and id = $2", tenant, id)
    tokens, used = old.counted
    await count(connection, tenant, old.session, (-tokens, -used), -passages, -embedded, now)
    return True


async def holds(connection: asyncpg.Connection, tenant: bytes, id: UUID, digest: bytes) -> bool:
    """Whether an item still has that content; until the transaction ends nobody changes it."""
    row = await connection.fetchval(
        "select true from infold.items where tenant = $1 and id = $2 and digest = $3 and status <> 2 for share",
        tenant, id, digest,
    )  # fmt: skip
    return row is not None


async def session_of(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> str | None:
    """The name of an item's session; None: there is no such item."""
    name: str | None = await connection.fetchval(
        "select s.name from infold.items i join infold.states s on s.tenant = i.tenant and s.id = i.session"
        " where i.tenant = $1 and i.id = $2",
        tenant, id,
    )  # fmt: skip
    return name


async def lock_item(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> ItemRow | None:
    await be_patient(connection)
    row = await connection.fetchrow(
        f"select {HEADS} from infold.items where tenant = $1 and id = $2 for update", tenant, id
    )
    return None if row is None else item_of(row)


async def be_patient(connection: asyncpg.Connection) -> None:
    """Wait longer for a lock than a request of the proxy would; until the transaction ends."""
    await connection.execute("select set_config('lock_timeout', $1, true)", LOCK_SECONDS)


async def want_vectors(connection: asyncpg.Connection, tenant: bytes, id: UUID) -> None:
    """Enqueue the embedding of an item."""
    await enqueue(connection, "embed_item", tenant, id)


async def enqueue(connection: asyncpg.Connection, entrypoint: str, tenant: bytes, id: UUID) -> None:
    """A job; while the same one waits, no second one."""
    payload = f"{tenant.hex()} {id}"
    await connection.execute(
        "insert into infold.pgqueuer (priority, entrypoint, payload, status, dedupe_key)"
        " values (0, $1, $2, 'queued', $3) on conflict do nothing",
        entrypoint, payload.encode(), f"{entrypoint} {payload}",
    )  # fmt: skip


async def show_to_search(connection: asyncpg.Connection, tenant: bytes, id: UUID, live: bool) -> None:
    """Vectors that come back arrive anew, for those who keep their signs."""
    for table, more in (("passages", ""), ("vectors", ", arrived = default")):
        update = f"update infold.{table} set live = $3{more} where tenant = $1 and item = $2"
        await connection.execute(update, tenant, id, live)


def difference(old: ItemRow, new: ItemRow) -> tuple[int, int]:
    (tokens_before, used_before), (tokens, used) = old.counted, new.counted
    return tokens - tokens_before, used - used_before


async def count(
    connection: asyncpg.Connection,
    tenant: bytes,
    session: UUID,
    tokens_and_used: tuple[int, int],
    passages: int,
    embedded: int,
    now: datetime,
) -> None:
    """Add to the counters of a tenant and a session what has become more or less."""
    if passages or embedded:
        await connection.execute(
            "update infold.tenants set passages = passages + $2, embedded = embedded + $3 where tenant = $1",
            tenant, passages, embedded,
        )  # fmt: skip
    await connection.execute(
        "update infold.states set tokens = tokens + $3, used = used + $4, embedded = embedded + $5, updated_at = $6"
        " where tenant = $1 and id = $2",
        tenant, session, *tokens_and_used, embedded, now,
    )  # fmt: skip
