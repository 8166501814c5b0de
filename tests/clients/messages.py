"""The dialect Messages: a provider that answers as Anthropic does, one way for each scenario.

The order of events is that of the API reference: the message's beginning, each content block's beginning, deltas and
end, then what ended the message; pings anywhere.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.clients.answering import (
    AT_ONCE,
    AT_ONCE_HEARD,
    AT_ONCE_SENT,
    COOKIES,
    EVENTS,
    KIND,
    SAID,
    SHAPE,
    WORDS,
    Header,
    breaking_off,
    cookies_of,
    falling_silent,
    halves,
    is_of,
    last_first,
    opening,
    plainly,
    spaced,
    squeezed,
    streamed,
)
from tests.clients.scenarios import Asked, Dialect, Json, Scenario
from tests.scripted import Steps

REQUEST = "req_011CUvYb2"
LIMITS = [
    (b"anthropic-ratelimit-%b-%b" % (what, name), value)
    for what in (b"requests", b"tokens", b"input-tokens", b"output-tokens")
    for name, value in ((b"limit", b"4000"), (b"remaining", b"3999"), (b"reset", b"2026-11-09T10:00:00Z"))
]
HEADERS = [
    (b"Date", b"Mon, 09 Nov 2026 10:00:00 GMT"),
    (b"Server", b"cloudflare"),
    *LIMITS,
    (b"request-id", REQUEST.encode()),
    (b"anthropic-organization-id", b"0c4f1b6e-9a51"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains; preload"),
    (b"via", b"1.1 google"),
    (b"cf-cache-status", b"DYNAMIC"),
    (b"X-Robots-Tag", b"none"),
    (b"CF-RAY", b"97a1-FRA"),
]
STREAM_HEADERS = [*HEADERS, (b"Cache-Control", b"no-cache")]
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3h=="  # over the thinking, without which it is refused
REDACTED = "EmwKAhgBEgy3va3pzix_LafPsn4a"
CACHE = {
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 1024,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
}
USAGE = {"input_tokens": 29, **CACHE, "output_tokens": 11, "service_tier": "standard"}
NOT_ENDED = {"stop_reason": None, "stop_sequence": None}


def message(blocks: Sequence[Json], reason: str = "end_turn", **more: Any) -> Json:
    model = {"model": "claude-sonnet-4-5-20250929", "id": "msg_01XFDU", "type": "message", "role": "assistant"}
    ended = {"stop_reason": reason, "stop_sequence": None}
    return {**model, "content": list(blocks), **ended, **more, "usage": USAGE}


def text(said: str, **more: Any) -> Json:
    return {"type": "text", "text": said, **more}


def use(number: int, city: str) -> Json:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "weather", "input": {"city": city}}


def thinking() -> list[Json]:
    """Thinking as a client sees it, and some that it may only send back."""
    words = "The caf\u00e9's hours are known."
    return [
        {"type": "thinking", "thinking": words, "signature": SIGNATURE},
        {"type": "redacted_thinking", "data": REDACTED},
    ]


def event(value: Json) -> bytes:
    """A named event; its data end in spaces as those of Anthropic do."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False)[:-1]
    return f"event: {value['type']}\ndata: {data}{' ' * (len(data) % 7)}}}\n\n".encode()


def told(whole: Json) -> list[bytes]:
    """The events of a stream that tells `whole`."""
    usage = {**USAGE, "output_tokens": 1}
    ended = {name: whole[name] for name in (*NOT_ENDED, "stop_details") if name in whole}
    counted = {name: value for name, value in USAGE.items() if name not in ("cache_creation", "service_tier")}
    blocks = [part for index, block in enumerate(whole["content"]) for part in block_told(block, index)]
    parts: list[Json] = [
        {"type": "message_start", "message": {**whole, **NOT_ENDED, "content": [], "usage": usage}},
        *blocks[:1],
        {"type": "ping"},
        *blocks[1:],
        {"type": "message_delta", "delta": ended, "usage": counted},
        {"type": "message_stop"},
    ]
    return [event(part) for part in parts]


