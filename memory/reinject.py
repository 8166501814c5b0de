"""Which earlier messages come back, and the block they stand in.

Two ways lead back into a prompt: relevance to the newest user message, and an id that the newest messages name.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from memory import rank
from memory.assemble import Counted, displaced
from memory.identify import Line, message_hint
from memory.lexical import Terms
from memory.messages import Message, spoken
from memory.plan import MESSAGE_TOKENS, CountTokens, Writer
from memory.prompts import Noted, Quoted, block_text, hints_in
from memory.types import Block, Frozen, Quote, Stretch

FRAME = rank.Frame(message=4, run=14)  # what quoting costs beside the text, as `prompts.quote_text` writes it
QUOTE_TOKENS = FRAME.message + FRAME.run
UNSURE_TOKENS = 1_536  # that may come back on an agent's line where nothing passes the floor
BEST = 0.7  # of the best score: what comes back where little may be spent
ROUNDS = 3  # of choosing
SMALLEST_ROOM = 64  # tokens; less is not worth another round
CALLING = 4  # an agent calls tools in one of so many answers at least
SAID_BEFORE = 2  # messages that join an agent's query outside a loop
LOOP_CONTEXT = 2  # calls with results that join the query inside a loop


class Search(msgspec.Struct, frozen=True):
    """All that decides a block."""

    counted: Counted
    frozen: Frozen
    quoted: frozenset[int]  # positions that stand in earlier blocks of this prompt
    similar: Mapping[int, float]  # cosine to the newest user message, where embeddings are ready
    terms: Callable[[Message], Terms]
    count: CountTokens
    writer: Writer
    nonce: str
    floor: float
    notes: tuple[Noted, ...] = ()  # stored items that stand before the quotes
    query: str | None = None  # what is looked for, where it is not the newest user message

    @property
    def line(self) -> Line:
        return self.counted.line

    @property
    def position(self) -> int:
        user = self.line.newest_user
        return len(self.line) - 1 if user is None else user

    @property
    def in_loop(self) -> bool:
        return self.position < self.line.fresh

    @property
    def acts(self) -> bool:
        """Is it an agent's line, where a quarter of the answers call tools? Then "yes, please" means what was said
        before, and all of the line is its own.

        Its words find nothing that is over the floor, and yet the call that follows needs ids and amounts from there.
        """
        answers = [bool(message.calls) for message in self.line.messages if message.role == "assistant"]
        return sum(answers) * CALLING >= len(answers) > 0


def reinject(search: Search, share_room: int, fill_room: int, scarce: bool = False, cold: bool = False) -> Block:
    """The block for the newest user message.

    Args:
        scarce: the session has little left to spend on blocks, so only the best may come back.
        cold: the provider has forgotten the prompt, so filling up costs no more than the client's own would have.
        share_room: tokens it may have as long as it stays.
        fill_room: tokens it may have in this one request; at most share_room where filling does not pay.
    """
    quotes = named(search, choose(search, share_room, BEST if scarce else rank.LEAST_SHARE))
    kept, kept_tokens = render(search, quotes)
    if fill_room <= share_room:
        return Block(search.position, len(search.line), kept, kept_tokens, quotes=quotes)
    more = named(search, choose(search, fill_room, rank.LEAST_SHARE, fills=cold))
    filled, filled_tokens = render(search, more)
    return Block(
        search.position, len(search.line), kept, kept_tokens, filled, filled_tokens, quotes=quotes, filled_quotes=more
    )


def named(search: Search, quotes: tuple[Quote, ...]) -> tuple[Quote, ...]:
    return tuple(replace(quote, id=message_hint(search.line.nodes[quote.position])) for quote in quotes)


def choose(search: Search, room: int, least_share: float, fills: bool = False) -> tuple[Quote, ...]:
    """Named messages first, then relevant ones; inside a loop, and to fill up, the most recent too.

    What quoting costs is estimated from above, so what the block as written leaves is given out once more.
    """
    frame = search.count(block_text(search.nonce, ())) + MESSAGE_TOKENS
    quotes = fitting(search, named_positions(search), room - frame, "named")
    gone = [i for i in displaced(search.frozen) if i not in search.quoted]
    if search.acts and not search.in_loop and not is_sure(search, gone):
        room = min(room, UNSURE_TOKENS + cost(quotes))
    free = room - frame - cost(quotes)
    for _ in range(ROUNDS):
        known = len(quotes)
        quotes += relevant(search, left(gone, quotes), free, least_share)
        if search.in_loop or (fills and quotes):  # nothing relevant brings nothing, however much room there is
            quotes += recent(search, left(gone, quotes), free - cost(quotes[known:]))
        quotes = trim(search, tuple(sorted(quotes, key=lambda quote: quote.position)), room)
        free = room - max(render(search, quotes)[1], frame)
        if free < SMALLEST_ROOM:
            break
    return quotes


def left(positions: Sequence[int], quotes: Sequence[Quote]) -> list[int]:
    taken = {quote.position for quote in quotes}
    return [i for i in positions if i not in taken]


def cost(quotes: Sequence[Quote]) -> int:
    return sum(quote.tokens for quote in quotes)


def relevant(search: Search, positions: Sequence[int], room: int, least_share: float) -> tuple[Quote, ...]:
    candidates, ranking = ranked(search, positions)
    chosen = rank.select(ranking, candidates, room, floor_of(search), search.count, FRAME, least_share)
    scores = {candidate.position: candidate.score for candidate in ranking}
    return tuple(Quote(c.position, c.tokens, scores.get(c.position, 0.0), "relevant", c.start, c.stop) for c in chosen)


def floor_of(search: Search) -> float:
    """An agent's history is its own, and its query says little in words: "go ahead" outside a loop, calls inside."""
    return 0.0 if search.in_loop or search.acts or search.query is not None else search.floor


