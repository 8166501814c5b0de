"""Requests of any dialect to values: message by message, and what was read once is not read again.

What is not understood gives None and is relayed as it came.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from sys import getsizeof
from weakref import ref

import msgspec

from memory.messages import ChatRequest, Message
from proxy.wire.content import NOT_JSON, NULL, message_of, string
from proxy.wire.slices import MAX_DEPTH, NotUnderstood, check, looking, members, object_end, string_end

CACHE_BYTES = 48 * 1024 * 1024
CHECKED_BYTES = 4 * 1024 * 1024
MOST_MESSAGES = 100_000  # of a request; a longer array was not written for a model
MESSAGE_BYTES = 600  # what a remembered message takes beside its bytes and text


class Shape(msgspec.Struct, frozen=True):
    """Where a dialect's request keeps what we look at: names of its top-level keys."""

    dialect: str
    array: str  # the messages
    outputs: tuple[str, ...]  # how long the answer may be, in tokens; the first that says so counts
    schemas: tuple[str, ...]  # cost tokens, are never changed
    system: str | None = None  # what a system message would say, beside the array
    elsewhere: tuple[str, ...] = ()  # name a history that the provider keeps, of which the request tells only the end
    takes_words: bool = False  # a bare string may stand in the array's place: one user message
    join: Callable[[Sequence[Message]], Message] | None = None  # what the assistant said in several messages as one


