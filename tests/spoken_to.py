"""A provider of the Messages API as strict as Anthropic: what it refuses, Anthropic would.

provider = MessagesProvider()
with provider.serving() as upstream, proxying(upstream.url, dsn, folder) as proxy: ...
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anthropic

from proxy.wire.anthropic import SHAPE
from proxy.wire.parser import Parser
from tests.proxied import BLOCK, Prompt, Provider, Proxy, Reply
from tests.scripted import Steps, answer, sse

Json = dict[str, Any]
Blocks = list[Json]

MOST_MARKS = 4


def sdk(proxy: Proxy, key: str = "sk-alice") -> anthropic.Anthropic:
    """Anthropic's SDK as a user has it, but for its retries, pointed at the proxy."""
    return anthropic.Anthropic(base_url=proxy.url, api_key=key, timeout=60.0, max_retries=0)


class MessagesPrompt(Prompt):
    """What the provider received, block by block."""

    @property
    def said(self) -> list[tuple[str, Json]]:
        """Every block with its role, without cache marks; a string is a text block."""
        return [
            (message["role"], unmarked(block)) for message in self.messages for block in blocks_of(message["content"])
        ]

    @property
    def blocks(self) -> list[str]:
        return [block["text"] for _, block in self.said if is_quoting(block)]

    @property
    def block(self) -> str:
        """The re-injected block before the newest user message; "" for none."""
        found = [n for n, (role, block) in enumerate(self.said) if role == "user" and block["type"] != "tool_result"]
        newest = [self.said[n][1] for n in found[-3:]]
        return next((block["text"] for block in reversed(newest) if is_quoting(block)), "")

    @property
    def without_blocks(self) -> list[str]:
        return [json.dumps(pair, sort_keys=True) for pair in self.said if not is_quoting(pair[1])]


def is_quoting(block: Json) -> bool:
    return block["type"] == "text" and BLOCK.match(block["text"]) is not None


def blocks_of(content: Any) -> Blocks:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def unmarked(block: Json) -> Json:
    bare = {key: value for key, value in block.items() if key != "cache_control"}
    if isinstance(bare.get("content"), list):
        bare["content"] = [unmarked(inner) for inner in bare["content"]]
    return bare


def problems(body: Json) -> Iterator[str]:
    """What Anthropic would object to, whatever was said before."""
    messages = body["messages"]
    if not isinstance(body.get("max_tokens"), int):
        yield "max_tokens: Field required"
    expected = "user"
    calls: set[str] = set()
    for n, message in enumerate(messages):
        if message["role"] == "system":
            follows, precedes = (
                messages[n - 1]["role"] if n else None,
                [later["role"] for later in messages[n + 1 : n + 2]],
            )
            if follows != "user":
                yield f"messages.{n}: role 'system' must follow a 'user' message"
            if precedes not in ([], ["assistant"]):
                yield f"messages.{n}: role 'system' must precede an 'assistant' message or end the array"
            continue
        if message["role"] != expected:
            yield f"messages.{n}: roles must alternate between user and assistant, the user's first"
        expected = "assistant" if message["role"] == "user" else "user"
        blocks = blocks_of(message["content"])
        yield from (f"messages.{n}: {found}" for found in block_problems(blocks, calls))
        calls = {block["id"] for block in blocks if block["type"] == "tool_use"} if expected == "user" else set()
    yield from mark_problems(body)


def block_problems(blocks: Blocks, calls: set[str]) -> Iterator[str]:
    """Of one message; `calls` are those of the message before it."""
    if not blocks:
        yield "content must not be empty"
    if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
        yield "text content blocks must be non-empty"
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    if set(answered) - calls or len(set(answered)) < len(answered):
        yield f"unexpected tool_use_id found in tool_result blocks: {set(answered) - calls}"
    if calls - set(answered):
        yield f"tool_use ids were found without tool_result blocks immediately after: {calls - set(answered)}"
    if [block["type"] for block in blocks[: len(answered)]] != ["tool_result"] * len(answered):
        yield "tool_result blocks must come first"


def mark_problems(body: Json) -> Iterator[str]:
    marked = marks_in(body)
    if len(marked) > MOST_MARKS:
        yield f"A maximum of 4 blocks with cache_control may be provided. Found {len(marked)}."
    hours = [mark.get("ttl") == "1h" for _, mark in marked]
    if hours != sorted(hours, reverse=True):
        yield "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
    if any(block.get("type") in ("thinking", "redacted_thinking") for block, _ in marked):
        yield "cache_control: Extra inputs are not permitted on thinking blocks"
    if any(block.get("type") == "text" and not block["text"] for block, _ in marked):
        yield "cache_control cannot be set for empty text blocks"