def is_sure(search: Search, positions: Sequence[int]) -> bool:
    """Does anything pass the floor that holds for chats?"""
    _, ranking = ranked(search, positions)
    return any(found.score > search.floor for found in ranking)


def ranked(search: Search, positions: Sequence[int]) -> tuple[list[rank.Passage], rank.Ranking]:
    candidates = [passage(search, i) for i in positions]
    return candidates, rank.rank(wanted(search), candidates, search.similar)


def recent(search: Search, positions: Sequence[int], room: int) -> tuple[Quote, ...]:
    """Whole messages, newest first, while they fit."""
    quotes: list[Quote] = []
    for position in reversed(positions):
        tokens = search.counted.tokens[position] + QUOTE_TOKENS
        if tokens > room:
            break
        quotes.append(Quote(position, tokens, 0.0, "recent"))
        room -= tokens
    return tuple(quotes)


def wanted(search: Search) -> rank.Query:
    if search.query is not None:
        return rank.query(search.query)
    messages = search.line.messages
    newest = messages[search.position].text
    if not search.in_loop:
        before = messages[: search.position][-SAID_BEFORE:] if search.acts else ()
        return rank.query(newest, [spoken(message) for message in before])
    calls = [i for i, message in enumerate(messages) if message.calls and i > search.position]
    begin = calls[-LOOP_CONTEXT] if len(calls) >= LOOP_CONTEXT else search.position + 1
    return rank.query(newest, [spoken(message) for message in messages[begin:]])


def passage(search: Search, position: int) -> rank.Passage:
    message = search.line.messages[position]
    return rank.Passage(
        position=position,
        role=message.role,
        speaker=message.name,
        text=spoken(message),
        tokens=search.counted.tokens[position],
        terms=search.terms(message),
    )


def named_positions(search: Search) -> list[int]:
    """The messages whose ids stand in the newest messages, on this line alone; foreign ids name nothing."""
    begin = max(search.line.fresh - 1, 0)  # the model names ids, too: in its answer or in a call
    named = [hint for message in search.line.messages[begin:] for hint in hints_in(spoken(message))]
    if not named:
        return []
    spans = spans_by_hint(search)
    gone = set(displaced(search.frozen)) - search.quoted
    return [i for hint in named for i in spans.get(hint, ()) if i in gone]


def spans_by_hint(search: Search) -> dict[str, range]:
    nodes = search.line.nodes
    spans = {message_hint(node): range(i, i + 1) for i, node in enumerate(nodes)}
    return spans | {s.id: range(s.start, s.stop) for s in every(search.frozen.stretches)}


def every(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Stretches and what merged lines opened."""
    return [found for stretch in stretches for found in (stretch, *every(stretch.members))]


def fitting(search: Search, positions: Sequence[int], room: int, why: str) -> tuple[Quote, ...]:
    """Quote whole messages while they fit; the first that does not is quoted as far as it does."""
    quotes: list[Quote] = []
    for position in dict.fromkeys(positions):
        text = spoken(search.line.messages[position])
        cost = search.count(text) + QUOTE_TOKENS
        if cost <= room:
            quotes.append(Quote(position, cost, 1.0, why))
        elif room > 4 * QUOTE_TOKENS:
            stop = int(len(text) * (room - QUOTE_TOKENS) / cost * 0.9)
            quotes.append(Quote(position, room, 1.0, why, 0, stop))
        room -= cost
        if room <= 0:
            break
    return tuple(quotes)


def render(search: Search, quotes: Sequence[Quote]) -> tuple[bytes, int]:
    """The block's message and its tokens; nothing for no quotes and no notes."""
    if not quotes and not search.notes:
        return b"", 0
    text = block_text(search.nonce, [quoted(search, quote) for quote in quotes], search.notes)
    return search.writer.message("user", text), search.count(text) + MESSAGE_TOKENS


def trim(search: Search, quotes: tuple[Quote, ...], room: int) -> tuple[Quote, ...]:
    """Drop the least relevant quotes until the block as written fits: parts do not add up exactly to the whole."""
    while quotes and render(search, quotes)[1] > room:
        least = min(quotes, key=lambda quote: quote.score)
        quotes = tuple(quote for quote in quotes if quote is not least)
    return quotes


def quoted(search: Search, quote: Quote) -> Quoted:
    message = search.line.messages[quote.position]
    speaker = f"{message.role} ({message.name})" if message.name else message.role
    return Quoted(
        position=quote.position,
        hint=message_hint(search.line.nodes[quote.position]),
        speaker=speaker,
        text=spoken(message)[quote.start : quote.stop],
        cut=quote.start > 0 or quote.stop is not None,
    )
