"""The Messages API: what a request looks like, how messages of ours are written, what a plain answer says.

Roles take turns there, and the user's begins. So a message of ours joins the user message behind it, as a text block
before the client's own blocks; those are never written anew. Source of the rules: platform.claude.com/docs/en/api, the
pages on messages, tool use and mid-conversation system messages.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import msgspec
from msgspec import Raw

from memory.messages import SYSTEM_ROLES, ChatRequest, first_turn
from memory.types import Usage
from proxy.wire.content import NOT_JSON, NULL, message_of, string
from proxy.wire.marks import marked, without_marks
from proxy.wire.openai import Completion, choice_in, natural
from proxy.wire.parser import Shape
from proxy.wire.results import results, with_content, words
from proxy.wire.slices import looking, members, parts, with_value
from proxy.wire.splice import with_tool

__all__ = [
    "SHAPE", "completion_in", "message_json", "message_of", "render", "results", "results_json", "tool_json",
    "usage_of", "with_content", "with_tool", "without_calls", "words",
]  # fmt: skip

SHAPE = Shape(
    dialect="messages",
    array="messages",
    outputs=("max_tokens",),
    schemas=("tools", "output_config", "output_format"),
    system="system",
    elsewhere=("thread",),
)


class Piece(msgspec.Struct, frozen=True):
    """A message to forward."""

    raw: bytes
    role: str
    is_clients: bool  # and stands in this request

    @property
    def is_ours(self) -> bool:
        """Our words, or the user's own of another day: they may join others."""
        return self.role == "user" and not self.is_clients


def render(request: ChatRequest, messages: Sequence[bytes], stable: int = 0) -> bytes:
    """The client's body with another message array; all other keys, their order and spacing stay.

    Args:
        messages: the first `request.preface` of them stand beside the array.
        stable: so many of them stay as they are until the next rollover; the last of them is marked for the provider's
            cache, if the client uses it (`marks.py`).
    """
    start, stop = request.span
    known = {message.raw: message.role for message in request.messages}
    bare = [raw if raw in known else without_marks(raw) for raw in messages]  # stored ones have the marks of their day
    raws = marked(request, bare, stable)
    front = max(first_turn(request.messages), request.preface)
    pieces = [_piece(raw, now, known) for raw, now in zip(messages, raws, strict=True)]
    array = [*raws[request.preface : front], *in_turns(pieces[front:])]
    return b"".join((request.body[:start], b"[", b",".join(array), b"]", request.body[stop:]))


def _piece(raw: bytes, now: bytes, known: Mapping[bytes, str]) -> Piece:
    role = known.get(raw)
    if role is not None:
        return Piece(now, role, is_clients=True)
    return Piece(now, message_of(raw).role, is_clients=False)


def in_turns(pieces: Sequence[Piece]) -> list[bytes]:
    """Messages with ours joined to their neighbours, so that where the client's roles took turns, they still do."""
    out: list[bytes] = []
    for is_answer, run in groupby(with_results_joined(pieces), lambda piece: piece.role == "assistant"):
        turn = list(run)
        is_ours = not is_answer and any(piece.is_ours for piece in turn)
        out += settled(turn) if is_ours else (piece.raw for piece in turn)
    return out


