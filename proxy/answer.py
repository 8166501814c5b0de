"""An upstream's answer on its way to the client: what is passed on at once, what waits until the turn is safe.

A turn is acknowledged with its terminal bytes: the last event of a stream (such as `data: [DONE]`), else the end of the
body. Those bytes are held back; everything before them goes out as it comes.
"""

import msgspec

from memory.messages import Message
from memory.types import Usage
from proxy.exchange import Headers
from proxy.wire.dialects import Dialect
from proxy.wire.encoding import Decoder, decoded

PLAIN_BYTES = 16 * 1024 * 1024  # of a plain answer are kept for the record


class Heard(msgspec.Struct, frozen=True):
    """What an answer said."""

    messages: tuple[Message, ...] = ()
    usage: Usage | None = None
    error: str | None = None
    finish_reasons: tuple[str | None, ...] = ()
    truncated: bool = False  # it said more than we keep


class StreamAnswer:
    """Server-sent events: held back from the terminal one on."""

    def __init__(self, encoding: str | None, dialect: Dialect) -> None:
        self._decoder = Decoder(encoding)
        self._is_encoded = encoding not in (None, "", "identity")
        self._events = dialect.accumulator()
        self._held: list[bytes] = []
        self.is_terminal = False

    @property
    def held(self) -> bytes:
        """What waits until the turn is safe."""
        return b"".join(self._held)

    def feed(self, chunk: bytes) -> bytes:
        """The part of a chunk that may go out now; sets `is_terminal` when all that the answer says is here."""
        if self.is_terminal:
            return chunk
        index = self._events.feed(self._decoder.feed(chunk))
        if self._held:  # the terminal event has begun
            index = 0
        if index is None:
            return chunk
        self.is_terminal = self._events.is_complete
        index = 0 if self._is_encoded else index  # an encoded chunk cannot be cut where its text could
        self._held.append(chunk[index:])
        return chunk[:index]

    def heard(self) -> Heard:
        answer = self._events.finish()
        return Heard(answer.messages, answer.usage, answer.error, answer.finish_reasons, answer.truncated)


class PlainAnswer:
    """Any other body: its last byte is held back."""

    def __init__(self, encoding: str | None, dialect: Dialect, length: int | None = None) -> None:
        self._encoding = encoding
        self._dialect = dialect
        self._missing = length
        self._parts: list[bytes] = []
        self._bytes = 0
        self.held = b""
        self.is_terminal = False  # shows only when the body ends

    def feed(self, chunk: bytes) -> bytes:
        if self._bytes <= PLAIN_BYTES:
            self._parts.append(chunk)
            self._bytes += len(chunk)
        if self._missing is not None:
            self._missing -= len(chunk)
            if self._missing == 0:
                self.held = chunk[-1:]
                return chunk[:-1]
            return chunk
        ready, self.held = self.held + chunk[:-1], chunk[-1:]
        return ready

    def heard(self) -> Heard:
        body = decoded(b"".join(self._parts), self._encoding) if self._bytes <= PLAIN_BYTES else None
        if body is None:
            return Heard(truncated=self._bytes > PLAIN_BYTES)
        said = self._dialect.completion_in(body)
        return Heard(said.messages, said.usage, said.error, said.finish_reasons)


Answer = StreamAnswer | PlainAnswer


def answer_for(headers: Headers, dialect: Dialect) -> Answer:
    encoding = header(headers, b"content-encoding")
    if is_stream(headers):
        return StreamAnswer(encoding, dialect)
    length = header(headers, b"content-length") or ""
    return PlainAnswer(encoding, dialect, int(length) if length.isdigit() else None)


def is_stream(headers: Headers) -> bool:
    return (header(headers, b"content-type") or "").lower().startswith("text/event-stream")


def header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1").strip() for key, value in headers if key.lower() == name), None)
