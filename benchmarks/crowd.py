"""Many conversations in one store: tenants from 50 rows up, their vectors drawn from a mixture whose order is known.

The words are real: drawn as often as they stand in this Python's own code and documentation. The vectors are not: each
is a topic's direction and its own deviation within a few dozen directions, as texts have them. So the index is
measured, not the embedder. 20 needles have their own text and, as their questions, vectors of the built-in embedder.
"""

import asyncio
import itertools
import random
import re
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import accumulate
from uuid import UUID

import asyncpg
import common
import numpy as np
from asyncpg import BitString
from common import console, percentile
from data import Json
from facts import facts
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.asyncpg import register_vector
from rich.table import Table

from memory.embed import OnnxEmbedder
from memory.find import kind_id, space_id, term_ids
from memory.identify import key_tenant, place
from memory.items import Items
from memory.lexical import terms
from memory.meter import Meter
from memory.models import ModelTable
from memory.nouns import Place
from memory.search import Finder
from memory.settings import Settings
from memory.store.items import NAMES
from memory.store.passages import Scope
from memory.store.pool import Pool
from memory.tokens import Counter

Floats = NDArray[np.float32]

SIZES = (50, 500, 5_000, 50_000)  # rows of the small tenants; the last one has the rest
BATCH = 2_000
TOPICS, DIRECTIONS, OWN, NOISE = 2_000, 48, 0.6, 0.15  # of the mixture
QUERIES, NEEDLES = 60, 20
MOST_BEFORE = 100  # searches until the plan stays
BUSY_SECONDS, AT_ONCE = 3.0, 4
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SIZE_AIM, SEARCH_AIM, RECALL_AIM, READ_AIM = 2e9, 6.4, 0.95, 1.0
ROOM = 125_000  # tokens
GRAPH = "vectors_graph"


@dataclass(frozen=True, slots=True)
class Tenant:
    number: int
    rows: int

    @property
    def place(self) -> Place:
        return place(key_tenant(b"crowd", f"tenant {self.number}"), "all")


class Known:
    """An embedder that knows the vectors of its questions."""

    name = "mixture"

    def __init__(self) -> None:
        self.vectors: dict[str, Floats] = {}

    async def embed(self, texts: Sequence[str]) -> Floats:
        return np.array([self.vectors[text] for text in texts], np.float32)


class Plans(Meter):
    """Knows how the database looked for what is near in the last search."""

    last = ""

    def searched(self, plan: str, seconds: float) -> None:
        self.last = plan


