"""A request on its way through the memory: who asks, what goes upstream, what its turn will need."""

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Protocol

import msgspec

from memory.held import Known
from memory.identify import Line, text_id
from memory.messages import ChatRequest, Message
from memory.prices import input_cost, usage_cost
from memory.recorder import Asked, Ended
from memory.reinject import Search
from memory.store.turns import FoldRow
from memory.types import Mode, Model


class Dialect(Protocol):
    """What the wire offers to write messages in the client's dialect."""

    def message_json(self, role: str, content: str) -> bytes: ...
    def results(self, raw: bytes) -> Sequence[bytes]: ...
    def words(self, raw: bytes) -> bytes: ...
    def with_content(self, raw: bytes, content: str, result: int = 0) -> bytes: ...
    def render(self, request: ChatRequest, messages: Sequence[bytes], stable: int = 0) -> bytes: ...
    def message_of(self, raw: bytes) -> Message: ...
    def tool_json(self, name: str, description: str, parameters: Mapping[str, object]) -> bytes: ...
    def results_json(self, results: Sequence[tuple[str, str]]) -> tuple[bytes, ...]: ...
    def with_tool(self, body: bytes, name: str, tool: bytes) -> bytes | None: ...
    def without_calls(self, body: bytes) -> bytes: ...


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and through which upstream."""

    tenant: bytes  # 16 bytes
    label: str | None = None  # X-Session-Id
    upstream: str = ""


class Offer(msgspec.Struct, frozen=True):
    """The recall tool in a request: what the model may ask for, and what the hidden requests after it go on from."""

    search: Search
    messages: tuple[bytes, ...]  # as forwarded
    stable: int  # so many of them stay as they are until the next rollover
    room: int  # tokens that the prompt has up to its limit
    share: int  # of them, that one answer may bring back


class Prepared(msgspec.Struct, frozen=True):
    """The request to forward, and all that the turn's record needs."""

    caller: Caller
    asked: ChatRequest
    line: Line
    body: bytes
    mode: Mode
    attempt: bytes
    model: Model
    asked_tokens: int | None = None
    forwarded_tokens: int | None = None
    block_tokens: int = 0
    rolled: str | None = None  # why it rolled over
    saved_usd: float | None = None
    record: Mapping[str, object] | None = None  # the explanation
    folds: tuple[FoldRow, ...] = ()
    embed: bool = False
    reason: str | None = None  # why degraded
    held: Known | None = None  # of quarantine, when it was folded
    tokens: tuple[int, ...] = ()  # of the line's messages, where they were counted
    offer: Offer | None = None  # None: our tool is not in the body

    @property
    def turn_id(self) -> str:
        return text_id(self.line.tip)

    @property
    def is_untouched(self) -> bool:
        """Do the client's own bytes go upstream?"""
        return self.body is self.asked.body

    def to_record(self) -> Asked:
        return Asked(
            tenant=self.caller.tenant,
            label=self.caller.label,
            model=self.asked.model,
            request=self.asked,
            line=self.line,
            tokens=self.tokens,
            attempt=self.attempt,
            record={
                "mode": self.mode,
                "asked_tokens": self.asked_tokens,
                "forwarded_tokens": self.forwarded_tokens,
                "reason": self.reason,
                **(self.record or {}),
            },
            folds=self.folds,
            jobs=("embed",) if self.embed else (),
            held=self.held.number if self.held else None,
        )


class Seen(msgspec.Struct, frozen=True):
    """The newest request of a conversation: the next one sends it again."""

    line: Line
    tokens: tuple[int, ...]
    encoding: str
    body_bytes: int

    def known(self, path: Line, encoding: str) -> tuple[int, ...]:
        """The tokens of the messages that both begin with; equal ones need not count alike, so the same ones."""
        same = encoding == self.encoding and len(self.line) <= len(path)
        return self.tokens if same and all(map(is_, self.line.messages, path.messages)) else ()

    @property
    def size(self) -> int:
        return 500 + self.body_bytes + 200 * len(self.line)


def bill(prepared: Prepared, ended: Ended) -> dict[str, float]:
    """Dollars, and what the same turn would have cost directly; nothing where prices or usage are not known.

    Directly there are no hidden requests: only what the client asked for is in `saved_usd`, and in `ended.direct`.
    """
    prices = prepared.model.prices
    if not prices or not ended.usage:
        return {}
    cost = usage_cost(ended.usage, prices)
    direct = usage_cost(ended.direct or ended.usage, prices) + (prepared.saved_usd or 0.0)
    return {"cost_usd": round(cost, 9), "direct_usd": round(direct, 9)}


def going_on_cost(before: Prepared, after: Prepared) -> float:
    """Dollars, about, of what a hidden request reads: the prompt before it from the cache, but not without our tool."""
    prices, tokens = after.model.prices, after.forwarded_tokens or 0
    cached_tokens = (before.forwarded_tokens or 0) if after.offer is not None else 0
    return input_cost(tokens, cached_tokens, prices) if prices else 0.0
