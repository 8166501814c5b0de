"""A streamed answer of the Responses API, added up to the message and the usage that it tells."""

import re
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO

import msgspec
from msgspec import Raw

from memory.types import Usage
from proxy.wire.content import NOT_JSON, NULL
from proxy.wire.responses import answer_of, response_in, usage_of
from proxy.wire.slices import looking
from proxy.wire.sse import MAX_ANSWER_CHARS, Accumulator, Answer, Events, Terminal, error_text

ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# The event says itself what the whole response is. Some servers name it in an `event:` line, others in its data alone.
TERMINAL = Terminal(
    re.compile(
        rb"[\r\n](?:event:[ \t]*|data:[ \t]*\{[ \t]*(?:\"sequence_number\":[ \t]*\d{1,9},[ \t]*)?\"type\":[ \t]*\")"
        rb"response\.(?:completed|incomplete|failed)"
    ),
    (b"response.completed", b"response.incomplete", b"response.failed"),
    ENDS,
    re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"'),
    says_more=True,
)
DELTAS = {  # the deltas that an item is made of, and of which kind it is
    "response.output_text.delta": "message",
    "response.refusal.delta": "refusal",
    "response.function_call_arguments.delta": "function_call",
    "response.custom_tool_call_input.delta": "custom_tool_call",
}


def accumulator(max_chars: int = MAX_ANSWER_CHARS) -> Accumulator:
    """For one stream.

    Args:
        max_chars: of items kept; more is not recorded, and the answer says so.
    """
    return Accumulator(_Sum(max_chars), TERMINAL)


def accumulate(chunks: Iterable[bytes]) -> Answer:
    """The answer in a whole stream, wherever it is cut into chunks."""
    accumulating = accumulator()
    for chunk in chunks:
        accumulating.feed(chunk)
    return accumulating.finish()


class Event(msgspec.Struct):
    """An event, as much of it as adds up to the answer."""

    type: object = None
    output_index: object = None
    item: Raw = Raw(NULL)
    delta: object = None
    response: Raw = Raw(NULL)
    error: object = None
    message: object = None  # of an error
    code: object = None


_EVENTS = Events(Event)
_FIELDS = msgspec.json.Decoder(dict[str, object])


class _Sum:
    """What the events so far add up to."""

    def __init__(self, max_chars: int) -> None:
        self.truncated = False
        self._max_chars = max_chars
        self._size = 0  # characters kept
        self._items: dict[int, _ItemSum] = {}
        self._output: list[bytes] = []  # as the last event tells it
        self._usage: Usage | None = None
        self._error: str | None = None
        self._reason: str | None = None

    def add(self, payloads: Sequence[bytes]) -> None:
        for event in _EVENTS.read([looking(payload) for payload in payloads]):
            self._event(event)

    def _event(self, event: Event) -> None:
        kind = event.type if isinstance(event.type, str) else ""
        if kind in ENDS:
            return self._end(bytes(event.response))
        if kind == "error" or (event.error and not kind):
            told = {"message": event.message, "code": event.code}
            self._error = error_text(event.error or told)
        elif kind in ("response.output_item.added", "response.output_item.done"):
            raw = bytes(event.item)
            if raw.startswith(b"{") and self._has_room(len(raw)):
                self._item(event).set(raw, is_done=kind.endswith("done"))
        elif kind in DELTAS and isinstance(event.delta, str) and self._has_room(len(event.delta)):
            self._item(event).add(DELTAS[kind], event.delta)

    def _item(self, event: Event) -> "_ItemSum":
        index = event.output_index if isinstance(event.output_index, int) else 0
        return self._items.setdefault(index, _ItemSum())

    def _has_room(self, chars: int) -> bool:
        """Once there was too little, nothing more is kept: an answer with a hole would say something else."""
        self.truncated = self.truncated or self._size + chars > self._max_chars
        if not self.truncated:
            self._size += chars
        return not self.truncated

    def _end(self, raw: bytes) -> None:
        try:
            said = response_in(raw)
            output = said.items
        except NOT_JSON:
            return
        self._usage = usage_of(said.usage) or self._usage
        self._error = said.failure or self._error
        self._reason = said.reason
        if sum(map(len, output)) > self._max_chars:
            self.truncated = True
        elif output:
            self._output, self.truncated = output, False

    def answer(self, terminal: bool) -> Answer:
        held = [raw for index in sorted(self._items) if (raw := self._items[index].raw()) is not None]
        messages = answer_of(self._output or held)
        return Answer(
            messages=messages,
            usage=self._usage,
            finish_reasons=(self._reason,) if messages else (),
            terminal=terminal,
            error=self._error,
            truncated=self.truncated,
        )


class _ItemSum:
    """One output item: as it is told when it is done, before that what its deltas make of it."""

    def __init__(self) -> None:
        self._begun = b"{}"
        self._done: bytes | None = None
        self._kind: str | None = None  # of deltas
        self._text = StringIO()

    def set(self, raw: bytes, is_done: bool) -> None:
        if is_done:
            self._done = raw
        else:
            self._begun = raw

    def add(self, kind: str, delta: str) -> None:
        self._kind = self._kind or kind
        self._text.write(delta)

    def raw(self) -> bytes | None:
        """The item; None for one that was begun and has said nothing."""
        if self._done is not None or self._kind is None:
            return self._done
        fields = self._fields()
        text = self._text.getvalue()
        match self._kind:
            case "message":
                fields |= {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}
            case "refusal":
                fields |= {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": text}]}
            case "function_call":
                fields["arguments"] = text
            case _:
                fields["input"] = text
        return msgspec.json.encode(fields)

    def _fields(self) -> dict[str, object]:
        try:
            begun: Mapping[str, object] = _FIELDS.decode(self._begun)
        except NOT_JSON:
            begun = {}
        return {"type": self._kind, **begun, "status": "incomplete"}
