"""The recall tool: a model asks, by id or in words, for what was folded, and gets it word for word.

What it asks is answered from the line as it stood when its request was planned; whatever goes wrong is said in words
that it can read.
"""

import asyncio
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from memory import rank
from memory.assemble import displaced
from memory.bring import Bring, noted
from memory.identify import message_hint
from memory.plan import MESSAGE_TOKENS
from memory.prepared import Caller, Offer
from memory.prompts import ONLY_BEGINNING, RECALL, STANDS_ABOVE, Noted, block_text, missing_text
from memory.reinject import BEST, Search, cost, fitting, left, named, quoted, relevant, spans_by_hint
from memory.search import Quote as ItemQuote
from memory.similar import Similar
from memory.types import Quote

ID = re.compile(r"(?:\[#|#)?([a-z2-7]{8})\]?")
MOST_ASKED_CHARS = 200  # that a record and a refusal tell of what was asked
LEAST_TOKENS = 160  # with less room than that nothing is brought back
TOKENS_AN_ID = 150  # of the room, for each id that is told of what does not fit
NOTES_SHARE = 4  # of the room: stored items have one part at most


class Lack(StrEnum):
    """Why a call brought nothing back."""

    UNCLEAR = "unclear"  # it says neither an id nor a query
    MISSHAPEN = "misshapen"  # what it gives as an id cannot be one
    UNKNOWN = "unknown"  # nothing here has that id
    NOTHING = "nothing"  # nothing answers the query
    FULL = "full"  # there is no room left in the window
    AWAY = "away"  # the memory cannot be asked just now


class Recalled(msgspec.Struct, frozen=True):
    """What one call brought back."""

    asked: str  # the id or the query; "" where the call said neither
    text: str  # that the model reads
    lack: Lack | None = None  # None: something was found
    ids: tuple[str, ...] = ()  # of the messages and notes that are told, 8 base32 characters each
    tokens: int = 0  # of what was found

    @property
    def found(self) -> bool:
        return self.lack is None


UNANSWERED = Recalled("", "The memory cannot be asked just now. Go on without it.", Lack.AWAY)


class Told(NamedTuple):
    """What was found, as the model reads it."""

    text: str
    ids: tuple[str, ...]


class Wanted(msgspec.Struct):
    """The arguments of a call."""

    id: str | None = None
    query: str | None = None


