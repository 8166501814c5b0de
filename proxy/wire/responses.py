"""The Responses API: what a request looks like, how messages of ours are written, what an answer says.

Items that the assistant's side says in one go are one `Message`, whose `raw` is their array: so reasoning stays with
the call that follows it, and parallel calls stay together, wherever messages do.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Raw

from memory.messages import ChatRequest, Message
from memory.types import Usage
from proxy.wire import items, splice
from proxy.wire import results as beside
from proxy.wire.content import NOT_JSON, NULL, string
from proxy.wire.content import message_of as message_of  # to write a message one must be able to read it
from proxy.wire.openai import Completion, natural
from proxy.wire.openai import message_json as message_json  # a role and a string are an item, too
from proxy.wire.openai import without_calls as without_calls
from proxy.wire.parser import Shape
from proxy.wire.results import results as results
from proxy.wire.results import words as words
from proxy.wire.slices import looking, members, with_value
from proxy.wire.sse import error_text

SHAPE = Shape(
    dialect="responses",
    array="input",
    outputs=("max_output_tokens",),
    schemas=("tools", "text"),
    system="instructions",
    elsewhere=("previous_response_id", "conversation", "prompt", "background"),
    takes_words=True,
    join=items.joined,
)
# Outputs that are no text and stay as they are: a screenshot, tools, a decision.
FIXED = frozenset({"computer_call_output", "tool_search_output", "program_output", "mcp_approval_response"})
SEALED = "reasoning.encrypted_content"  # in `include`: reasoning is told so that it can be sent back


def render(request: ChatRequest, messages: Sequence[bytes], stable: int = 0) -> bytes:
    """The client's body with other items in `input`; all other keys, their order and spacing stay.

    Args:
        messages: the first `request.preface` of them stand beside the array; an array of items is written without its
            brackets.
        stable: so many of them stay as they are until the next rollover.
    """
    start, stop = request.span
    written = (raw[1:-1] if raw.startswith(b"[") else raw for raw in messages[request.preface :])
    return b"".join((request.body[:start], b"[", b",".join(written), b"]", request.body[stop:]))


def tool_json(name: str, description: str, parameters: Mapping[str, object]) -> bytes:
    """A tool of our own. The schema is not made strict, which would be this API's default: it may have options."""
    shape = {"name": name, "description": description, "parameters": parameters, "strict": False}
    return msgspec.json.encode({"type": "function", **shape})


def with_tool(body: bytes, name: str, tool: bytes) -> bytes | None:
    """A request with our tool as the last of its tools; None where it must not stand, see `splice.with_tool`.

    Nor where the provider stores nothing and does not tell its reasoning sealed either: a further request would send
    reasoning back by an id that it does not know, and be refused.
    """
    try:
        kept = _KEPT.decode(looking(body))
        asked = msgspec.json.decode(kept.include)
    except NOT_JSON:
        return None
    if bytes(kept.store) == b"false" and not (isinstance(asked, list) and SEALED in asked):
        return None
    return splice.with_tool(body, name, tool)


def results_json(results: Sequence[tuple[str, str]]) -> tuple[bytes, ...]:
    """What came of calls, by their ids, as items."""
    told = ({"type": "function_call_output", "call_id": id, "output": text} for id, text in results)
    return tuple(map(msgspec.json.encode, told))


def with_content(raw: bytes, content: str, result: int = 0) -> bytes:
    """A result with another text in place of its own; one that holds no text stays as it is.

    Raises:
        NotUnderstood, msgspec.DecodeError: `raw` did not come from a parsed message.
    """
    text = looking(raw)
    spans = members(text)
    kind = string(text[slice(*spans["type"])]) if "type" in spans else None
    if kind in FIXED:
        return raw
    if kind == "shell_call_output" and "output" in spans:
        return with_value(raw, "output", _shell_output(text[slice(*spans["output"])], content))
    if kind is not None and kind.endswith("_output"):
        return with_value(raw, "output", msgspec.json.encode(content))
    return beside.with_content(raw, content, result)


def _shell_output(said: bytes, content: str) -> bytes:
    """What commands printed, as if the last of them had printed all of it."""
    try:
        printed = msgspec.json.decode(said, type=list[dict[str, Raw]])
    except msgspec.ValidationError:
        printed = []
    outcomes = [one["outcome"] for one in printed if "outcome" in one] or [Raw(b'{"type":"exit","exit_code":0}')]
    return msgspec.json.encode([{"stdout": content, "stderr": "", "outcome": outcomes[-1]}])


# Answers


class Response(msgspec.Struct):
    """A `response` object, as much of it as we look at."""

    output: Raw = Raw(NULL)
    usage: object = None
    status: object = None
    error: object = None
    incomplete_details: object = None

    @property
    def items(self) -> list[bytes]:
        """Its output items; [] for none.

        Raises:
            msgspec.ValidationError: the output is no array.
        """
        return [bytes(item) for item in _ITEMS.decode(self.output) or ()]

    @property
    def reason(self) -> str | None:
        """Why it ended: what cut it short, else its status."""
        details = self.incomplete_details
        reason = details.get("reason") if isinstance(details, Mapping) else None
        return next((said for said in (reason, self.status) if isinstance(said, str)), None)

    @property
    def failure(self) -> str | None:
        return error_text(self.error) if self.error else None


def response_in(text: bytes) -> Response:
    """A `response` object.

    Raises:
        NOT_JSON: it is none.
    """
    return _RESPONSE.decode(text)


def completion_in(body: bytes) -> Completion:
    """A plain answer as a value; empty where there is none. Half a surrogate pair in it is lost."""
    try:
        said = response_in(looking(body))
        messages = answer_of(said.items)
    except NOT_JSON:
        return Completion()
    reasons = (said.reason,) if messages else ()
    return Completion(messages, usage_of(said.usage), reasons, said.failure)


def answer_of(output: Sequence[bytes]) -> tuple[Message, ...]:
    """The items of an answer as the one message that they will be when the client sends them back; () for none."""
    run = [message for item in output if (message := _item(item)) is not None]
    if not run:
        return ()
    return (run[0] if len(run) == 1 and run[0].role == items.ASSISTANT else items.joined(run),)


def _item(raw: bytes) -> Message | None:
    try:
        return message_of(raw) if raw.startswith(b"{") else None
    except NOT_JSON:
        return None


def usage_of(usage: object) -> Usage | None:
    """A `usage` object; None when there are no counts in it."""
    if not isinstance(usage, Mapping) or not {"input_tokens", "output_tokens"} & usage.keys():
        return None
    details = usage.get("input_tokens_details")
    return Usage(
        input_tokens=natural(usage.get("input_tokens")),
        cached_tokens=natural(details.get("cached_tokens")) if isinstance(details, Mapping) else 0,
        output_tokens=natural(usage.get("output_tokens")),
    )


class _Kept(msgspec.Struct):
    """What the provider keeps of a response, and what it tells instead."""

    store: Raw = Raw(NULL)
    include: Raw = Raw(NULL)


_KEPT = msgspec.json.Decoder(_Kept)
_RESPONSE = msgspec.json.Decoder(Response)
_ITEMS = msgspec.json.Decoder(list[Raw] | None)
