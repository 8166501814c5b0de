"""Passages of items and their vectors: what search reads."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector

from memory.find import Candidate, Wanted
from memory.nouns import NIL
from memory.segments import Segmented

Floats = NDArray[np.float32]

MOST_EMBEDDED = 16_384  # passages of one item that get vectors; words find the rest
EXACT_ROWS = 2_000  # vectors up to which each is compared
BITS_ROWS = 40_000  # up to which signs are compared first; beyond, the graph is asked, which misses what stands alone
READ_WHOLE_BYTES = 65_536  # of an item, for each part of it: PostgreSQL counts to a part from the beginning
SHORT_WORK = 256  # passages; more are read and scored beside the event loop
SAMPLE = 2_000  # passages that tell how rare words are
STRETCHES = 4  # of neighbours that they come from


class NewPassage(msgspec.Struct, frozen=True):
    start: int  # characters of the item's content
    stop: int
    length: int  # words
    terms: tuple[int, ...]


class Scope(msgspec.Struct, frozen=True):
    """Where a search looks."""

    tenant: bytes
    sessions: list[UUID] | None  # None: everywhere
    kinds: list[int] | None = None  # hashes of content types; None: all
    archived: bool = False


class Span(msgspec.Struct, frozen=True):
    ordinal: int
    start: int
    stop: int


def columns_of(passages: Sequence[NewPassage]) -> tuple[list[int], list[int], list[int], list[str]]:
    """Passages as `infold.add_item` takes them; PostgreSQL has no ragged arrays, so terms go as text."""
    return (
        [passage.start for passage in passages],
        [passage.stop for passage in passages],
        [passage.length for passage in passages],
        ["{" + ",".join(map(str, passage.terms)) + "}" for passage in passages],
    )


class Words(msgspec.Struct, frozen=True):
    """The passages that hold the most, by rarity, of the terms that were looked up."""

    passages: tuple[tuple[UUID, int], ...] = ()
    having: tuple[int, ...] = ()  # passages of the tenant that have each term; () where nothing was found


async def find_words(
    connection: asyncpg.Connection, scope: Scope, wanted: Wanted, passages: int, average: float, k: int
) -> Words:
    """Look the rarest terms up.

    Args:
        passages: that the tenant has, about.
        average: words in one of them.
        k: passages that are found, at most.
    """
    if not wanted.searched:
        return Words()
    rows = await connection.fetch(
        "select * from infold.find_words($1, $2, $3, $4, $5, $6, $7, $8)",
        scope.tenant, scope.sessions, scope.kinds, scope.archived, wanted.searched, passages, max(1.0, average), k,
    )  # fmt: skip
    having = tuple(rows[0]["having_terms"]) if rows else ()
    return Words(tuple((row["item"], row["ordinal"]) for row in rows), having)


async def search_items(
    connection: asyncpg.Connection,
    scope: Scope,
    words: Words,
    wanted: Wanted,
    space: int,
    query: Floats | None,
    k: int,
    exact: int = EXACT_ROWS,
    bits: int = BITS_ROWS,
) -> tuple[list[Candidate], str]:
    """What is near, and what words found, each with what the other side says of it; and the plan that found it."""
    rows = await connection.fetch(
        "select * from infold.search_items($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        scope.tenant, scope.sessions, scope.kinds, scope.archived, [item for item, _ in words.passages],
        [ordinal for _, ordinal in words.passages], space, None if query is None else HalfVector(query), k, exact, bits,
    )  # fmt: skip
    return await candidates(rows, wanted), rows[0]["plan"] if rows else "none"


async def candidates(rows: Sequence[asyncpg.Record], wanted: Wanted) -> list[Candidate]:
    asked = frozenset(wanted.terms)
    if len(rows) > SHORT_WORK:
        return await asyncio.to_thread(lambda: [candidate(row, asked) for row in rows])
    return [candidate(row, asked) for row in rows]


def candidate(row: asyncpg.Record, asked: frozenset[int]) -> Candidate:
    """A passage as the search gives it, with what in it is nearest."""
    item, ordinal, start, stop, length, terms, distances, stops, _ = row
    matched = tuple(asked.intersection(terms))
    near = [(distance, place) for place, distance in enumerate(distances) if distance is not None]
    if not near:
        return Candidate(item, ordinal, start, stop, length, None, matched)
    distance, place = min(near)
    edges = [0, *stops] if stops else [0, stop - start]
    return Candidate(
        item, ordinal, start, stop, length, distance, matched, (start + edges[place], start + edges[place + 1])
    )


async def sample_terms(
    connection: asyncpg.Connection, tenant: bytes, chance: float
) -> tuple[int, list[tuple[list[int], int]]]:
    """How many passages a tenant has, and (terms, words) of some, of all its times; `chance` is 0 to 1."""
    total = await connection.fetchval("select passages from infold.tenants where tenant = $1", tenant) or 0
    edge = "select item from infold.passages where tenant = $1 order by item {} limit 1"
    first, last = [await connection.fetchval(edge.format(way), tenant) for way in ("", "desc")]
    if first is None:
        return 0, []
    starts, each = [first], SAMPLE
    if total > SAMPLE:  # ids sort by time
        width, each = (last.int - first.int) / STRETCHES, SAMPLE // STRETCHES
        starts = [UUID(int=first.int + int((place + chance) * width)) for place in range(STRETCHES)]
    rows = await connection.fetch(
        "select p.terms, p.length from unnest($2::uuid[]) as b (start) cross join lateral (select terms, length"
        " from infold.passages where tenant = $1 and item >= b.start order by item, ordinal limit $3) p",
        tenant, starts, each,
    )  # fmt: skip
    return total, [(row["terms"], row["length"]) for row in rows]


async def to_embed(connection: asyncpg.Connection, tenant: bytes, item: UUID, space: int, limit: int) -> list[Span]:
    """Passages of an item that have no vector yet, the first ones."""
    rows = await connection.fetch(
        "select ordinal, start, stop from infold.passages p where tenant = $1 and item = $2 and ordinal < $5"
        " and not exists (select from infold.vectors v where v.tenant = $1 and v.item = $2 and v.space = $3"
        " and v.ordinal = p.ordinal) order by ordinal limit $4",
        tenant, item, space, limit, MOST_EMBEDDED,
    )  # fmt: skip
    return [Span(*row) for row in rows]


async def not_embedded(
    connection: asyncpg.Connection, tenant: bytes, space: int, session: UUID | None = None, limit: int = 1_000
) -> list[UUID]:
    """Items that have passages without a vector."""
    rows = await connection.fetch(
        "select distinct p.item from infold.passages p where p.tenant = $1 and p.ordinal < $3"
        " and ($4::uuid is null or p.session = $4) and not exists (select from infold.vectors v"
        " where v.tenant = $1 and v.item = p.item and v.space = $2 and v.ordinal = p.ordinal) limit $5",
        tenant, space, MOST_EMBEDDED, session, limit,
    )  # fmt: skip
    return [row["item"] for row in rows]


async def save_vectors(
    connection: asyncpg.Connection,
    tenant: bytes,
    item: UUID,
    space: int,
    kind: int,
    ordinals: Sequence[int],
    made: Sequence[Segmented],
) -> int:
    """Store vectors of an item; again changes nothing, and nothing is written for what is gone or in quarantine."""
    written: int = await connection.fetchval(
        "select infold.save_vectors($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        tenant, item, space, kind, list(ordinals), [HalfVector(one.whole) for one in made],
        [HalfVector(segment) for one in made for segment in one.segments],
        [stop for one in made for stop in one.stops], [len(one.stops) for one in made],
    )  # fmt: skip
    return written


async def insert_passages(
    connection: asyncpg.Connection,
    tenant: bytes,
    item: UUID,
    session: UUID | None,
    kind: int,
    live: bool,
    passages: Sequence[NewPassage],
) -> None:
    """`session` None: the item is shared. The counters are the caller's."""
    await connection.execute(
        "insert into infold.passages (tenant, item, ordinal, session, kind, live, start, stop, length, terms)"
        " select $1, $2, n - 1, $3, $4, $5, start, stop, length, terms::integer[]"
        " from unnest($6::integer[], $7::integer[], $8::integer[], $9::text[]) with ordinality"
        " as new (start, stop, length, terms, n)",
        tenant, item, session or NIL, kind, live, *columns_of(passages),
    )  # fmt: skip


