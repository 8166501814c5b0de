"""A scripted OpenAI-compatible provider on a real socket: windows, prefix caching and a log, no model.

Windows: a model named `ctx-N` has a window of N tokens, any other name 128,000. A prompt whose tokens and
`max_tokens` are over it is refused with OpenAI's `context_length_exceeded` body, status 400.
Tokens: cl100k_base over contents, names, calls and tools, 4 a message (`count`).
Caching: `cached_tokens` is the longest common prefix of tools and messages with an earlier request of the
same key and model, in steps of 128 tokens from 1,024 up. Nothing expires: a session that is replayed in
minutes stands for one whose requests come while the cache is warm.
Answers: a preloaded message, an echo of `reply: ...` in the newest user message, or one fixed sentence.

Request headers
    x-bench-id: ID         names the entry in the log, so that a body is found again behind a proxy; bodies of
                           requests without a name are not kept
    x-script-reply: ID     answer with the message preloaded under that id
    x-script-fast: 1       do not look at the body: its own work is the same for 1 KB and for 500 KB
    x-script-chunks: N     stream N chunks of content
    x-script-pace: MS      wait that long before each chunk (plain answers: before the answer)
    x-script-stamp: 1      each chunk's content is when it was sent: monotonic clock, nanoseconds, 20 digits

Paths of its own
    POST /__script         {"id": message, ...}: preload answers
    POST /__log[?id=ID]    the entries so far (of that id), which are forgotten by asking
    POST /__forget         forget log, caches and preloaded answers
    GET  /__asked          how often /v1/models was asked for

    python benchmarks/provider.py --port 9100 --windows 8448,32768
"""

import argparse
import asyncio
import bisect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

import orjson
import uvicorn
from toktok import batch_count

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Json = dict[str, Any]

DEFAULT_WINDOW = 128_000  # tokens
WINDOWS = (2_304, 4_352, 8_192, 8_448, 16_384, 32_768, 131_072)
CACHE_STEP, CACHE_FROM = 128, 1_024  # tokens, as OpenAI documents its prompt caching
IMAGE_TOKENS = {"low": 85}  # other details: 765, four tiles of 512 x 512 and the base
MESSAGE_TOKENS = 4  # what a chat template puts around each message
LOG_ENTRIES = 20_000
STAMP = b"0" * 20  # where the time goes that a chunk is sent
SENTENCE = "Noted. I will go on with the next step."


@dataclass(slots=True)
class Node:
    """One part (tools, or a message) of the requests seen so far, and what followed it."""

    tokens: int = 0
    after: dict[str, "Node"] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # keys of `after`, sorted

    def learn(self, part: str, tokens: int) -> "Node":
        node = self.after.get(part)
        if node is None:
            node = self.after[part] = Node(tokens)
            bisect.insort(self.order, part)
        return node

    def nearest(self, part: str) -> str:
        """The longest prefix that `part` shares with any part in this place: a sorted neighbour has it."""
        place = bisect.bisect(self.order, part)
        near = self.order[max(place - 1, 0) : place + 1]
        return part[: max((shared_characters(part, other) for other in near), default=0)]