def with_results_joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Results of our tool and those of the client's behind them as one message: the calls were one answer's."""
    out: list[Piece] = []
    for piece in pieces:
        if out and piece.role == out[-1].role == "tool" and not out[-1].is_clients:
            out[-1] = Piece(joined(out[-1].raw, piece.raw), "tool", is_clients=True)
        else:
            out.append(piece)
    return out


def settled(turn: Sequence[Piece]) -> list[bytes]:
    """The user's side between two answers, with messages of ours in it.

    Ours join the user message behind them, or the last one, or stand alone. Before a tool's result nothing may stand,
    so there they stand behind it. A system message must follow a user message and precede an answer, or end all; so
    those of the turn come last, as one.
    """
    said: list[bytes] = []
    ours: list[bytes] = []
    for piece in turn:
        if piece.is_ours:
            ours.append(piece.raw)
        elif piece.role not in SYSTEM_ROLES:
            is_result = piece.role == "tool"
            said.append(joined(piece.raw, *ours, frame=piece.raw) if is_result else joined(*ours, piece.raw))
            ours = []
    if ours:
        before = said[-1:]
        said[-1:] = [joined(*before, *ours, frame=before[0] if before else None)]
    systems = [piece.raw for piece in turn if piece.role in SYSTEM_ROLES]
    return [*said, joined(*systems)] if systems else said


def joined(*raws: bytes, frame: bytes | None = None) -> bytes:
    """Several messages of a role as one: the blocks of all, each as it was written.

    Args:
        frame: the message whose other keys it has; the last one where none is named.
    """
    if len(raws) == 1:
        return raws[0]
    inner = b",".join(filter(None, map(blocks_in, raws)))
    frame = frame or raws[-1]
    spans = members(looking(frame))
    if "content" not in spans:
        end = frame.rindex(b"}")
        return b"".join((frame[:end], b"," if spans else b"", b'"content":[', inner, b"]", frame[end:]))
    start, stop = spans["content"]
    return b"".join((frame[:start], b"[", inner, b"]", frame[stop:]))


def blocks_in(raw: bytes) -> bytes:
    """A message's content blocks with the commas between them; a string is one text block, an empty one none."""
    start, stop = members(looking(raw)).get("content", (0, 0))
    content = raw[start:stop]
    if content.startswith(b'"'):
        return b'{"type":"text","text":' + content + b"}" if content != b'""' else b""
    return content[1:-1].strip() if content.startswith(b"[") else b""


def message_json(role: str, content: str, **more: object) -> bytes:
    """A message of our own, as one text block."""
    return msgspec.json.encode({"role": role, "content": [{"type": "text", "text": content}], **more})


def tool_json(name: str, description: str, parameters: Mapping[str, object]) -> bytes:
    """A tool of our own."""
    return msgspec.json.encode({"name": name, "description": description, "input_schema": parameters})


def results_json(results: Sequence[tuple[str, str]]) -> tuple[bytes, ...]:
    """What came of calls, by their ids, as one message: the API wants all results of a turn together."""
    blocks = [{"type": "tool_result", "tool_use_id": id, "content": text} for id, text in results]
    return (msgspec.json.encode({"role": "user", "content": blocks}),)


def without_calls(body: bytes) -> bytes:
    """A request that is to be answered in words, unless its client wants a call."""
    choice = choice_in(body)
    is_free = choice == NULL or string(parts(choice).get("type", NULL)) == "auto"
    return with_value(body, "tool_choice", b'{"type":"none"}') if is_free else body


# What a plain answer says


def completion_in(body: bytes) -> Completion:
    """A plain answer as a value; empty where there is none."""
    try:
        text = looking(body)
        shape = _ANSWER.decode(text)
        if shape.type != "message":
            return Completion()
        start, stop = members(text)["content"]
        said = message_of(b'{"role":"assistant","content":' + body[start:stop] + b"}")
    except (*NOT_JSON, KeyError):
        return Completion()
    return Completion((said,), usage_of(shape.usage), (string(shape.stop_reason),))


def usage_of(usage: object) -> Usage | None:
    """A `usage` object; None when there are no counts in it. What was read from the cache or written to it stands
    beside `input_tokens` there, and is a part of ours."""
    if not isinstance(usage, Mapping) or not {"input_tokens", "output_tokens"} & usage.keys():
        return None
    cached = natural(usage.get("cache_read_input_tokens"))
    written = natural(usage.get("cache_creation_input_tokens"))
    return Usage(
        input_tokens=natural(usage.get("input_tokens")) + cached + written,
        cached_tokens=cached,
        output_tokens=natural(usage.get("output_tokens")),
    )


class _Answer(msgspec.Struct):
    type: object = None
    stop_reason: Raw = Raw(NULL)
    usage: object = None


_ANSWER = msgspec.json.Decoder(_Answer)
