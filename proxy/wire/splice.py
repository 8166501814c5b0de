"""Several answers to one question as the one that the client sees: what the dialects share.

A tool of ours stands among a request's tools. An answer that calls it is followed by another one, to a further request
with the results; the client is to see one answer, and nothing of the tool. How events look is each dialect's own.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import Raw

from proxy.wire.content import NOT_JSON, NULL, string
from proxy.wire.events import Event, Reader, one_line
from proxy.wire.slices import each, elements, looking, members, parts, replaced, with_value

EMPTY = (NULL, b'""', b"[]", b"{}")

_REFUSED = "The provider refused a further request that this answer needed."


class Splice(Protocol):
    """The streamed answers to one question, all but the last of which ended in calls of ours, as the one stream that
    the client sees."""

    showed: bool  # text, thinking, or calls of the client's own tools have gone out, not only the frame

    def feed(self, text: bytes) -> bytes:
        """Take decoded bytes of the running answer, cut anywhere; gives the whole events that may go out now."""

    def again(self) -> None:
        """The running answer ended in our calls alone: its end is dropped, another answer follows."""

    def end(self) -> bytes:
        """The running answer was the last: its end, as the end of all."""

    def cut(self) -> bytes:
        """The running answer broke off: what is held of it and is the client's."""

    def failed(self, told: bytes) -> bytes:
        """An error event in the dialect's shape, after which the stream ends without its usual end.

        Args:
            told: the body with which the upstream refused a later request.
        """


class Told(msgspec.Struct, frozen=True):
    """An event on its way to the client."""

    original: bytes
    event: Event  # without what is ours
    shows: bool = False  # the client sees something in it
    ends: bool = False  # the end of an answer begins with it
    frames: bool = False  # the client needs it, though there is nothing to see in it

    @property
    def raw(self) -> bytes:
        return self.event.raw

    @property
    def matters(self) -> bool:
        """Does it go out, even if its answer is not the last?"""
        return self.shows or self.frames


class Splicer(ABC):
    """A `Splice` but for what events say: whole events go out, an answer's end is held.

    Args:
        name: of our tool.
    """

    def __init__(self, name: str) -> None:
        self.showed = False
        self._name = name
        self._reader = Reader()
        self._is_later = False  # an answer came before the running one
        self._usages: list[Mapping[str, object]] = []  # of the answers before
        self._is_ending = False
        self._held: list[Told] = []
        self._pending = b""  # goes out with what comes next

    def feed(self, text: bytes) -> bytes:
        return self._out(self._reader.feed(text))

    def again(self) -> None:
        self._pending = self._remaining()
        self._pending += b"".join(self._show(self._halves(told)[0]) for told in self._held if told.matters)
        self._next()
        self._reader, self._held = Reader(), []
        self._is_later, self._is_ending = True, False

    def end(self) -> bytes:
        out = self._remaining()
        is_touched = self._is_touched()
        last = b"".join(self._last(told.event) if is_touched else told.original for told in self._held)
        self.showed = self.showed or any(told.shows for told in self._held)
        self._held = []
        return out + last

    def cut(self) -> bytes:
        out = self._out(()) + b"".join(map(self._go, self._waited(is_cut=True)))
        rest = self._reader.rest()
        if not self._is_touched():
            quoted = b'"%b"' % self._name.encode()
            out += self._out([event for event in rest if quoted not in event.raw])
            out += b"".join(map(self._go, self._waited(is_cut=True)))
        held, self._held = self._held, []
        if self._is_touched():
            return out + b"".join(self._show(self._halves(told)[0]) for told in held if told.matters)
        self.showed = self.showed or any(told.shows for told in held)
        return out + b"".join(told.original for told in held)

    def failed(self, told: bytes) -> bytes:
        pending, self._pending = self._pending, b""
        return pending + self._error(told)

    def _out(self, events: Sequence[Event]) -> bytes:
        pending, self._pending = self._pending, b""
        return pending + b"".join(self._go(told) for event in events for told in self._due(event))

    def _remaining(self) -> bytes:
        """What of the running answer's last events may go out."""
        return self._out(self._reader.rest()) + b"".join(map(self._go, self._waited()))

    def _due(self, event: Event) -> Iterable[Told]:
        """Take an event; gives those whose turn has come, one by one."""
        yield self._told(event)

    def _waited(self, *, is_cut: bool = False) -> Iterable[Told]:
        """The running answer is over: the events whose turn has not come yet."""
        return ()

    def _go(self, told: Told) -> bytes:
        """What of an event may go out now; the rest is held."""
        self._is_ending = self._is_ending or told.ends
        if not self._is_ending:
            return self._show(told)
        if not (told.matters and self._is_touched()):
            self._held.append(told)
            return b""
        visible, rest = self._halves(told)
        self._held += [rest] if rest is not None else []
        return self._show(visible)

    def _show(self, told: Told) -> bytes:
        self.showed = self.showed or told.shows
        return told.raw

    def _halves(self, told: Told) -> tuple[Told, Told | None]:
        """What the client sees of an event, and what ends the answer."""
        return told, None

    def _is_touched(self) -> bool:
        """Was there anything of ours?"""
        return self._is_later or self._has_ours()

    @abstractmethod
    def _has_ours(self) -> bool:
        """Was there a call of ours in the running answer?"""

    @abstractmethod
    def _told(self, event: Event) -> Told:
        """An event as it is to go out when it is not of the end."""

    @abstractmethod
    def _last(self, event: Event) -> bytes:
        """An event of the end, as the end of all answers."""

    @abstractmethod
    def _next(self) -> None:
        """The running answer is over, another one begins."""

    @abstractmethod
    def _error(self, told: bytes) -> bytes:
        """The event that tells a refusal."""


