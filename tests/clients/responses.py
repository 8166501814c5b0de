"""The dialect Responses: a provider that answers as OpenAI does, one way for each scenario.

The order of events is that of the API reference: the response, then for each item of its output its beginning, its
parts with their deltas and ends, and its end, then the response again.
"""

from collections.abc import Callable, Iterator, Sequence
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
    event,
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

ID = "resp_68f1a0c2"
SEALED = "gAAAAABo8aDC-uN1_sealed=="  # reasoning that only the provider can read
USAGE = {
    "input_tokens": 29,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 11,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 40,
}
COMMON = {
    "id": ID,
    "object": "response",
    "created_at": 1762682400,
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": "gpt-4o-mini-2024-07-18",
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}
ECHOED = ("instructions", "max_output_tokens", "previous_response_id", "store", "truncation", "background", "tools")


def response(asked: Asked, items: Sequence[Json], status: str = "completed", **more: Any) -> Json:
    """A whole response; it says again what was asked."""
    echoed = {name: asked.body[name] for name in ECHOED if asked.body.get(name) is not None}
    usage = None if status in ("in_progress", "queued") else USAGE
    return {**COMMON, **echoed, "status": status, "output": list(items), "usage": usage, **more}


def text(said: str, *annotations: Json) -> Json:
    return {"type": "output_text", "annotations": list(annotations), "logprobs": [], "text": said}


def message(*parts: Json, status: str = "completed") -> Json:
    return {"id": "msg_68f1a0c3", "type": "message", "status": status, "content": list(parts), "role": "assistant"}


def call(number: int, city: str) -> Json:
    """A function call, its arguments spaced as models do."""
    named = {"id": f"fc_{number}", "type": "function_call", "status": "completed"}
    return {**named, "arguments": f'{{"city" :"{city}" }}', "call_id": f"call_{number}", "name": "weather"}


def reasoning(asked: Asked) -> Json:
    """Reasoning, sealed where that was asked for."""
    item: Json = {"id": "rs_68f1a0c1", "type": "reasoning"}
    if "reasoning.encrypted_content" in (asked.body.get("include") or ()):
        item["encrypted_content"] = SEALED
    return {**item, "summary": [{"type": "summary_text", "text": "**Looking** at the caf\u00e9's hours"}]}


def told(asked: Asked, whole: Json, ending: str = "response.completed") -> list[bytes]:
    """The events of a stream that ends in `whole`."""
    begun = response(asked, [], "in_progress")
    parts = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *(part for index, item in enumerate(whole["output"]) for part in item_told(item, index)),
        {"type": ending, "response": whole},
    ]
    return numbered(parts)


def numbered(parts: Sequence[Json]) -> list[bytes]:
    return [event({"type": part["type"], "sequence_number": at, **part}) for at, part in enumerate(parts)]


