"""Server-sent events of a streamed answer, accumulated on the side while their bytes are relayed untouched.

Here: where the terminal event stands, and the messages and the usage that a stream adds up to. Events are read
leniently, as clients read them; what cannot be read is skipped.
"""

import json
import re
from collections.abc import Iterable, Sequence
from io import StringIO

import msgspec

from memory.messages import Message
from memory.types import Usage
from proxy.wire import openai
from proxy.wire.encoding import Decoder as Decoder  # streams come encoded, so people look for it here

FLUSH_BYTES = 256 * 1024  # of unread events; then they are read and let go
MAX_ANSWER_CHARS = 16_000_000
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_ERROR_CHARS = 500

# Clients take everything that begins so for the end, whatever follows it in the line.
_TERMINAL = re.compile(rb"[\r\n]data:[ \t]*\[DONE\]")
_CARRY_BYTES = 32  # longest beginning of a terminal line that is carried to the next chunk


class Answer(msgspec.Struct, frozen=True):
    """What a stream added up to; one message and one finish reason for each choice, in the order of their index."""

    messages: tuple[Message, ...] = ()
    usage: Usage | None = None
    finish_reasons: tuple[str | None, ...] = ()
    terminal: bool = False  # `[DONE]` was seen
    error: str | None = None  # an error event's message
    model: str | None = None  # as the provider names it
    truncated: bool = False  # more than we keep


def accumulate(chunks: Iterable[bytes]) -> Answer:
    """The answer in a whole stream, wherever it is cut into chunks."""
    accumulator = Accumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
    return accumulator.finish()


class Accumulator:
    """Takes a stream's decoded bytes as they come; events are read when there are many, or at the end.

    Args:
        max_chars: of text, reasoning and arguments kept; more is not recorded, and the answer says so.
    """

    def __init__(self, max_chars: int = MAX_ANSWER_CHARS) -> None:
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._flush_at = FLUSH_BYTES
        self._carry = b"\n"  # the stream's last bytes; a stream begins like a line
        self._terminal = False
        self._sum = _Sum(max_chars)

    def feed(self, chunk: bytes) -> int | None:
        """Where in this chunk the terminal line begins; None: it does not.

        From that byte on, bytes are to be held back until the turn is safe. A terminal line that began in an earlier
        chunk gives 0. After the first terminal line: None.
        """
        if self._terminal:
            return None
        window = self._carry + chunk
        found = _TERMINAL.search(window) if b"[DONE]" in window else None
        if found is None:
            self._carry = window[-_CARRY_BYTES:]
            self._take(chunk)
            return None
        self._terminal = True
        begins = max(0, found.start() + 1 - len(self._carry))
        self._take(chunk[:begins])
        return begins

    def finish(self) -> Answer:
        """The answer so far; callable once the stream has ended, however it ended."""
        self._read(b"".join(self._unread))
        self._unread, self._unread_bytes = [], 0
        return self._sum.answer(self._terminal)

    def _take(self, chunk: bytes) -> None:
        self._unread.append(chunk)
        self._unread_bytes += len(chunk)
        if self._unread_bytes > self._flush_at:
            self._flush()

    def _flush(self) -> None:
        """Read what is complete; keep what follows the last blank line."""
        text = b"".join(self._unread)
        stop = max(text.rfind(blank) for blank in (b"\n\n", b"\n\r\n", b"\r\r")) + 1
        self._read(text[:stop])
        text = text[stop:]  # begins with the rest of a blank line, which means nothing
        if len(text) > MAX_EVENT_BYTES:
            text, self._sum.truncated = b"", True
        self._unread, self._unread_bytes = [text], len(text)
        self._flush_at = max(FLUSH_BYTES, 2 * len(text))  # a long event is not joined again for each of its chunks

    def _read(self, text: bytes) -> None:
        for event in events(text):
            self._sum.add(event)


# Events


