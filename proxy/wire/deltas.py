"""The events of a streamed Messages API answer, added up to the message and the usage that they tell."""

import re
from collections.abc import Iterable, Sequence
from io import StringIO

import msgspec

from memory.messages import Message
from proxy.wire.anthropic import usage_of
from proxy.wire.content import message_of
from proxy.wire.slices import looking
from proxy.wire.sse import MAX_ANSWER_CHARS, Accumulator, Answer, Events, Terminal, error_text, mended

# Some servers leave the `event:` lines out, and clients then go by the data.
TERMINAL = Terminal(
    re.compile(rb'[\r\n](?:event:[ \t]*message_stop|data:[ \t]*\{[ \t]*"type"[ \t]*:[ \t]*"message_stop")'),
    (b"message_stop",),
    frozenset({"message_stop"}),
    re.compile(rb'"type"\s*:\s*"message_stop"'),
)


def accumulator(max_chars: int = MAX_ANSWER_CHARS) -> Accumulator:
    """For one stream.

    Args:
        max_chars: of text, thinking and arguments kept; more is not recorded, and the answer says so.
    """
    return Accumulator(_Sum(max_chars), TERMINAL)


def accumulate(chunks: Iterable[bytes]) -> Answer:
    """The answer in a whole stream, wherever it is cut into chunks."""
    accumulating = accumulator()
    for chunk in chunks:
        accumulating.feed(chunk)
    return accumulating.finish()


class Delta(msgspec.Struct):
    """What a block or the message gets."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    citation: object = None
    content: str | None = None  # of a compaction
    encrypted_content: str | None = None
    stop_reason: str | None = None


class Begun(msgspec.Struct):
    """The message as it begins: without content, usually."""

    model: str | None = None
    content: list[dict[str, object]] | None = None
    usage: object = None


class Event(msgspec.Struct):
    type: str | None = None
    index: int | None = None
    message: Begun | str | None = None  # a text: of an error that stands alone
    content_block: dict[str, object] | None = None
    delta: Delta | None = None
    usage: object = None
    error: object = None


_EVENTS = Events(Event)


class _Sum:
    """What the events so far add up to."""

    def __init__(self, max_chars: int) -> None:
        self.truncated = False
        self._max_chars = max_chars
        self._size = 0  # characters kept
        self._blocks: dict[int, _BlockSum] = {}
        self._begun = False
        self._usage: dict[str, object] = {}
        self._error: str | None = None
        self._model: str | None = None
        self._stop_reason: str | None = None

    def add(self, payloads: Sequence[bytes]) -> None:
        for event in _EVENTS.read(payloads):
            self._event(event)

    def _event(self, event: Event) -> None:
        if event.type == "error" or event.error:
            self._error = error_text(event.error or event.message)
        elif event.type == "message_start" and isinstance(event.message, Begun):
            self._begin(event.message)
        elif event.type == "content_block_start" and event.content_block is not None:
            self._block(event.index, _BlockSum(event.content_block))
        elif event.type == "content_block_delta" and event.delta is not None:
            block = self._blocks.get(event.index or 0)
            if block is not None and not self.truncated:
                self._grow(block.add(event.delta))
        elif event.type == "message_delta":
            self._count(event.usage)
            self._stop_reason = (event.delta.stop_reason if event.delta else None) or self._stop_reason

    def _begin(self, message: Begun) -> None:
        self._begun = True
        self._model = message.model or self._model
        self._count(message.usage)
        for index, block in enumerate(message.content or ()):
            self._block(index, _BlockSum(block))

    def _block(self, index: int | None, block: "_BlockSum") -> None:
        if not self.truncated:
            self._blocks[index or 0] = block
            self._grow(block.size)

    def _grow(self, size: int) -> None:
        self._size += size
        self.truncated = self._size > self._max_chars

    def _count(self, usage: object) -> None:
        """Later counts are of the whole answer and replace earlier ones; null says nothing."""
        if isinstance(usage, dict):
            self._usage |= {key: count for key, count in usage.items() if count is not None}

    def answer(self, terminal: bool) -> Answer:
        said = self._begun or bool(self._blocks)
        return Answer(
            messages=(self._message(),) if said else (),
            usage=usage_of(self._usage),
            finish_reasons=(self._stop_reason,) if said else (),
            terminal=terminal,
            error=self._error,
            model=self._model,
            truncated=self.truncated,
        )

    def _message(self) -> Message:
        """The message as a client would send it back."""
        content = [self._blocks[index].value() for index in sorted(self._blocks)]
        fields: dict[str, object] = {"role": "assistant", "content": content}
        try:
            return message_of(msgspec.json.encode(fields))
        except UnicodeEncodeError:
            return message_of(msgspec.json.encode(mended(fields)))


class _BlockSum:
    """One content block: as it began, and what came to it."""

    def __init__(self, block: dict[str, object]) -> None:
        self._block = block
        self._texts: dict[str, StringIO] = {}
        self._citations: list[object] = []
        self.size = len(str(block))

    def add(self, delta: Delta) -> int:
        """Add a delta; gives how many characters it brought."""
        if delta.citation is not None:
            self._citations.append(delta.citation)
            return len(str(delta.citation))
        pieces = {
            "text": delta.text,
            "thinking": delta.thinking,
            "input": delta.partial_json,
            "content": delta.content,
        }
        whole = {"signature": delta.signature, "encrypted_content": delta.encrypted_content}
        self._block |= {key: text for key, text in whole.items() if text is not None}
        return sum(self._text(key, piece) for key, piece in pieces.items() if piece)

    def _text(self, key: str, piece: str) -> int:
        held = self._texts.get(key)
        if held is None:
            held = self._texts[key] = StringIO()
        return held.write(piece)

    def value(self) -> dict[str, object]:
        """The block as it would be in a plain answer."""
        block = dict(self._block)
        for key, held in self._texts.items():
            text = held.getvalue()
            begun = block.get(key)
            block[key] = told(text) if key == "input" else f"{begun if isinstance(begun, str) else ''}{text}"
        if self._citations:
            known = block.get("citations")
            block["citations"] = [*(known if isinstance(known, list) else ()), *self._citations]
        return block


def told(arguments: str) -> object:
    """A call's arguments; as text where they broke off."""
    try:
        return msgspec.json.decode(looking(arguments.encode()))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return arguments
