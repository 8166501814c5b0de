"""A stream of chat completion chunks, added up to the messages and the usage that it tells."""

import json
import re
from collections.abc import Iterable, Sequence
from io import StringIO

import msgspec

from memory.messages import Message
from memory.types import Usage
from proxy.wire.content import message_of
from proxy.wire.openai import usage_of
from proxy.wire.sse import MAX_ANSWER_CHARS, Accumulator, Answer, Events, Terminal, error_text, mended

# Clients take everything that begins so for the end, whatever follows it in the line.
TERMINAL = Terminal(re.compile(rb"[\r\n]data:[ \t]*\[DONE\]"), (b"[DONE]",))


def accumulator(max_chars: int = MAX_ANSWER_CHARS) -> Accumulator:
    """For one stream.

    Args:
        max_chars: of text, reasoning and arguments kept; more is not recorded, and the answer says so.
    """
    return Accumulator(_Sum(max_chars), TERMINAL)


def accumulate(chunks: Iterable[bytes]) -> Answer:
    """The answer in a whole stream, wherever it is cut into chunks."""
    accumulating = accumulator()
    for chunk in chunks:
        accumulating.feed(chunk)
    return accumulating.finish()


class FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, object] | None = None  # an object, where a server does not know better


class CustomDelta(msgspec.Struct):
    name: str | None = None
    input: str | None = None


class CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None
    custom: CustomDelta | None = None
    extra_content: object = None  # Gemini's signature of its thoughts, without which it refuses the call's result


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


_EVENTS = Events(Event)


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

    def add(self, payloads: Sequence[bytes]) -> None:
        for event in _EVENTS.read(payloads):
            self._event(event)

    def _event(self, event: Event) -> None:
        self._model = event.model or self._model
        if event.usage is not None:
            self._usage = usage_of(event.usage) or self._usage
        if event.error or (event.choices is None and isinstance(event.message, str)):
            self._error = error_text(event.error or event.message)
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
            size += self._text("content", delta.content if isinstance(delta.content, str) else text_of(delta.content))
        if delta.reasoning_content:
            size += self._text("reasoning_content", delta.reasoning_content)
        if delta.reasoning:
            size += self._text("reasoning", delta.reasoning)
        if delta.refusal:
            size += self._text("refusal", delta.refusal)
        for call in delta.tool_calls or ():
            size += self._call(call).add(call.function, call.custom, call.extra_content)
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
            return message_of(msgspec.json.encode(fields))
        except UnicodeEncodeError:
            return message_of(msgspec.json.encode(mended(fields)))


class _CallSum:
    """One tool call."""

    def __init__(self, index: int, id: str | None) -> None:
        self.index = index
        self.id = id
        self._name = ""
        self._written = StringIO()  # arguments, or a custom tool's input
        self._custom = False
        self._extra: dict[str, object] = {}

    def add(self, function: FunctionDelta | None, custom: CustomDelta | None, extra: object = None) -> int:
        name: str | None = None
        text: str | dict[str, object] | None = None
        if custom is not None:
            name, text, self._custom = custom.name, custom.input, True
        elif function is not None:
            name, text = function.name, function.arguments
        if name and name != self._name:  # most send it once, some with each delta, some in pieces
            self._name += name
        if isinstance(extra, dict):
            self._extra |= extra
        text = json.dumps(text, ensure_ascii=False) if isinstance(text, dict) else text
        return self._written.write(text or "") + (len(str(extra)) if extra else 0)

    def function(self) -> dict[str, str]:
        return {"name": self._name, "input" if self._custom else "arguments": self._written.getvalue()}

    def value(self) -> dict[str, object]:
        kind = "custom" if self._custom else "function"
        value: dict[str, object] = {"id": self.id or "", "type": kind, kind: self.function()}
        return value | {"extra_content": self._extra} if self._extra else value


def _id_of(audio: object) -> str | None:
    found = audio.get("id") if isinstance(audio, dict) else None
    return found if isinstance(found, str) else None


def text_of(parts: Sequence[object]) -> str:
    """The text parts of content that comes as a list (Mistral's reasoning models)."""
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))