def marks_in(body: Json) -> list[tuple[Json, Json]]:
    """Every marked block with its mark, in the order in which the provider reads them."""
    system = body.get("system") or []
    blocks = [*(body.get("tools") or ()), *(system if isinstance(system, list) else ())]
    for message in body["messages"]:
        for block in blocks_of(message["content"]):
            inner = block.get("content")
            blocks += [*(inner if isinstance(inner, list) and block["type"] == "tool_result" else ()), block]
    return [(block, block["cache_control"]) for block in [*blocks, body] if block.get("cache_control")]


def thinking(words: str) -> Json:
    """A thinking block with the signature that only this provider can make."""
    made = hashlib.sha256(b"sealed" + words.encode()).hexdigest()
    return {"type": "thinking", "thinking": words, "signature": made}


def noted(prompt: Prompt) -> Blocks:
    return [{"type": "text", "text": f"Noted, number {len(prompt.messages)}."}]


@dataclass
class MessagesProvider(Provider):
    """Checks each prompt, keeps it, answers as it is told: `reply` gives the content blocks."""

    reply: Reply | Any = noted
    prompt_type: type[Prompt] = MessagesPrompt
    thought: dict[str, Json] = field(default_factory=dict)  # by call: the thinking it came with
    _parser: Parser = field(default_factory=lambda: Parser(SHAPE))

    def objection(self, prompt: Prompt) -> str | None:
        found = next(iter([*problems(prompt.body), *self.thought_problems(prompt.messages)]), None)
        room = prompt.body.get("max_tokens") or 0
        if found or self.window is None:
            return found
        if prompt.tokens > self.window:
            return f"prompt is too long: {prompt.tokens} tokens > {self.window} maximum"
        if prompt.tokens + room > self.window:
            return (
                f"input length and `max_tokens` exceed context limit: {prompt.tokens} + {room} > {self.window}, "
                "decrease input length or `max_tokens` and try again"
            )
        return None

    def thought_problems(self, messages: Sequence[Json]) -> Iterator[str]:
        """Thinking must come back as it was given, and with the calls of the last turn it must come."""
        for n, message in enumerate(messages):
            for block in blocks_of(message["content"]):
                if block["type"] == "thinking" and block != thinking(block["thinking"]):
                    yield f"messages.{n}: Invalid `signature` in `thinking` block"
        spoken = [message for message in messages if message["role"] == "assistant"]
        if not spoken or messages[-1]["role"] == "assistant":
            return
        blocks = blocks_of(spoken[-1]["content"])
        for n, block in enumerate(blocks):
            needed = self.thought.get(block.get("id", ""))
            if needed is not None and needed not in blocks[:n]:
                yield "Expected `thinking` before `tool_use` in the last assistant message"

    def refusal(self, objection: str, prompt: Prompt) -> Steps:
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": objection}, "request_id": "r"}
        return answer(json.dumps(error).encode(), 400, framing=self.overflow_framing)  # type: ignore[arg-type]

    def answer(self, prompt: Prompt, message: Any) -> Steps:
        thought = next((block for block in message if block["type"] == "thinking"), None)
        if thought is not None:
            self.thought |= {block["id"]: thought for block in message if block["type"] == "tool_use"}
        return streamed(message, prompt.tokens) if prompt.body.get("stream") else plain(message, prompt.tokens)


def whole(content: Blocks, tokens: int) -> Json:
    reason = "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn"
    usage = {
        "input_tokens": 3, "cache_creation_input_tokens": 10, "cache_read_input_tokens": max(tokens - 13, 0),
        "output_tokens": 5,
    }  # fmt: skip
    known = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content}
    return {**known, "stop_reason": reason, "stop_sequence": None, "usage": usage}


def plain(content: Blocks, tokens: int = 1) -> Steps:
    return answer(json.dumps(whole(content, tokens)).encode())


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def events(content: Blocks, tokens: int = 1) -> list[bytes]:
    """The same as a stream."""
    message = whole(content, tokens)
    reason, usage = message.pop("stop_reason"), message["usage"]
    out = [event("message_start", message={**message, "content": [], "stop_reason": None}), event("ping")]
    for n, block in enumerate(content):
        begun, deltas = halves(block)
        out.append(event("content_block_start", index=n, content_block=begun))
        out += [event("content_block_delta", index=n, delta=delta) for delta in deltas]
        out.append(event("content_block_stop", index=n))
    out.append(event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage))
    return [*out, event("message_stop")]


def halves(block: Json) -> tuple[Json, list[Json]]:
    """A block as it begins, and what comes to it, in two pieces."""

    def pieces(kind: str, key: str, text: str) -> list[Json]:
        return [{"type": kind, key: part} for part in (text[: len(text) // 2], text[len(text) // 2 :])]

    match block["type"]:
        case "text":
            return {**block, "text": ""}, pieces("text_delta", "text", block["text"])
        case "thinking":
            deltas = pieces("thinking_delta", "thinking", block["thinking"])
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
        case "tool_use" | "server_tool_use":
            return {**block, "input": {}}, pieces("input_json_delta", "partial_json", json.dumps(block["input"]))
    return block, []


def streamed(content: Blocks, tokens: int = 1) -> Steps:
    return sse(events(content, tokens))
