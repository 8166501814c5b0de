"""Conversations for tests: messages as clients write them, and histories that grow."""

import json
import random
from collections.abc import Sequence
from typing import Any

from memory.assemble import Counted
from memory.identify import Line, line
from memory.manager import writer
from memory.messages import ChatRequest, Message
from memory.plan import Rollover
from memory.tokens import REPLY_TOKENS, Counter
from memory.types import Budget
from proxy.wire import openai
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser

Json = dict[str, Any]

TENANT = bytes(range(16))
ENCODING = "cl100k_base"
COUNTER = Counter()
WRITER = writer(openai)

WORDS = (
    "harbour lantern copper meadow signal velvet orchard thunder pebble canvas ribbon glacier saddle compass ember "
    "walnut fabric mirror ladder bottle anchor basket candle dragon engine feather garden hammer island jacket kettle "
    "letter marble needle office pencil quarry rocket shadow tunnel umbrella valley window yellow zipper branch cotton"
).split()


def user(content: Any, **more: Any) -> Json:
    return {"role": "user", "content": content, **more}


def assistant(content: str | None, **more: Any) -> Json:
    return {"role": "assistant", "content": content, **more}


def system(content: str, role: str = "system") -> Json:
    return {"role": role, "content": content}


def calling(*calls: tuple[str, str], content: str | None = None) -> Json:
    """An assistant message with calls: (id, JSON arguments)."""
    told = [{"id": id, "type": "function", "function": {"name": "look", "arguments": text}} for id, text in calls]
    return assistant(content, tool_calls=told)


def result(id: str, content: str) -> Json:
    return {"role": "tool", "tool_call_id": id, "content": content}


def prose(rng: random.Random, words: int) -> str:
    """Sentences of so many words."""
    taken = [rng.choice(WORDS) for _ in range(words)]
    starts = range(0, words, 11)
    return " ".join(" ".join(taken[i : i + 11]).capitalize() + "." for i in starts)


def chat(rng: random.Random, turns: int, words: int = 60) -> list[Json]:
    """User and assistant in turns; ends with a user message."""
    said: list[Json] = []
    for _ in range(turns):
        said += [user(prose(rng, words)), assistant(prose(rng, words))]
    return [*said, user(prose(rng, 12))]


def agent(rng: random.Random, steps: int, words: int = 60) -> list[Json]:
    """One user message and a loop of calls with results behind it."""
    said = [user(f"Please find out {prose(rng, 10)}")]
    for step in range(steps):
        id = f"call_{rng.randrange(10**9)}_{step}"
        said += [calling((id, json.dumps({"place": rng.choice(WORDS), "step": step}))), result(id, prose(rng, words))]
    return said


def body_of(messages: Sequence[Json], model: str = "small-8k", **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": list(messages), **more}).encode()


def parse(messages: Sequence[Json], **more: Any) -> ChatRequest:
    asked = Parser(SHAPE).parse(body_of(messages, **more))
    assert asked is not None
    return asked


def line_of(messages: Sequence[Json], tenant: bytes = TENANT) -> Line:
    return line(tenant, parse(messages).messages)


def count(text: str) -> int:
    return COUNTER.text(text, ENCODING)


def weigh(message: Message) -> int:
    return COUNTER.message(message, ENCODING)


def counted_of(messages: Sequence[Json], tenant: bytes = TENANT, **more: Any) -> Counted:
    asked = parse(messages, **more)
    counts = COUNTER.messages(asked.messages, ENCODING)
    systems = {i: counts[i] for i, message in enumerate(asked.messages) if message.is_system}
    tokens = tuple(n for i, n in enumerate(counts) if i not in systems)
    fixed = COUNTER.schemas(asked.schemas, ENCODING) + REPLY_TOKENS
    return Counted(asked, line(tenant, asked.messages), tokens, systems, fixed)


def rollover_of(counted: Counted, budget: Budget, digest_share: float = 0.35) -> Rollover:
    front = counted.fixed + sum(counted.system_tokens.values())
    return Rollover(counted.line, counted.tokens, front, budget, digest_share, count, weigh, WRITER)


def forwarded_tokens(messages: Sequence[bytes], schemas: Sequence[bytes] = ()) -> int:
    """What a prompt has, counted from its bytes."""
    asked = Parser(SHAPE).parse(b'{"model":"m","messages":[' + b",".join(messages) + b"]}")
    assert asked is not None
    return sum(COUNTER.messages(asked.messages, ENCODING)) + COUNTER.schemas(schemas, ENCODING) + REPLY_TOKENS