def shared_characters(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(slots=True)
class State:
    log: list[Json] = field(default_factory=list)
    caches: dict[tuple[str, str], Node] = field(default_factory=dict)
    replies: dict[str, Json] = field(default_factory=dict)
    windows: set[int] = field(default_factory=set)
    answered: int = 0
    asked_models: int = 0


def window_of(model: str) -> int:
    named = re.fullmatch(r"ctx-(\d+)", model)
    return int(named[1]) if named else DEFAULT_WINDOW


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """The strings of a message that a model reads: content parts, name, calls."""
    content = message.get("content")
    texts = (
        [content] if isinstance(content, str) else [p.get("text") or "" for p in content or () if isinstance(p, dict)]
    )
    texts.append(message.get("name") or "")
    for call in message.get("tool_calls") or ():
        texts += [call["function"]["name"], call["function"]["arguments"]]
    return [clean(text) for text in texts if text]


def clean(text: str) -> str:
    """Lone surrogates are legal in JSON and no text to a tokenizer."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def image_tokens(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    images = (p.get("image_url") or {} for p in parts if isinstance(p, dict) and p.get("type") == "image_url")
    return sum(IMAGE_TOKENS.get(image.get("detail", "auto"), 765) for image in images)


def count_each(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Tokens of each message as this provider counts them."""
    texts = [texts_of(message) for message in messages]
    counts = iter(batch_count([text for of_one in texts for text in of_one], "cl100k_base", threads=1))
    return [
        MESSAGE_TOKENS + image_tokens(message) + sum(next(counts) for _ in of_one)
        for message, of_one in zip(messages, texts, strict=True)
    ]


def count_tools(tools: Sequence[Any] | None) -> int:
    return batch_count([orjson.dumps(tools).decode()], "cl100k_base", threads=1)[0] if tools else 0


def count(body: Mapping[str, Any]) -> int:
    """Tokens of a whole prompt."""
    return count_tools(body.get("tools")) + sum(count_each(body.get("messages") or ()))


@dataclass(frozen=True, slots=True)
class Weight:
    """A prompt against what a key has sent before."""

    tokens: int
    cached_tokens: int
    tip: Node  # the last part that was known
    new: list[tuple[str, int]]  # the parts behind it with their tokens

    def learn(self) -> None:
        node = self.tip
        for part, tokens in self.new:
            node = node.learn(part, tokens)


def weigh(root: Node, body: Mapping[str, Any]) -> Weight:
    """Count a prompt, and how much of it a cache of earlier requests holds.

    Counts of known parts are read from the tree, so a history that is sent again costs a walk.
    """
    messages = list(body.get("messages") or ())
    parts = [orjson.dumps(body.get("tools") or []).decode(), *(orjson.dumps(m).decode() for m in messages)]
    tip, shared, known = root, 0, 0
    while known < len(parts) and parts[known] in tip.after:
        tip = tip.after[parts[known]]
        shared, known = shared + tip.tokens, known + 1
    fresh = [count_tools(body.get("tools"))] if known == 0 else []
    fresh += count_each(messages[max(known - 1, 0) :])
    total = shared + sum(fresh)
    if known < len(parts) and (common := tip.nearest(parts[known])):
        shared += min(batch_count([clean(common)], "cl100k_base", threads=1)[0], fresh[0])
    cached = shared // CACHE_STEP * CACHE_STEP if shared >= CACHE_FROM else 0
    return Weight(total, cached, tip, list(zip(parts[known:], fresh, strict=True)))


def scripted(body: Mapping[str, Any]) -> Json:
    """Echo what the newest user message asks for after `reply:`, else say one fixed sentence."""
    newest: Mapping[str, Any] = next((m for m in reversed(body.get("messages") or ()) if m.get("role") == "user"), {})
    asked = re.search(r"reply:\s*(.+)", " ".join(texts_of(newest)))
    return {"role": "assistant", "content": asked[1][:2000] if asked else SENTENCE}


def refusal(window: int, tokens: int) -> Json:
    text = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages."
    )
    return {
        "error": {
            "message": text,
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: `parts` of a body, each sent as a chunk of its own."""

    status: int
    message: Json
    usage: Json
    error: Json | None = None


def decide(state: State, headers: Mapping[str, str], raw: bytes) -> tuple[Json, Answer]:
    """Look at a request: count, refuse or answer, log."""
    if headers.get("x-script-fast"):
        body: Json = {"model": "fast", "stream": b'"stream":true' in raw}
        reply = state.replies.get(headers.get("x-script-reply", ""), {"role": "assistant", "content": SENTENCE})
        return body, Answer(200, reply, {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    try:
        body = orjson.loads(raw)
        if not isinstance(body, dict):
            raise TypeError("an object is expected")
    except (orjson.JSONDecodeError, TypeError):
        error = {"message": "We could not parse the JSON body of your request.", "type": "invalid_request_error"}
        return {}, Answer(400, {}, {}, {"error": {**error, "param": None, "code": None}})
    key, model = headers.get("authorization", ""), str(body.get("model") or "")
    weight = weigh(state.caches.setdefault((key, model), Node()), body)
    window = window_of(model)
    refused = weight.tokens + int(body.get("max_completion_tokens") or body.get("max_tokens") or 0) > window
    if not refused:
        weight.learn()
    entry: Json = {
        "id": headers.get("x-bench-id", ""),
        "key": key[-8:],
        "model": model,
        "status": 400 if refused else 200,
    }
    entry |= {"prompt_tokens": weight.tokens, "cached_tokens": 0 if refused else weight.cached_tokens}
    entry |= {"body": body if entry["id"] else None, "headers": dict(headers)}
    state.log.append(entry)
    del state.log[:-LOG_ENTRIES]
    if refused:
        return body, Answer(400, {}, {}, refusal(window, weight.tokens))
    reply = state.replies.get(headers.get("x-script-reply", "")) or scripted(body)
    written = sum(count_each([reply]))
    usage: Json = {"prompt_tokens": weight.tokens, "completion_tokens": written}
    usage |= {"total_tokens": weight.tokens + written, "prompt_tokens_details": {"cached_tokens": weight.cached_tokens}}
    return body, Answer(200, reply, usage)


def plain(answer: Answer, base: Json) -> bytes:
    reason = "tool_calls" if answer.message.get("tool_calls") else "stop"
    choice = {"index": 0, "message": answer.message, "logprobs": None, "finish_reason": reason}
    return orjson.dumps({**base, "object": "chat.completion", "choices": [choice], "usage": answer.usage})


def events(answer: Answer, base: Json, chunks: int, with_usage: bool) -> list[bytes]:
    """The events of a stream: role, content in `chunks` pieces (0: word by word), calls, reason, usage, [DONE]."""

    def event(choices: list[Json], **more: Any) -> bytes:
        return (
            b"data: " + orjson.dumps({**base, "object": "chat.completion.chunk", "choices": choices, **more}) + b"\n\n"
        )

    def delta(value: Json, reason: str | None = None) -> bytes:
        return event([{"index": 0, "delta": value, "finish_reason": reason}])

    text = answer.message.get("content") or ""
    calls = answer.message.get("tool_calls") or ()
    size = max(1, -(-len(text) // chunks)) if chunks else 0
    pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else re.findall(r"\S*\s*", text)[:-1]
    out = [delta({"role": "assistant", "content": "" if text else None})]
    out += [delta({"content": piece}) for piece in pieces]
    out += [delta({"tool_calls": [{"index": index, **call}]}) for index, call in enumerate(calls)]
    out.append(delta({}, "tool_calls" if calls else "stop"))
    if with_usage:
        out.append(event([], usage=answer.usage))
    return [*out, b"data: [DONE]\n\n"]


async def paced(parts: Sequence[bytes], milliseconds: float) -> AsyncIterator[bytes]:
    for part in parts:
        if milliseconds:
            await asyncio.sleep(milliseconds / 1000)
        yield part.replace(STAMP, b"%020d" % time.monotonic_ns())


async def respond(send: Send, status: int, parts: Sequence[bytes], kind: bytes, pace_ms: float = 0.0) -> None:
    headers = [(b"content-type", kind), (b"x-request-id", b"req-%d" % time.monotonic_ns())]
    if len(parts) == 1:
        headers.append((b"content-length", b"%d" % len(parts[0])))
    if len(parts) == 1 and pace_ms:
        await asyncio.sleep(pace_ms / 1000)
        pace_ms = 0
    await send({"type": "http.response.start", "status": status, "headers": headers})
    async for part in paced(parts, pace_ms):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def chat(state: State, headers: Mapping[str, str], raw: bytes, send: Send) -> None:
    body, answer = decide(state, headers, raw)
    if answer.error:
        return await respond(send, answer.status, [orjson.dumps(answer.error)], b"application/json")
    state.answered += 1
    base = {"id": f"chatcmpl-{state.answered}", "created": int(time.time()), "model": body.get("model")}
    pace_ms = float(headers.get("x-script-pace") or 0)
    if not body.get("stream"):
        return await respond(send, 200, [plain(answer, base)], b"application/json", pace_ms)
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    chunks = int(headers.get("x-script-chunks") or 0)
    if headers.get("x-script-stamp"):
        answer = Answer(200, {"role": "assistant", "content": STAMP.decode() * chunks}, answer.usage)
    parts = events(answer, base, chunks, with_usage)
    return await respond(send, 200, parts, b"text/event-stream; charset=utf-8", pace_ms)


def models(state: State) -> Json:
    data = [
        {"id": f"ctx-{n}", "object": "model", "created": 0, "owned_by": "benchmarks", "max_model_len": n}
        for n in sorted(state.windows)
    ]
    return {"object": "list", "data": data}


def take_log(state: State, name: str) -> list[Json]:
    taken = [entry for entry in state.log if not name or entry["id"] == name]
    state.log = [entry for entry in state.log if name and entry["id"] != name]
    return taken


async def read(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        event = await receive()
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
    return b"".join(parts)


def application(windows: Sequence[int] = WINDOWS) -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """The provider as an ASGI application with a state of its own."""
    state = State(windows={*WINDOWS, *windows})

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return None
        raw, path = await read(receive), scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if path == "/v1/chat/completions" and scope["method"] == "POST":
            return await chat(state, headers, raw, send)
        found: Any = None
        if path == "/v1/models":
            state.asked_models += 1
            found = models(state)
        elif path == "/__asked":
            found = {"models": state.asked_models}
        elif path == "/__script":
            state.replies.update(orjson.loads(raw))
            found = {"replies": len(state.replies)}
        elif path == "/__log":
            found = take_log(state, unquote_plus(scope["query_string"].decode().partition("id=")[2]))
        elif path == "/__forget":
            state.log, state.caches, state.replies = [], {}, {}
            found = {}
        if found is None:
            error = {
                "message": f"Unknown path {path}",
                "type": "invalid_request_error",
                "param": None,
                "code": "not_found",
            }
            return await respond(send, 404, [orjson.dumps({"error": error})], b"application/json")
        return await respond(send, 200, [orjson.dumps(found)], b"application/json")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--windows", default="", help="further windows in tokens for /v1/models, with commas between")
    given = parser.parse_args()
    windows = [int(n) for n in given.windows.split(",") if n]
    print(f"A scripted provider listens on http://{given.host}:{given.port}/v1", flush=True)
    uvicorn.run(
        application(windows), host=given.host, port=given.port, log_level="warning", access_log=False, lifespan="off"
    )


if __name__ == "__main__":
    main()
