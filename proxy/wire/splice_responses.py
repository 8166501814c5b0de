"""Several answers in events of the Responses API as one stream; several plain ones as one body."""

import json
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Raw

from proxy.wire.content import NOT_JSON, NULL, string
from proxy.wire.events import Event, with_data
from proxy.wire.responses_events import ENDS
from proxy.wire.slices import each, looking, parts, rearranged, replaced, with_value
from proxy.wire.splice import (
    EMPTY,
    Splicer,
    Told,
    as_one,
    compact,
    names,
    refusal,
    summed,
    usage_in,
)
from proxy.wire.sse import error_text

BEGINS = frozenset({"response.created", "response.queued", "response.in_progress"})
ITEMS = frozenset({"response.output_item.added", "response.output_item.done"})
OF_FIRST = ("id", "created_at")  # one response has one of each
CALL = "function_call"
SAYS_LATER = frozenset({"message", "reasoning"})  # items that begin empty


class ResponseSplice(Splicer):
    """One stream out of several, item by item."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._first: dict[str, bytes] = {}
        self._number: int | None = None  # of the last event that went out
        self._has_echo = False  # our tool was told among the request's
        self._ours = 0  # calls in the running answer
        self._our_ids: set[str] = set()  # of their items
        self._places: dict[int, int | None] = {}  # where an item of it stands for the client; None: it is ours
        self._top = -1  # the highest place that was given
        self._done: dict[int, bytes] = {}  # items of the running answer, by their place
        self._output: list[bytes] = []  # items of the answers before
        self._told_output: list[bytes] = []  # of the running one, as its end tells them
        self._usage: Mapping[str, object] | None = None

    def _has_ours(self) -> bool:
        return self._ours > 0 or self._has_echo

    def _next(self) -> None:
        self._usages += [self._usage] if self._usage is not None else []
        self._output += self._items()
        self._usage, self._told_output = None, []
        self._ours, self._our_ids, self._places, self._done = 0, set(), {}, {}

    def _items(self) -> list[bytes]:
        """What of the running answer the client has."""
        return self._told_output or [self._done[place] for place in sorted(self._done)]

    def _error(self, told: bytes) -> bytes:
        error = refusal(told, {"message": "", "type": "upstream_error", "param": None, "code": "upstream_failed"})
        known = json.loads(error)
        number = {} if self._number is None else {"sequence_number": self._number + 1}
        flat = {"code": known.get("code"), "message": error_text(known), "param": known.get("param")}
        body = compact({"type": "error", **number, **flat})  # as the reference has it; `error` is what servers send
        return b"event: error\ndata: " + body[:-1] + b',"error":' + error + b"}\n\n"

    def _told(self, event: Event) -> Told:
        try:
            said = _EVENT.decode(looking(event.data))
            told = self._said(event, said)
        except NOT_JSON:
            return Told(event.raw, event)
        if said.sequence_number is not None and not self._is_touched():
            self._number = said.sequence_number
        return told

    def _said(self, event: Event, said: "_Event") -> Told:
        kind = said.type or ""
        if kind in BEGINS:
            return Told(event.raw, Event(b"") if self._is_later else self._begun(event))
        if kind in ENDS:
            self._ended(parts(event.data).get("response", b"{}"))
            return Told(event.raw, event, ends=True)
        if said.item_id in self._our_ids and said.item_id:
            return Told(event.raw, Event(b""))
        if said.output_index is None:
            return Told(event.raw, event, bytes(said.delta) not in EMPTY)
        return self._placed(event, said, said.output_index)

    def _begun(self, event: Event) -> Event:
        """The beginning, without our tool where it is told."""
        fields = parts(event.data)
        response = fields.get("response", b"{}")
        self._remember(parts(response))
        bare = without_tool(response, self._name)
        self._has_echo = self._has_echo or bare != response
        return with_data(event, replaced(event.data, {"response": bare}))

    def _remember(self, response: Mapping[str, bytes]) -> None:
        self._first = self._first or {key: response[key] for key in OF_FIRST if key in response}

    def _ended(self, response: bytes) -> None:
        fields = parts(response)
        self._remember(fields)
        self._has_echo = self._has_echo or without_tool(response, self._name) != response
        self._usage = usage_in(fields.get("usage", NULL)) or self._usage
        output = fields.get("output", NULL)
        items = each(output) if output != NULL else []
        self._told_output = [raw for raw in items if not _is_ours(raw, self._name)]
        self._ours = max(self._ours, len(items) - len(self._told_output))  # a server may tell them here alone

    def _placed(self, event: Event, said: "_Event", index: int) -> Told:
        """An event of an item, at the item's place; nothing for one of ours."""
        item = parts(event.data)["item"] if said.type in ITEMS and bytes(said.item) not in EMPTY else b""
        if said.type == "response.output_item.added" or index not in self._places:
            self._places[index] = self._place(index, item)
        place = self._places[index]
        if place is None:
            return Told(event.raw, Event(b""))
        shows = bytes(said.delta) not in EMPTY
        if item:
            is_done = said.type == "response.output_item.done"
            self._done |= {place: item} if is_done else {}
            shows = is_done or _kind(item) not in SAYS_LATER
        values = {"output_index": compact(place)} if place != index else {}
        return Told(event.raw, with_data(event, replaced(event.data, values)) if values else event, shows)

    def _place(self, index: int, item: bytes) -> int | None:
        """Where a new item stands for the client; None for one of ours."""
        if item and _is_ours(item, self._name):
            self._ours += 1
            self._our_ids.add(string(looking(parts(item).get("id", NULL))) or "")
            return None
        place = self._top + 1 if self._is_touched() else index
        self._top = max(self._top, place)
        return place

    def _show(self, told: Told) -> bytes:
        return super()._show(msgspec.structs.replace(told, event=self._numbered(told.event)))

    def _numbered(self, event: Event) -> Event:
        """An event with the number that is due, where events are numbered; not an error, which goes as it came."""
        if not event.raw or not self._is_touched():
            return event
        try:
            said = _EVENT.decode(looking(event.data))
            if said.sequence_number is None or said.type == "error":
                return event
            self._number = said.sequence_number if self._number is None else self._number + 1
            return with_data(event, replaced(event.data, {"sequence_number": compact(self._number)}))
        except NOT_JSON:
            return event

    def _last(self, event: Event) -> bytes:
        try:
            if _EVENT.decode(looking(event.data)).type in ENDS:
                response = self._whole(parts(event.data)["response"])
                event = with_data(event, replaced(event.data, {"response": response}))
        except (*NOT_JSON, KeyError):
            return event.raw
        return self._numbered(event).raw

    def _whole(self, response: bytes) -> bytes:
        """The last response, as that of all answers."""
        response = without_tool(response, self._name)
        values: dict[str, bytes | None] = {**self._first} if self._is_later else {}
        if self._usages and self._usage is not None:
            values["usage"] = compact(summed([*self._usages, self._usage]))
        output = parts(response).get("output", NULL)
        if not self._output:
            kept = _without_ours(output, self._name) if output not in EMPTY else output
            return replaced(response, {**values, "output": kept})
        response = replaced(response, values)
        return with_value(response, "output", b"[" + b",".join([*self._output, *self._items()]) + b"]")