def item_told(item: Json, index: int) -> Iterator[Json]:
    """An item's beginning, its parts, its end."""
    at = {"output_index": index}
    of_item = {"item_id": item["id"], **at}
    empty = {"message": {"content": []}, "function_call": {"arguments": ""}, "reasoning": {"summary": []}}
    begun = {} if item["type"] == "reasoning" else {"status": "in_progress"}
    yield {"type": "response.output_item.added", **at, "item": {**item, **begun, **empty.get(item["type"], {})}}
    match item["type"]:
        case "message":
            for number, part in enumerate(item["content"]):
                yield from part_told(part, {**of_item, "content_index": number})
        case "function_call":
            for half in halves(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", **of_item, "delta": half, "obfuscation": "kT3"}
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done", **of_item, **done}
        case "reasoning":
            for number, part in enumerate(item["summary"]):
                yield from summary_told(part, {**of_item, "summary_index": number})
        case "web_search_call":
            for step in ("in_progress", "searching", "completed"):
                yield {"type": f"response.web_search_call.{step}", **of_item}
    yield {"type": "response.output_item.done", **at, "item": item}


def part_told(part: Json, at: Json) -> Iterator[Json]:
    """A part of a message: what it says, what it cites."""
    kind = part["type"]
    name = {"output_text": "text", "refusal": "refusal"}[kind]
    empty = {"annotations": [], "text": ""} if kind == "output_text" else {"refusal": ""}
    more = {"logprobs": []} if kind == "output_text" else {}
    yield {"type": "response.content_part.added", **at, "part": {**part, **empty}}
    for word in WORDS if part[name] == SAID else halves(part[name]):
        yield {"type": f"response.{kind}.delta", **at, "delta": word, **more, "obfuscation": "kT3x"}
    for number, annotation in enumerate(part.get("annotations", ())):
        cited = {"annotation_index": number, "annotation": annotation}
        yield {"type": "response.output_text.annotation.added", **at, **cited}
    yield {"type": f"response.{kind}.done", **at, name: part[name], **more}
    yield {"type": "response.content_part.done", **at, "part": part}


def summary_told(part: Json, at: Json) -> Iterator[Json]:
    yield {"type": "response.reasoning_summary_part.added", **at, "part": {**part, "text": ""}}
    for half in halves(part["text"]):
        yield {"type": "response.reasoning_summary_text.delta", **at, "delta": half, "obfuscation": "kT"}
    yield {"type": "response.reasoning_summary_text.done", **at, "text": part["text"]}
    yield {"type": "response.reasoning_summary_part.done", **at, "part": part}


def given(asked: Asked, *items: Json, headers: Sequence[Header] = ()) -> Steps:
    """Items, as a stream where one was asked for."""
    whole = response(asked, items)
    if asked.body.get("stream"):
        return streamed(told(asked, whole), [*OPENAI_HEADERS, *headers])
    return plainly({**whole, "x_unknown": {"a": [1.0, None]}}, headers=[*OPENAI_HEADERS, *headers])


def spoken(asked: Asked) -> Steps:
    return given(asked, message(text(SAID)))


def calling(*cities: str, thinking: bool = False) -> Callable[[Asked], Steps]:
    """Calls a function for each city, then, when the results are there, says something."""

    def reply(asked: Asked) -> Steps:
        sent = asked.body.get("input")
        if isinstance(sent, list) and any(one.get("type") == "function_call_output" for one in sent):
            return spoken(asked)
        thoughts = [reasoning(asked)] if thinking else []
        return given(asked, *thoughts, *(call(number, city) for number, city in enumerate(cities)))

    return reply


def thoughtful(asked: Asked) -> Steps:
    return given(asked, reasoning(asked), message(text(SAID)))


def structured(asked: Asked) -> Steps:
    return given(asked, message(text(SHAPE)))


def refusing(asked: Asked) -> Steps:
    return given(asked, message({"type": "refusal", "refusal": "I will not help with that."}))


def searched(asked: Asked) -> Steps:
    """The provider's own tool ran, and its finding is cited."""
    action = {"type": "search", "query": "caf\u00e9 hours", "queries": ["caf\u00e9 hours"]}
    search = {"id": "ws_68f1", "type": "web_search_call", "status": "completed", "action": action}
    cited = {"type": "url_citation", "start_index": 4, "end_index": 8, "url": "https://cafe.example/", "title": "Hours"}
    return given(asked, search, message(text(SAID, cited)))


def chained(asked: Asked) -> Steps:
    """Each response has an id of its own, so that the next can name the one before."""
    return plainly({**response(asked, [message(text(SAID))]), "id": f"resp_{asked.number}"}, headers=OPENAI_HEADERS)


def kept(asked: Asked) -> Steps:
    """Makes a response, gives it and what it was asked again, forgets it."""
    if asked.seen.method == "DELETE":
        return plainly({"id": ID, "object": "response", "deleted": True}, headers=OPENAI_HEADERS)
    if is_of(asked, "GET", "/input_items"):
        words = [{"type": "input_text", "text": "When does the caf\u00e9 open?"}]
        items = [{"id": "msg_1", "type": "message", "status": "completed", "role": "user", "content": words}]
        page = {"object": "list", "data": items, "first_id": "msg_1", "last_id": "msg_1", "has_more": False}
        return plainly(page, headers=OPENAI_HEADERS)
    return spoken(asked)


def in_background(asked: Asked) -> Steps:
    """Queued at first, cancelled when it was told so."""
    if is_of(asked, "POST", "/cancel"):
        return plainly(response(asked, [], "cancelled", background=True), headers=OPENAI_HEADERS)
    if asked.seen.method == "GET":
        return plainly(response(asked, [], "in_progress", background=True), headers=OPENAI_HEADERS)
    return plainly(response(asked, [], "queued"), headers=OPENAI_HEADERS)


def broken_short(asked: Asked) -> Steps:
    """The end of `max_output_tokens`."""
    reason = {"reason": "max_output_tokens"}
    short = message(text("The caf\u00e9 opens"), status="incomplete")
    whole = response(asked, [short], "incomplete", incomplete_details=reason)
    return streamed(told(asked, whole, "response.incomplete"), OPENAI_HEADERS)


def failing(asked: Asked) -> Steps:
    error = {"code": "server_error", "message": "The model failed to generate a response."}
    return streamed(told(asked, response(asked, [], "failed", error=error), "response.failed"), OPENAI_HEADERS)


def interrupted(asked: Asked) -> Steps:
    """An error after the first words, in a stream that began with 200."""
    error = {"type": "error", "code": "server_error", "message": "The server had an error.", "param": None}
    begun = told(asked, response(asked, [message(text(SAID))]))[:6]
    return streamed([*begun, event({**error, "sequence_number": len(begun)})], OPENAI_HEADERS)


def cut(asked: Asked) -> Steps:
    return breaking_off(told(asked, response(asked, [message(text(SAID))])), 7, OPENAI_HEADERS)


def silent(asked: Asked) -> Steps:
    return falling_silent(told(asked, response(asked, [message(text(SAID))])), 7, OPENAI_HEADERS)


def at_once(asked: Asked) -> Steps:
    return last_first(asked, given(asked, message(text(opening(asked)))))


def refusal(
    status: int, words: str, kind: str, code: str | None, param: str | None = None, *headers: Header
) -> Callable[[Asked], Steps]:
    error = {"message": words, "type": kind, "param": param, "code": code}
    return lambda asked: plainly({"error": error}, status, [*OPENAI_HEADERS, *headers])


TOO_LONG = refusal(
    400,
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "invalid_request_error",
    "context_length_exceeded",
    "input",
)
UNAUTHORIZED = refusal(401, "Incorrect API key provided: sk-****.", "invalid_request_error", "invalid_api_key")
MISSING = refusal(404, "Response with id 'resp_68f1a0c2' not found.", "invalid_request_error", None, "response_id")
BUSY = refusal(429, "Rate limit reached.", "tokens", "rate_limit_exceeded", None, (b"Retry-After", b"1"))
DOWN = refusal(500, "The server had an error.", "server_error", None, None, (b"retry-after-ms", b"60"))


def after(times: int, at_first: Callable[[Asked], Steps]) -> Callable[[Asked], Steps]:
    return lambda asked: at_first(asked) if asked.number < times else spoken(asked)


def packed(asked: Asked) -> Steps:
    whole = response(asked, [message(text(SAID))])
    if asked.body.get("stream"):
        return squeezed(asked, b"".join(told(asked, whole)), EVENTS, OPENAI_HEADERS)
    return squeezed(asked, spaced(whole), KIND, OPENAI_HEADERS)


def baked(asked: Asked) -> Steps:
    """Sets two cookies, and tells which came back."""
    return given(asked, message(text(cookies_of(asked))), headers=COOKIES)


def received(asked: Asked) -> Steps:
    """Tells how much came."""
    return given(asked, message(text(f"{len(asked.seen.body)} bytes. {SAID}")))


def counted(asked: Asked) -> Steps:
    if not is_of(asked, "POST", "/input_tokens"):
        return spoken(asked)
    return plainly({"object": "response.input_tokens", "input_tokens": 29}, headers=OPENAI_HEADERS)


OPENS = "opens at nine"
POST = r"^POST /v1/responses"
STREAM = r'"stream": ?true'
TWICE = f"{POST}(.|\n)*{POST}"
RESULT = r'"type": ?"function_call_output"'
SCENARIOS = [
    Scenario("plain", "a question and its answer", spoken, (POST,), (OPENS,)),
    Scenario("stream", "the same as a stream", spoken, (STREAM,), (OPENS,)),
    Scenario("instructions", "instructions beside the input", spoken, (r'"instructions": ?"',), (OPENS,)),
    Scenario("developer", "the developer role in the input", spoken, (r'"role": ?"(developer|system)"',), (OPENS,)),
    Scenario("tool", "a function is called, its result sent back", calling("Rome"), (RESULT, '"call_0"', "21 degrees"), (OPENS,)),
    Scenario("two tools", "two calls at once", calling("Rome", "Oslo"), (RESULT, '"call_0"', '"call_1"'), ("Rome", "Oslo", OPENS)),
    Scenario("streamed tools", "two calls at once, streamed", calling("Rome", "Oslo"), (STREAM, RESULT, '"call_1"'), ("Rome", "Oslo", OPENS)),
    Scenario("structured", "an answer that follows a JSON schema", structured, (r'"type": ?"json_schema"',), ("Ada", r"\b36\b")),
    Scenario("vision", "a picture in the input", spoken, (r'"input_image"', r"data:image/png;base64,"), (OPENS,)),
    Scenario("file", "a PDF in the input", spoken, (r'"input_file"', r"data:application/pdf;base64,"), (OPENS,)),
    Scenario("reasoning", "nothing is stored: sealed reasoning goes back with the result", calling("Rome", thinking=True), (r'"store": ?false', "reasoning.encrypted_content", SEALED, "21 degrees"), (OPENS,)),
    Scenario("streamed reasoning", "a summary of the reasoning, streamed", thoughtful, (STREAM,), ("the caf\u00e9's hours", OPENS)),
    Scenario("refusal", "a refusal, streamed", refusing, (STREAM,), ("I will not help",)),
    Scenario("web search", "the provider's own tool, with a citation", searched, (r'"type": ?"web_search',), (r"cafe\.example", OPENS)),
    Scenario("previous", "the next turn names the one before", chained, (r'"previous_response_id": ?"resp_0"',), (OPENS,)),
    Scenario("background", "in the background; asked for, cancelled", in_background, (r'"background": ?true', rf"^GET /v1/responses/{ID}", rf"^POST /v1/responses/{ID}/cancel"), ("queued", "cancelled")),
    Scenario("kept", "got again, its input listed, deleted", kept, (rf"^GET /v1/responses/{ID}[? ]", rf"^GET /v1/responses/{ID}/input_items", rf"^DELETE /v1/responses/{ID}"), (OPENS, "When does")),
    Scenario("truncation", "truncation auto", spoken, (r'"truncation": ?"auto"',), (OPENS,)),
    Scenario("incomplete", "max_output_tokens is reached in a stream", broken_short, (STREAM, r'"max_output_tokens": ?16'), ("opens",)),
    Scenario("failed", "response.failed in a stream", failing, (STREAM,), ("failed",)),
    Scenario("error event", "an error after the first words", interrupted, (STREAM,), ("The server had an error",)),
    Scenario("too long", "400 context_length_exceeded is seen as such", TOO_LONG, (POST,), ("context_length_exceeded", "context window")),
    Scenario("unauthorized", "401, a wrong key", UNAUTHORIZED, (POST,), ("Incorrect API key",)),
    Scenario("missing", "404, a response that is gone", MISSING, (), ("not found",)),
    Scenario("busy", "429 with retry-after, then an answer", after(1, BUSY), (TWICE,), (OPENS,)),
    Scenario("down", "500 twice; the client tries again by itself", after(2, DOWN), (f"{TWICE}(.|\n)*{POST}",), (OPENS,)),
    Scenario("cut", "a stream that breaks off is seen to", cut, (STREAM,), ("opens", '"error"')),
    Scenario("leave", "the client leaves in the middle of a stream", silent, (STREAM,), ("opens",), leaves=True),
    Scenario("parallel", "three questions at once, the last one answered first", at_once, AT_ONCE_SENT, AT_ONCE_HEARD, AT_ONCE),
    Scenario("packed", "an answer encoded with gzip", packed, (r"(?i)accept-encoding: .*gzip",), (OPENS,)),
    Scenario("packed stream", "a stream encoded with gzip", packed, (STREAM, r"(?i)accept-encoding: .*gzip"), (OPENS,)),
    Scenario("more fields", "unknown fields and an explicit null", spoken, (r'"top_k": ?5', r'"min_p": ?null'), (OPENS,)),
    Scenario("more query", "query parameters", spoken, (r"^POST \S+\?api-version=2026-01-01",), (OPENS,)),
    Scenario("more headers", "headers of one's own", spoken, (r"(?i)^openai-beta: answers=v2", r"(?i)^x-trace: a,b"), (OPENS,)),
    Scenario("cookies", "two cookies are set; what the client returns of them", baked, (TWICE,), ("no cookie",)),
    Scenario("large", "a picture of 1 MB", received, (r"data:image/png;base64,",), (r"\b1\d{6} bytes", OPENS)),
    Scenario("count", "the input's tokens are counted", counted, (r"^POST /v1/responses/input_tokens",), (r"\b29\b",)),
]  # fmt: skip
RESPONSES = Dialect("responses", "Responses", "/responses", {one.name: one for one in SCENARIOS})
