"""A provider for the demo: it plays its lines of the story, and answers anything else from the prompt it received.

It knows the assistant's lines of the conversation (the request's `x-demo-line` says which comes next), but not the
questions, and it keeps nothing from one request to the next but what a cache of prefixes holds. `read` is all that
answers a question: a function of the messages in the prompt.

It counts and refuses like a real one: a prompt over the window is a 400, a prefix it has seen is read from its cache.
"""

import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from memory.messages import ChatRequest
from memory.tokens import REPLY_TOKENS, Counter
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser

Json = dict[str, Any]

LINE_HEADER = "x-demo-line"
CACHE_STEP, CACHE_FROM = 128, 1_024  # tokens, as OpenAI documents its prompt caching
START_SECONDS = 10.0
UNKNOWN = "I do not know. Nothing in what I was given says so."

# How it reads.

ENOUGH = 0.75  # share of a question's words that a sentence must speak of
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
HEADING = re.compile(r"^\[#([a-z2-7]{8})\] (?:message|messages) [\d-]+(?:, .*)?$")
SPEAKER = re.compile(r"^(?:user|assistant|tool)(?: \([^)]*\))*: ")
WORD = re.compile(r"[a-z]+")
# Words that mean the same here; the first stands for all.
ALIKE = (
    ("master", "charge"), ("keep", "promise"), ("grant", "give", "gave"), ("charter", "hire"),
    ("skipper", "captain"), ("boat", "vessel"), ("battery", "batteries"), ("settle", "choose", "take"),
    ("instead", "drop"), ("mhz", "frequency"), ("goes", "go", "send", "sends"), ("talking", "busy"),
    ("meal", "food"), ("must", "dangerous"), ("opens", "open"), ("move", "postpone"), ("reserve", "reserves"),
)  # fmt: skip
CANON = {word: alike[0] for alike in ALIKE for word in alike}
EMPTY = frozenset(
    WORD.findall(
        "a an and at back before by could day did do does each end find for get had has have her him his how i in"
        " insist is it its large me my nobody of on one ones or our raise remind sell sells she so stand stay that the"
        " their them then there they this to us was we were what when where which while who with would you"
    )
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A sentence in the prompt."""

    text: str
    source: str | None  # id of the quoted message or the digest's stretch; None: it stands there itself
    words: frozenset[str]


def read(messages: Sequence[Json]) -> str:
    """Answer the newest message from the others, in their own words.

    The sentence that speaks of most of what is asked is quoted, with the id it stands under; of equals the latest.
    """
    asked = words_of(text_of(messages[-1]))
    best, best_share = None, ENOUGH
    for message in messages[:-1]:
        for passage in passages(text_of(message)):
            share = len(asked & passage.words) / max(len(asked), 1)
            if share >= best_share:
                best, best_share = passage, share
    if best is None:
        return UNKNOWN
    return f"You told me: “{best.text}”" + (f" [#{best.source}]" if best.source else "")


@lru_cache(2_000)
def passages(text: str) -> tuple[Passage, ...]:
    """The sentences of a message that state something; those of quoted ones know where they come from."""
    found: list[Passage] = []
    source = None
    for line in text.splitlines():
        if heading := HEADING.match(line):
            source = heading[1]
            continue
        said = SENTENCE_END.split(SPEAKER.sub("", line))
        found += [Passage(some, source, words_of(some)) for some in said if some and not some.endswith("?")]
    return tuple(found)


def words_of(text: str) -> frozenset[str]:
    """The words that say what a text is about, in one form each."""
    return frozenset(
        CANON.get(word) or CANON.get(stem(word)) or stem(word)
        for word in WORD.findall(text.lower())
        if word not in EMPTY
    )


def stem(word: str) -> str:
    for ending in ("ed", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            short = word.removesuffix(ending)
            return short if short in CANON or f"{short}e" not in CANON else f"{short}e"
    return word


def text_of(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


# How it counts.


class PrefixCache:
    """Which beginnings of prompts have been seen, by their hash. Nothing expires: a demo is shorter than a cache."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def read(self, parts: Sequence[bytes], tokens: Sequence[int]) -> int:
        """Tokens of the longest known beginning, in whole steps; learns the prompt."""
        digests = [digest.digest() for digest in running(parts)]
        known = next((n for n, digest in enumerate(digests) if digest not in self._seen), len(digests))
        self._seen.update(digests)
        return cached_tokens(sum(tokens[:known]))


def running(parts: Sequence[bytes]) -> Iterator[Any]:
    """A hash after each part, of all up to it."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
        yield digest.copy()


def cached_tokens(shared: int) -> int:
    """What a provider reads from its cache of a beginning that two prompts share."""
    return shared // CACHE_STEP * CACHE_STEP if shared >= CACHE_FROM else 0


@dataclass(slots=True)
class Provider:
    """The application's state."""

    lines: Sequence[Json]  # the assistant's, in order
    window: int
    encoding: str
    answered: int = 0
    cache: PrefixCache = field(default_factory=PrefixCache)
    _parser: Parser = field(default_factory=lambda: Parser(SHAPE))
    _counter: Counter = field(default_factory=Counter)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        raw = await request.body()
        asked = self._parser.parse(raw)
        if asked is None:
            return failure("We could not parse the JSON body of your request.", None)
        tokens = [self._counter.schemas(asked.schemas, self.encoding), *self._counted(asked)]
        total = sum(tokens) + REPLY_TOKENS
        if total + (asked.max_output_tokens or 0) > self.window:
            return failure(
                f"This model's maximum context length is {self.window} tokens. However, your messages resulted in"
                f" {total} tokens. Please reduce the length of the messages.",
                "context_length_exceeded",
            )
        cached = self.cache.read([b"".join(asked.schemas), *(m.raw for m in asked.messages)], tokens)
        body = orjson.loads(raw)
        line = request.headers.get(LINE_HEADER)
        reply = self.lines[int(line)] if line else {"role": "assistant", "content": read(body["messages"])}
        return self._answer(body, reply, total, cached)

    def _counted(self, asked: ChatRequest) -> list[int]:
        return self._counter.messages(asked.messages, self.encoding)

    def _answer(self, body: Json, reply: Json, total: int, cached: int) -> Response:
        self.answered += 1
        written = self._counter.text(orjson.dumps(reply.get("tool_calls") or text_of(reply)).decode(), self.encoding)
        usage: Json = {"prompt_tokens": total, "completion_tokens": written, "total_tokens": total + written}
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
        base: Json = {"id": f"chatcmpl-{self.answered}", "created": int(time.time()), "model": body.get("model")}
        if body.get("stream"):
            return StreamingResponse(events(base, reply, usage), media_type="text/event-stream")
        choice = {"index": 0, "message": reply, "finish_reason": reason_of(reply)}
        return JSONResponse({**base, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def models(self, request: Request) -> Response:
        """GET /v1/models; the demo's settings name the window, so nobody has to ask."""
        return JSONResponse({"object": "list", "data": []})


def failure(message: str, code: str | None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": code}
    return JSONResponse({"error": error}, 400)


def reason_of(reply: Json) -> str:
    return "tool_calls" if reply.get("tool_calls") else "stop"


async def events(base: Json, reply: Json, usage: Json) -> AsyncIterator[bytes]:
    """A stream: role, words by threes, calls, reason, usage, [DONE]."""
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": some} for some in re.findall(r"(?:\S+\s*){1,3}", text_of(reply))]
    deltas += [{"tool_calls": [{"index": n, **call}]} for n, call in enumerate(reply.get("tool_calls") or ())]
    choices: list[Json] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason_of(reply)})
    for choice in choices:
        yield event({**base, "choices": [choice]})
    yield event({**base, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def event(chunk: Json) -> bytes:
    return b"data: " + orjson.dumps({"object": "chat.completion.chunk", **chunk}) + b"\n\n"


# How it runs.


@contextmanager
def serving(provider: Provider) -> Iterator[str]:
    """Run it on a free loopback port, in a thread of its own; gives its base URL.

    Raises:
        OSError: no port is to be had.
        TimeoutError: it did not start.
    """
    routes = [
        Route("/v1/chat/completions", provider.chat, methods=["POST"]),
        Route("/v1/models", provider.models),
    ]
    settings = uvicorn.Config(
        Starlette(routes=routes), lifespan="off", log_level="error", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            wait_for(server)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


def wait_for(server: uvicorn.Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if time.monotonic() > deadline:
            raise TimeoutError("the scripted provider did not start")
        time.sleep(0.01)
