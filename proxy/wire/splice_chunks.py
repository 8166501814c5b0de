"""Several answers in chat completion chunks as one stream; several plain ones as one body."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Raw

from proxy.wire.chunks import CallDelta, FunctionDelta, text_of
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
    """One stream out of several, chunk by chunk."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._first: dict[str, bytes] = {}  # what all chunks have as the first one has it
        self._usage: Mapping[str, object] | None = None
        self._choices: dict[int, _Choice] = {}

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

    def _told(self, event: Event) -> Told:
        """An event as it is when nothing of ours is in it, and the frame of the first answer is around it."""
        try:
            chunk = _CHUNK.decode(looking(event.data))
            return self._chunk(event, chunk)
        except NOT_JSON:
            return Told(event.raw, event, ends=event.data.lstrip().startswith(b"[DONE]"))

    def _chunk(self, event: Event, chunk: "_Chunk") -> Told:
        usage = usage_in(chunk.usage)
        self._usage = usage or self._usage
        choices = chunk.choices or []
        has_reason = any(bytes(choice.finish_reason) != NULL for choice in choices)
        ends = has_reason or (usage is not None and chunk.choices == [])
        if not self._is_later and not any("tool_calls" in (choice.delta or {}) for choice in choices):
            self._remember(event.data, chunk)
            shows = [self._choice(choice.index).saw(choice.delta or {}) for choice in choices]
            return Told(event.raw, event, any(shows), ends)
        fields = parts(event.data)
        self._remember(event.data, chunk)
        raws = each(fields["choices"]) if choices else []
        cleaned = [self._cleaned(raw, choice) for raw, choice in zip(raws, choices, strict=True)]
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

    def _cleaned(self, raw: bytes, choice: "_ChoiceDelta") -> "_Cleaned":
        if choice.delta is None:
            return _Cleaned(raw)
        delta = parts(raw)["delta"]
        cleaned = self._choice(choice.index).cleaned(delta)
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
        self._top = -1  # the highest index that went out
        self._has_role = False
        self._text = ""  # the last that was shown
        self._is_later = self._is_parted = False

    @property
    def is_only_ours(self) -> bool:
        return self.ours > 0 and self._theirs == 0

    def again(self) -> None:
        self.ours = self._theirs = 0
        self._calls = {}
        self._is_later, self._is_parted = True, not self._text or self._text[-1].isspace()

    def saw(self, delta: Mapping[str, Raw]) -> bool:
        """Take note of a delta that goes out as it is; does the client see anything in it?"""
        self._has_role = self._has_role or "role" in delta
        self._text = _words(bytes(delta.get("content", NULL))) or self._text
        return any(key not in UNSEEN and bytes(value) not in EMPTY for key, value in delta.items())

    def cleaned(self, delta: bytes) -> _Cleaned:
        fields = parts(delta)
        values: dict[str, bytes | None] = {}
        if self._is_later and self._has_role and "role" in fields:
            values["role"] = None
        if fields.get("tool_calls", NULL) != NULL:
            values["tool_calls"] = self._client_calls(fields["tool_calls"])
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

    def _client_calls(self, calls: bytes) -> bytes | None:
        """The calls that are not ours, under indexes of their own; None for none."""
        try:
            kept = [self._client_call(raw, _CALL.decode(looking(raw))) for raw in each(calls)]
        except NOT_JSON:
            return calls
        return rearranged(calls, kept) if any(kept) or not kept else None

    def _client_call(self, raw: bytes, delta: CallDelta) -> bytes | None:
        call = self._call(delta)
        if call.is_ours:
            return None
        return raw if call.index == delta.index else replaced(raw, {"index": compact(call.index)})

    def _call(self, delta: CallDelta) -> "_Call":
        """The call a delta belongs to; see `_ChoiceSum._call` in `chunks.py`. Under one index and one id, a name that
        is ours and one that is not are two calls, too."""
        name = (delta.function or delta.custom or FunctionDelta()).name
        is_ours = delta.custom is None and name == self._name
        held = self._calls.get(delta.index)
        if held is None or (name and ((delta.id and held.id and delta.id != held.id) or is_ours != held.is_ours)):
            held = self._calls[delta.index] = _Call(delta.id, is_ours, self._index(delta.index, is_ours))
            self.ours, self._theirs = self.ours + is_ours, self._theirs + (not is_ours)
        held.id = held.id or delta.id
        return held

    def _index(self, index: int | None, is_ours: bool) -> int | None:
        """Where a new call stands for the client, who takes indexes for places in an array."""
        if index is None or is_ours:
            return index
        index = self._top + 1 if self._is_later or self.ours else index
        self._top = max(self._top, index)
        return index


class _Call(msgspec.Struct):
    id: str | None
    is_ours: bool
    index: int | None  # as the client sees it


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


_CHUNK = msgspec.json.Decoder(_Chunk)
_CHOICE = msgspec.json.Decoder(_ChoiceDelta)
_CALL = msgspec.json.Decoder(CallDelta)
