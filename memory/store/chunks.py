"""Embeddings of stored messages: written by the job worker, read by search.

Within one line of conversation an exact scan beats an index: some microseconds a row, recall 1.
"""

from collections.abc import Sequence

import asyncpg
import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector

Floats = NDArray[np.float32]


async def similarities(
    connection: asyncpg.Connection, tenant: bytes, space: str, nodes: Sequence[bytes], vector: Floats
) -> dict[bytes, float]:
    """Cosine of each message's nearest chunk to `vector` (384,), where the message has been embedded."""
    rows = await connection.fetch(
        "select node, max(1 - (embedding <=> $4)) as similarity from infold.chunks"
        " where tenant = $1 and space = $2 and node = any($3) group by node",
        tenant, space, nodes, HalfVector(vector),
    )  # fmt: skip
    return {row["node"]: row["similarity"] for row in rows}


async def are_embedded(connection: asyncpg.Connection, tenant: bytes, space: str, nodes: Sequence[bytes]) -> bool:
    """Has any of these messages been embedded?"""
    found: bool = await connection.fetchval(
        "select exists (select from infold.chunks where tenant = $1 and space = $2 and node = any($3))",
        tenant, space, nodes,
    )  # fmt: skip
    return found


async def to_embed(connection: asyncpg.Connection, tenant: bytes, space: str, tip: bytes) -> list[asyncpg.Record]:
    """The messages from the root to `tip` that have no embedding yet, but for those in quarantine: node, role, raw."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "with recursive line as ("
        " select node, parent, continues, role, raw, depth, digest from infold.nodes where tenant = $1 and node = $3"
        " union all"
        " select n.node, n.parent, n.continues, n.role, n.raw, n.depth, n.digest from infold.nodes n"
        " join line on n.tenant = $1 and n.node = coalesce(line.parent, line.continues))"
        " select node, role, raw from line where not exists"
        " (select from infold.chunks c where c.tenant = $1 and c.space = $2 and c.node = line.node)"
        " and not exists (select from infold.seals s where s.tenant = $1 and s.digest = line.digest) order by depth",
        tenant, space, tip,
    )  # fmt: skip
    return rows


async def save_chunks(
    connection: asyncpg.Connection,
    tenant: bytes,
    space: str,
    node: bytes,
    spans: Sequence[tuple[int, int]],
    vectors: Floats,
) -> None:
    """Store a message's embeddings, a row a chunk; again changes nothing. None for a message in quarantine."""
    await connection.execute("select pg_advisory_xact_lock_shared(infold.door($1))", tenant)
    await connection.executemany(
        "insert into infold.chunks (tenant, node, space, ordinal, start, stop, embedding)"
        " select $1, $2, $3, $4, $5, $6, $7 where not exists (select from infold.seals s join infold.nodes n"
        "  on n.tenant = s.tenant and n.digest = s.digest where s.tenant = $1 and n.node = $2) on conflict do nothing",
        [
            (tenant, node, space, ordinal, start, stop, HalfVector(vector))
            for ordinal, ((start, stop), vector) in enumerate(zip(spans, vectors, strict=True))
        ],
    )
