"""Chat completions: what a request looks like, how messages of ours are written, what a plain answer says.

Nothing here re-writes more than it was asked to.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Raw

from memory.messages import ChatRequest, Message
from memory.types import Usage
from proxy.wire.content import NOT_JSON, NULL, string
from proxy.wire.content import message_of as message_of  # to write a message one must be able to read it
from proxy.wire.parser import Shape
from proxy.wire.results import results as results
from proxy.wire.results import with_content as with_content
from proxy.wire.results import words as words
from proxy.wire.slices import looking, members, with_value
from proxy.wire.splice import with_tool as with_tool

SHAPE = Shape(
    dialect="chat",
    array="messages",
    outputs=("max_completion_tokens", "max_tokens"),
    schemas=("tools", "functions", "response_format"),
)


def render(request: ChatRequest, messages: Sequence[bytes], stable: int = 0) -> bytes:
    """The client's body with another message array; all other keys, their order and spacing stay.

    Args:
        messages: the first `request.preface` of them stand beside the array.
        stable: so many of them stay as they are until the next rollover.
    """
    start, stop = request.span
    return b"".join((request.body[:start], b"[", b",".join(messages[request.preface :]), b"]", request.body[stop:]))


def message_json(role: str, content: str, **more: object) -> bytes:
    """A message of our own."""
    return msgspec.json.encode({"role": role, "content": content, **more})


def tool_json(name: str, description: str, parameters: Mapping[str, object]) -> bytes:
    """A tool of our own."""
    function = {"name": name, "description": description, "parameters": parameters}
    return msgspec.json.encode({"type": "function", "function": function})


def results_json(results: Sequence[tuple[str, str]]) -> tuple[bytes, ...]:
    """What came of calls, by their ids, as messages."""
    return tuple(message_json("tool", text, tool_call_id=id) for id, text in results)


def without_calls(body: bytes) -> bytes:
    """A request that is to be answered in words, unless its client wants a call."""
    return with_value(body, "tool_choice", b'"none"') if choice_in(body) in (NULL, b'"auto"') else body


def choice_in(body: bytes) -> bytes:
    """Which tool a request wants to be called, as it is written."""
    text = looking(body)
    span = members(text).get("tool_choice")
    return text[slice(*span)] if span is not None else NULL


class Completion(msgspec.Struct, frozen=True):
    """What a plain answer says."""

    messages: tuple[Message, ...] = ()  # the assistant's, one a choice
    usage: Usage | None = None
    finish_reasons: tuple[str | None, ...] = ()  # one a choice
    error: str | None = None  # where the answer itself tells one


def completion_in(body: bytes) -> Completion:
    """A plain answer as a value; empty where there is none."""
    try:
        text = looking(body)
        shape = _COMPLETION.decode(text)
    except NOT_JSON:
        return Completion()
    reasons = tuple(_reason(choice.finish_reason) for choice in shape.choices or ())
    return Completion(_answers(body, text, shape), usage_of(shape.usage), reasons)


def _reason(raw: Raw) -> str | None:
    try:
        return string(raw)
    except UnicodeDecodeError:
        return None


def _answers(body: bytes, text: bytes, shape: "_Completion") -> tuple[Message, ...]:
    """The messages of all choices; () where one of them is none."""
    try:
        raws = [raw for choice in shape.choices or () if (raw := bytes(choice.message)) != NULL]
        starts = [text.index(raw) for raw in raws]  # in the body it may differ by half a surrogate pair
        return tuple(message_of(body[start : start + len(raw)]) for raw, start in zip(raws, starts, strict=True))
    except NOT_JSON:
        return ()


def usage_of(usage: object) -> Usage | None:
    """A `usage` object; None when there are no counts in it.

    Cached tokens: `prompt_tokens_details.cached_tokens` (OpenAI), else `prompt_cache_hit_tokens` (DeepSeek).
    """
    if not isinstance(usage, Mapping) or not {"prompt_tokens", "completion_tokens"} & usage.keys():
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(
        input_tokens=natural(usage.get("prompt_tokens")),
        cached_tokens=natural(usage.get("prompt_cache_hit_tokens") if cached is None else cached),
        output_tokens=natural(usage.get("completion_tokens")),
    )


def natural(value: object) -> int:
    """A count as a provider states it; 0 for what is none."""
    return int(value) if isinstance(value, int | float) and 0 < value < 1e15 else 0


class _Choice(msgspec.Struct):
    message: Raw = Raw(NULL)
    finish_reason: Raw = Raw(NULL)


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: object = None


_COMPLETION = msgspec.json.Decoder(_Completion)