async def delete_passages(connection: asyncpg.Connection, tenant: bytes, item: UUID) -> tuple[int, int]:
    """Remove what search knows of an item: how many passages and vectors there were. The counters are the caller's."""
    vectors = await connection.execute("delete from infold.vectors where tenant = $1 and item = $2", tenant, item)
    passages = await connection.execute("delete from infold.passages where tenant = $1 and item = $2", tenant, item)
    return affected(passages), affected(vectors)


def affected(status: str) -> int:
    """Rows, from a command's status such as `DELETE 3`."""
    return int(status.rpartition(" ")[2])


class Around(msgspec.Struct, frozen=True):
    """A passage with its neighbours, or the whole of a small item."""

    item: UUID
    content_type: str
    created_at: datetime
    tokens: int  # of the whole item
    start: int
    stop: int
    text: str
    whole: bool
    place: int  # of the passage among those asked for


async def load_around(
    connection: asyncpg.Connection,
    tenant: bytes,
    passages: Sequence[Candidate],
    reaches: Sequence[int],
    whole_tokens: int,
) -> list[Around]:
    """Each passage with its neighbours, in the order given; items up to `whole_tokens` come whole.

    Args:
        reaches: how many neighbours on each side, of each passage; below 0 what is nearest in it comes alone, unless
            the item was corrected meanwhile: then its passages are others.
    """
    rows = await connection.fetch(
        "select id, content_type, created_at, tokens, start, stop, whole, place, digest,"
        " case when whole then content when not all_at_once then substr(content, start + 1, stop - start) end as text"
        " from (select i.id, i.content_type, i.created_at, i.tokens, i.content, i.digest,"
        "  w.place::integer - 1 as place, i.tokens <= $4 as whole,"
        "  case when i.tokens <= $4 then 0 else b.start end as start,"
        "  case when i.tokens <= $4 then length(i.content) else b.stop end as stop,"
        "  octet_length(i.content) <= $10 * count(*) over (partition by i.id) as all_at_once"
        "  from unnest($2::uuid[], $3::integer[], $5::integer[], $6::integer[], $7::integer[], $8::integer[],"
        "   $9::integer[]) with ordinality as w (item, ordinal, reach, start, stop, near_start, near_stop, place)"
        "  cross join lateral (select min(p.start) as start, max(p.stop) as stop from infold.passages p"
        "   where p.tenant = $1 and p.item = w.item and p.ordinal between w.ordinal - w.reach and w.ordinal + w.reach"
        "   having count(*) > 0) a"
        "  cross join lateral (select a.start = w.start and a.stop = w.stop and w.near_start is not null as same) s"
        "  cross join lateral (select case when s.same then w.near_start else a.start end as start,"
        "   case when s.same then w.near_stop else a.stop end as stop) b"
        "  join infold.items i on i.tenant = $1 and i.id = w.item where i.status = 0) parts order by place",
        tenant, [passage.item for passage in passages], [passage.ordinal for passage in passages], whole_tokens,
        [max(0, reach) for reach in reaches], [passage.start for passage in passages],
        [passage.stop for passage in passages], *near_spans(passages, reaches), READ_WHOLE_BYTES,
    )  # fmt: skip
    contents = await load_contents(connection, tenant, {row["id"] for row in rows if row["text"] is None})
    return [around(row, text) for row in rows if (text := part_text(row, contents)) is not None]


