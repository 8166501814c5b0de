"""Jobs: later work, enqueued in the transaction that made it true. Each can run twice with the same result."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import structlog

from memory.embed import Embedder, chunks
from memory.find import kind_id, space_id
from memory.messages import Message
from memory.reinject import spoken
from memory.store import passages
from memory.store.chunks import save_chunks, to_embed
from memory.store.items import holds, load_items
from memory.store.pool import Pool

log = structlog.get_logger()

MOST_CHUNKS = 64  # of one message: the first 12,000 tokens; a log has no more meaning than that
WAIT_SECONDS = 30.0

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


EMBEDDED_AT_ONCE = 64  # passages in a transaction: what a worker that is killed loses


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
        vectors = await embedder.embed([row.content[span.start : span.stop] for span in spans])
        ordinals = [span.ordinal for span in spans]
        kind = kind_id(row.content_type)
        async with pool.tenant(tenant, WAIT_SECONDS) as connection:
            if await holds(connection, tenant, id, row.digest):  # else it was corrected meanwhile: begin again
                done += await passages.save_vectors(connection, tenant, id, space, kind, ordinals, vectors)
