"""Several answers in chat completion chunks as one stream; several plain ones as one body."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Raw

from proxy.wire.chunks import text_of
from proxy.wire.content import NOT_JSON, NULL, string
from proxy.wire.events import Event, with_data
from proxy.wire.slices import each, looking, parts, rearranged, replaced
from proxy.wire.splice import (
    EMPTY,
    Splicer,
    Told,
    as_one,
    compact,
    error_in,
    refusal,
    summed,
    usage_in,
)

OF_FIRST = ("id", "created", "model")  # one stream has one of each
UNSEEN = frozenset({"role", "extra_content"})  # of a delta


class ChunkSplice(Splicer):
    """One stream out of several, chunk by chunk.

    While nobody knows whose a call is, because its name has not come whole, all events wait from its first one on.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._first: dict[str, bytes] = {}  # what all chunks have as the first one has it
        self._usage: Mapping[str, object] | None = None
        self._choices: dict[int, _Choice] = {}
        self._waiting: list[_Read] = []

    def _has_ours(self) -> bool:
        return any(choice.ours for choice in self._choices.values())

    def _next(self) -> None:
        self._usages += [self._usage] if self._usage is not None else []
        self._usage = None
        for choice in self._choices.values():
            choice.again()

    def _error(self, told: bytes) -> bytes:
        ours = {"message": "", "type": "upstream_error", "param": None, "code": "upstream_failed"}
        return b"data: " + (error_in(told) or b'{"error":' + refusal(told, ours) + b"}") + b"\n\n"

    def _due(self, event: Event) -> Iterator[Told]:
        self._waiting.append(self._read(event))
        if not any(choice.is_open for choice in self._choices.values()):
            yield from self._let_go()

    def _waited(self, *, is_cut: bool = False) -> Iterator[Told]:
        self._close(is_cut)
        yield from self._let_go()

    def _let_go(self) -> Iterator[Told]:
        waiting, self._waiting = self._waiting, []
        yield from map(self._told, waiting)

    def _close(self, is_cut: bool = False) -> None:
        for choice in self._choices.values():
            choice.close(is_cut)

    def _read(self, event: Event) -> "_Read":
        """An event with the calls that its deltas belong to; after an end it is known whose they are."""
        try:
            chunk = _CHUNK.decode(looking(event.data))
        except NOT_JSON:
            read = _Read(event.raw, event.data, ends=event.data.lstrip().startswith(b"[DONE]"))
        else:
            choices = chunk.choices or []
            calls = [self._choice(choice.index).calls_of(choice.delta or {}) for choice in choices]
            has_reason = any(bytes(choice.finish_reason) != NULL for choice in choices)
            ends = has_reason or (chunk.choices == [] and usage_in(chunk.usage) is not None)
            read = _Read(event.raw, event.data, chunk, calls, ends)
        if read.ends:
            self._close()
        return read

    def _told(self, event: Event) -> Told:
        """An event as it is when nothing of ours is in it, and the frame of the first answer is around it."""
        read = event if isinstance(event, _Read) else self._read(event)
        if read.chunk is None:
            return Told(event.raw, event, ends=read.ends)
        try:
            return self._chunk(read, read.chunk)
        except NOT_JSON:
            return Told(event.raw, event)

    def _chunk(self, event: "_Read", chunk: "_Chunk") -> Told:
        usage = usage_in(chunk.usage)
        self._usage = usage or self._usage
        choices, ends = chunk.choices or [], event.ends
        if not self._is_later and not any("tool_calls" in (choice.delta or {}) for choice in choices):
            self._remember(event.data, chunk)
            shows = [self._choice(choice.index).saw(choice.delta or {}) for choice in choices]
            return Told(event.raw, event, any(shows), ends)
        fields = parts(event.data)
        self._remember(event.data, chunk)
        raws = each(fields["choices"]) if choices else []
        cleaned = [self._cleaned(*found) for found in zip(raws, choices, event.calls, strict=True)]
        if any(one.lost for one in cleaned) and not any(one.says for one in cleaned) and not ends:
            return Told(event.raw, Event(b""))
        values: dict[str, bytes | None] = {**self._first} if self._is_later and chunk.choices is not None else {}
        if usage is not None and self._usages and not (ends or self._is_ending):  # some count as they go
            values["usage"] = self._total(usage)
        if [one.raw for one in cleaned] != raws:
            values["choices"] = rearranged(fields["choices"], [one.raw for one in cleaned])
        told = with_data(event, replaced(event.data, values))
        frames = any(one.frames for one in cleaned)
        return Told(event.raw, told, any(one.shows for one in cleaned), ends, frames)

    def _remember(self, data: bytes, chunk: "_Chunk") -> None:
        if not self._first and chunk.choices and not self._is_later:
            fields = parts(data)
            self._first = {key: fields[key] for key in OF_FIRST if key in fields}

    def _choice(self, index: object) -> "_Choice":
        return self._choices.setdefault(index if isinstance(index, int) else 0, _Choice(self._name))

    def _cleaned(self, raw: bytes, choice: "_ChoiceDelta", calls: "_Calls") -> "_Cleaned":
        if choice.delta is None:
            return _Cleaned(raw)
        delta = parts(raw)["delta"]
        cleaned = self._choice(choice.index).cleaned(delta, calls)
        if cleaned.raw == delta:
            return msgspec.structs.replace(cleaned, raw=raw)
        return msgspec.structs.replace(cleaned, raw=replaced(raw, {"delta": cleaned.raw}))

    def _halves(self, told: Told) -> tuple[Told, Told | None]:
        try:
            visible = _with(told.event, {"finish_reason": NULL}, {"usage": NULL})
            rest = _with(told.event, {"delta": b"{}", "logprobs": NULL}, {})
        except NOT_JSON:  # a key twice: nobody looked for one before
            return told, None
        return Told(b"", visible, told.shows), Told(b"", rest)

    def _last(self, event: Event) -> bytes:
        try:
            fields = parts(event.data)
            values: dict[str, bytes | None] = {}
            if "choices" in fields:
                raws = each(fields["choices"])
                values["choices"] = rearranged(fields["choices"], [self._finished(raw) for raw in raws])
            usage = usage_in(fields["usage"]) if "usage" in fields else None
            if usage is not None:
                values["usage"] = self._total(usage)
            return with_data(event, replaced(event.data, values)).raw
        except NOT_JSON:
            return event.raw

    def _total(self, usage: Mapping[str, object]) -> bytes:
        return compact(summed([*self._usages, usage]))

    def _finished(self, raw: bytes) -> bytes:
        choice = _CHOICE.decode(looking(raw))
        if string(choice.finish_reason) != "tool_calls" or not self._choice(choice.index).is_only_ours:
            return raw
        return replaced(raw, {"finish_reason": b'"stop"'})