async def load_contents(
    connection: asyncpg.Connection, tenant: bytes, ids: Collection[UUID]
) -> dict[UUID, tuple[bytes, str]]:
    """Digests and contents of active items."""
    if not ids:
        return {}
    rows = await connection.fetch(
        "select id, digest, content from infold.items where tenant = $1 and id = any($2) and status = 0",
        tenant, list(ids),
    )  # fmt: skip
    return {row["id"]: (row["digest"], row["content"]) for row in rows}


def part_text(row: asyncpg.Record, contents: Mapping[UUID, tuple[bytes, str]]) -> str | None:
    """A part's text; None where the item was corrected or went away between two statements."""
    if row["text"] is not None:
        return str(row["text"])
    digest, content = contents.get(row["id"], (b"", ""))
    return content[row["start"] : row["stop"]] if digest == row["digest"] else None


def around(row: asyncpg.Record, text: str) -> Around:
    return Around(
        row["id"], row["content_type"], row["created_at"], row["tokens"], row["start"], row["stop"], text, row["whole"],
        row["place"],
    )  # fmt: skip


def near_spans(passages: Sequence[Candidate], reaches: Sequence[int]) -> tuple[list[int | None], list[int | None]]:
    """Where what is nearest in a passage begins and ends, for those of which it comes alone."""
    spans = [
        passage.near if reach < 0 and passage.near else (None, None)
        for passage, reach in zip(passages, reaches, strict=True)
    ]
    return [start for start, _ in spans], [stop for _, stop in spans]


async def load_named(
    connection: asyncpg.Connection, scope: Scope, tails: Sequence[bytes], most_chars: int
) -> list[Around]:
    """The beginnings of active items by the last bytes of their ids, in the order given."""
    rows = await connection.fetch(
        "select id, content_type, created_at, tokens, left(content, $4 + 1) as text, (w.place - 1)::integer as place"
        " from infold.items i join unnest($3::bytea[]) with ordinality as w (tail, place)"
        " on substr(uuid_send(i.id), 12) = w.tail"
        " where i.tenant = $1 and i.status = 0 and (i.shared or i.session = any($2)) order by w.place, i.id",
        scope.tenant, scope.sessions, tails, most_chars,
    )  # fmt: skip
    return [
        Around(
            *(row["id"], row["content_type"], row["created_at"], row["tokens"], 0, min(len(row["text"]), most_chars)),
            row["text"][:most_chars],
            len(row["text"]) <= most_chars,
            row["place"],
        )
        for row in rows
    ]
