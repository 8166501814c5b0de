"""Several answers in events of the Messages API as one stream; several plain ones as one body."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Raw

from proxy.wire.content import NOT_JSON, NULL, string
from proxy.wire.events import Event, with_data
from proxy.wire.slices import each, looking, parts, rearranged, replaced, with_value
from proxy.wire.splice import EMPTY, Splicer, Told, as_one, compact, refusal, summed, usage_in

CALL = "tool_use"  # of the client's tools, and of ours; what the provider runs has other kinds


class DeltaSplice(Splicer):
    """One stream out of several, block by block."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._ours = self._theirs = 0  # calls in the running answer
        self._blocks: dict[int, int | None] = {}  # where a block of it stands for the client; None: it is ours
        self._top = -1  # the highest index that went out
        self._usage: dict[str, object] = {}

    def _has_ours(self) -> bool:
        return self._ours > 0

    def _next(self) -> None:
        self._usages += [self._usage] if self._usage else []
        self._usage, self._blocks = {}, {}
        self._ours = self._theirs = 0

    def _error(self, told: bytes) -> bytes:
        error = refusal(told, {"type": "api_error", "message": ""})
        return b'event: error\ndata: {"type":"error","error":' + error + b"}\n\n"

    def _told(self, event: Event) -> Told:
        try:
            said = _EVENT.decode(looking(event.data))
            return self._said(event, said)
        except NOT_JSON:
            return Told(event.raw, event)

    def _said(self, event: Event, said: "_Event") -> Told:
        match said.type:
            case "message_start":
                self._begin(said.message or {})
                return Told(event.raw, Event(b"") if self._is_later else event)
            case "content_block_start":
                self._blocks[said.index or 0] = self._place(said.index or 0, said.content_block or {})
                return self._placed(event, said.index or 0, _says(said.content_block or {}))
            case "content_block_delta" | "content_block_stop":
                return self._placed(event, said.index or 0, _says(said.delta or {}))
            case "message_delta":
                self._count(said.usage)
                ends = bytes((said.delta or {}).get("stop_reason", NULL)) != NULL
                return Told(event.raw, event, ends=ends)
            case "message_stop":
                return Told(event.raw, event, ends=True)
        return Told(event.raw, event)

    def _begin(self, message: Mapping[str, Raw]) -> None:
        self._count(message.get("usage", Raw(NULL)))

    def _count(self, usage: Raw) -> None:
        """Later counts are of the whole answer and replace earlier ones; null says nothing."""
        self._usage |= {key: count for key, count in (usage_in(usage) or {}).items() if count is not None}

    def _place(self, index: int, block: Mapping[str, Raw]) -> int | None:
        """Where a new block stands for the client; None for one of ours."""
        is_call = string(block.get("type", NULL)) == CALL
        if is_call and string(block.get("name", NULL)) == self._name:
            self._ours += 1
            return None
        self._theirs += is_call
        place = self._top + 1 if self._is_touched() else index
        self._top = max(self._top, place)
        return place

    def _placed(self, event: Event, index: int, shows: bool) -> Told:
        place = self._blocks.get(index, index)
        if place is None:
            return Told(event.raw, Event(b""))
        if place == index:
            return Told(event.raw, event, shows)
        return Told(event.raw, with_data(event, replaced(event.data, {"index": compact(place)})), shows)

    def _last(self, event: Event) -> bytes:
        try:
            said = _EVENT.decode(looking(event.data))
            if said.type != "message_delta":
                return event.raw
            data = event.data
            if self._usages:
                data = with_value(data, "usage", compact(self._total(said.usage)))
            reason = string((said.delta or {}).get("stop_reason", NULL))
            if reason == CALL and self._ours and not self._theirs:
                data = replaced(data, {"delta": replaced(parts(data)["delta"], {"stop_reason": b'"end_turn"'})})
            return with_data(event, data).raw
        except NOT_JSON:
            return event.raw

    def _total(self, told: Raw) -> dict[str, object]:
        """The counts of all answers; of what is no count, only what this event tells."""
        known = usage_in(told) or {}
        total = summed([*self._usages, self._usage])
        return {key: value for key, value in total.items() if key in known or isinstance(value, int | float | dict)}


def _says(fields: Mapping[str, Raw]) -> bool:
    """Is there anything in a block or a delta?"""
    return any(key != "type" and bytes(value) not in EMPTY for key, value in fields.items())


# Plain answers


def spliced(bodies: Sequence[bytes], name: str) -> bytes:
    """The last body, without our calls, with the usage of all; as it is where it is not understood."""
    return as_one(bodies, lambda fields: _changes(fields, name))


def _changes(fields: Mapping[str, bytes], name: str) -> dict[str, bytes | None]:
    content = fields.get("content", NULL)
    if not content.startswith(b"["):
        return {}
    blocks = [(raw, _BLOCK.decode(looking(raw))) for raw in each(content)]
    calls = [block for _, block in blocks if string(block.type) == CALL]
    ours = [block for block in calls if string(block.name) == name]
    values: dict[str, bytes | None] = {
        "content": rearranged(content, [None if block in ours else raw for raw, block in blocks])
    }
    if ours and len(ours) == len(calls) and fields.get("stop_reason") == b'"tool_use"':
        values["stop_reason"] = b'"end_turn"'
    return values


# Shapes


class _Event(msgspec.Struct):
    type: str | None = None
    index: int | None = None
    message: dict[str, Raw] | None = None
    content_block: dict[str, Raw] | None = None
    delta: dict[str, Raw] | None = None
    usage: Raw = Raw(NULL)


class _Block(msgspec.Struct, eq=False):
    type: Raw = Raw(NULL)
    name: Raw = Raw(NULL)


_EVENT = msgspec.json.Decoder(_Event)
_BLOCK = msgspec.json.Decoder(_Block)
