"""The dialect Chat Completions: a provider that answers as OpenAI does, one way for each scenario."""

import base64
import gzip
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from tests.clients.scenarios import Asked, Dialect, Json, Scenario
from tests.scripted import End, Step, Steps, answer

KIND = (b"content-type", b"application/json")
HEADERS = [
    (b"Date", b"Mon, 09 Nov 2026 10:00:00 GMT"),
    (b"Server", b"cloudflare"),
    (b"access-control-expose-headers", b"X-Request-ID"),
    (b"openai-organization", b"acme-1"),
    (b"openai-processing-ms", b"412"),
    (b"openai-version", b"2020-10-01"),
    (b"x-ratelimit-limit-tokens", b"2000000"),
    (b"x-ratelimit-remaining-tokens", b"1999971"),
    (b"x-ratelimit-reset-tokens", b"0s"),
    (b"X-Request-Id", b"req_5e1f"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains; preload"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"CF-RAY", b"97a1-FRA"),
    (b"alt-svc", b'h3=":443"; ma=86400'),
]
WORDS = ["The caf\u00e9", " opens", " at", " nine", " \u2014 \u4e5d\u6642", " \U0001f642."]
SAID = "".join(WORDS)
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
SHAPE = '{"name": "Ada",  "age": 36}'
CHUNK_BYTES = 97  # of a stream on the wire: events and letters are cut anywhere


def spaced(value: Json) -> bytes:
    """JSON as no program of ours writes it."""
    return json.dumps(value, indent=1, ensure_ascii=False, separators=(" ,", " : ")).encode() + b"\n"


def message(content: str | None, **more: Any) -> Json:
    return {"role": "assistant", "content": content, "refusal": None, "annotations": [], **more}


def choice(said: Json, index: int = 0, reason: str = "stop", logprobs: Json | None = None) -> Json:
    return {"index": index, "message": said, "logprobs": logprobs, "finish_reason": reason}


def completion(*choices: Json, headers: Sequence[tuple[bytes, bytes]] = ()) -> Steps:
    whole = {"object": "chat.completion", **COMMON, "choices": choices, "usage": USAGE, "x_unknown": {"a": [1.0, None]}}
    return answer(spaced(whole), headers=[KIND, *HEADERS, *headers])


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
    """Events as chunks that respect neither them nor letters."""
    whole = b"".join(told)
    pieces = [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]
    return answer(pieces, headers=[(b"content-type", b"text/event-stream; charset=utf-8"), *HEADERS], framing="chunked")


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
    halves = [{"index": number, "function": {"arguments": half}} for half in (arguments[:6], arguments[6:])]
    return [{"tool_calls": [part]} for part in (named, *halves)]


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


def refusal(status: int, error: Json, *headers: tuple[bytes, bytes]) -> Steps:
    return answer(spaced({"error": error}), status, [KIND, *HEADERS, *headers])


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
    """Breaks off within an event, a while after the last whole one, so that each client has seen what came before."""
    told = events(asked, [{"content": part} for part in WORDS], "stop")
    head, *_ = stream(told)
    whole, torn = b"".join(told[:5]), told[5][:40]
    steps: list[Step] = [head, b"%x\r\n%b\r\n" % (len(whole), whole), 0.4]
    return [*steps, b"%x\r\n%b\r\n" % (len(torn), torn), End.CLOSE]


def packed(asked: Asked) -> Steps:
    """Encoded with gzip where the client takes that."""
    if b"gzip" not in (asked.seen.header(b"accept-encoding") or b""):
        return spoken(asked)
    body = spaced({"object": "chat.completion", **COMMON, "choices": [choice(message(SAID))], "usage": USAGE})
    headers = [KIND, *HEADERS, (b"Content-Encoding", b"gzip"), (b"Vary", b"Accept-Encoding")]
    return answer(gzip.compress(body, mtime=0), headers=headers, framing="chunked")


def baked(asked: Asked) -> Steps:
    """Sets two cookies, and tells which came back."""
    told = (asked.seen.header(b"cookie") or b"no cookie").decode()
    cookies = [b"__cf_bm=abc.1; path=/; HttpOnly", b"_cfuvid=xyz; path=/; HttpOnly"]
    return completion(choice(message(told)), headers=[(b"Set-Cookie", cookie) for cookie in cookies])


def embedded(asked: Asked) -> Steps:
    numbers = [0.5, -0.25, 0.125]
    packed_numbers = base64.b64encode(struct.pack("<3f", *numbers)).decode()
    vector = packed_numbers if asked.body.get("encoding_format") == "base64" else numbers
    many = asked.body.get("input")
    count = len(many) if isinstance(many, list) and many and not isinstance(many[0], int) else 1
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    whole = {"object": "list", "data": rows, "model": "text-embedding-3-small", "usage": usage}
    return answer(spaced(whole), headers=[KIND, *HEADERS])


def listed(asked: Asked) -> Steps:
    names = ["gpt-4o-mini", "ft:gpt-4o:acme::a1"]
    rows = [{"id": name, "object": "model", "created": 1721172741, "owned_by": "system"} for name in names]
    return answer(spaced({"object": "list", "data": rows}), headers=[KIND, *HEADERS])


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
    Scenario("too long", "400 context_length_exceeded is seen as such", too_long, (POST,), ("context_length_exceeded|ContextWindowExceeded", "maximum context length")),
    Scenario("busy", "429 with retry-after, then an answer", busy_once, (f"{POST}(.|\n)*{POST}",), (OPENS,)),
    Scenario("cut", "a stream that breaks off is seen to", cut, (r'"stream": ?true',), ("opens", '"error"')),
    Scenario("packed", "an answer encoded with gzip", packed, (r"(?i)accept-encoding: .*gzip",), (OPENS,)),
    Scenario("more fields", "unknown fields and an explicit null", spoken, (r'"top_k": ?5', r'"min_p": ?null'), (OPENS,)),
    Scenario("more query", "query parameters", spoken, (r"^POST \S+\?api-version=2026-01-01",), (OPENS,)),
    Scenario("cookies", "two cookies are set; what the client returns of them", baked, (f"{POST}(.|\n)*{POST}",), ("no cookie",)),
    Scenario("embeddings", "embeddings, relayed", embedded, (r"^POST /v1/embeddings",), (r"0\.125",)),
    Scenario("models", "the list of models, relayed", listed, (r"^GET /v1/models",), ("ft:gpt-4o:acme::a1",)),
]  # fmt: skip
CHAT = Dialect("chat", "Chat Completions", "/chat/completions", {one.name: one for one in SCENARIOS})
