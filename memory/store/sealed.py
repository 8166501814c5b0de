"""What conversations hold of a text in quarantine: what was made of messages goes, they themselves stay for their line.

Blocks that brought an item back go with the item, and with what it said, should it be gone or changed by now.
"""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import orjson

from memory.identify import item_hint
from memory.prompts import note_mark
from memory.seal import SHORT_CHARS, holds, needle
from memory.store.turns import decode_fold
from memory.types import Block

PREFETCH = 200
DERIVED = ("forwarded", "stretches", "block")  # of an attempt's record: text of ours that may tell what was said


async def withdraw(connection: asyncpg.Connection, tenant: bytes, text: str) -> list[bytes]:
    """Delete embeddings, digests and blocks that may tell a text; gives the digests of the messages that say it."""
    found = await saying(connection, tenant, text)
    if not found:
        return []
    nodes = [node for node, _ in found]
    await connection.execute("delete from infold.chunks where tenant = $1 and node = any($2)", tenant, nodes)
    after = await behind(connection, tenant, nodes)
    await connection.execute("delete from infold.folds where tenant = $1 and node = any($2)", tenant, after)
    await redact(connection, tenant, after)
    return list({digest for _, digest in found})


async def saying(connection: asyncpg.Connection, tenant: bytes, text: str) -> list[tuple[bytes, bytes]]:
    """Messages that say a text: node and digest. All of the tenant are read: none may escape."""
    query = (
        "select node, digest, raw from infold.nodes where tenant = $1 and ($2 = ''::bytea or position($2 in raw) > 0)"
    )
    return [
        (row["node"], row["digest"])
        async for row in connection.cursor(query, tenant, needle(text), prefetch=PREFETCH)
        if holds(row["raw"], text)
    ]


async def behind(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes]) -> list[bytes]:
    """Nodes, and all that come after them, also where a client cut its history."""
    known, fresh = set(nodes), list(nodes)
    while fresh:
        rows = await connection.fetch(
            "with recursive behind as (select unnest($2::bytea[]) as node"
            " union select n.node from infold.nodes n join behind b on n.tenant = $1 and n.parent = b.node)"
            " select node from behind",
            tenant, fresh,
        )  # fmt: skip
        known.update(row["node"] for row in rows)
        cut = await connection.fetch(
            "select node from infold.nodes where tenant = $1 and continues = any($2)", tenant, list(known)
        )
        fresh = [row["node"] for row in cut if row["node"] not in known]
    return list(known)


async def withdraw_brought(connection: asyncpg.Connection, tenant: bytes, items: Sequence[UUID], text: str) -> None:
    """Delete the blocks that brought items, or the text, and take them out of the records of turns they stood in."""
    marks = [note_mark(item_hint(id)).encode() for id in items]
    words = marks if len(text.strip()) < SHORT_CHARS else [*marks, needle(text)]  # an empty one stands everywhere
    telling = "tenant = $1 and exists (select from unnest($2::bytea[]) as word where position(word in {}) > 0)"
    blocks = f"select node, data from infold.folds where kind = 'block' and {telling.format('data')}"
    nodes = [
        row["node"]
        async for row in connection.cursor(blocks, tenant, words, prefetch=PREFETCH)
        if tells_block(row["data"], marks, text)
    ]
    await connection.execute(
        "delete from infold.folds where tenant = $1 and kind = 'block' and node = any($2)", tenant, nodes
    )
    attempts = f"select id, record from infold.attempts where {telling.format('record')}"
    rows = connection.cursor(attempts, tenant, words, prefetch=PREFETCH)
    await redact_rows(connection, tenant, [row async for row in rows if tells(row["record"], marks, text)])


def tells_block(data: bytes, marks: Sequence[bytes], text: str) -> bool:
    block = decode_fold("block", data)
    return isinstance(block, Block) and any(tells(raw, marks, text) for raw in (block.kept, block.filled) if raw)


def tells(raw: bytes, marks: Sequence[bytes], text: str) -> bool:
    return any(mark in raw for mark in marks) or holds(raw, text)


async def redact(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes]) -> None:
    """Take out of the records of turns what may tell a text; the numbers stay."""
    rows = await connection.fetch(
        "select id, record from infold.attempts where tenant = $1 and node = any($2)", tenant, nodes
    )
    await redact_rows(connection, tenant, rows)


async def redact_rows(connection: asyncpg.Connection, tenant: bytes, rows: Sequence[asyncpg.Record]) -> None:
    changed = []
    for row in rows:
        record = orjson.loads(row["record"])
        if any(record.get(name) for name in DERIVED):
            kept = {name: value for name, value in record.items() if name not in DERIVED}
            changed.append((tenant, row["id"], orjson.dumps(kept | {"redacted": True})))
    await connection.executemany("update infold.attempts set record = $3 where tenant = $1 and id = $2", changed)