class Parser:
    """Parses a dialect's requests; remembers messages it has seen, because clients send the whole history each time.

    Args:
        cache_bytes: how much of it is remembered; what was not used for long goes first.
    """

    def __init__(self, shape: Shape, cache_bytes: int = CACHE_BYTES) -> None:
        self._shape = shape
        self._begins = re.compile(rb'"%s"\s*:\s*\[' % shape.array.encode())
        self._looked_at = frozenset((shape.array, shape.system, *_LOOKED_AT, *shape.outputs, *shape.elsewhere))
        self._cache = _Cache(cache_bytes)
        self._checked: dict[bytes, None] = {}  # what stood beside messages and passed; tools mostly, resent as well
        self._checked_bytes = 0

    def parse(self, body: bytes) -> ChatRequest | None:
        """The request in a body; None for what is not a request as we understand it.

        That is: not a JSON object in UTF-8, a key twice, nesting deeper than 256, no messages, a message without a
        role, content that is neither text nor parts, `model` or `stream` of another type, a history that the provider
        keeps.
        """
        try:
            guess = self._begins.search(body)
            if guess is not None:
                with suppress(*NOT_JSON):
                    return self._parse(body, guess.end() - 1)
            return self._parse(body, members(looking(body))[self._shape.array][0])
        except (*NOT_JSON, KeyError):
            return None

    @property
    def remembered_bytes(self) -> int:
        """About how much memory the known messages take."""
        return self._cache.held_bytes

    def _parse(self, body: bytes, start: int) -> ChatRequest:
        """Parse messages and all else apart, with the array assumed to begin at `start`.

        The array is read message by message; in its place the rest has a 0. If that 0 is the value of the array's key
        in a valid object, and each message is a valid object, then the body is valid and the assumption was right.
        """
        shape = self._shape
        messages, stop = self._messages(body, start)
        rest = b"".join((body[:start], b"0", body[stop:]))
        self._check(rest)
        text = looking(rest)
        spans = members(text)
        if spans.get(shape.array) != (start, start + 1):
            raise NotUnderstood("the array stands elsewhere")
        values = {key: text[slice(*spans[key])] for key in spans if key in self._looked_at}
        if any(values.get(key, NULL) not in _NOTHING for key in shape.elsewhere):
            raise NotUnderstood("the provider keeps the history")
        preface = self._preface(rest[slice(*spans[shape.system])]) if shape.system and shape.system in spans else ()
        return ChatRequest(
            model=_NAME.decode(values.get("model", NULL)) or "",
            messages=(*preface, *self._joined(messages)),
            body=body,
            schemas=tuple(rest[slice(*spans[key])] for key in spans if key in shape.schemas),
            max_output_tokens=next(filter(None, (_count(values.get(key, b"")) for key in shape.outputs)), None),
            stream=_FLAG.decode(values.get("stream", NULL)) or False,
            user=string(values.get("user", NULL)),
            span=(start, stop),
            preface=len(preface),
            dialect=shape.dialect,
        )

    def _preface(self, system: bytes) -> tuple[Message, ...]:
        """What stands beside the messages and says how to answer them, as a message."""
        if system in _NOTHING:
            return ()
        raw = b'{"role":"system","content":' + system + b"}"
        return ((self._cache.get(raw) or self._cache.put(raw, _checked_message(raw))).message,)

    def _joined(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With neighbours that the dialect writes apart and that are one message to us as one."""
        join = self._shape.join
        if join is None:
            return messages
        return [self._one(list(run), join) for run in runs(messages)]

    def _one(self, run: Sequence[Message], join: Callable[[Sequence[Message]], Message]) -> Message:
        if len(run) == 1:
            return run[0]
        raw = b"[" + b",".join(message.raw for message in run) + b"]"
        return (self._cache.get(raw) or self._cache.put(raw, join(run))).message

    def _check(self, rest: bytes) -> None:
        """`check`, remembered for the long ones."""
        if rest in self._checked:
            return
        check(rest)
        if not 2048 < len(rest) < CHECKED_BYTES // 4:
            return
        if self._checked_bytes + len(rest) > CHECKED_BYTES:
            self._checked, self._checked_bytes = {}, 0
        self._checked[rest] = None
        self._checked_bytes += len(rest)

    def _messages(self, body: bytes, start: int) -> tuple[tuple[Message, ...], int]:
        """The messages of the array at `start`, and where it ends.

        What followed a message last time most likely follows it now, and comparing is cheaper than reading.
        """
        if body.startswith(b'"', start):
            return self._words(body, start)
        messages: list[Message] = []
        before: _Seen | None = None
        position = _after(_OPENING, body, start)
        while True:
            seen = before.follower() if before is not None else None
            if seen is None or not body.startswith(seen.raw, position):
                raw = body[position : object_end(body, position)]
                seen = self._cache.get(raw) or self._cache.put(raw, _checked_message(raw))
                if before is not None:
                    before.follower = ref(seen)
            elif seen.generation != self._cache.generation:
                self._cache.keep(seen)
            messages.append(seen.message)
            if len(messages) > MOST_MESSAGES:
                raise NotUnderstood("too many messages")
            before = seen
            end = position + len(seen.raw)
            if body.startswith((b",{", b", {"), end):
                position = body.index(b"{", end)
                continue
            position = _after(_BETWEEN, body, end)
            if body[position - 1] == _CLOSING:
                return tuple(messages), position

    def _words(self, body: bytes, start: int) -> tuple[tuple[Message, ...], int]:
        """One user message that stands there as a bare string, and where it ends."""
        if not self._shape.takes_words:
            raise NotUnderstood("not an array of objects")
        stop = string_end(body, start)
        raw = b'{"role":"user","content":' + body[start:stop] + b"}"
        return ((self._cache.get(raw) or self._cache.put(raw, _checked_message(raw))).message,), stop


class _Seen:
    """A message and the one that followed it when it was seen last."""

    __slots__ = ("__weakref__", "follower", "generation", "message", "raw")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.raw = message.raw
        self.generation = 0
        self.follower: Callable[[], _Seen | None] = _nobody


def _nobody() -> None:
    return None


class _Cache:
    """Messages by their bytes, in two generations: when the young one is full, the old one goes."""

    def __init__(self, limit_bytes: int) -> None:
        self.generation = 0
        self._half = limit_bytes // 2
        self._young: dict[bytes, _Seen] = {}
        self._old: dict[bytes, _Seen] = {}
        self._young_bytes = 0
        self._old_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._young_bytes + self._old_bytes

    def get(self, raw: bytes) -> _Seen | None:
        seen = self._young.get(raw)
        if seen is None:
            seen = self._old.get(raw)
            if seen is not None:
                self.keep(seen)
        return seen

    def put(self, raw: bytes, message: Message) -> _Seen:
        seen = _Seen(message)
        self.keep(seen)
        return seen

    def keep(self, seen: _Seen) -> None:
        """Count it as used now."""
        weight = len(seen.raw) + getsizeof(seen.message.text) + MESSAGE_BYTES
        if weight > self._half:
            return
        if self._young_bytes + weight > self._half:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
            self.generation += 1
        if seen.raw not in self._young:
            self._young[seen.raw] = seen
            self._young_bytes += weight
            seen.generation = self.generation


def _after(pattern: re.Pattern[bytes], body: bytes, position: int) -> int:
    found = pattern.match(body, position)
    if found is None:
        raise NotUnderstood("not an array of objects")
    return found.end()


def runs(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """What the assistant said in one go, together; every other message by itself."""
    for said, run in groupby(messages, lambda message: message.role == "assistant"):
        if said:
            yield tuple(run)
        else:
            yield from ((message,) for message in run)


def _checked_message(raw: bytes) -> Message:
    check(raw, MAX_DEPTH - 2)
    return message_of(raw)


def _count(raw: bytes) -> int | None:
    """A whole number from 1; None for anything else."""
    return int(raw) if raw.isdigit() and len(raw) < 16 and int(raw) > 0 else None


_OPENING = re.compile(rb"\[\s*")
_BETWEEN = re.compile(rb"\s*(?:,\s*|\])")
_CLOSING = b"]"[0]
_LOOKED_AT = ("model", "stream", "user")
_NOTHING = (NULL, b"false", b'""', b"[]")
_NAME = msgspec.json.Decoder(str | None)
_FLAG = msgspec.json.Decoder(bool | None)
