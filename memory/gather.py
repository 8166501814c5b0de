"""What answers a question: passages of stored items, and of what was said in conversations, in one order.

A question names a session, or asks all of the tenant's memory. It is a person's or a program's own question: what is
found here goes to whoever asked, and into no conversation.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec
import structlog

from memory import rank
from memory.digest.fit import CountTokens, clean
from memory.embed import Embedder
from memory.errors import ModelError
from memory.excerpt import excerpt
from memory.identify import text_id
from memory.items import Items
from memory.lexical import terms
from memory.nouns import Place, Source
from memory.seal import text_digest
from memory.search import Quote
from memory.store.chunks import are_embedded, similarities
from memory.store.pool import Pool
from memory.store.quarantine import load_seals
from memory.store.said import SaidRow, load_said, may_be_told, turns_of
from memory.written import said

log = structlog.get_logger()

READ_SECONDS = 5.0
QUERY_SECONDS = 2.0  # for the embedding of a question; then words search alone
PASSAGE_TOKENS = 256  # of one passage
ITEM_ROOM = 6_000  # tokens of items that are looked at
HEARD = 200  # messages that are kept of all that have something to do with a question
FEW = 100  # messages; among fewer, words are less rare, and all scores lower


class Passage(msgspec.Struct, frozen=True):
    kind: Literal["item", "message"]
    key: bytes  # the item's id, or the message's node
    session: str  # its name
    about: str  # the item's type, or the message's role
    digest: bytes
    created_at: datetime
    text: str
    score: float


class Gathered(NamedTuple):
    passages: tuple[Passage, ...] = ()  # best first
    weights: Mapping[str, float] = {}  # worth of each term of the question


class Heard(NamedTuple):
    """Messages that have something to do with a question, best first."""

    found: Sequence[tuple[float, SaidRow, str]] = ()  # score, message, its words
    weights: Mapping[str, float] = {}
    messages: int = 0  # that were looked at


class Gather:
    def __init__(self, pool: Pool, items: Items, embedder: Embedder | None, count: CountTokens, floor: float) -> None:
        """`floor`: relevance below which a message has nothing to do with a question."""
        self._pool = pool
        self._items = items
        self._embedder = embedder
        self._count = count
        self._floor = floor
        self._one = asyncio.Semaphore(1)  # large memories are read one after the other

    async def passages(self, tenant: bytes, place: Place | None, question: str, most: int) -> Gathered:
        """The best passages, each cut to `PASSAGE_TOKENS`.

        Args:
            place: the session that is asked: its items and shared ones, and conversations that carry its name; None:
                all of the tenant's.

        Raises:
            StoreError: the database did not answer.
        """
        asked = rank.query(question).weights
        if not asked:
            return Gathered()
        heard = await self._heard(tenant, place, question)
        weights = heard.weights or asked
        items = await self._noted(tenant, place, question)
        messages = [
            Passage("message", row.node, row.name, row.role, row.digest, row.created_at, text, score)
            for score, row, text in heard.found
            if score > self._floor * min(1.0, heard.messages / FEW)
        ]
        chosen = best([*items, *messages], 2 * most)
        standing = await self._standing(tenant, chosen)
        cut = await asyncio.to_thread(self._cut, [one for one in chosen if one.key in standing][:most], weights)
        return Gathered(cut, weights)

    async def still_stand(self, tenant: bytes, passages: Sequence[Passage]) -> bool:
        """Whether all of these may be told still: none was isolated, archived, corrected or erased since."""
        return len(await self._standing(tenant, passages)) == len(passages)

    async def sources(self, tenant: bytes, passages: Sequence[Passage]) -> list[Source]:
        nodes = [one.key for one in passages if one.kind == "message"]
        turns: dict[bytes, bytes] = {}
        if nodes:
            async with self._pool.tenant(tenant, READ_SECONDS) as connection:
                turns = await turns_of(connection, tenant, nodes)
        return [source(one, turns.get(one.key)) for one in passages]

    async def _heard(self, tenant: bytes, place: Place | None, question: str) -> Heard:
        async with self._one:
            async with self._pool.tenant(tenant, READ_SECONDS) as connection:
                rows = await load_said(connection, tenant, place.name if place else None)
                seals = await load_seals(connection, tenant)
            if not rows:
                return Heard()
            similar = await self._similar(tenant, question, [row.node for row in rows])
            return await asyncio.to_thread(hear, rows, question, similar, seals)

    async def _similar(self, tenant: bytes, question: str, nodes: Sequence[bytes]) -> dict[bytes, float]:
        """Cosines of messages to the question, of those that have been embedded."""
        if self._embedder is None:
            return {}
        async with self._pool.tenant(tenant, READ_SECONDS) as connection:
            if not await are_embedded(connection, tenant, self._embedder.name, nodes):
                return {}
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                (vector,) = await self._embedder.embed([question])
        except (ModelError, TimeoutError) as error:
            log.info("searching messages by words alone", reason=f"{type(error).__name__}: {error}")
            return {}
        async with self._pool.tenant(tenant, READ_SECONDS) as connection:
            return await similarities(connection, tenant, self._embedder.name, nodes, vector)

    async def _noted(self, tenant: bytes, place: Place | None, question: str) -> list[Passage]:
        quotes = await self._items.answering(tenant, place, question, ITEM_ROOM, PASSAGE_TOKENS, self._count)
        near = [quote for quote in quotes if quote.score > 0]
        origins = await self._items.origins(tenant, [quote.item for quote in near]) if near else {}
        return [noted(quote, *origins[quote.item]) for quote in near if quote.item in origins]

    async def _standing(self, tenant: bytes, passages: Sequence[Passage]) -> set[bytes]:
        """The keys of those that may be told."""
        items = {UUID(bytes=one.key): one.digest for one in passages if one.kind == "item"}
        nodes = [one.key for one in passages if one.kind == "message"]
        found: set[bytes] = set()
        if items:
            there = await self._items.origins(tenant, list(items))
            found = {id.bytes for id, digest in items.items() if id in there and there[id][1] == digest}
        if nodes:
            async with self._pool.tenant(tenant, READ_SECONDS) as connection:
                found |= await may_be_told(connection, tenant, nodes)
        return found

    def _cut(self, passages: Sequence[Passage], weights: Mapping[str, float]) -> tuple[Passage, ...]:
        return tuple(
            msgspec.structs.replace(one, text=text)
            for one in passages
            if (text := part(one.text, weights, self._count).strip())
        )


def hear(rows: Sequence[SaidRow], question: str, similar: Mapping[bytes, float], seals: frozenset[bytes]) -> Heard:
    """The best messages. Takes some 30 ms for a thousand."""
    known: set[tuple[str, bytes]] = set()
    kept: list[tuple[SaidRow, str]] = []
    for row in rows:
        text = clean(said(row.raw))
        if (row.session, row.digest) not in known and text.strip() and not (seals and text_digest(text) in seals):
            known.add((row.session, row.digest))  # a client that cuts its history sends the same again
            kept.append((row, text))
    lines = {session: number for number, session in enumerate(dict.fromkeys(row.session for row, _ in kept))}
    passages = [
        rank.Passage(place, row.role, None, text, 0, terms(text), lines[row.session])
        for place, (row, text) in enumerate(kept)
    ]
    cosines = {place: similar[row.node] for place, (row, _) in enumerate(kept) if row.node in similar}
    ranking = rank.rank(rank.query(question), passages, cosines)
    return Heard([(one.score, *kept[one.position]) for one in ranking.found[:HEARD]], ranking.weights, len(kept))


def noted(quote: Quote, session: str, digest: bytes) -> Passage:
    text = clean(quote.text)
    return Passage("item", quote.item.bytes, session, quote.content_type, digest, quote.created_at, text, quote.score)


def best(passages: Sequence[Passage], most: int) -> list[Passage]:
    """The best ones, none twice."""
    chosen: dict[str, Passage] = {}
    for one in sorted(passages, key=lambda one: (-one.score, one.key)):
        chosen.setdefault(" ".join(one.text.split()), one)
    return list(chosen.values())[:most]


def part(text: str, weights: Mapping[str, float], count: CountTokens) -> str:
    """What of a text says most about a question."""
    if len(text) <= PASSAGE_TOKENS or count(text) <= PASSAGE_TOKENS:  # a token has a character at least
        return text
    found = excerpt(text, weights, PASSAGE_TOKENS, count)
    return text[found.start : found.stop]


def source(passage: Passage, turn: bytes | None) -> Source:
    item = passage.kind == "item"
    return Source(
        kind=passage.kind,
        id=str(UUID(bytes=passage.key)) if item else text_id(passage.key),
        turn=text_id(turn) if turn else None,
        session_id=passage.session,
        about=passage.about,
        created_at=passage.created_at,
        text=passage.text,
        score=round(passage.score, 6),
    )
