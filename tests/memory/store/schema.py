"""The functions of the schema as a store calls them, with every argument given, and items enough to search in."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID
from zlib import crc32

import asyncpg
import numpy as np
from pgvector import HalfVector

from memory.identify import place
from memory.nouns import NIL, Place
from tests.clock import NOON
from tests.conversations import TENANT

SPACE = 7
NOTE, LOG = 1, 2
HOME = place(TENANT, "home")


def terms(words: str) -> list[int]:
    return sorted({crc32(word.encode()) - 2**31 for word in words.split()})


async def add(
    connection: asyncpg.Connection,
    id: UUID,
    passages: Sequence[str] = ("one two three",),
    *,
    at: Place = HOME,
    shared: bool = False,
    form: int = 0,
    tokens: int = 100,
    kind: int = NOTE,
    job: bool = False,
    now: datetime = NOON,
) -> asyncpg.Record:
    text = " ".join(passages)
    starts = [sum(len(p) + 1 for p in passages[:n]) for n in range(len(passages))]
    return await connection.fetchrow(
        "select * from infold.add_item($1, $2, $3, 'gpt-4o', $4, $5, $6, $7, 0::smallint, true, 'note', $8, $9, null, $10,"
        " 10, $11, null, $12, $13, $14, $15, $16, $17, $4)",
        at.tenant, at.id, at.name, now, id, shared, form, b"digest", text, tokens, (tokens, 10, 5, 0)[form], kind,
        starts, [start + len(p) for start, p in zip(starts, passages, strict=True)], [len(p.split()) for p in passages],
        ["{" + ",".join(map(str, terms(p))) + "}" for p in passages], job,
    )  # fmt: skip


async def retrieve(
    connection: asyncpg.Connection, id: UUID, *, tenant: bytes = TENANT, full: bool = True, count: bool = True
) -> asyncpg.Record | None:
    return await connection.fetchrow(
        "select * from infold.retrieve_item($1, $2, $3, $4, $5)", tenant, id, full, NOON, count
    )


async def save_vectors(
    connection: asyncpg.Connection, id: UUID, vectors: Iterable[Any], *, tenant: bytes = TENANT, kind: int = NOTE
) -> int:
    rows = [HalfVector(vector) for vector in vectors]
    written: int = await connection.fetchval(
        "select infold.save_vectors($1, $2, $3, $4, $5, $6, '{}', '{}', $7)",
        tenant, id, SPACE, kind, list(range(len(rows))), rows, [0] * len(rows),
    )  # fmt: skip
    return written


async def find_words(
    connection: asyncpg.Connection, words: str, *, at: Place = HOME, scope: list[UUID] | None = None, kinds: Any = None,
    archived: bool = False,
) -> list[tuple[UUID, int]]:  # fmt: skip
    wanted = terms(words)
    rows = await connection.fetch(
        "select * from infold.find_words($1, $2, $3, $4, $5, 10, 3, 50)", at.tenant, scope, kinds, archived, wanted
    )  # fmt: skip
    return [(row["item"], row["ordinal"]) for row in rows]


async def search(
    connection: asyncpg.Connection, query: Any, *, at: Place = HOME, scope: list[UUID] | None = None, kinds: Any = None,
    archived: bool = False, words: Sequence[tuple[UUID, int]] = (), k: int = 10,
    exact: int = 2_000, bits: int = 10_000,
) -> list[asyncpg.Record]:  # fmt: skip
    rows: list[asyncpg.Record] = await connection.fetch(
        "select * from infold.search_items($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        at.tenant, scope, kinds, archived, [item for item, _ in words], [ordinal for _, ordinal in words],
        SPACE, None if query is None else HalfVector(query), k, exact, bits,
    )  # fmt: skip
    return rows


async def fill(
    owner: asyncpg.Connection, at: Place, vectors: Any, *, shared: bool = False, kind: int = NOTE
) -> list[UUID]:
    """An item of one passage a vector (n, 384), written past the functions; gives their ids, in order."""
    rng = np.random.default_rng(len(vectors) + int(shared))
    ids = [UUID(bytes=rng.bytes(16)) for _ in range(len(vectors))]
    session = NIL if shared else at.id
    await owner.execute("select infold.enter($1, $2, $3, '', $4)", at.tenant, at.id, at.name, NOON)
    await owner.execute(
        "insert into infold.items (tenant, id, session, shared, content_type, digest, content, tokens, summary_tokens,"
        " last_accessed, created_at, updated_at) select $1, id, $2, $3, 'note', '', 'text', 1, 1, $4, $4, $4"
        " from unnest($5::uuid[]) as new (id)", at.tenant, at.id, shared, NOON, ids,
    )  # fmt: skip
    await owner.execute(
        "insert into infold.passages (tenant, item, ordinal, session, kind, start, stop, length, terms)"
        " select $1, id, 0, $2, $3, 0, 4, 1, array[n::integer, 0] from unnest($4::uuid[]) with ordinality as new (id, n)",
        at.tenant, session, kind, ids,
    )  # fmt: skip
    await owner.execute(
        "insert into infold.vectors (tenant, item, ordinal, space, session, kind, embedding, bits)"
        " select $1, id, 0, $2, $3, $4, vector, binary_quantize(vector)::bit(384)"
        " from unnest($5::uuid[], $6::halfvec[]) as new (id, vector)",
        at.tenant, SPACE, session, kind, ids, [HalfVector(vector) for vector in vectors],
    )  # fmt: skip
    await owner.execute(
        "update infold.tenants set embedded = embedded + $2, passages = passages + $2 where tenant = $1",
        at.tenant,
        len(ids),
    )
    await owner.execute(
        "update infold.states set embedded = embedded + $3 where tenant = $1 and id = $2", at.tenant, at.id, len(ids)
    )
    return ids