def _with(event: Event, of_choices: Mapping[str, bytes | None], of_chunk: Mapping[str, bytes | None]) -> Event:
    """A chunk with other values in each of its choices, and in itself."""
    choices = parts(event.data)["choices"]
    changed = rearranged(choices, [replaced(raw, of_choices) for raw in each(choices)])
    return with_data(event, replaced(event.data, {**of_chunk, "choices": changed}))


class _Cleaned(msgspec.Struct, frozen=True):
    """A choice's delta without what is ours."""

    raw: bytes
    shows: bool = False
    says: bool = True  # there is anything in it
    lost: bool = False  # something was taken out
    frames: bool = False  # it tells the role for the first time


class _Choice:
    """One choice, over all answers: its calls, and how its text ended."""

    def __init__(self, name: str) -> None:
        self.ours = 0  # calls in the running answer
        self._theirs = 0
        self._name = name
        self._calls: dict[int | None, _Call] = {}  # that an index stands for now
        self._open: list[_Call] = []  # those of which nobody knows yet whose they are
        self._top = -1  # the highest index that went out
        self._has_role = False
        self._text = ""  # the last that was shown
        self._is_later = self._is_parted = False

    @property
    def is_only_ours(self) -> bool:
        return self.ours > 0 and self._theirs == 0

    def again(self) -> None:
        self.ours = self._theirs = 0
        self._calls, self._open = {}, []
        self._is_later, self._is_parted = True, not self._text or self._text[-1].isspace()

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def close(self, is_cut: bool = False) -> None:
        """No more is to come of any call; what broke off and might be ours is not shown."""
        for call in self._open:
            call.is_ours = is_cut or call.name == self._name
        self._open = []

    def saw(self, delta: Mapping[str, Raw]) -> bool:
        """Take note of a delta that goes out as it is; does the client see anything in it?"""
        self._has_role = self._has_role or "role" in delta
        self._text = _words(bytes(delta.get("content", NULL))) or self._text
        return any(key not in UNSEEN and bytes(value) not in EMPTY for key, value in delta.items())

    def cleaned(self, delta: bytes, calls: "_Calls") -> _Cleaned:
        fields = parts(delta)
        values: dict[str, bytes | None] = {}
        if self._is_later and self._has_role and "role" in fields:
            values["role"] = None
        if fields.get("tool_calls", NULL) != NULL:
            values["tool_calls"] = self._client_calls(fields["tool_calls"], calls)
        if _words(fields.get("content", NULL)) and not self._is_parted and self._is_later:
            values["content"] = _parted(fields["content"])
            self._is_parted = True
        lost = None in values.values()
        raw = replaced(delta, values) if values else delta
        kept = parts(raw) if values else fields
        frames = "role" in kept and not self._has_role
        shows = self.saw({key: Raw(value) for key, value in kept.items()})
        says = any(value not in EMPTY for value in kept.values())
        return _Cleaned(raw, shows, says, lost, frames)

    def calls_of(self, delta: Mapping[str, Raw]) -> "_Calls":
        """The calls that a delta's calls belong to; None where they cannot be read."""
        calls = bytes(delta.get("tool_calls", NULL))
        try:
            return [self._call(_said(raw)) for raw in each(calls)] if calls != NULL else None
        except NOT_JSON:
            return None

    def _call(self, said: "_Said") -> "_Call":
        """The call a delta belongs to; see `_ChoiceSum._call` in `chunks.py`."""
        call = self._calls.get(said.index)
        if call is None or self._is_another(call, said):
            for before in self._open:  # a name that has not come whole may come whole later
                if before is call or before.name == self._name:
                    before.is_ours = before.name == self._name
            call = self._calls[said.index] = _Call(said.index, said.id)
            self._open.append(call)
        call.take(said, self._name)
        self._open = [one for one in self._open if one.is_ours is None]
        return call

    def _is_another(self, call: "_Call", said: "_Said") -> bool:
        """A new id with a name begins a new call. Under one index and one id, a name that is ours and one that is not
        are two calls, too; but for pieces of a name, which come before the arguments."""
        if said.name and said.id and call.id and said.id != call.id:
            return True
        is_ours = said.name == self._name and not said.is_custom
        return bool(said.name and call.name and call.has_begun and is_ours != bool(call.is_ours))

    def _client_calls(self, raw: bytes, calls: "_Calls") -> bytes | None:
        """The calls that are not ours, under indexes of their own; None for none."""
        if calls is None:
            return raw
        kept = [self._client_call(one, call) for one, call in zip(each(raw), calls, strict=True)]
        return rearranged(raw, kept) if any(kept) or not kept else None

    def _client_call(self, raw: bytes, call: "_Call") -> bytes | None:
        if not call.is_placed:
            self._place(call)
        if call.is_ours:
            return None
        return raw if call.place == call.index else replaced(raw, {"index": compact(call.place)})

    def _place(self, call: "_Call") -> None:
        """Say where a new call stands for the client, who takes indexes for places in an array."""
        call.is_placed, call.place = True, call.index
        if call.is_ours:
            self.ours += 1
            return
        self._theirs += 1
        if call.index is not None:
            call.place = self._top + 1 if self._is_later or self.ours else call.index
            self._top = max(self._top, call.place)