class Recall:
    def __init__(self, similar: Similar, bring: Bring | None) -> None:
        self._similar = similar
        self._bring = bring

    async def answer(self, caller: Caller, offer: Offer, arguments: str, room: int) -> Recalled:
        """What a call asks for, in at most about `room` tokens; a sentence that says why not, else."""
        wanted = read(arguments)
        if isinstance(wanted, str):
            return Recalled("", wanted, Lack.UNCLEAR)
        asked = (wanted.id or wanted.query or "")[:MOST_ASKED_CHARS]
        if room < LEAST_TOKENS:
            full = "There is no room left in the context window for that. Go on without it."
            return Recalled(asked, full, Lack.FULL)
        named_by = ID.fullmatch(wanted.id.strip().lower()) if wanted.id else None
        if named_by is not None:
            return once(offer, await self._named(caller, offer.search, named_by[1], room))
        if wanted.query and wanted.query.strip():
            return once(offer, await self._found(caller, offer.search, wanted.query.strip(), room))
        misshapen = f"{asked!r} is no id: one has 8 characters, as in [#a2b3c4d5]. Or give a query."
        return Recalled(asked, misshapen, Lack.MISSHAPEN)

    async def _named(self, caller: Caller, search: Search, hint: str, room: int) -> Recalled:
        span = spans_by_hint(search).get(hint)
        if span is not None:
            return recalled(search, hint, await asyncio.to_thread(passage, search, span, room))
        notes = await self._notes(caller, search, "", room, (hint,))
        if not notes:
            return Recalled(hint, f"Nothing here has the id {hint}. Give a query instead.", Lack.UNKNOWN)
        return recalled(search, hint, told(replace(search, notes=notes), ()))

    async def _found(self, caller: Caller, search: Search, query: str, room: int) -> Recalled:
        similar = await self._similar.to(query, caller.tenant, search)
        notes = await self._notes(caller, search, query, room // NOTES_SHARE, ())
        asking = replace(search, query=query, similar=similar, quoted=frozenset(), notes=notes)
        asked, found = query[:MOST_ASKED_CHARS], await asyncio.to_thread(answering, asking, room)
        if found is None:
            return Recalled(asked, "Nothing earlier says anything of that. Try other words.", Lack.NOTHING)
        return recalled(search, asked, found)

    async def _notes(
        self, caller: Caller, search: Search, words: str, room: int, hints: Sequence[str]
    ) -> tuple[Noted, ...]:
        found: Sequence[ItemQuote] = ()
        if self._bring is not None:
            found = await self._bring.found(caller, words, room, search.count, hints)
        return tuple(map(noted, found))


def read(arguments: str) -> Wanted | str:
    """What a call asks for, or a sentence that says how to ask."""
    try:
        wanted = msgspec.json.decode(arguments or "{}", type=Wanted)
    except msgspec.DecodeError:
        wanted = Wanted()
    if not (wanted.id or wanted.query):
        return f'{RECALL} takes {{"id": "a2b3c4d5"}} or {{"query": "words to look for"}}.'
    return wanted


def recalled(search: Search, asked: str, found: Told) -> Recalled:
    return Recalled(asked, found.text, ids=found.ids, tokens=search.count(found.text))


def once(offer: Offer, found: Recalled) -> Recalled:
    """The same; a line in its place where an earlier result that stands in the prompt tells it word for word."""
    if not found.ids or not any(tells(offer.search, raw, found) for raw in offer.messages):
        return found
    return replace(found, text=STANDS_ABOVE.format(hint=found.ids[0]), tokens=0)


def tells(search: Search, raw: bytes, found: Recalled) -> bool:
    """Is it in a message of results?"""
    if found.ids[0].encode() not in raw:
        return False
    message = search.writer.read(raw)
    return message.role == "tool" and found.text in message.text


def passage(search: Search, span: range, room: int) -> Told:
    """The messages that an id names, as far as they fit."""
    frame = search.count(block_text(search.nonce, ())) + MESSAGE_TOKENS
    most = max(1, room // TOKENS_AN_ID)
    longest = search.count(missing_text(["a2b3c4d5"] * len(span), len(span), most))
    quotes = fitting(search, span, room - frame - longest, "named")
    found = told(search, named(search, quotes))
    whole = {quote.position for quote in quotes if quote.stop is None}
    missing = [message_hint(search.line.nodes[i]) for i in span if i not in whole]
    if not missing:
        return found
    note = ONLY_BEGINNING if len(span) == 1 else missing_text(missing, len(span), most)
    return found._replace(text=f"{found.text}\n{note}")


def answering(search: Search, room: int) -> Told | None:
    """The messages that answer a query, as many as fit; None for none."""
    gone = displaced(search.frozen)
    quotes: tuple[Quote, ...] = ()
    free = room - search.count(block_text(search.nonce, (), search.notes)) - MESSAGE_TOKENS
    for least_share in (BEST, rank.LEAST_SHARE):  # a long message that answers best must not lose to short neighbours
        found = relevant(search, left(gone, quotes), free - cost(quotes), least_share)
        quotes = tuple(sorted((*quotes, *found), key=lambda quote: quote.position))
    if not quotes and not search.notes:
        return None
    while quotes and search.count(told(search, quotes).text) > room:
        quotes = tuple(sorted(quotes, key=lambda quote: quote.score)[1:])
    return told(search, named(search, quotes))


def told(search: Search, quotes: Sequence[Quote]) -> Told:
    """Notes, then quotes in the order of the conversation."""
    in_order = sorted(quotes, key=lambda quote: quote.position)
    text = block_text(search.nonce, [quoted(search, quote) for quote in in_order], search.notes)
    return Told(text, (*(note.hint for note in search.notes), *(quote.id for quote in in_order)))
