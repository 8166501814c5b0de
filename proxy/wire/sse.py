"""Server-sent events of a streamed answer, accumulated on the side while their bytes are relayed untouched.

Here: where the terminal event stands, and the data of the events. What they add up to is each dialect's own. Events are
read leniently, as clients read them; what cannot be read is skipped.
"""

import json
import re
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from memory.messages import Message
from memory.types import Usage
from proxy.wire.encoding import Decoder as Decoder  # streams come encoded, so people look for it here

E = TypeVar("E")

FLUSH_BYTES = 256 * 1024  # of unread events; then they are read and let go
MAX_ANSWER_CHARS = 16_000_000
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_ERROR_CHARS = 500

_CARRY_BYTES = 96  # longest beginning of a terminal line that is carried to the next chunk
_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_LINE_END = re.compile(rb"[\r\n]")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Answer(msgspec.Struct, frozen=True):
    """What a stream added up to; one message and one finish reason for each choice, in the order of their index."""

    messages: tuple[Message, ...] = ()
    usage: Usage | None = None
    finish_reasons: tuple[str | None, ...] = ()
    terminal: bool = False  # its end was seen
    error: str | None = None  # an error event's message
    model: str | None = None  # as the provider names it
    truncated: bool = False  # more than we keep


class Sum(Protocol):
    """What the events of a stream add up to."""

    truncated: bool

    def add(self, payloads: Sequence[bytes]) -> None:
        """Add events, each as its data."""

    def answer(self, terminal: bool) -> Answer: ...


class Terminal(msgspec.Struct, frozen=True):
    """How a dialect's last event is known."""

    line: re.Pattern[bytes]  # that begins it, with the line break before it
    words: tuple[bytes, ...]  # one of them stands in each such event: looking for it is cheaper
    kinds: frozenset[str] = frozenset()  # what its data has as `type`, wherever in the object that stands
    kind: re.Pattern[bytes] | None = None  # any of them as a `type`, at whatever depth
    says_more: bool = False  # it is a part of the answer, so the end is where it ends

    def is_in(self, event: bytes) -> bool:
        """Is this event, as far as it goes, the last one by its data?"""
        if self.kind is None or self.kind.search(event) is None:
            return False
        return any(found.type in self.kinds for found in _KINDS.read(payloads(event)) if isinstance(found.type, str))


class Accumulator:
    """Takes a stream's decoded bytes as they come; events are read when there are many, or at the end.

    Args:
        sum: takes the events' data.
    """

    def __init__(self, sum: Sum, terminal: Terminal) -> None:
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._flush_at = FLUSH_BYTES
        self._carry = b"\n"  # the stream's last bytes; a stream begins like a line
        self._last = terminal
        self._look_at: int | None = None  # bytes of an event that may be the last one; None: none may
        self._terminal = False
        self.is_complete = False  # the terminal event is here to its end
        self._sum = sum

    def feed(self, chunk: bytes) -> int | None:
        """Where in this chunk the terminal line begins; None: it does not.

        From that byte on, bytes are to be held back until the turn is safe. A terminal line that began in an earlier
        chunk gives 0; so does one that says only at its end what it is, for nobody reads a line before its end. After
        the first terminal line: None.
        """
        if self._terminal:
            if self._last.says_more and not self.is_complete:
                self._end(chunk)
            return None
        window = self._carry + chunk
        has_word = any(word in window for word in self._last.words)
        found = self._last.line.search(window) if has_word else None
        start = found.start() + 1 - len(self._carry) if found else self._late(window, chunk, has_word)
        if start is None:
            self._carry = window[-_CARRY_BYTES:]
            self._take(chunk)
            return None
        self._terminal = True
        begins = max(0, start)
        self._take(chunk[:begins])
        self._carry = window[max(0, len(self._carry) + start) : len(self._carry)]  # what of it came in an earlier chunk
        if self._last.says_more:
            self._end(chunk[begins:])
        else:
            self.is_complete = True
        return begins

    def _late(self, window: bytes, chunk: bytes, has_word: bool) -> int | None:
        """Where, from the beginning of a chunk, the last event begins that has its type behind other keys.

        It is read when its line ends, and when it ends itself; between, only when it is twice as long: an event of many
        lines is not read for each of them.
        """
        kind = self._last.kind
        if self._look_at is None:
            if not has_word or kind is None or kind.search(window) is None:
                return None
            self._look_at = 0
        has_line = _LINE_END.search(chunk) is not None and self._unread_bytes >= self._look_at
        if not has_line and _BLANK_LINE.search(window) is None:
            return None
        self._flush()
        held = b"".join(self._unread)
        text = held + chunk
        start = 0
        for blank in _BLANK_LINE.finditer(text):
            if self._last.is_in(text[start : blank.end()]):
                return start - len(held)
            start = blank.end()
        ended = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if self._last.is_in(text[start:ended]):
            return start - len(held)
        if kind is None or kind.search(text, start) is None:
            self._look_at = None
        else:
            self._look_at = 2 * len(text) if kind.search(text, start, ended) else 0
        return None

    def _end(self, chunk: bytes) -> None:
        """Take the terminal event as far as it goes."""
        window = self._carry + chunk
        found = _BLANK_LINE.search(window)
        self.is_complete = found is not None
        self._take(chunk if found is None else chunk[: max(0, found.end() - len(self._carry))])
        self._carry = window[-3:]

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
        self._sum.add(payloads(text))


def payloads(text: bytes) -> list[bytes]:
    """The data of each event in a piece of a stream, its lines joined by newlines; all else is skipped."""
    found: list[bytes] = []
    lines: list[bytes] = []
    for line in text.removeprefix(b"\xef\xbb\xbf").splitlines():
        if line.startswith(b"data:"):
            lines.append(line[5:])
        elif not line and lines:
            found.append(b"\n".join(lines) if len(lines) > 1 else lines[0])
            lines = []
    if lines:  # the stream was cut, or does not end its last event
        found.append(b"\n".join(lines))
    return found


class _Kind(msgspec.Struct):
    type: object = None


class Events(Generic[E]):
    """The data of events as values of a kind; what is malformed is skipped."""

    def __init__(self, kind: type[E]) -> None:
        self._kind = kind
        self._one = msgspec.json.Decoder(kind)
        self._many = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]

    def read(self, payloads: Sequence[bytes]) -> list[E]:
        try:  # one call for all is several times faster than one for each
            return self._many.decode(b"[" + b",".join(payloads) + b"]")
        except _UNREADABLE:
            return [event for payload in payloads for event in self._lenient(payload)]

    def _lenient(self, payload: bytes) -> list[E]:
        """One event, or each of its lines where a server forgot the blank lines between events; [] for none."""
        event = self._decoded(payload)
        if event is not None:
            return [event]
        lines = payload.split(b"\n")
        return [event for line in lines if (event := self._decoded(line))] if len(lines) > 1 else []

    def _decoded(self, payload: bytes) -> E | None:
        try:
            return self._one.decode(payload)
        except _UNREADABLE:
            pass
        try:  # halves of a surrogate pair in two events: the standard library reads them, and we join them later
            return msgspec.convert(json.loads(payload), self._kind, strict=False)
        except (ValueError, RecursionError):
            return None


_KINDS = Events(_Kind)


def error_text(error: object) -> str:
    """An error's message, else its code or type, else all of it."""
    if isinstance(error, dict):
        error = next((error[key] for key in ("message", "code", "type") if error.get(key)), error)
    return str(error)[:MAX_ERROR_CHARS]


def mended(fields: dict[str, object]) -> object:
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
