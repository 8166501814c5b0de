"""Search of stored items: words and vectors side by side, and the passages that answer a question."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import asyncpg
import numpy as np
import structlog
from msgspec import structs
from numpy.typing import NDArray

from memory.bounded import Bounded
from memory.digest.fit import CountTokens
from memory.embed import Embedder
from memory.errors import ModelError
from memory.find import Candidate, Hit, Vocabulary, Wanted, fuse, passage_scores, space_id, vocabulary, wanted
from memory.meter import UNCOUNTED, Meter
from memory.signs import Kept, Key, Signs, nearest
from memory.store.items import ItemRow, load_items
from memory.store.passages import (
    EXACT_ROWS,
    SHORT_WORK,
    Around,
    Scope,
    Words,
    find_words,
    load_around,
    load_named,
    sample_terms,
    search_items,
)
from memory.store.pool import Pool
from memory.store.signs import PAGE, load_signs, search_kept

log = structlog.get_logger()

Floats = NDArray[np.float32]

SEARCH_SECONDS = 5.0
QUERY_SECONDS = 2.0  # for the embedding of a query; then words search alone
PASSAGES = 50  # that each side finds, at least
NEAR_QUOTED, WORDS_QUOTED = 1_500, 250  # that are looked at for a working context, by their meaning and by their words
LEAST_QUOTED_TOKENS = 32  # of a passage, about: more of them than so have room are not looked at
NEAREST, REACH = 24, 2  # so many of the best come with so many neighbours on each side
ALONE = -1  # the others: a passage with a rare word of the question as it is, of the rest what in it is nearest
RARE = 4.6  # the rarity of a word that stands in one passage of a hundred
VOCABULARY_SECONDS = 600.0
GROWTH, GROWN_PASSAGES = 0.1, 10  # a tenant's passages may grow so much before its words are counted again
LATE_VECTORS = 5  # found passages that are embedded on the spot
QUERY_CHARS = 16_384
LARGE = frozenset({"bits", "graph"})  # plans that compare signs, or go from vector to vector
COMPARED = 2  # times as many as are wanted; with them come 90 % of the ten that are nearest among 14,548
SHORT_SCAN = 50_000  # passages whose signs are compared in half a millisecond; more beside the event loop
TOKEN_CHARS = 8  # more of a named item than so many characters a token is not read
LEAST_NAMED = 32  # tokens; less of a named item says nothing
RECALLED = 8  # items that come back unnamed
RECALL_FLOOR = 0.35  # of their scores
RECALL_WHOLE_TOKENS = 400  # an item up to this size comes whole
NAMED = 1.0  # the score of what is named


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that either side found for a query."""

    candidates: tuple[Candidate, ...]
    wanted: Wanted
    vocabulary: Vocabulary
    plan: str  # "exact", "kept", "bits", "graph", "words", "none"

    def hits(self, limit: int) -> tuple[Hit, ...]:
        return fuse(self.candidates, self.wanted, self.vocabulary, limit)

    def passages(self) -> list[tuple[float, Candidate]]:
        """Passages with their scores, best first."""
        scores = passage_scores(self.candidates, self.wanted, self.vocabulary)
        order = sorted(range(len(scores)), key=lambda n: (-scores[n], self.candidates[n].item, n))
        return [(scores[n], self.candidates[n]) for n in order]


@dataclass(frozen=True, slots=True)
class Quote:
    """A part of an item that answers a query, or the whole of a small one."""

    item: UUID
    content_type: str
    created_at: datetime
    start: int  # characters of the item's content
    stop: int
    text: str
    tokens: int
    score: float
    whole: bool