class _Call(msgspec.Struct, eq=False):
    index: int | None
    id: str | None
    name: str = ""  # as far as it came
    has_begun: bool = False  # some of its arguments came
    is_ours: bool | None = None  # None: nobody knows yet
    is_placed: bool = False
    place: int | None = None  # its index for the client

    def take(self, said: "_Said", ours: str) -> None:
        self.id = self.id or said.id
        self.has_begun = self.has_begun or said.has_arguments
        if said.name != self.name:  # most send it once, some with each delta, some in pieces
            self.name += said.name
        if self.is_ours is None and (said.is_custom or not ours.startswith(self.name)):
            self.is_ours = False
        elif self.is_ours is None and self.name == ours and self.has_begun:
            self.is_ours = True


_Calls = list[_Call] | None  # one a delta


class _Said(msgspec.Struct, frozen=True):
    """What a delta says of a call."""

    index: int | None
    id: str | None
    name: str
    has_arguments: bool
    is_custom: bool


def _said(raw: bytes) -> _Said:
    """A call's delta, however odd.

    Raises:
        NOT_JSON: it is no object.
    """
    delta = _CALL.decode(looking(raw))
    is_custom = bytes(delta.custom) != NULL
    tool = bytes(delta.custom if is_custom else delta.function)
    function = _FUNCTION.decode(tool) if tool.startswith(b"{") else _Function()
    index = delta.index if isinstance(delta.index, int) and not isinstance(delta.index, bool) else None
    has_arguments = any(bytes(raw) not in (NULL, b'""') for raw in (function.arguments, function.input))
    return _Said(index, string(delta.id), string(function.name) or "", has_arguments, is_custom)