def block_told(block: Json, index: int) -> Iterator[Json]:
    """A block's beginning, its deltas, its end; some blocks come whole with their beginning."""
    empty: dict[str, Json] = {
        "text": {"text": "", **({"citations": []} if "citations" in block else {})},
        "tool_use": {"input": {}},
        "server_tool_use": {"input": {}},
        "thinking": {"thinking": "", "signature": ""},
    }
    yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty.get(block["type"], {})}}
    for delta in deltas(block):
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def deltas(block: Json) -> list[Json]:
    match block["type"]:
        case "text":
            cited = [{"type": "citations_delta", "citation": one} for one in block.get("citations", ())]
            words = WORDS if block["text"] == SAID else halves(block["text"])
            return [*cited, *({"type": "text_delta", "text": word} for word in words)]
        case "tool_use" | "server_tool_use":
            written = json.dumps(block["input"], ensure_ascii=False)
            return [{"type": "input_json_delta", "partial_json": part} for part in ("", *halves(written))]
        case "thinking":
            parts: list[Json] = [{"type": "thinking_delta", "thinking": half} for half in halves(block["thinking"])]
            return [*parts, {"type": "signature_delta", "signature": block["signature"]}]
    return []


def given(asked: Asked, *blocks: Json, reason: str = "end_turn", headers: Sequence[Header] = (), **more: Any) -> Steps:
    """Blocks, as a stream where one was asked for."""
    whole = message(blocks, reason, **more)
    if asked.body.get("stream"):
        return streamed(told(whole), [*STREAM_HEADERS, *headers])
    return plainly({**whole, "x_unknown": {"a": [1.0, None]}}, headers=[*HEADERS, *headers])


def spoken(asked: Asked) -> Steps:
    return given(asked, text(SAID))


def blocks_of(asked: Asked) -> list[Json]:
    """The content blocks of all messages that were sent."""
    said = [one.get("content") for one in asked.body.get("messages", ())]
    return [block for content in said if isinstance(content, list) for block in content]


def calling(*cities: str, first: Callable[[], list[Json]] = list) -> Callable[[Asked], Steps]:
    """Uses a tool for each city, then, when the results are there, says something."""

    def reply(asked: Asked) -> Steps:
        if any(block.get("type") == "tool_result" for block in blocks_of(asked)):
            return spoken(asked)
        return given(asked, *first(), *(use(number, city) for number, city in enumerate(cities)), reason="tool_use")

    return reply


def thoughtful(asked: Asked) -> Steps:
    return given(asked, *thinking(), text(SAID))


def structured(asked: Asked) -> Steps:
    """In the answer itself, or as the input of the tool that a client has made for it."""
    forced = asked.body.get("tool_choice") or {}
    if forced.get("type") in ("tool", "any"):
        name = asked.body["tools"][0]["name"]
        made = {"type": "tool_use", "id": "toolu_9", "name": name, "input": json.loads(SHAPE)}
        return given(asked, made, reason="tool_use")
    return given(asked, text(SHAPE))


def cited(asked: Asked) -> Steps:
    """What was said is cited from the document."""
    place = {"document_index": 0, "document_title": "Hours", "start_char_index": 0, "end_char_index": 14}
    citation = {"type": "char_location", "cited_text": "Opens at nine.", **place, "file_id": None}
    return given(asked, text(SAID, citations=[citation]))


def searched(asked: Asked) -> Steps:
    """The provider's own tool ran."""
    run = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "caf\u00e9 hours"}}
    page = {"type": "web_search_result", "url": "https://cafe.example/", "title": "Hours", "page_age": None}
    found = [{**page, "encrypted_content": "EqgfCioIARgBIiQ3YTAw"}]
    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": found}
    return given(asked, run, result, text(SAID))


def cut_off(asked: Asked) -> Steps:
    return given(asked, text("The caf\u00e9 opens"), reason="max_tokens")


def stopped(asked: Asked) -> Steps:
    return given(asked, text("The caf\u00e9 opens"), reason="stop_sequence", stop_sequence="NINE")


def refusing(asked: Asked) -> Steps:
    details = {"type": "refusal", "category": "cyber", "explanation": "Not allowed."}
    return given(asked, text("I will"), reason="refusal", stop_details=details)


def interrupted(asked: Asked) -> Steps:
    """An error after the first words, in a stream that began with 200."""
    error = {"type": "overloaded_error", "message": "Overloaded", "details": None}
    failed = event({"type": "error", "error": error, "request_id": REQUEST})
    return streamed([*told(message([text(SAID)]))[:5], failed], STREAM_HEADERS)


def cut(asked: Asked) -> Steps:
    return breaking_off(told(message([text(SAID)])), 6, STREAM_HEADERS)


def silent(asked: Asked) -> Steps:
    return falling_silent(told(message([text(SAID)])), 6, STREAM_HEADERS)


def at_once(asked: Asked) -> Steps:
    return last_first(asked, given(asked, text(opening(asked))))


