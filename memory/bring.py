"""Stored items that come back into a conversation: found once for a user message, told in its block before the quotes.

An item belongs to its session: it comes into conversations that name that session, or, shared, into all of its tenant.
"""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

import structlog
from msgspec.structs import replace

from memory.errors import ModelError, StoreError
from memory.fold import Room
from memory.identify import item_hint, place
from memory.items import Items
from memory.plan import MESSAGE_TOKENS, CountTokens
from memory.prepared import Caller
from memory.prompts import BLOCK_HEADING, HINT, NOTED_HEADING, Noted, block_text, hints_in, note_text
from memory.reinject import Search, render, spans_by_hint, trim
from memory.search import Quote
from memory.store.pool import WAIT_SECONDS
from memory.types import Block, Brought

log = structlog.get_logger()

SHARE = 4  # of what a block may keep: items have one part at most
LEAST_TOKENS = 48  # less room is not worth a search
MOST_NAMED = 8  # ids of a message that are looked up
HEADING_TOKENS = 24  # of a note, about; those of long types have more


class Bring:
    def __init__(self, items: Items, wait_seconds: float = WAIT_SECONDS) -> None:
        self._items = items
        self._wait_seconds = wait_seconds

    async def into(self, block: Block, caller: Caller, search: Search, standing: Sequence[Block], room: Room) -> Block:
        """The block with the items that belong before its message; itself where there are none, and in a loop.

        Args:
            standing: earlier blocks of the prompt; what these tell is not told again.
        """
        free = free_tokens(block, search, room) - HEADING_TOKENS
        if search.in_loop or free < LEAST_TOKENS:
            return block
        found = await self._found(caller, search, free)
        if not found:
            return block
        made = await asyncio.to_thread(with_items, block, found, search, standing, room)
        return replace(made, session=caller.label)

    async def _found(self, caller: Caller, search: Search, room_tokens: int) -> tuple[Quote, ...]:
        """What the newest message names and what answers it."""
        text = search.line.messages[search.position].text
        if not text.strip():
            return ()
        return await self.found(caller, HINT.sub("", text), room_tokens, search.count, strange_hints(search, text))

    async def found(
        self, caller: Caller, words: str, room_tokens: int, count: CountTokens, hints: Sequence[str] = ()
    ) -> tuple[Quote, ...]:
        """Items that are named, and parts of those that answer some words; nothing where that is not known in time."""
        home = place(caller.tenant, caller.label) if caller.label else None
        try:
            async with asyncio.timeout(self._wait_seconds):
                if not await self._items.has_any(caller.tenant, home):
                    return ()
                return await self._items.recall(caller.tenant, home, words, room_tokens, count, hints)
        except (StoreError, ModelError, TimeoutError) as error:
            log.info("no stored items", reason=f"{type(error).__name__}: {error}")
            return ()


def strange_hints(search: Search, text: str) -> tuple[str, ...]:
    """The ids of a text that name no message of its line."""
    hints = hints_in(text)
    known = spans_by_hint(search) if hints else {}
    return tuple(hint for hint in hints if hint not in known)[:MOST_NAMED]


def most_tokens(block: Block, room: Room) -> int:
    """That the block may have with items, as long as it stays."""
    return min(room.stays, block.kept_tokens + room.stays // SHARE)


def free_tokens(block: Block, search: Search, room: Room) -> int:
    """For notes, headings and words."""
    frame = search.count(NOTED_HEADING) - search.count(BLOCK_HEADING)
    if not block.kept:
        frame += search.count(block_text(search.nonce, ())) + MESSAGE_TOKENS
    return most_tokens(block, room) - block.kept_tokens - frame


def with_items(block: Block, found: Sequence[Quote], search: Search, standing: Sequence[Block], room: Room) -> Block:
    """The block with what fits of the items found; quotes stay, but of those that fill up the least relevant may go."""
    told = {(item.id, item.digest) for earlier in standing for item in earlier.items}
    fresh = [quote for quote in found if (str(quote.item), digest_of(quote)) not in told]
    chosen = fitting(fresh, search, free_tokens(block, search, room))
    while chosen:  # parts do not add up exactly to the whole
        noting = replace(search, notes=tuple(map(noted, chosen)))
        kept, kept_tokens = render(noting, block.quotes)
        if kept_tokens <= most_tokens(block, room):
            break
        chosen = chosen[:-1]
    if not chosen:
        return block
    items = tuple(brought(quote) for quote in chosen)
    stays = replace(block, kept=kept, kept_tokens=kept_tokens, items=items)
    if not block.filled:
        return stays
    quotes = trim(noting, block.filled_quotes, room.once)
    filled, filled_tokens = render(noting, quotes)
    if filled_tokens <= kept_tokens:
        return stays.cut()
    return replace(stays, filled=filled, filled_tokens=filled_tokens, filled_quotes=quotes)


def fitting(found: Sequence[Quote], search: Search, room_tokens: int) -> tuple[Quote, ...]:
    """Best first, while there is room."""
    chosen = []
    for quote in found:
        tokens = search.count(note_text(noted(quote)))
        if tokens <= room_tokens:
            chosen.append(quote)
            room_tokens -= tokens
    return tuple(chosen)


def noted(quote: Quote) -> Noted:
    date = quote.created_at.date().isoformat()
    return Noted(item_hint(quote.item), quote.content_type, date, quote.text, cut=not quote.whole)


def brought(quote: Quote) -> Brought:
    return Brought(
        str(quote.item), item_hint(quote.item), quote.content_type, quote.start, quote.stop, quote.tokens,
        quote.score, digest_of(quote),
    )  # fmt: skip


def digest_of(quote: Quote) -> str:
    return blake2b(quote.text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
