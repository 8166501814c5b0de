"""Jobs: later work, enqueued in the transaction that made it true. Each can run twice with the same result.

Of items: their embedding, and hygiene of a session that has grown or, by the calendar, of all. Of questions and
events: what becomes of them with time. What is done is told as an event.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from memory.embed import Embedder, chunks, embed_segmented
from memory.errors import ModelError, StoreError
from memory.find import kind_id, space_id
from memory.humans import Humans
from memory.items import Items
from memory.messages import Message, spoken
from memory.nouns import Clock, HygieneReport, Place, utc_now
from memory.queue import Handler
from memory.rows import is_fine
from memory.store import passages
from memory.store.chunks import save_chunks, to_embed
from memory.store.items import holds, load_items, session_of, want_vectors
from memory.store.pool import Pool
from memory.store.sealed import seal_late
from memory.store.signals import delete_events, tell
from memory.store.states import list_places, load_calendar, load_names, load_overdue, mark_tidied

log = structlog.get_logger()

MOST_CHUNKS = 64  # of one message: the first 12,000 tokens; a log has no more meaning than that
WAIT_SECONDS = 30.0
SEAL_SECONDS = 600.0  # for a message that is looked at for all that is in quarantine
EMBEDDED_AT_ONCE = 64  # passages of an item in a transaction: what a worker that is killed loses
EVENTS_KEPT = timedelta(days=1)
TRIES, TRY_AGAIN_SECONDS = 5, 1.0  # an embedder that does not answer; doubled each time

ReadMessage = Callable[[bytes], Message]


def parse_payload(payload: bytes | None) -> tuple[bytes, bytes]:
    """A job's tenant and node; queue rows hold nothing else."""
    tenant, node = (payload or b"").decode().split(" ")
    return bytes.fromhex(tenant), bytes.fromhex(node)


async def embed_line(pool: Pool, embedder: Embedder, read: ReadMessage, tenant: bytes, tip: bytes) -> int:
    """Embed the messages of a line that have no embedding yet; gives how many.

    Raises:
        ModelError: the embedder did not answer; what was done is kept.
        StoreError: the database did not take it.
    """
    async with pool.tenant(tenant, WAIT_SECONDS) as connection:
        rows = await to_embed(connection, tenant, embedder.name, tip)
    for row in rows:
        text = spoken(read(row["raw"]))
        spans = (await asyncio.to_thread(chunks, text))[:MOST_CHUNKS] or [(0, 0)]
        vectors = await embedder.embed([text[start:stop] for start, stop in spans])
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            await save_chunks(connection, tenant, embedder.name, row["node"], spans, vectors)
    return len(rows)


async def embed_item(
    pool: Pool, embedder: Embedder, tenant: bytes, item: UUID | str, batch: int = EMBEDDED_AT_ONCE
) -> int:
    """Embed the passages of an item that have no vector yet; gives how many.

    Raises:
        ModelError: the embedder did not answer; what was done is kept.
        StoreError: the database did not take it.
    """
    id, space, done = UUID(str(item)), space_id(embedder.name), 0
    while True:
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            spans = await passages.to_embed(connection, tenant, id, space, batch)
            row = (await load_items(connection, tenant, [id])).get(id) if spans else None
        if row is None:
            return done
        texts = [row.content[span.start : span.stop] for span in spans]
        made = await embed_segmented(embedder, texts, is_fine(row.content))
        ordinals, kind = [span.ordinal for span in spans], kind_id(row.content_type)
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            if await holds(connection, tenant, id, row.digest):  # else it was corrected meanwhile: begin again
                done += await passages.save_vectors(connection, tenant, id, space, kind, ordinals, made)


def parse_item(payload: bytes | None) -> tuple[bytes, UUID]:
    """A job's tenant and its item or session."""
    tenant, id = (payload or b"").decode().split(" ")
    return bytes.fromhex(tenant), UUID(id)


