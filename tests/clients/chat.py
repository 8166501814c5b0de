"""The dialect Chat Completions: a provider that answers as OpenAI does, one way for each scenario."""

import base64
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from tests.clients.answering import (
    AT_ONCE,
    AT_ONCE_HEARD,
    AT_ONCE_SENT,
    COOKIES,
    EVENTS,
    KIND,
    OPENAI_HEADERS,
    SAID,
    SHAPE,
    WORDS,
    Header,
    breaking_off,
    cookies_of,
    falling_silent,
    halves,
    last_first,
    opening,
    plainly,
    spaced,
    squeezed,
    streamed,
)
from tests.clients.scenarios import Asked, Dialect, Json, Scenario
from tests.scripted import Steps

USAGE = {
    "prompt_tokens": 29,
    "completion_tokens": 11,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
COMMON = {
    "id": "chatcmpl-CZq7",
    "created": 1762682400,
    "model": "gpt-4o-mini-2024-07-18",
    "service_tier": "default",
    "system_fingerprint": "fp_560af6e559",
}


def message(content: str | None, **more: Any) -> Json:
    return {"role": "assistant", "content": content, "refusal": None, "annotations": [], **more}


def choice(said: Json, index: int = 0, reason: str = "stop", logprobs: Json | None = None) -> Json:
    return {"index": index, "message": said, "logprobs": logprobs, "finish_reason": reason}


def completion(*choices: Json, headers: Sequence[Header] = ()) -> Steps:
    whole = {"object": "chat.completion", **COMMON, "choices": choices, "usage": USAGE, "x_unknown": {"a": [1.0, None]}}
    return plainly(whole, headers=[*OPENAI_HEADERS, *headers])


def event(*choices: Json, usage: Json | None = None, **more: Any) -> bytes:
    chunk = {"object": "chat.completion.chunk", **COMMON, "choices": choices, "obfuscation": "kT3x", **more}
    if usage is not None:
        chunk["usage"] = usage
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def delta(said: Json, reason: str | None = None) -> Json:
    return {"index": 0, "delta": said, "logprobs": None, "finish_reason": reason}


def events(asked: Asked, deltas: Sequence[Json], reason: str) -> list[bytes]:
    """A stream's events, with a comment and an odd line end; usage only where it was asked for."""
    first = event(delta({"role": "assistant", "content": "", "refusal": None}))
    told = [b": PROCESSING\n\n", first, *(event(delta(one)) for one in deltas), event(delta({}, reason))]
    told[2] = told[2].replace(b"\n", b"\r\n")
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        told.append(event(usage=USAGE))
    return [*told, b"data: [DONE]\n\n"]


def stream(told: Sequence[bytes]) -> Steps:
    return streamed(told, OPENAI_HEADERS)


def spoken(asked: Asked, content: str = SAID) -> Steps:
    """A text, as a stream where one was asked for."""
    if asked.body.get("stream"):
        parts = WORDS if content == SAID else [content]
        return stream(events(asked, [{"content": part} for part in parts], "stop"))
    return completion(choice(message(content)))


def call(number: int, city: str) -> Json:
    """A tool call, its arguments spaced as models do."""
    arguments = f'{{"city" :"{city}" }}'
    return {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def calling(*cities: str) -> Callable[[Asked], Steps]:
    """Calls a tool for each city, then, when the results are there, says something."""

    def reply(asked: Asked) -> Steps:
        if any(one.get("role") == "tool" for one in asked.body.get("messages", ())):
            return spoken(asked)
        calls = [call(number, city) for number, city in enumerate(cities)]
        if not asked.body.get("stream"):
            return completion(choice(message(None, tool_calls=calls), reason="tool_calls"))
        return stream(
            events(asked, [part for number, one in enumerate(calls) for part in in_parts(number, one)], "tool_calls")
        )

    return reply


def in_parts(number: int, one: Json) -> list[Json]:
    """A tool call as the deltas of a stream: first its name, then its arguments in two halves."""
    arguments = one["function"]["arguments"]
    named = {"index": number, **one, "function": {**one["function"], "arguments": ""}}
    rest = [{"index": number, "function": {"arguments": half}} for half in halves(arguments)]
    return [{"tool_calls": [part]} for part in (named, *rest)]


def structured(asked: Asked) -> Steps:
    return spoken(asked, SHAPE)


def twice(asked: Asked) -> Steps:
    return completion(choice(message(SAID)), choice(message("Nine."), index=1, reason="length"))


def weighed(asked: Asked) -> Steps:
    likely = [
        {"token": "Nine", "logprob": -0.31, "bytes": list(b"Nine")},
        {"token": "9", "logprob": -1.5, "bytes": [57]},
    ]
    return completion(
        choice(message("Nine"), logprobs={"content": [{**likely[0], "top_logprobs": likely}], "refusal": None})
    )


def refusal(status: int, error: Json, *headers: Header) -> Steps:
    return plainly({"error": error}, status, [*OPENAI_HEADERS, *headers])


def too_long(asked: Asked) -> Steps:
    told = (
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 128412 tokens. "
        "Please reduce the length of the messages."
    )
    error = {"message": told, "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
    return refusal(400, error)


def busy_once(asked: Asked) -> Steps:
    if asked.number:
        return spoken(asked)
    error = {"message": "Rate limit reached.", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    return refusal(429, error, (b"Retry-After", b"1"), (b"x-should-retry", b"true"))


def cut(asked: Asked) -> Steps:
    return breaking_off(events(asked, [{"content": part} for part in WORDS], "stop"), 5, OPENAI_HEADERS)


def silent(asked: Asked) -> Steps:
    return falling_silent(events(asked, [{"content": part} for part in WORDS], "stop"), 5, OPENAI_HEADERS)


def at_once(asked: Asked) -> Steps:
    return last_first(asked, spoken(asked, opening(asked)))


def packed(asked: Asked) -> Steps:
    if asked.body.get("stream"):
        told = events(asked, [{"content": part} for part in WORDS], "stop")
        return squeezed(asked, b"".join(told), EVENTS, OPENAI_HEADERS)
    whole = {"object": "chat.completion", **COMMON, "choices": [choice(message(SAID))], "usage": USAGE}
    return squeezed(asked, spaced(whole), KIND, OPENAI_HEADERS)


def baked(asked: Asked) -> Steps:
    """Sets two cookies, and tells which came back."""
    return completion(choice(message(cookies_of(asked))), headers=COOKIES)


def embedded(asked: Asked) -> Steps:
    numbers = [0.5, -0.25, 0.125]
    packed_numbers = base64.b64encode(struct.pack("<3f", *numbers)).decode()
    vector = packed_numbers if asked.body.get("encoding_format") == "base64" else numbers
    many = asked.body.get("input")
    count = len(many) if isinstance(many, list) and many and not isinstance(many[0], int) else 1
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    whole = {"object": "list", "data": rows, "model": "text-embedding-3-small", "usage": usage}
    return plainly(whole, headers=OPENAI_HEADERS)


def listed(asked: Asked) -> Steps:
    names = ["gpt-4o-mini", "ft:gpt-4o:acme::a1"]
    rows = [{"id": name, "object": "model", "created": 1721172741, "owned_by": "system"} for name in names]
    return plainly({"object": "list", "data": rows}, headers=OPENAI_HEADERS)


OPENS = "opens at nine"
POST = r"^POST /v1/chat/completions"
SCENARIOS = [
    Scenario("plain", "a question and its answer", spoken, (POST,), (OPENS,)),
    Scenario("stream", "the same as a stream", spoken, (r'"stream": ?true',), (OPENS,)),
    Scenario("stream usage", "a stream that ends with its usage", spoken, (r'"include_usage": ?true',), (OPENS, r"\b29\b")),
    Scenario("tool", "a tool is called, its result sent back", calling("Rome"), (r'"call_0"', "21 degrees"), (OPENS,)),
    Scenario("two tools", "two calls at once", calling("Rome", "Oslo"), ('"call_0"', '"call_1"'), ("Rome", "Oslo", OPENS)),
    Scenario("streamed tools", "two calls at once, streamed", calling("Rome", "Oslo"), (r'"stream": ?true', '"call_1"'), ("Rome", "Oslo", OPENS)),
    Scenario("structured", "an answer that follows a JSON schema", structured, (r'"json_schema"',), ("Ada", r"\b36\b")),
    Scenario("vision", "a picture in the message", spoken, (r"data:image/png;base64,",), (OPENS,)),
    Scenario("two answers", "n = 2", twice, (r'"n": ?2',), (OPENS, r"Nine\.")),
    Scenario("logprobs", "how likely each token was", weighed, (r'"logprobs": ?true',), (r"-0\.31", r"-1\.5")),
    Scenario("developer", "the developer role", spoken, (r'"role": ?"developer"',), (OPENS,)),
    Scenario("too long", "400 context_length_exceeded is seen as such", too_long, (POST,), ("context_length_exceeded|ContextWindowExceeded|ContextOverflow", "maximum context length")),
    Scenario("busy", "429 with retry-after, then an answer", busy_once, (f"{POST}(.|\n)*{POST}",), (OPENS,)),
    Scenario("cut", "a stream that breaks off is seen to", cut, (r'"stream": ?true',), ("opens", '"error"')),
    Scenario("leave", "the client leaves in the middle of a stream", silent, (r'"stream": ?true',), ("opens",), leaves=True),
    Scenario("parallel", "three questions at once, the last one answered first", at_once, AT_ONCE_SENT, AT_ONCE_HEARD, AT_ONCE),
    Scenario("packed", "an answer encoded with gzip", packed, (r"(?i)accept-encoding: .*gzip",), (OPENS,)),
    Scenario("packed stream", "a stream encoded with gzip", packed, (r'"stream": ?true', r"(?i)accept-encoding: .*gzip"), (OPENS,)),
    Scenario("more fields", "unknown fields and an explicit null", spoken, (r'"top_k": ?5', r'"min_p": ?null'), (OPENS,)),
    Scenario("more query", "query parameters", spoken, (r"^POST \S+\?api-version=2026-01-01",), (OPENS,)),
    Scenario("cookies", "two cookies are set; what the client returns of them", baked, (f"{POST}(.|\n)*{POST}",), ("no cookie",)),
    Scenario("embeddings", "embeddings, relayed", embedded, (r"^POST /v1/embeddings",), (r"0\.125",)),
    Scenario("models", "the list of models, relayed", listed, (r"^GET /v1/models",), ("ft:gpt-4o:acme::a1",)),
]  # fmt: skip
CHAT = Dialect("chat", "Chat Completions", "/chat/completions", {one.name: one for one in SCENARIOS})
