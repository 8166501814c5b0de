"""Jobs: later work, enqueued in the transaction that made it true. Each can run twice with the same result."""

import asyncio
from collections.abc import Callable

import structlog

from memory.embed import Embedder, chunks
from memory.messages import Message
from memory.reinject import spoken
from memory.store.chunks import save_chunks, to_embed
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
