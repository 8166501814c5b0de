"""Results of tools that are blocks of a user message: each by itself, with other content, and the words beside them.

The Messages API has them; gateways send them inside chats as well.
"""

import msgspec

from proxy.wire.blocks import RESULT
from proxy.wire.marks import block_spans
from proxy.wire.slices import Span, looking, with_value


def results(raw: bytes) -> tuple[bytes, ...]:
    """Each tool result in a message, as a message of its own; the message itself where it is the one result."""
    return tuple(_saying(raw[slice(*span)]) for span in _apart(raw)[0]) or (raw,)


def with_content(raw: bytes, content: str, result: int = 0) -> bytes:
    """A client's message with another content of one of its tool results; all else stays as it is written.

    Raises:
        NotUnderstood, msgspec.DecodeError: `raw` did not come from a parsed message.
    """
    spans, _ = _apart(raw)
    start, stop = spans[result] if spans else (0, len(raw))
    return raw[:start] + with_value(raw[start:stop], "content", msgspec.json.encode(content)) + raw[stop:]


def words(raw: bytes) -> bytes:
    """What a user says beside results, as a message of its own: the blocks as they are written."""
    return _saying(b",".join(raw[slice(*span)] for span in _apart(raw)[1]))


def _saying(blocks: bytes) -> bytes:
    return b'{"role":"user","content":[' + blocks + b"]}"


def _apart(raw: bytes) -> tuple[list[Span], list[Span]]:
    """Where the tool results of a message stand in it, and where all else does."""
    found: tuple[list[Span], list[Span]] = [], []
    for span in block_spans(raw):
        found[_KIND.decode(looking(raw[slice(*span)])).type != RESULT].append(span)
    return found


class _Kind(msgspec.Struct):
    type: object = None


_KIND = msgspec.json.Decoder(_Kind)