class Mixture:
    """Points of unit length around topics."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        spread = 1 / np.sqrt(np.arange(1, DIRECTIONS + 1))
        self.directions = rng.standard_normal((DIRECTIONS, 384)) * spread[:, None]
        self.topics = rng.standard_normal((TOPICS, DIRECTIONS))

    def draw(self, count: int, seed: Sequence[int]) -> Floats:
        rng = np.random.default_rng(seed)
        within = self.topics[rng.integers(TOPICS, size=count)] + OWN * rng.standard_normal((count, DIRECTIONS))
        points = within @ self.directions
        points += NOISE * np.linalg.norm(points, axis=1, keepdims=True) / 20 * rng.standard_normal((count, 384))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        return points.astype(np.float16).astype(np.float32)


class Talk:
    """Conversations of 2 to 6 messages with words as often as they stand in `sources`."""

    def __init__(self, sources: Iterator[str]) -> None:
        counted = Counts(
            word for text in itertools.islice(sources, 400) for word in re.findall(r"[A-Za-z]{2,16}", text)
        )
        self.words = list(counted)
        self.weights = list(accumulate(counted.values()))

    def draw(self, rng: random.Random) -> str:
        lines = []
        for number in range(rng.randint(2, 6)):
            said = " ".join(rng.choices(self.words, cum_weights=self.weights, k=rng.randint(8, 28)))
            lines.append(f"{('user', 'assistant')[number % 2]}: {said.lower()}.")
        return "\n".join(lines)


def tenants(conversations: int) -> list[Tenant]:
    small = [size for size in SIZES if size <= conversations // 4]
    return [Tenant(n, rows) for n, rows in enumerate([*small, conversations - sum(small)])]


def row_id(tenant: Tenant, row: int) -> UUID:
    """Sorts by time, as ids do."""
    noise = blake2b(f"{tenant.number} {row}".encode(), digest_size=7).digest()
    return UUID(bytes=(row + 1).to_bytes(6, "big") + b"\x70\x00\x80" + noise)


async def fill(dsn: str, seed: int, conversations: int, sources: Iterator[str]) -> float:
    """Load what is not there yet, build the graph, set the counters; seconds. Again it goes on where it stopped."""
    began = time.perf_counter()
    connection = await asyncpg.connect(dsn)
    await register_vector(connection)
    exists = await connection.fetchval("select to_regclass('infold.vectors_graph') is not null")
    definition = await graph(connection) if exists else None
    mixture, talk, counter = Mixture(seed), Talk(sources), Counter()
    space, kind = space_id(Known.name), kind_id("conversation")
    with common.progress() as bar:
        task = bar.add_task("loading", total=conversations)
        for tenant in tenants(conversations):
            at = tenant.place
            there = await connection.fetchval("select count(*) from infold.vectors where tenant = $1", at.tenant)
            bar.advance(task, there)
            if there < tenant.rows and definition:
                await connection.execute(f"drop index if exists infold.{GRAPH}")
            for first in range(there, tenant.rows, BATCH):
                await load(connection, tenant, first, mixture, talk, counter, (seed, space, kind))
                bar.advance(task, min(BATCH, tenant.rows - first))
    console.print(f"[dim]loaded[/] {time.perf_counter() - began:.0f} s; building the graph", highlight=False)
    await connection.execute("set maintenance_work_mem = '2GB'; set max_parallel_maintenance_workers = 2")
    await connection.execute(definition or GRAPH_STATEMENT)
    for tenant in tenants(conversations):
        await count(connection, tenant)
    await connection.execute("vacuum analyze infold.items, infold.passages, infold.vectors")
    await connection.close()
    return time.perf_counter() - began


GRAPH_STATEMENT = (
    "create index if not exists vectors_graph on infold.vectors using hnsw (embedding halfvec_cosine_ops)"
    " with (m = 12, ef_construction = 96)"
)


async def graph(connection: asyncpg.Connection) -> str:
    """The statement that makes the index anew, as the migration has it."""
    told: str = await connection.fetchval("select pg_get_indexdef('infold.vectors_graph'::regclass)")
    return told.replace("CREATE INDEX", "create index if not exists")


async def load(
    connection: asyncpg.Connection,
    tenant: Tenant,
    first: int,
    mixture: Mixture,
    talk: Talk,
    counter: Counter,
    given: tuple[int, int, int],
) -> None:
    seed, space, kind = given
    stop, at = min(first + BATCH, tenant.rows), tenant.place
    rng = random.Random(f"{seed} {tenant.number} {first}")
    texts = [talk.draw(rng) for _ in range(first, stop)]
    tokens, heads = counter.texts(texts, "o200k_base"), counter.texts([text[:500] for text in texts], "o200k_base")
    vectors = mixture.draw(stop - first, (seed, tenant.number, first))
    ids = [row_id(tenant, row) for row in range(first, stop)]
    items, passages, signs = [], [], []
    for n, (id, text) in enumerate(zip(ids, texts, strict=True)):
        now, found = BEGAN + timedelta(seconds=first + n), terms(text)
        digest = blake2b(text.encode(), digest_size=16).digest()
        made = (0, 3, 0, False, True, "conversation", digest, text, None, tokens[n], heads[n], 0)
        items.append((at.tenant, id, at.id, False, *made, now, now, now, None))
        hashed = term_ids(at.tenant, found.counts.keys())
        passages.append((at.tenant, id, 0, at.id, kind, True, 0, len(text), found.length, hashed))
        bits = BitString.frombytes(np.packbits(vectors[n] > 0).tobytes(), 384)
        signs.append((at.tenant, id, 0, space, at.id, kind, True, HalfVector(vectors[n]), bits))
    async with connection.transaction():
        names = ["tenant", *(name.strip() for name in NAMES.split(","))]
        await connection.copy_records_to_table("items", schema_name="infold", records=items, columns=names)
        await connection.copy_records_to_table("passages", schema_name="infold", records=passages)
        names = ["tenant", "item", "ordinal", "space", "session", "kind", "live", "embedding", "bits"]
        await connection.copy_records_to_table("vectors", schema_name="infold", records=signs, columns=names)


async def count(connection: asyncpg.Connection, tenant: Tenant) -> None:
    at = tenant.place
    await connection.execute("select infold.enter($1, $2, $3, 'gpt-4o', $4)", at.tenant, at.id, at.name, BEGAN)
    await connection.execute(
        "update infold.tenants set passages = $2, embedded = $2 where tenant = $1", at.tenant, tenant.rows
    )
    await connection.execute(
        "update infold.states set embedded = $2, used = 0, tokens = (select sum(tokens) from infold.items"
        " where tenant = $1) where tenant = $1", at.tenant, tenant.rows,
    )  # fmt: skip


async def measure(pool: Pool, seed: int, conversations: int) -> Json:
    known = Known()
    plans = Plans()
    items = Items(pool, Counter(), ModelTable(), Settings(), embedder=known, meter=plans)
    mixture, rows = Mixture(seed), []
    for tenant in tenants(conversations):
        rows.append(await of_tenant(items, pool, known, plans, mixture, tenant, seed))
        console.print(f"[dim]{tenant.rows:>9,} rows[/]  {rows[-1]}", highlight=False)
    async with pool.connection(60) as connection:
        size = await connection.fetchval("select pg_database_size(current_database())")
    async with pool.tenant(tenants(conversations)[-1].place.tenant, 60) as connection:
        mean = float(
            await connection.fetchval("select avg(tokens) from (select tokens from infold.items limit 10000) t")
        )
    return {
        "conversations": conversations,
        "bytes": size,
        "tokens_each": round(mean, 1),
        "fit_in_125k": {"in full": int(ROOM // mean), "as hints": ROOM // 40},
        "tenants": rows,
        "needles": await needles(items, known, tenants(conversations)[-1]),
    }


async def of_tenant(
    items: Items, pool: Pool, known: Known, plans: Plans, mixture: Mixture, tenant: Tenant, seed: int
) -> Json:
    at, asked = tenant.place, mixture.draw(QUERIES, (seed, tenant.number, 10**9))
    async with pool.tenant(at.tenant, 60) as connection:
        some = await connection.fetch(
            "select id, content from infold.items where tenant = $1 limit $2", at.tenant, QUERIES
        )
    questions = [" ".join(some[n % len(some)]["content"].split()[3:11]) + f" {n}" for n in range(QUERIES)]
    known.vectors |= dict(zip(questions, asked, strict=True))
    scope, finder = Scope(at.tenant, at.scope), Finder(pool, known, meter=plans)
    for search in (lambda question: finder.find(scope, question), lambda question: items.search(at, question, 10)):
        before = [took async for took in until_it_stays(search, questions, plans)]
    found = await nearest(finder, known, at, asked)
    exact = exactly(mixture, tenant, asked, seed)
    hits = sum(len(set(a) & set(b)) for a, b in zip(found, exact, strict=True))
    searches = [await timed(items.search(at, question, 10)) for question in (*questions, *questions)]
    reads = [await timed(items.retrieve(at.tenant, str(some[n % len(some)]["id"]))) for n in range(200)]
    return {
        "rows": tenant.rows,
        "plan": plans.last,
        "searches_before": len(before),
        "slowest_before_ms": round(max(before), 1),
        "recall_at_10": round(hits / sum(map(len, exact)), 3),
        "search_p50_ms": round(percentile(searches, 0.5), 2),
        "search_p99_ms": round(percentile(searches, 0.99), 2),
        "searches_a_second": round(await busy(items, at, questions), 1),
        "read_p50_ms": round(percentile(reads, 0.5), 3),
    }


async def until_it_stays(
    search: Callable[[str], Awaitable[object]], questions: Sequence[str], plans: Plans
) -> AsyncIterator[float]:
    """Milliseconds of searches until the plan is the one of all that follow; signs are read some by each of them."""
    for question in itertools.islice(itertools.cycle(questions), MOST_BEFORE):
        yield await timed(search(question))
        if plans.last in ("exact", "kept"):
            break


async def timed(work: object) -> float:
    began = time.perf_counter()
    await work  # type: ignore[misc]
    return 1_000 * (time.perf_counter() - began)


async def nearest(finder: Finder, known: Known, at: Place, asked: Floats) -> list[list[UUID]]:
    """What a search finds nearest whose words nobody has used, ten each."""
    found = []
    for number, query in enumerate(asked):
        known.vectors[unheard := f"unheard{number}"] = query
        rows = (await finder.find(Scope(at.tenant, at.scope), unheard)).candidates
        near = sorted(rows, key=lambda row: row.distance if row.distance is not None else 2.0)
        found.append([row.item for row in near[:10]])
    return found


def exactly(mixture: Mixture, tenant: Tenant, asked: Floats, seed: int) -> list[list[UUID]]:
    """The ten nearest of all, from the vectors drawn again."""
    best: list[list[tuple[float, int]]] = [[] for _ in asked]
    for first in range(0, tenant.rows, BATCH):
        stop = min(first + BATCH, tenant.rows)
        cosines = asked @ mixture.draw(stop - first, (seed, tenant.number, first)).T
        for n, row in enumerate(cosines):
            top = np.argsort(-row)[:10]
            best[n] = sorted([*best[n], *((float(row[i]), first + int(i)) for i in top)], reverse=True)[:10]
    return [[row_id(tenant, row) for _, row in top] for top in best]


async def busy(items: Items, at: Place, questions: Sequence[str]) -> float:
    """Searches a second, several at once."""
    done, stop = 0, time.perf_counter() + BUSY_SECONDS

    async def ask(start: int) -> None:
        nonlocal done
        while time.perf_counter() < stop:
            await items.search(at, questions[(start + done) % len(questions)], 10)
            done += 1

    await asyncio.gather(*(ask(n) for n in range(AT_ONCE)))
    return done / BUSY_SECONDS


async def needles(items: Items, known: Known, tenant: Tenant) -> Json:
    """Facts among all others, asked for in other words."""
    real = OnnxEmbedder()
    planted = facts()[0][:NEEDLES]
    for text in [text for fact in planted for text in fact]:
        known.vectors[text] = (await real.embed([text]))[0]
    await real.close()
    ids = [(await items.add(tenant.place, "gpt-4o", fact.sentence, "conversation")).id for fact in planted]
    found = 0
    for fact, id in zip(planted, ids, strict=True):
        found += id in {hit.id for hit in await items.search(tenant.place, fact.question, 5)}
    for id in ids:
        await items.delete(tenant.place.tenant, id)
    return {"n": len(planted), "found": found}


def table(result: Json) -> Table:
    drawn = Table(
        title=f"{result['conversations']:,} conversations in {result['bytes'] / 1e9:.2f} GB (aim {SIZE_AIM / 1e9})"
    )
    heads = ("rows", "plan", "searches before", "slowest", "recall@10", "search p50", "p99", "searches/s", "by id p50")
    for head in heads:
        drawn.add_column(head, justify="right")
    for row in result["tenants"]:
        drawn.add_row(f"{row['rows']:,}", *(str(value) for value in list(row.values())[1:]))
    drawn.add_row("aim", "", "", "", str(RECALL_AIM), str(SEARCH_AIM), "", "", str(READ_AIM))
    return drawn


def checks(result: Json) -> dict[str, bool]:
    held = {
        f"{row['rows']:,} rows: recall@10 at least {RECALL_AIM}": row["recall_at_10"] >= RECALL_AIM
        for row in result["tenants"]
    }
    held["at most 4 KB a conversation with all indexes"] = result["bytes"] <= 20e6 + 4_000 * result["conversations"]
    held["every needle is found"] = result["needles"]["found"] == result["needles"]["n"]
    return held
