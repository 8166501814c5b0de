"""Marks for the provider's cache in the Messages API: whose they are, and one of ours at the end of the frozen prefix.

The provider caches a prefix where a block says `cache_control`, four times at most. A client marks the last message it
sends; what it marked before has moved on or was folded. So where a client uses marks, and there is one left, the end of
what stays until the next rollover gets one. A client without marks pays no cache writes, and gets none of ours.
Source: platform.claude.com/docs/en/build-with-claude/prompt-caching.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from memory.messages import ChatRequest
from proxy.wire.blocks import THOUGHTS
from proxy.wire.slices import Span, elements, looking, members, with_value

MOST_MARKS = 4
KEY = "cache_control"


def marked(request: ChatRequest, messages: Sequence[bytes], stable: int) -> list[bytes]:
    """The messages to forward, of which one may have got a mark.

    Args:
        messages: the first `request.preface` of them stand beside the array.
        stable: so many of them stay as they are; the last that can carry a mark gets it.
    """
    out = list(messages)
    if not is_used(request):
        return out
    front = [ttl for schemas in request.schemas for ttl in ttls(schemas)]
    of_each = [ttls(raw) for raw in messages]
    last = ttls(top_level(request))
    if len(front) + sum(map(len, of_each)) + len(last) >= MOST_MARKS:
        return out
    for n in range(min(stable, len(out)) - 1, request.preface - 1, -1):
        block = last_block(out[n])
        if (block is not None and ttls(b"[" + out[n][slice(*block)] + b"]")) or (last and n == len(out) - 1):
            return out  # the client's own mark stands there already
        if block is None or not may_be_marked(out[n][slice(*block)]):
            continue
        before = [*front, *(ttl for ttls in of_each[: n + 1] for ttl in ttls)]
        after = [*(ttl for ttls in of_each[n + 1 :] for ttl in ttls), *last]
        ttl = before[-1] if before else after[0] if after else None  # a longer one must not follow a shorter one
        out[n] = with_mark(out[n], block, ttl)
        break
    return out


def is_used(request: ChatRequest) -> bool:
    """Does the client ask for caching anywhere?"""
    if b'"cache_control"' not in request.body:
        return False
    told = (*request.schemas, *(message.raw for message in request.messages), top_level(request))
    return any(ttls(raw) for raw in told)


def top_level(request: ChatRequest) -> bytes:
    """`{"cache_control": ...}` of the request itself: automatic caching counts as a mark on the last block."""
    start, stop = request.span
    rest = b"".join((request.body[:start], b"0", request.body[stop:]))
    span = members(looking(rest)).get(KEY)
    return b'{"cache_control":' + rest[slice(*span)] + b"}" if span else b"{}"


def ttls(raw: bytes) -> list[str | None]:
    """How long each mark in a message, tool list or system prompt asks to be kept, in order; None: it does not say."""
    return list(_ttls(msgspec.json.decode(looking(raw)))) if b'"cache_control"' in raw else []


def _ttls(value: object) -> Iterator[str | None]:
    """Marks of blocks and of the blocks in them; what a tool is given or says is its own."""
    if isinstance(value, list):
        for item in value:
            yield from _ttls(item)
    elif isinstance(value, Mapping):
        for key in ("content", "source"):
            yield from _ttls(value.get(key))
        mark = value.get(KEY)
        if isinstance(mark, Mapping):
            ttl = mark.get("ttl")
            yield ttl if isinstance(ttl, str) else None


# Where a mark stands


def block_spans(raw: bytes) -> list[Span]:
    """Where the content blocks of a message stand in it; none where its content is a string."""
    start, stop = members(looking(raw)).get("content", (0, 0))
    if not raw.startswith(b"[", start):
        return []
    return [(start + begin, start + end) for begin, end in elements(looking(raw[start:stop]))]


def last_block(raw: bytes) -> Span | None:
    """Where the block stands that a mark would go on: the last, or the string in its place."""
    spans = members(looking(raw))
    start, stop = spans.get("content", (0, 0))
    if raw.startswith(b'"', start):
        return start, stop
    blocks = block_spans(raw)
    return blocks[-1] if blocks else None


def may_be_marked(block: bytes) -> bool:
    """Not thoughts, not empty text, and not kinds that we do not know."""
    if block.startswith(b'"'):
        return bool(_STRING.decode(looking(block)).strip())
    shape = _BLOCK.decode(looking(block))
    kind = shape.type
    if not isinstance(kind, str) or kind in THOUGHTS:
        return False
    if kind == "text":
        return isinstance(shape.text, str) and bool(shape.text.strip())
    return kind in MARKABLE or kind.endswith("_tool_result")


def with_mark(raw: bytes, block: Span, ttl: str | None) -> bytes:
    """A message with a mark on a block of it; a string becomes a text block to carry it."""
    start, stop = block
    mark = msgspec.json.encode({"type": "ephemeral"} | ({"ttl": ttl} if ttl else {}))
    if raw.startswith(b'"', start):
        text = raw[start:stop]
        return b"".join((raw[:start], b'[{"type":"text","text":', text, b',"cache_control":', mark, b"}]", raw[stop:]))
    return raw[:start] + with_value(raw[start:stop], KEY, mark) + raw[stop:]


def without_marks(raw: bytes) -> bytes:
    """A message, or a block, whose blocks ask for no caching: the marks become null."""
    if b'"cache_control"' not in raw:
        return raw
    for start, stop in reversed(block_spans(raw)):
        block = without_marks(raw[start:stop])
        if KEY in members(looking(block)):
            block = with_value(block, KEY, b"null")
        raw = raw[:start] + block + raw[stop:]
    return raw


class _Block(msgspec.Struct):
    type: object = None
    text: object = None


MARKABLE = frozenset(
    ("image", "document", "search_result", "tool_use", "server_tool_use", "mcp_tool_use", "tool_result")
)
_BLOCK = msgspec.json.Decoder(_Block)
_STRING = msgspec.json.Decoder(str)