class Finder:
    """Finds items. Keeps how rare a tenant's words are, and the vectors of queries."""

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder | None = None,
        seconds: Callable[[], float] = time.monotonic,
        meter: Meter = UNCOUNTED,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._seconds = seconds
        self._meter = meter
        self._vocabularies: Bounded[bytes, Vocabulary] = Bounded(512)
        self._grown: Bounded[bytes, int] = Bounded(512)  # passages added here since the words were counted
        self._queries: Bounded[tuple[str, str], Floats] = Bounded(4_096)
        self._kept = Kept()

    def grown(self, tenant: bytes, passages: int) -> None:
        self._grown.put(tenant, (self._grown.get(tenant) or 0) + passages)

    async def find(
        self,
        scope: Scope,
        query: str,
        k: int = PASSAGES,
        by_meaning: bool = True,
        exact: int = EXACT_ROWS,
        words_k: int | None = None,
    ) -> Found:
        """Look for a query's words and its meaning; without an embedder, or with a slow one, for its words alone.

        Args:
            k: passages that meaning finds, at most.
            exact: vectors up to which each is compared with the query.
            words_k: passages that words find; left out, as many.

        Raises:
            StoreError: the database did not answer.
        """
        query, began = query[:QUERY_CHARS], time.perf_counter()
        embedding = asyncio.create_task(self._vector(query)) if by_meaning else None
        space = space_id(self._embedder.name) if self._embedder else 0
        keys = keys_of(scope, space) if embedding and self._embedder else []
        try:
            await asyncio.sleep(0)  # the embedding is under way while the words are read
            known = await self._vocabulary(scope.tenant)
            asked = wanted(scope.tenant, query, known)
            async with self._pool.connection(SEARCH_SECONDS) as connection:
                words = await find_words(connection, scope, asked, known.passages, known.average, words_k or k)
                signs = await self._signs(connection, keys)
            vector = await embedding if embedding else None  # no connection is held meanwhile
        except BaseException:
            if embedding:
                embedding.cancel()
            raise
        near = None if vector is None else await nearest_of(signs, vector, k, exact, scope.kinds)
        async with self._pool.connection(SEARCH_SECONDS) as connection:
            found, plan = await both_sides(connection, scope, words, asked, space, vector, near, k, exact)
        self._keep(keys, plan, near is not None)
        self._meter.searched(plan, time.perf_counter() - began)
        return Found(tuple(found), asked.counted(words.having, known), known, plan)

    async def _signs(self, connection: asyncpg.Connection, keys: Sequence[Key]) -> tuple[Signs, ...]:
        """All signs of sessions, where they are kept and read to their end; else ()."""
        shelves = self._kept.shelves(keys)
        if not shelves:
            return ()
        (tenant, space, _), marks = keys[0], [shelf.mark for shelf in shelves if shelf.mark]
        pages = await load_signs(connection, tenant, space, [session for _, _, session in keys], marks)
        read = [shelf.with_page(page, PAGE) for shelf, page in zip(shelves, pages, strict=True)]
        self._kept.put(keys, shelves, [shelf for shelf, _ in read])
        parts = [parts for _, parts in read if parts is not None]
        return tuple(part for some in parts for part in some) if len(parts) == len(read) else ()

    def _keep(self, keys: Sequence[Key], plan: str, were_used: bool) -> None:
        """Keep signs of what is too large for each vector to be read; anew, where something of them has gone."""
        if were_used and plan != "kept":
            self._kept.drop(keys)
        elif plan in LARGE:
            self._kept.begin(keys)

    async def rows(
        self, scope: Scope, hits: Sequence[Hit], query: str, content: bool = True
    ) -> list[tuple[Hit, ItemRow]]:
        """The items of hits. Those of the first few that have no vector yet are compared on the spot."""
        async with self._pool.connection(SEARCH_SECONDS) as connection:
            rows = await load_items(connection, scope.tenant, [hit.item for hit in hits], content)
        present = [(hit, rows[hit.item]) for hit in hits if hit.item in rows]
        if content and any(hit.distance is None for hit, _ in present):
            return await self._with_distances(present, query)
        return present

    async def _with_distances(self, found: list[tuple[Hit, ItemRow]], query: str) -> list[tuple[Hit, ItemRow]]:
        vector = self._queries.get((self._embedder.name, query[:QUERY_CHARS])) if self._embedder else None
        if vector is None or self._embedder is None:
            return found
        late = [n for n, (hit, row) in enumerate(found) if hit.distance is None and row.whole][:LATE_VECTORS]
        texts = [found[n][1].content[found[n][0].best.start : found[n][0].best.stop] for n in late]
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                vectors = await self._embedder.embed(texts)
        except (ModelError, TimeoutError):
            return found
        for n, near in zip(late, vectors, strict=True):
            hit, row = found[n]
            found[n] = replace(hit, distance=float(1 - near @ vector)), row
        return found

    async def quotes(
        self,
        scope: Scope,
        query: str,
        room_tokens: int,
        whole_tokens: int,
        count: CountTokens,
        floor: float = 0.0,
        exact: int = EXACT_ROWS,
        few: int = 0,
    ) -> tuple[Quote, ...]:
        """The passages that answer best and fit, the first with neighbours; items up to `whole_tokens` come whole.

        `few`: of a tenant with fewer passages the floor is lower, for no word is rare among them.
        """
        most = max(PASSAGES, room_tokens // LEAST_QUOTED_TOKENS)
        found = await self.find(
            scope, query, min(NEAR_QUOTED, most), exact=exact, words_k=max(PASSAGES, min(WORDS_QUOTED, most // 2))
        )
        ranked = await asyncio.to_thread(found.passages) if len(found.candidates) > SHORT_WORK else found.passages()
        least = floor * min(1.0, found.vocabulary.passages / few) if few else floor
        best = [(score, passage) for score, passage in ranked if score >= least][:most]
        if not best:
            return ()
        passages = [passage for _, passage in best]
        rare = found.wanted.rare(RARE)
        reaches = [reach(place, passage, rare) for place, passage in enumerate(passages)]
        async with self._pool.tenant(scope.tenant, SEARCH_SECONDS) as connection:
            parts = await load_around(connection, scope.tenant, passages, reaches, whole_tokens)
        scores = [best[part.place][0] for part in parts]
        return await asyncio.to_thread(pack, parts, scores, room_tokens, count)

    async def named(
        self, scope: Scope, tails: Sequence[bytes], room_tokens: int, count: CountTokens
    ) -> tuple[Quote, ...]:
        """Items by the last bytes of their ids, whole while they fit; the first that does not as far as it does."""
        async with self._pool.tenant(scope.tenant, SEARCH_SECONDS) as connection:
            parts = await load_named(connection, scope, tails, room_tokens * TOKEN_CHARS)
        return await asyncio.to_thread(fill, parts, room_tokens, count)

    async def recall(
        self, scope: Scope, text: str, room_tokens: int, count: CountTokens, tails: Sequence[bytes]
    ) -> tuple[Quote, ...]:
        """Items whose ids end so, and behind them those that answer a text."""
        named = await self.named(scope, tails, room_tokens, count) if tails else ()
        room, taken = room_tokens - sum(quote.tokens for quote in named), {quote.item for quote in named}
        if room <= 0 or not text.strip():
            return named
        quotes = await self.quotes(scope, text, room, RECALL_WHOLE_TOKENS, count, RECALL_FLOOR)
        return named + tuple(quote for quote in quotes if quote.item not in taken)[:RECALLED]

    async def _vector(self, query: str) -> Floats | None:
        if self._embedder is None:
            return None
        key = self._embedder.name, query
        vector = self._queries.get(key)
        if vector is None:
            try:
                async with asyncio.timeout(QUERY_SECONDS):
                    (vector,) = await self._embedder.embed([query])
            except (ModelError, TimeoutError) as error:
                log.info("searching by words alone", reason=f"{type(error).__name__}: {error}")
                return None
            self._queries.put(key, vector)
        return vector

    async def _vocabulary(self, tenant: bytes) -> Vocabulary:
        known, grown = self._vocabularies.get(tenant), self._grown.get(tenant) or 0
        if (
            known is not None
            and self._seconds() - known.made < VOCABULARY_SECONDS
            and grown <= GROWTH * known.passages + GROWN_PASSAGES
        ):
            return known
        self._grown.put(tenant, 0)
        async with self._pool.tenant(tenant, SEARCH_SECONDS) as connection:
            total, sample = await sample_terms(connection, tenant, random.random())
        made = vocabulary(total, sample, self._seconds())
        self._vocabularies.put(tenant, made)
        return made


def keys_of(scope: Scope, space: int) -> list[Key]:
    """Under which the signs of a scope are kept: live passages of some sessions."""
    if scope.sessions is None or scope.archived:
        return []
    return [(scope.tenant, space, session) for session in scope.sessions]


async def nearest_of(
    signs: Sequence[Signs], vector: Floats, k: int, exact: int, kinds: Sequence[int] | None
) -> NDArray[np.void] | None:
    """Some more than are wanted, to be compared in full; None where there are so few that all are."""
    passages = sum(len(part.heads) for part in signs)
    if passages <= exact:
        return None
    if passages > SHORT_SCAN:
        return await asyncio.to_thread(nearest, signs, vector, COMPARED * k, kinds or ())
    return nearest(signs, vector, COMPARED * k, kinds or ())


async def both_sides(
    connection: asyncpg.Connection,
    scope: Scope,
    words: Words,
    asked: Wanted,
    space: int,
    vector: Floats | None,
    near: NDArray[np.void] | None,
    k: int,
    exact: int,
) -> tuple[list[Candidate], str]:
    """What words and vectors found, and the plan: by signs that are kept here where all is as they say."""
    if vector is not None and near is not None:
        found = await search_kept(connection, scope, words, asked, space, vector, k, near)
        if found is not None:
            return found, "kept"
    return await search_items(connection, scope, words, asked, space, vector, k, exact)


def reach(place: int, passage: Candidate, rare: Set[int]) -> int:
    """How many neighbours on each side a found passage comes with; ALONE: not even all of itself."""
    if place < NEAREST:
        return REACH
    return ALONE if rare.isdisjoint(passage.matched) else 0


def pack(parts: Sequence[Around], scores: Sequence[float], room_tokens: int, count: CountTokens) -> tuple[Quote, ...]:
    """The parts that fit, the best first; what stands in two of them is told once."""
    taken: list[Quote] = []
    for part, score in zip(parts, scores, strict=True):
        if any(part.item == quote.item and within(part, quote) for quote in taken):
            continue
        tokens = part.tokens if part.whole else count(part.text)
        if tokens <= room_tokens:
            room_tokens -= tokens
            taken.append(quoted(part, tokens, score))
    return merged(taken, count)


def merged(quotes: Sequence[Quote], count: CountTokens) -> tuple[Quote, ...]:
    """Quotes of an item that overlap as one, with the best score among them; the best first."""
    runs: list[list[Quote]] = []
    for quote in sorted(quotes, key=lambda quote: (quote.item, quote.start)):
        if runs and overlaps(runs[-1], quote):
            runs[-1].append(quote)
        else:
            runs.append([quote])
    return tuple(sorted((joined(run, count) for run in runs), key=lambda quote: -quote.score))


def overlaps(run: Sequence[Quote], quote: Quote) -> bool:
    return run[0].item == quote.item and quote.start <= max(one.stop for one in run)


def joined(run: Sequence[Quote], count: CountTokens) -> Quote:
    """One quote of several, in the order of their starts."""
    if len(run) == 1:
        return run[0]
    text, stop = "", run[0].start
    for quote in run:
        text += quote.text[max(0, stop - quote.start) :]
        stop = max(stop, quote.stop)
    best = max(run, key=lambda quote: quote.score)
    return replace(best, start=run[0].start, stop=stop, text=text, tokens=count(text))


def fill(parts: Sequence[Around], room_tokens: int, count: CountTokens) -> tuple[Quote, ...]:
    """Parts in their order until the room is full; the last one may be cut."""
    taken: list[Quote] = []
    for part in parts:
        tokens = count(part.text)
        if tokens > room_tokens:
            if room_tokens < LEAST_NAMED:
                break
            stop = int(len(part.text) * room_tokens / tokens * 0.9)
            part = structs.replace(part, text=part.text[:stop], stop=stop, whole=False)
            tokens = count(part.text)
        if tokens <= room_tokens:
            taken.append(quoted(part, tokens, NAMED))
        room_tokens -= tokens
    return tuple(taken)


def quoted(part: Around, tokens: int, score: float) -> Quote:
    return Quote(
        part.item, part.content_type, part.created_at, part.start, part.stop, part.text, tokens, score, part.whole
    )


def within(part: Around, quote: Quote) -> bool:
    return quote.start <= part.start and part.stop <= quote.stop