def refusal(status: int, kind: str, words: str, *headers: Header) -> Callable[[Asked], Steps]:
    whole = {"type": "error", "error": {"type": kind, "message": words}, "request_id": REQUEST}
    return lambda asked: plainly(whole, status, [*HEADERS, *headers])


AGAIN = (b"x-should-retry", b"true")
TOO_LONG = refusal(400, "invalid_request_error", "prompt is too long: 200412 tokens > 200000 maximum")
UNAUTHORIZED = refusal(401, "authentication_error", "invalid x-api-key")
MISSING = refusal(404, "not_found_error", "model: claude-3-opus-20240229")
BUSY = refusal(429, "rate_limit_error", "This request would exceed the rate limit.", (b"retry-after", b"1"), AGAIN)
OVERLOADED = refusal(529, "overloaded_error", "Overloaded", AGAIN)
DOWN = refusal(500, "api_error", "Internal server error", (b"retry-after-ms", b"60"))


def after(times: int, at_first: Callable[[Asked], Steps]) -> Callable[[Asked], Steps]:
    return lambda asked: at_first(asked) if asked.number < times else spoken(asked)


def packed(asked: Asked) -> Steps:
    whole = message([text(SAID)])
    if asked.body.get("stream"):
        return squeezed(asked, b"".join(told(whole)), EVENTS, STREAM_HEADERS)
    return squeezed(asked, spaced(whole), KIND, HEADERS)


def baked(asked: Asked) -> Steps:
    """Sets two cookies, and tells which came back."""
    return given(asked, text(cookies_of(asked)), headers=COOKIES)


def received(asked: Asked) -> Steps:
    """Tells how much came."""
    return given(asked, text(f"{len(asked.seen.body)} bytes. {SAID}"))


def counted(asked: Asked) -> Steps:
    if not is_of(asked, "POST", "/count_tokens"):
        return spoken(asked)
    return plainly({"input_tokens": 29}, headers=HEADERS)


def listed(asked: Asked) -> Steps:
    model = {"type": "model", "id": "claude-sonnet-4-5", "display_name": "Claude Sonnet 4.5"}
    rows = [{**model, "created_at": "2025-09-29T00:00:00Z", "max_input_tokens": 200_000, "max_tokens": 64_000}]
    page = {"data": rows, "has_more": False, "first_id": rows[0]["id"], "last_id": rows[0]["id"]}
    return plainly(page, headers=HEADERS)