def item_handlers(pool: Pool, items: Items, embedder: Embedder | None, clock: Clock = utc_now) -> list[Handler]:
    """The jobs of items, and of messages to seal; without an embedder those that embed wait for who has one."""

    async def tidy(payload: bytes | None) -> None:
        tenant, session = parse_item(payload)
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            names = await load_names(connection, tenant, [session])
        if session in names:
            report = await items.hygiene(Place(tenant, names[session], session))
            tell_of(report)
            await job_done(pool, tenant, names[session], {"name": "tidy", **counted([report])}, clock())

    async def seal(payload: bytes | None) -> None:
        await seal_patiently(pool, *parse_payload(payload))

    if embedder is None:
        return [Handler("tidy", tidy), Handler("seal", seal)]

    async def embed(payload: bytes | None) -> None:
        tenant, item = parse_item(payload)
        passages = await embed_patiently(pool, embedder, tenant, item)
        if passages is None:
            return
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            session = await session_of(connection, tenant, item)
        await job_done(pool, tenant, session, {"name": "embed_item", "item_id": item, "passages": passages}, clock())

    return [Handler("embed_item", embed), Handler("tidy", tidy), Handler("seal", seal)]


async def embed_patiently(pool: Pool, embedder: Embedder, tenant: bytes, item: UUID) -> int | None:
    """Embed an item; gives how many passages.

    None: the embedder stays silent, and is left alone; the next hygiene asks again for what is missing.
    """
    for tried in range(TRIES):
        try:
            count = await embed_item(pool, embedder, tenant, item)
        except ModelError as error:
            log.warning("the embedder did not answer", item=str(item), tried=tried + 1, reason=str(error))
            await asyncio.sleep(TRY_AGAIN_SECONDS * 2**tried)
        else:
            log.info("embedded", passages=count)
            return count
    return None


async def seal_patiently(pool: Pool, tenant: bytes, node: bytes) -> None:
    """Seal a message that was not looked at when it came. None may escape, so it is tried until it is done."""
    for tried in itertools.count():
        try:
            async with pool.tenant(tenant, SEAL_SECONDS) as connection:
                await seal_late(connection, tenant, node)
        except StoreError as error:
            log.warning("a message is not looked at yet", tried=tried + 1, reason=str(error))
            await asyncio.sleep(TRY_AGAIN_SECONDS * 2 ** min(tried, 6))
        else:
            return


async def hygiene(pool: Pool, items: Items, embedder: Embedder | None, clock: Clock) -> None:
    """Tidy all sessions of all tenants, and ask again for vectors that are missing.

    A tenant whose turn fails waits for the next run, like those whose turn went well: else it came first every time.

    Raises:
        StoreError: the database has gone meanwhile.
    """
    async with pool.connection(WAIT_SECONDS) as connection:
        tenants = await load_calendar(connection)
    for tenant in tenants:
        try:
            await tidy_tenant(pool, items, embedder, tenant, clock)
        except StoreError as error:
            log.warning("not tidied", tenant=tenant.hex(), reason=str(error))
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            await mark_tidied(connection, tenant, clock())


async def tidy_tenant(pool: Pool, items: Items, embedder: Embedder | None, tenant: bytes, clock: Clock) -> None:
    async with pool.tenant(tenant, WAIT_SECONDS) as connection:
        places = await list_places(connection, tenant)
    reports = []
    for place in places:
        reports.append(await items.hygiene(place))
        tell_of(reports[-1])
    if embedder is not None:
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            for id in await passages.not_embedded(connection, tenant, space_id(embedder.name)):
                await want_vectors(connection, tenant, id)
    await job_done(pool, tenant, None, {"name": "hygiene", "sessions": len(reports), **counted(reports)}, clock())


async def expire(pool: Pool, humans: Humans, clock: Clock) -> None:
    """Write down which questions nobody answered in time, tell who waits, and delete events of more than a day ago."""
    async with pool.connection(WAIT_SECONDS) as connection:
        tenants = await load_overdue(connection, clock(), clock() - EVENTS_KEPT)
    for tenant in tenants:
        await humans.expire(tenant)
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            await delete_events(connection, tenant, clock() - EVENTS_KEPT)


async def job_done(
    pool: Pool, tenant: bytes, session_name: str | None, data: Mapping[str, object], now: datetime
) -> None:
    """Tell that a job is done. One that is cut off before this runs again, so a job may be told twice, never not."""
    async with pool.tenant(tenant, WAIT_SECONDS) as connection:
        await tell(connection, tenant, "job", session_name, data, now)


def counted(reports: Sequence[HygieneReport]) -> dict[str, int]:
    names = ("compressed", "archived", "deleted", "kept")
    return {name: sum(getattr(report, name) for report in reports) for name in names}


def tell_of(report: HygieneReport) -> None:
    log.info("tidied", compressed=report.compressed, archived=report.archived, deleted=report.deleted, kept=report.kept)