def without_tool(response: bytes, name: str) -> bytes:
    """A response that does not tell our tool among the request's.

    Raises:
        NOT_JSON: it is no object.
    """
    tools = parts(response).get("tools", NULL)
    if not tools.startswith(b"["):
        return response
    kept = [None if name in names(tool) else tool for tool in each(tools)]
    return replaced(response, {"tools": rearranged(tools, kept)}) if None in kept else response


def _kind(item: bytes) -> str | None:
    return string(looking(parts(item).get("type", NULL)))


def _is_ours(item: bytes, name: str) -> bool:
    return _kind(item) == CALL and string(looking(parts(item).get("name", NULL))) == name


def _without_ours(output: bytes, name: str) -> bytes:
    return rearranged(output, [None if _is_ours(item, name) else item for item in each(output)])


# Plain answers


def spliced(bodies: Sequence[bytes], name: str) -> bytes:
    """The last body, without our calls and our tool, with the usage of all; as it is where it is not understood."""
    return as_one(bodies, lambda fields: _changes(fields, name))


def _changes(fields: Mapping[str, bytes], name: str) -> dict[str, bytes | None]:
    values: dict[str, bytes | None] = {}
    output, tools = fields.get("output", NULL), fields.get("tools", NULL)
    if output.startswith(b"["):
        values["output"] = _without_ours(output, name)
    if tools.startswith(b"["):
        values["tools"] = rearranged(tools, [None if name in names(tool) else tool for tool in each(tools)])
    return values


# Shapes


class _Event(msgspec.Struct):
    type: str | None = None
    sequence_number: int | None = None
    output_index: int | None = None
    item_id: str | None = None
    item: Raw = Raw(NULL)
    delta: Raw = Raw(NULL)


_EVENT = msgspec.json.Decoder(_Event)
