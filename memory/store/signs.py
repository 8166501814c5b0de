"""Signs of vectors as the database has them, for the processes that keep them."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import numpy as np
from asyncpg.pgproto.pgproto import UUID as FastUUID
from numpy.typing import NDArray
from pgvector import HalfVector

from memory.find import Candidate, Wanted
from memory.signs import Mark, Page
from memory.store.passages import Scope, Words, candidates

Floats = NDArray[np.float32]

PAGE = 10_000  # vectors of a session that one search reads, some 20 ms


async def load_signs(
    connection: asyncpg.Connection,
    tenant: bytes,
    space: int,
    sessions: Sequence[UUID],
    marks: Sequence[Mark],
    most: int = PAGE,
) -> list[Page]:
    """What came to each session behind its mark; the nil session is that of shared items."""
    rows = await connection.fetch(
        "select horizon, ahead, heads, signs from infold.load_signs($1, $2, $3, $4, $5, $6, $7)",
        tenant, space, sessions, [mark.arrived for mark in marks], [mark.item for mark in marks],
        [mark.ordinal for mark in marks], most,
    )  # fmt: skip
    return [Page(*row) for row in rows]


async def search_kept(
    connection: asyncpg.Connection,
    scope: Scope,
    words: Words,
    wanted: Wanted,
    space: int,
    query: Floats,
    k: int,
    near: NDArray[np.void],
) -> list[Candidate] | None:
    """As `search_items`, of what kept signs say is near; None where some of it is there no longer.

    Args:
        near: heads, of passages of the scope.
    """
    ids = near["item"].tobytes()
    rows = await connection.fetch(
        "select * from infold.search_kept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        scope.tenant, scope.sessions, [item for item, _ in words.passages],
        [ordinal for _, ordinal in words.passages], space, HalfVector(query), k,
        [FastUUID(ids[start : start + 16]) for start in range(0, len(ids), 16)],  # a tenth of a UUID's time
        near["ordinal"].tolist(), near["arrived"].tolist(),
    )  # fmt: skip
    if len(near) and (not rows or rows[0]["still_there"] < len(near)):
        return None
    return await candidates(rows, wanted)