def events(text: bytes) -> "list[Event]":
    """The events in a piece of a stream, read as clients do: comments, other fields and malformed events skipped."""
    payloads = _payloads(text)
    try:  # one call for all is several times faster than one for each
        return _EVENTS.decode(b"[" + b",".join(payloads) + b"]")
    except _UNREADABLE:
        return [event for payload in payloads for event in _event(payload)]


def _payloads(text: bytes) -> list[bytes]:
    """The data of each event; lines of one event are joined by newlines."""
    payloads: list[bytes] = []
    lines: list[bytes] = []
    for line in text.removeprefix(b"\xef\xbb\xbf").splitlines():
        if line.startswith(b"data:"):
            lines.append(line[5:])
        elif not line and lines:
            payloads.append(b"\n".join(lines) if len(lines) > 1 else lines[0])
            lines = []
    if lines:  # the stream was cut, or does not end its last event
        payloads.append(b"\n".join(lines))
    return payloads


def _event(payload: bytes) -> "list[Event]":
    """One event, or each of its lines where a server forgot the blank lines between events; [] for none."""
    event = _decoded(payload)
    if event is not None:
        return [event]
    lines = payload.split(b"\n")
    return [event for line in lines if (event := _decoded(line))] if len(lines) > 1 else []


def _decoded(payload: bytes) -> "Event | None":
    try:
        return _EVENT.decode(payload)
    except _UNREADABLE:
        pass
    try:  # halves of a surrogate pair in two events: the standard library reads them, and we join them later
        return msgspec.convert(json.loads(payload), Event, strict=False)
    except (ValueError, RecursionError):
        return None


class FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CustomDelta(msgspec.Struct):
    name: str | None = None
    input: str | None = None


class CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None
    custom: CustomDelta | None = None


class Delta(msgspec.Struct):
    role: str | None = None
    content: str | list[object] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None
    function_call: FunctionDelta | None = None
    audio: object = None