def batched(asked: Asked) -> Steps:
    counts = {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    times = {"created_at": "2026-11-09T10:00:00Z", "expires_at": "2026-11-10T10:00:00Z"}
    status = "canceling" if is_of(asked, "POST", "/cancel") else "in_progress"
    whole = {"id": "msgbatch_013Z", "type": "message_batch", "processing_status": status, "request_counts": counts}
    open_ends = {"ended_at": None, "archived_at": None, "cancel_initiated_at": None, "results_url": None}
    return plainly({**whole, **times, **open_ends}, headers=HEADERS)


OPENS = "opens at nine"
POST = r"^POST /v1/messages"
STREAM = r'"stream": ?true'
TWICE = f"{POST}(.|\n)*{POST}"
RESULT = r'"type": ?"tool_result"'
MARK = r'"cache_control": ?\{"type": ?"ephemeral"'
SCENARIOS = [
    Scenario("plain", "a question and its answer", spoken, (POST, r"(?i)^anthropic-version: "), (OPENS,)),
    Scenario("stream", "the same as a stream", spoken, (STREAM,), (OPENS,)),
    Scenario("system", "the system prompt as a string", spoken, (r'"system": ?("|\[)',), (OPENS,)),
    Scenario("cached", "system blocks, tools and messages with cache_control", spoken, (rf"{MARK}(.|\n)*{MARK}",), (OPENS, "1024")),
    Scenario("tool", "a tool is used, its result sent back", calling("Rome"), (RESULT, '"toolu_0"', "21 degrees"), (OPENS,)),
    Scenario("two tools", "two tools at once", calling("Rome", "Oslo"), (RESULT, '"toolu_0"', '"toolu_1"'), ("Rome", "Oslo", OPENS)),
    Scenario("streamed tools", "two tools at once, streamed", calling("Rome", "Oslo"), (STREAM, RESULT, '"toolu_1"'), ("Rome", "Oslo", OPENS)),
    Scenario("structured", "an answer that follows a JSON schema", structured, (r'"(json_schema|tool_choice)"',), ("Ada", r"\b36\b")),
    Scenario("vision", "a picture in the message", spoken, (r'"type": ?"image"', "image/png"), (OPENS,)),
    Scenario("document", "a PDF in the message", spoken, (r'"type": ?"document"', "application/pdf"), (OPENS,)),
    Scenario("citations", "a text that is cited, streamed", cited, (STREAM, r'"citations": ?\{"enabled": ?true\}'), ("Opens at nine", OPENS)),
    Scenario("thinking", "signed and redacted thinking goes back with the result", calling("Rome", first=thinking), (r'"thinking": ?\{', SIGNATURE, REDACTED, "21 degrees"), (OPENS,)),
    Scenario("streamed thinking", "thinking, streamed", thoughtful, (STREAM, r'"thinking": ?\{'), ("hours are known", OPENS)),
    Scenario("web search", "the provider's own tool", searched, (r'"type": ?"web_search_',), (OPENS,)),
    Scenario("max tokens", "the stop reason max_tokens, streamed", cut_off, (STREAM, r'"max_tokens": ?16'), ("opens",)),
    Scenario("stop sequence", "the stop reason stop_sequence", stopped, (r'"stop_sequences": ?\["NINE"\]',), ("opens",)),
    Scenario("refusal", "the stop reason refusal", refusing, (POST,), ("refusal|[Cc]ontent.?[Ff]ilter",)),
    Scenario("beta", "features asked for by anthropic-beta", spoken, (r"(?i)^anthropic-beta: .*context-1m-2025-08-07",), (OPENS,)),
    Scenario("count", "tokens are counted", counted, (r"^POST /v1/messages/count_tokens",), (r"\b29\b",)),
    Scenario("batch", "a batch is made, asked for, cancelled; relayed", batched, (r"^POST /v1/messages/batches", r"^GET /v1/messages/batches/msgbatch_013Z", "/cancel"), ("in_progress", "canceling")),
    Scenario("models", "the list of models, relayed", listed, (r"^GET /v1/models",), ("Claude Sonnet",)),
    Scenario("too long", "400 prompt is too long is seen as such", TOO_LONG, (POST,), ("prompt is too long",)),
    Scenario("unauthorized", "401, a wrong key", UNAUTHORIZED, (POST,), ("invalid x-api-key",)),
    Scenario("missing", "404, a model that is not", MISSING, (POST,), ("model: claude-3-opus-20240229",)),
    Scenario("busy", "429 with retry-after, then an answer", after(1, BUSY), (TWICE,), (OPENS,)),
    Scenario("overloaded", "529, then an answer", after(1, OVERLOADED), (TWICE,), (OPENS,)),
    Scenario("down", "500 twice; the client tries again by itself", after(2, DOWN), (f"{TWICE}(.|\n)*{POST}",), (OPENS,)),
    Scenario("error event", "an error after the first words", interrupted, (STREAM,), ("Overloaded",)),
    Scenario("cut", "a stream that breaks off is seen to", cut, (STREAM,), ("opens", '"error"')),
    Scenario("leave", "the client leaves in the middle of a stream", silent, (STREAM,), ("opens",), leaves=True),
    Scenario("parallel", "three questions at once, the last one answered first", at_once, AT_ONCE_SENT, AT_ONCE_HEARD, AT_ONCE),
    Scenario("packed", "an answer encoded with gzip", packed, (r"(?i)accept-encoding: .*gzip",), (OPENS,)),
    Scenario("packed stream", "a stream encoded with gzip", packed, (STREAM, r"(?i)accept-encoding: .*gzip"), (OPENS,)),
    Scenario("more fields", "unknown fields and an explicit null", spoken, (r'"top_k": ?5', r'"min_p": ?null'), (OPENS,)),
    Scenario("more query", "query parameters", spoken, (r"^POST \S+[?&]api-version=2026-01-01",), (OPENS,)),
    Scenario("more headers", "headers of one's own", spoken, (r"(?i)^openai-beta: answers=v2", r"(?i)^x-trace: a,b"), (OPENS,)),
    Scenario("cookies", "two cookies are set; what the client returns of them", baked, (TWICE,), ("no cookie",)),
    Scenario("large", "a picture of 1 MB", received, (r'"type": ?"image"',), (r"\b1\d{6} bytes", OPENS)),
]  # fmt: skip
MESSAGES = Dialect("messages", "Anthropic Messages", "/v1/messages", {one.name: one for one in SCENARIOS})