def _words(content: bytes) -> str:
    if content in EMPTY:
        return ""
    said = msgspec.json.decode(looking(content))
    return said if isinstance(said, str) else text_of(said) if isinstance(said, list) else ""


def _parted(content: bytes) -> bytes:
    """Text that begins a paragraph of its own."""
    if content.startswith(b'"'):
        return content if content.startswith(b'"\\n') else b'"\\n\\n' + content[1:]
    return b'[{"type":"text","text":"\\n\\n"},' + content[1:]


# Plain answers


def spliced(bodies: Sequence[bytes], name: str) -> bytes:
    """The last body, without our calls, with the usage of all; as it is where it is not understood."""
    return as_one(bodies, lambda fields: _changes(fields, name))


def _changes(fields: Mapping[str, bytes], name: str) -> dict[str, bytes | None]:
    choices = fields.get("choices", NULL)
    if choices == NULL:
        return {}
    return {"choices": rearranged(choices, [_without_ours(raw, name) for raw in each(choices)])}


def _without_ours(raw: bytes, name: str) -> bytes:
    """A choice of a plain answer without our calls."""
    choice = parts(raw)
    message = parts(choice.get("message", b"{}"))
    calls = message.get("tool_calls", NULL)
    if calls == NULL:
        return raw
    found = each(calls)
    kept = [None if _is_ours(call, name) else call for call in found]
    if None not in kept:
        return raw
    values: dict[str, bytes | None] = {
        "message": replaced(choice["message"], {"tool_calls": rearranged(calls, kept) if any(kept) else None})
    }
    if not any(kept) and choice.get("finish_reason") == b'"tool_calls"':
        values["finish_reason"] = b'"stop"'
    return replaced(raw, values)


def _is_ours(call: bytes, name: str) -> bool:
    function = parts(call).get("function", NULL)
    return function.startswith(b"{") and string(looking(parts(function).get("name", NULL))) == name


# Shapes


class _ChoiceDelta(msgspec.Struct):
    index: object = None
    delta: dict[str, Raw] | None = None
    finish_reason: Raw = Raw(NULL)


class _Chunk(msgspec.Struct):
    choices: list[_ChoiceDelta] | None = None
    usage: Raw = Raw(NULL)


class _Read(Event, frozen=True):
    """An event, and what was read in it."""

    chunk: _Chunk | None = None  # None: it is none
    calls: Sequence[_Calls] = ()  # one a choice
    ends: bool = False


class _CallDelta(msgspec.Struct):
    index: object = None
    id: Raw = Raw(NULL)
    function: Raw = Raw(NULL)
    custom: Raw = Raw(NULL)


class _Function(msgspec.Struct):
    name: Raw = Raw(NULL)
    arguments: Raw = Raw(NULL)
    input: Raw = Raw(NULL)  # of a custom tool


_CHUNK = msgspec.json.Decoder(_Chunk)
_CHOICE = msgspec.json.Decoder(_ChoiceDelta)
_CALL = msgspec.json.Decoder(_CallDelta)
_FUNCTION = msgspec.json.Decoder(_Function)
