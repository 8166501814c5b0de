"""The recall tool in a request: whether it stands there, and the hidden requests that follow when it is called.

What a call brings back is found in `recall.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from memory.assemble import Piece, stable_pieces
from memory.bounded import Bounded
from memory.fold import ASKING_TOKENS, Standing
from memory.held import Held
from memory.messages import ChatRequest
from memory.prepared import Dialect, Offer, Prepared
from memory.prompts import RECALL, RECALL_TAKES, RECALL_USE
from memory.recall import UNANSWERED, Recall, Recalled
from memory.reinject import Search
from memory.settings import Settings
from memory.store.turns import attempt_id
from memory.tokens import Counter
from memory.types import Aside

MOST_SHARE = 1 / 8  # of the window, that one answer may bring back
RESULT_TOKENS = 48  # of a result beside what it brings back

Whose = tuple[bytes, str, str]  # a tenant's model at an upstream


class Written(NamedTuple):
    """What is forwarded."""

    body: bytes
    tokens: int
    offer: Offer | None  # None: our tool is not in the body


class RecallTool:
    def __init__(self, settings: Settings, counter: Counter, held: Held, recall: Recall) -> None:
        self._settings = settings
        self._counter = counter
        self._held = held
        self._recall = recall
        self._withheld: Bounded[Whose, bool] = Bounded(1_000)  # where it is refused

    def tokens(self, prepared: Prepared, dialect: Dialect) -> int:
        """Of the tool; 0 where it does not stand."""
        if self._settings.recall_tool == "off" or whose_model(prepared) in self._withheld:
            return 0
        return self._counter.schemas((b"[" + tool_json(dialect) + b"]",), prepared.model.encoding)

    def written(self, now: Standing, search: Search, pieces: Sequence[Piece], dialect: Dialect) -> Written:
        """The body to forward, with the tool where it may stand and leaves room to ask."""
        counted, limit = now.counted, now.budget.limit
        messages, stable = tuple(piece.raw for piece in pieces), stable_pieces(pieces)
        tokens = counted.fixed + sum(piece.placement.tokens for piece in pieces)
        can_ask = 0 < counted.tool_tokens <= limit - tokens - ASKING_TOKENS
        body, offers = render(counted.asked, messages, stable, dialect, can_ask)
        if not offers:
            return Written(body, tokens, None)
        tokens += counted.tool_tokens
        share = int(min(self._settings.recall.max_share, MOST_SHARE) * now.budget.window)
        return Written(body, tokens, Offer(search, messages, stable, limit - tokens, share))

    def without(self, prepared: Prepared, dialect: Dialect) -> Prepared:
        """The same request without the tool: not every model takes tools, or takes them beside a JSON schema."""
        assert prepared.offer is not None
        body = dialect.render(prepared.asked, prepared.offer.messages, prepared.offer.stable)
        tokens = (prepared.forwarded_tokens or 0) - self.tokens(prepared, dialect)
        return replace(prepared, body=body, offer=None, forwarded_tokens=tokens, attempt=attempt_id())

    def withhold(self, prepared: Prepared) -> None:
        """A model was refused with the tool and answered without: it gets it no more, as long as this process runs."""
        self._withheld.put(whose_model(prepared), True)

    async def answer(self, prepared: Prepared, arguments: str, room: int) -> Recalled:
        """What a call brings back, in at most about so many tokens; nothing that was isolated since."""
        assert prepared.offer is not None
        now = await self._held.of(prepared.caller.tenant)
        if prepared.held is None or now.number != prepared.held.number:
            return UNANSWERED
        return await self._recall.answer(prepared.caller, prepared.offer, arguments, room)

    def room(self, prepared: Prepared, said: bytes, calls: int, dialect: Dialect) -> int:
        """Tokens that each call may bring back, once the answer that made them stands in the prompt."""
        assert prepared.offer is not None
        left = prepared.offer.room - sum(self._weights(prepared, (said,), dialect)) - calls * RESULT_TOKENS
        return min(prepared.offer.share, left) // calls

    def go_on(self, prepared: Prepared, more: Sequence[bytes], dialect: Dialect, may_call: bool) -> Prepared | None:
        """The same request with more messages at its end; None where they do not fit.

        Args:
            may_call: False: the model is to answer in words, be it that the client wanted a call.
        """
        assert prepared.offer is not None
        offer, tokens = prepared.offer, sum(self._weights(prepared, more, dialect))
        if tokens > offer.room:
            return None
        messages = (*offer.messages, *more)
        body, _ = render(prepared.asked, messages, offer.stable, dialect, can_ask=True)
        body = body if may_call else dialect.without_calls(body)
        offer = replace(offer, messages=messages, room=offer.room - tokens)
        return replace(prepared, body=body, offer=offer, forwarded_tokens=(prepared.forwarded_tokens or 0) + tokens)

    def aside(self, prepared: Prepared, messages: Sequence[bytes], whole: bool, dialect: Dialect) -> Aside:
        """What was said before an answer, as it will be sent again."""
        return Aside(tuple(messages), self._weights(prepared, messages, dialect), whole, prepared.asked.dialect)

    def _weights(self, prepared: Prepared, raws: Sequence[bytes], dialect: Dialect) -> tuple[int, ...]:
        return tuple(self._counter.messages([dialect.message_of(raw) for raw in raws], prepared.model.encoding))


def render(
    asked: ChatRequest, messages: Sequence[bytes], stable: int, dialect: Dialect, can_ask: bool
) -> tuple[bytes, bool]:
    """The body to forward, and whether the tool stands in it."""
    body = dialect.render(asked, messages, stable)
    offering = dialect.with_tool(body, RECALL, tool_json(dialect)) if can_ask else None
    return (body, False) if offering is None else (offering, True)


def may_stand(body: bytes, dialect: Dialect) -> bool:
    """May the tool stand in a request? The client can have one of that name, or ask in a way that takes none."""
    return dialect.with_tool(body, RECALL, tool_json(dialect)) is not None


def tool_json(dialect: Dialect) -> bytes:
    return dialect.tool_json(RECALL, RECALL_USE, RECALL_TAKES)


def whose_model(prepared: Prepared) -> Whose:
    return prepared.caller.tenant, prepared.asked.model, prepared.caller.upstream
