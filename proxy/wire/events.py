"""Server-sent events one by one, as they were written; and with other data in them."""

import re
from itertools import pairwise

import msgspec
from msgspec import Raw

from proxy.wire.content import NOT_JSON
from proxy.wire.slices import looking
from proxy.wire.sse import MAX_EVENT_BYTES, payloads

_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_ANY = msgspec.json.Decoder(Raw)


class Event(msgspec.Struct, frozen=True):
    """An event as it was written, with the blank line behind it."""

    raw: bytes
    data: bytes = b""  # its lines joined; b"" for none


class Reader:
    """Cuts a stream into its events; what comes out, joined, is what came in."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._looked_at = 0

    def feed(self, text: bytes) -> list[Event]:
        """The events that are whole now."""
        self._unread += text
        events: list[Event] = []
        start, position = 0, self._looked_at
        while found := _BLANK_LINE.search(self._unread, position):
            events += _events(bytes(self._unread[start : found.end()]))
            start = position = found.end()
        if len(self._unread) - start > MAX_EVENT_BYTES:  # nobody wrote that for a client
            events.append(Event(bytes(self._unread[start:])))
            start = len(self._unread)
        del self._unread[:start]
        self._looked_at = max(0, len(self._unread) - 2)  # a blank line may have begun
        return events

    def rest(self) -> list[Event]:
        """What came without a blank line behind it; callable once the stream has ended."""
        raw = bytes(self._unread)
        self._unread.clear()
        self._looked_at = 0
        return _events(raw) if raw else []


def _events(raw: bytes) -> list[Event]:
    """The event in a block of lines; each of its data lines where a server forgot the blank lines between events."""
    lines = raw.splitlines(keepends=True)
    data = b"".join(payloads(raw))
    ends = [number for number, line in enumerate(lines, 1) if line.startswith(b"data:")]
    if len(ends) < 2 or is_json(data):
        return [Event(raw, data)]
    edges = [0, *ends[:-1], len(lines)]
    pieces = [b"".join(lines[start:stop]) for start, stop in pairwise(edges)]
    return [Event(piece, b"".join(payloads(piece))) for piece in pieces]


def is_json(data: bytes) -> bool:
    try:
        _ANY.decode(looking(data))
    except NOT_JSON:
        return False
    return True


def with_data(event: Event, data: bytes) -> Event:
    """An event that tells something else; its other lines stay, and a blank line ends it."""
    if data == event.data:
        return event
    lines = event.raw.splitlines(keepends=True)
    numbers = [number for number, line in enumerate(lines) if line.removeprefix(b"\xef\xbb\xbf").startswith(b"data:")]
    told = lines[numbers[0]]
    newline = told[len(told.rstrip(b"\r\n")) :] or b"\n"
    before = told[: told.index(b"data:")]
    space = b" " if told.startswith(b"data: ", len(before)) else b""
    lines[numbers[0]] = b"".join((before, b"data:", space, one_line(data), newline))
    kept = [line for number, line in enumerate(lines) if number not in numbers[1:]]
    raw = b"".join(kept)
    return Event(raw if _BLANK_LINE.search(raw[-4:]) else raw + newline, data)


def one_line(data: bytes) -> bytes:
    """JSON without line breaks, which stand between its tokens only."""
    return data.strip().replace(b"\r", b" ").replace(b"\n", b" ")