# Plain answers


def as_one(bodies: Sequence[bytes], changes: Callable[[Mapping[str, bytes]], Mapping[str, bytes | None]]) -> bytes:
    """The last of several plain answers, with the usage of all; as it is where it is not understood.

    Args:
        changes: the values that are to change, from those of the body.
    """
    body = bodies[-1]
    try:
        fields = parts(body)
        values = dict(changes(fields))
        usages = [usage for raw in bodies if (usage := usage_in(_member(raw, "usage"))) is not None]
        if len(bodies) > 1 and "usage" in fields and usages:
            values["usage"] = compact(summed(usages))
        told = replaced(body, values)
    except NOT_JSON:
        return body
    return body if told == body else told


def _member(body: bytes, key: str) -> bytes:
    try:
        return parts(body).get(key, NULL)
    except NOT_JSON:
        return NULL


# Errors


def error_in(told: bytes) -> bytes | None:
    """The object in a refusal that has an `error`, as it was written; None where there is none.

    Gemini's compatible endpoint wraps it into an array.
    """
    text = looking(told).strip()
    try:
        if text.startswith(b"["):
            start, stop = elements(text)[0]
            text = text[start:stop]
        return one_line(text) if text[slice(*members(text)["error"])] not in EMPTY else None
    except (*NOT_JSON, KeyError, IndexError):
        return None


def refusal(told: bytes, ours: Mapping[str, object]) -> bytes:
    """The error that a refusal tells, as an object; else one of ours with a sentence in it."""
    body = error_in(told)
    error = parts(body)["error"] if body is not None else NULL
    if error.startswith(b"{"):
        return error
    return msgspec.json.encode({**ours, "message": string(looking(error)) or _REFUSED})


# Usage


def summed(usages: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Usage objects as one: numbers added key by key, in objects as well; of other values the last."""
    total: dict[str, object] = {}
    for usage in usages:
        for key, value in usage.items():
            total[key] = _added(total.get(key), value)
    return total


def _added(before: object, value: object) -> object:
    if isinstance(value, Mapping):
        return summed([before, value] if isinstance(before, Mapping) else [value])
    if _is_number(value) and _is_number(before):
        return before + value  # type: ignore[operator]
    return before if value is None else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def usage_in(raw: bytes | Raw) -> dict[str, object] | None:
    """A usage object as it was told; None for none."""
    try:
        found = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


def compact(value: object) -> bytes:
    """JSON as the standard library writes it, which knows whole numbers of any size."""
    return json.dumps(value, separators=(",", ":")).encode()


# The request


def with_tool(body: bytes, name: str, tool: bytes) -> bytes | None:
    """A request with our tool as the last of its tools; all other bytes stay.

    None where it must not stand: several answers are asked for, the client uses `functions`, has a tool of that very
    name, or the tools are not as we know them.
    """
    try:
        text = looking(body)
        spans = members(text)
        values = {key: text[slice(*spans[key])] for key in ("n", "functions", "tools") if key in spans}
        if values.get("n", NULL) not in (NULL, b"1") or values.get("functions", NULL) != NULL:
            return None
        tools = values.get("tools", NULL)
        last = elements(tools) if tools != NULL else []
        if name in (called for start, stop in last for called in names(tools[start:stop])):
            return None
        if not last:
            return with_value(body, "tools", b"[" + tool + b"]")
    except NOT_JSON:
        return None
    stop = spans["tools"][0] + last[-1][1]
    return b"".join((body[:stop], b",", tool, body[stop:]))


def names(tool: bytes) -> list[str]:
    """Under which names a tool can be called: its own, in the dialects that write it there, or that of its function;
    a namespace holds several.

    Raises:
        NOT_JSON: it is no object.
    """
    text = looking(tool)
    shape = _TOOL.decode(text)
    inner = [_inner_name(raw) for raw in (shape.function, shape.custom)]
    nested = [name for raw in each(bytes(shape.tools)) for name in names(raw)] if shape.tools != Raw(NULL) else []
    return [name for name in (string(shape.name), *inner, *nested) if name]


def _inner_name(raw: Raw) -> str | None:
    value = bytes(raw)
    return string(_NAMED.decode(value).name) if value.startswith(b"{") else None


class _Named(msgspec.Struct):
    name: Raw = Raw(NULL)


class _Tool(msgspec.Struct):
    name: Raw = Raw(NULL)
    function: Raw = Raw(NULL)
    custom: Raw = Raw(NULL)
    tools: Raw = Raw(NULL)


_NAMED = msgspec.json.Decoder(_Named)
_TOOL = msgspec.json.Decoder(_Tool)
