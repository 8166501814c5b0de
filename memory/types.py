"""The nouns of context management: budgets, forms, plans, prices, turns."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec.structs import replace


class Form(StrEnum):
    FULL = "full"  # the words as the client sent them
    SUMMARY = "summary"  # shorter, in place or as part of a digest
    HINT = "hint"  # one line with an id


class Mode(StrEnum):
    WIRE = "wire"  # the client's own bytes went upstream
    FOLDED = "folded"  # old content was replaced by digests and hints
    DEGRADED = "degraded"  # memory could not help; see the log


class Model(msgspec.Struct, frozen=True):
    """What we know of a model. `window` None: unknown, so a wire until it is learned."""

    name: str
    window: int | None
    max_output_tokens: int | None = None
    separate_output: bool = False  # output has a limit of its own beside the window
    encoding: str = "cl100k_base"  # or the path of a tokenizer.json
    prices: "Prices | None" = None  # None: unknown
    trigger_share: float = 0.75  # of the window: what a session's stored items may have before they are told shorter
    safe_share: float = 0.6  # of the window: what a working context of them may have


class Prices(msgspec.Struct, frozen=True):
    """US dollars a token; relative to each other where the real ones are unknown."""

    input: float
    cached: float  # input read from the provider's cache
    write: float  # input written to the cache; most providers: the same as input
    output: float
    cache_seconds: float = 300.0  # how long a cached prefix lives unused


class Budget(msgspec.Struct, frozen=True):
    """Tokens. See section "Budget" in docs/context.md for the formulas."""

    window: int
    reserve: int  # kept for the answer
    limit: int  # what a prompt may have
    trigger: int  # where a rollover becomes due
    target: int  # what the frozen part may have after a rollover


class Item(msgspec.Struct, frozen=True):
    """A unit that shrinks together: one message, or a call with its results. Messages [start, stop) of a line."""

    start: int
    stop: int
    kind: str  # "user", "assistant", "exchange"
    tokens: int  # in full


class Stretch(msgspec.Struct, frozen=True):
    """Neighbouring messages that left the prompt together. Its id stands in a hint line."""

    id: str  # 8 base32 characters
    start: int
    stop: int
    tokens: int  # of the originals
    title: str
    text: str = ""  # the digest; "": only the hint line is left
    members: "tuple[Stretch, ...]" = ()  # what an old, merged line opens


class Part(msgspec.Struct, frozen=True):
    """A piece of a frozen prompt: the client's own messages [start, stop), or `raw` in their place."""

    start: int
    stop: int
    tokens: int
    raw: bytes | None = None  # a message of ours (a digest), or a client's message with shorter content
    form: Form = Form.FULL
    why: str = ""


class Frozen(msgspec.Struct, frozen=True):
    """The result of a rollover: how the first `covers` messages of a line are forwarded from now on."""

    covers: int
    parts: tuple[Part, ...]  # in the order of the prompt
    stretches: tuple[Stretch, ...]  # what the digest tells of, oldest first
    tokens: int  # of all parts; without system messages, tools and blocks
    asked: int  # how many messages the request had that made it
    rollovers: int = 1  # how many there have been on this line
    cut: int = 0  # so many messages of its line stand not in requests; positions count them
    spent: int = 0  # tokens that blocks before it have taken from the session's allowance
    dialect: str = "chat"  # that its messages are written in
    asides: "tuple[tuple[int, Aside], ...]" = ()  # of answers that stand in it in full, by their positions

    def __repr__(self) -> str:
        return f"<Frozen {self.covers} messages in {self.tokens:,} tokens, {len(self.stretches)} stretches>"


class Quote(msgspec.Struct, frozen=True):
    """An earlier message inside a re-injected block."""

    position: int
    tokens: int
    score: float
    why: str  # "named", "relevant"
    start: int = 0  # characters of its text, where only a part comes back
    stop: int | None = None
    id: str = ""  # 8 base32 characters: of the message


class Brought(msgspec.Struct, frozen=True):
    """A stored item, or a part of one, inside a re-injected block."""

    id: str  # UUID
    hint: str  # 8 base32 characters
    content_type: str
    start: int  # characters of its content
    stop: int
    tokens: int
    score: float  # 1.0: the message named it
    digest: str  # of the words: the same ones do not come twice


class Block(msgspec.Struct, frozen=True):
    """Earlier messages, quoted directly before the user message at `position`; empty when nothing was relevant.

    In the request that made it it may have more (`filled`); once it is cut, all that follow get `kept`.
    """

    position: int  # of the newest user message it was made for
    asked: int  # how many messages the request had for which it was made
    kept: bytes  # a message; b"" for none
    kept_tokens: int
    filled: bytes = b""  # b"": the same as `kept`
    filled_tokens: int = 0
    paid_tokens: int = 0  # what it took from the session's allowance; see prices.block_allowance
    quotes: tuple[Quote, ...] = ()  # of `kept`
    filled_quotes: tuple[Quote, ...] = ()
    items: tuple[Brought, ...] = ()  # stored ones, before the quotes
    session: str | None = None  # that the conversation named when they were brought

    @property
    def raw(self) -> bytes:
        return self.filled or self.kept

    @property
    def tokens(self) -> int:
        return self.filled_tokens or self.kept_tokens

    def cut(self) -> "Block":
        """Without what filled up."""
        return replace(self, filled=b"", filled_tokens=0, filled_quotes=())


class Aside(msgspec.Struct, frozen=True):
    """What the model asked of the memory before a visible answer: its calls and our results, which no client sees.

    It stands before the answer, as long as that stands in the prompt in full; where the client saw words between, or
    calls of its own tools among ours, the answer is in it as the model gave it, and it stands for the client's.
    """

    messages: tuple[bytes, ...]
    tokens: tuple[int, ...]  # of each
    whole: bool = False  # it stands for the answer
    dialect: str = "chat"  # that its messages are written in


class Placement(msgspec.Struct, frozen=True):
    """Messages [start, stop) of a line in a form, and why: what `GET /memory-manager/turns/{id}` tells.

    A prompt has hundreds, on every request; a Struct is made in a tenth of a dataclass's time.
    """

    start: int
    stop: int
    form: Form
    tokens: int
    why: str
    hint: str | None = None  # the id that brings it back


class Usage(msgspec.Struct, frozen=True):
    """What the provider says it counted."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )


def in_all(usages: Sequence[Usage]) -> Usage | None:
    return sum(usages[1:], usages[0]) if usages else None


def as_one(usages: Sequence[Usage]) -> Usage | None:
    """Of one request in place of several that go on from each other: it reads what the first one read, and what the
    last one says is its answer."""
    return replace(usages[0], output_tokens=usages[-1].output_tokens) if usages else None
