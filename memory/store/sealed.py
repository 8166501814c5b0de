"""What conversations hold of a text in quarantine: what was made of messages goes, they themselves stay for their line.

Blocks that brought an item back go with the item, and with what it said, should it be gone or changed by now.
"""

from collections.abc import Collection, Sequence
from uuid import UUID

import asyncpg

from memory.identify import item_hint
from memory.prompts import note_mark
from memory.seal import holds, needle, pieces
from memory.store.quarantine import count_isolation, save_seals, shut_the_door
from memory.store.turns import redacted

PREFETCH = 200
NO_BOUND = 2**62  # bytes to search
SAYING = (
    "select node, digest, raw, digest = any($3) as named from infold.nodes"
    " where tenant = $1 and ($2 = ''::bytea or position($2 in raw) > 0 or digest = any($3))"
)
FEW = "with few as materialized (select node from infold.nodes where tenant = $1 and age(xmin) <= age($4::text::xid))"
# With one of the marks, or with all the pieces of the text, in UTF-8 or escaped.
TELLING = (
    "(exists (select from unnest($2::bytea[]) word where position(word in {0}) > 0)"
    " or $3::bytea[] <> '{{}}' and not exists (select from unnest($3::bytea[]) word where position(word in {0}) = 0)"
    " or $4::bytea[] <> '{{}}' and not exists (select from unnest($4::bytea[]) word where position(word in {0}) = 0))"
)

Said = dict[bytes, bytes]  # nodes, and the digests of their messages


async def withdraw(connection: asyncpg.Connection, tenant: bytes, found: Said, telling: Collection[bytes]) -> None:
    """Delete embeddings, digests and blocks that may tell what some messages say, or do tell it at some nodes."""
    if not found and not telling:
        return
    await connection.execute("delete from infold.chunks where tenant = $1 and node = any($2)", tenant, list(found))
    after = await behind(connection, tenant, [*found, *telling])
    await connection.execute("delete from infold.folds where tenant = $1 and node = any($2)", tenant, after)
    await redact(connection, tenant, after)


async def seal_late(connection: asyncpg.Connection, tenant: bytes, node: bytes) -> bool:
    """Seal a message that came when there was too much in quarantine to look for in its commit; whether it was.

    What was made of it meanwhile goes, and what is being made is not written.
    """
    row = await connection.fetchrow(
        "select n.digest, h.threads from infold.nodes n cross join infold.held_in($1, n.raw, $3) h"
        " where n.tenant = $1 and n.node = $2",
        tenant, node, NO_BOUND,
    )  # fmt: skip
    if row is None or not row["threads"]:
        return False
    await shut_the_door(connection, tenant)
    for thread in row["threads"]:
        await save_seals(connection, tenant, thread, [row["digest"]])
    await count_isolation(connection, tenant)
    await withdraw(connection, tenant, {node: row["digest"]}, ())
    return True


async def saying(
    connection: asyncpg.Connection, tenant: bytes, text: str, digests: Sequence[bytes] = (), since: str | None = None
) -> Said:
    """Messages that say a text, or have one of some digests. All of the tenant are read: none may escape.

    Args:
        since: a transaction; only what it and later ones wrote is read.
    """
    query = SAYING if since is None else f"{FEW} {SAYING} and node in (select node from few)"
    more = () if since is None else (since,)
    return {
        row["node"]: row["digest"]
        async for row in connection.cursor(query, tenant, needle(text), digests, *more, prefetch=PREFETCH)
        if row["named"] or holds(row["raw"], text)
    }


async def told(
    connection: asyncpg.Connection, tenant: bytes, text: str, items: Sequence[UUID], since: str | None = None
) -> set[bytes]:
    """Nodes where what was made of messages or items tells a text, or brings one of some items, be it an excerpt.

    Those behind messages that say it are `behind`. An item that is gone or was changed is known by what it said.
    """
    marks, said = [note_mark(item_hint(id)).encode() for id in items], needle(text)
    plain, escaped = ([said], []) if said else pieces(text)
    if not (marks or plain or escaped):
        return set()
    written = "" if since is None else " and age(xmin) <= age($5::text::xid)"
    more = () if since is None else (since,)
    rows = await connection.fetch(
        f"with few as materialized (select node, kind from infold.folds where tenant = $1{written}),"
        f" records as materialized (select id from infold.attempts where tenant = $1{written})"
        " select node from infold.folds where tenant = $1 and (node, kind) in (select node, kind from few)"
        f" and {TELLING.format('data')}"
        " union select node from infold.attempts where tenant = $1 and id in (select id from records)"
        f" and {TELLING.format('record')}",
        tenant, marks, plain, escaped, *more,
    )  # fmt: skip
    return {row["node"] for row in rows}


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


async def redact(connection: asyncpg.Connection, tenant: bytes, nodes: Sequence[bytes]) -> None:
    """Take out of the records of turns what may tell a text; the numbers stay."""
    told = connection.cursor(
        "select id, record from infold.attempts where tenant = $1 and node = any($2)", tenant, nodes, prefetch=PREFETCH
    )
    kept = [(tenant, row["id"], less) async for row in told if (less := redacted(row["record"])) is not None]
    await connection.executemany("update infold.attempts set record = $3 where tenant = $1 and id = $2", kept)