class Choice(msgspec.Struct):
    index: int | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Event(msgspec.Struct):
    """A `chat.completion.chunk`, as much of it as adds up to the answer."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: object = None
    error: object = None
    message: object = None  # of an error that stands alone


_EVENT = msgspec.json.Decoder(Event)
_EVENTS = msgspec.json.Decoder(list[Event])
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# Adding up


class _Sum:
    """What the events so far add up to."""

    def __init__(self, max_chars: int) -> None:
        self.truncated = False
        self._max_chars = max_chars
        self._size = 0  # characters kept
        self._choices: dict[int, _ChoiceSum] = {}
        self._usage: Usage | None = None
        self._error: str | None = None
        self._model: str | None = None

    def add(self, event: Event) -> None:
        self._model = event.model or self._model
        if event.usage is not None:
            self._usage = openai.usage_of(event.usage) or self._usage
        if event.error or (event.choices is None and isinstance(event.message, str)):
            self._error = _error_text(event.error or event.message)
        for choice in event.choices or ():
            index = choice.index or 0
            held = self._choices.get(index)
            if held is None:
                held = self._choices[index] = _ChoiceSum()
            held.finish_reason = choice.finish_reason or held.finish_reason
            if choice.delta is not None and not self.truncated:
                self._size += held.add(choice.delta)
                self.truncated = self._size > self._max_chars

    def answer(self, terminal: bool) -> Answer:
        choices = [self._choices[index] for index in sorted(self._choices)]
        return Answer(
            messages=tuple(choice.message() for choice in choices),
            usage=self._usage,
            finish_reasons=tuple(choice.finish_reason for choice in choices),
            terminal=terminal,
            error=self._error,
            model=self._model,
            truncated=self.truncated,
        )


class _ChoiceSum:
    """One choice: texts by their key, tool calls in the order they began."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._role: str | None = None
        self._texts: dict[str, StringIO] = {}
        self._calls: list[_CallSum] = []
        self._open: dict[int | None, _CallSum] = {}  # the call that an index stands for now
        self._legacy: _CallSum | None = None
        self._audio: str | None = None

    def add(self, delta: Delta) -> int:
        """Add a delta; gives how many characters it brought."""
        self._role = self._role or delta.role
        size = 0
        if delta.content is not None:
            size += self._text("content", delta.content if isinstance(delta.content, str) else _text_of(delta.content))
        if delta.reasoning_content:
            size += self._text("reasoning_content", delta.reasoning_content)
        if delta.reasoning:
            size += self._text("reasoning", delta.reasoning)
        if delta.refusal:
            size += self._text("refusal", delta.refusal)
        for call in delta.tool_calls or ():
            size += self._call(call).add(call.function, call.custom)
        if delta.function_call is not None:
            self._legacy = self._legacy or _CallSum(0, None)
            size += self._legacy.add(delta.function_call, None)
        if delta.audio is not None:
            self._audio = _id_of(delta.audio) or self._audio
        return size

    def _text(self, key: str, text: str) -> int:
        held = self._texts.get(key)
        if held is None:
            held = self._texts[key] = StringIO()
        return held.write(text)

    def _call(self, delta: CallDelta) -> "_CallSum":
        """The call a delta belongs to: the index tells, except that a new id with a name begins a new call.

        Gemini's compatible endpoint gives parallel calls the same index, others leave the index out.
        """
        held = self._open.get(delta.index)
        named = (delta.function or delta.custom or FunctionDelta()).name
        if held is None or (delta.id and held.id and delta.id != held.id and named):
            held = _CallSum(len(self._calls) if delta.index is None else delta.index, delta.id)
            self._open[delta.index] = held
            self._calls.append(held)
        held.id = held.id or delta.id
        return held

    def message(self) -> Message:
        """The message as a client would send it back."""
        fields: dict[str, object] = {"role": self._role or "assistant", "content": None}
        fields |= {key: text.getvalue() for key, text in self._texts.items()}
        if self._audio is not None:
            fields["audio"] = {"id": self._audio}
        if self._calls:
            fields["tool_calls"] = [call.value() for call in sorted(self._calls, key=lambda call: call.index)]
        if self._legacy is not None:
            fields["function_call"] = self._legacy.function()
        try:
            return openai.message_of(msgspec.json.encode(fields))
        except UnicodeEncodeError:
            return openai.message_of(msgspec.json.encode(_mended(fields)))


class _CallSum:
    """One tool call."""

    def __init__(self, index: int, id: str | None) -> None:
        self.index = index
        self.id = id
        self._name = ""
        self._written = StringIO()  # arguments, or a custom tool's input
        self._custom = False

    def add(self, function: FunctionDelta | None, custom: CustomDelta | None) -> int:
        name = text = None
        if custom is not None:
            name, text, self._custom = custom.name, custom.input, True
        elif function is not None:
            name, text = function.name, function.arguments
        if name and name != self._name:  # most send it once, some with each delta, some in pieces
            self._name += name
        return self._written.write(text or "")

    def function(self) -> dict[str, str]:
        return {"name": self._name, "input" if self._custom else "arguments": self._written.getvalue()}

    def value(self) -> dict[str, object]:
        kind = "custom" if self._custom else "function"
        return {"id": self.id or "", "type": kind, kind: self.function()}


def _id_of(audio: object) -> str | None:
    found = audio.get("id") if isinstance(audio, dict) else None
    return found if isinstance(found, str) else None


def _text_of(parts: Sequence[object]) -> str:
    """The text parts of content that comes as a list (Mistral's reasoning models)."""
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _error_text(error: object) -> str:
    """An error's message, else its code or type, else all of it."""
    if isinstance(error, dict):
        error = next((error[key] for key in ("message", "code", "type") if error.get(key)), error)
    return str(error)[:MAX_ERROR_CHARS]


def _mended(fields: dict[str, object]) -> object:
    """With halves of surrogate pairs joined where they meet, replaced where they stand alone."""

    def mend(value: object) -> object:
        match value:
            case str():
                return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            case list():
                return [mend(one) for one in value]
            case dict():
                return {key: mend(one) for key, one in value.items()}
        return value

    return mend(fields)
