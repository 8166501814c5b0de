"""Chat completions: bodies to values and back.

What is not understood gives None and is relayed as it came. A message's text, calls and media are for looking; its
raw bytes are what is forwarded, and nothing here re-writes more than it was asked to.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from sys import getsizeof
from weakref import ref

import msgspec
from msgspec import Raw

from memory.messages import DIGEST_BYTES, ChatRequest, Media, Message, ToolCall
from memory.types import Usage
from proxy.wire import images
from proxy.wire.slices import MAX_DEPTH, NotUnderstood, check, looking, members, object_end

CACHE_BYTES = 48 * 1024 * 1024
CHECKED_BYTES = 4 * 1024 * 1024
MESSAGE_BYTES = 600  # what a remembered message takes beside its bytes and text
SCHEMA_KEYS = ("tools", "functions", "response_format")
NULL = b"null"
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotUnderstood)


class Parser:
    """Parses requests; remembers messages it has seen, because clients send the whole history each time.

    Args:
        cache_bytes: how much of it is remembered; what was not used for long goes first.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._cache = _Cache(cache_bytes)
        self._checked: dict[bytes, None] = {}  # what stood beside messages and passed; tools mostly, resent as well
        self._checked_bytes = 0

    def parse(self, body: bytes) -> ChatRequest | None:
        """The request in a body; None for what is not a chat request as we understand it.

        That is: not a JSON object in UTF-8, a key twice, nesting deeper than 256, no messages, a message without a
        role, content that is neither text nor parts, `model` or `stream` of another type.
        """
        try:
            guess = _ARRAY_BEGINS.search(body)
            if guess is not None:
                with suppress(*_NOT_JSON):
                    return self._parse(body, guess.end() - 1)
            return self._parse(body, members(looking(body))["messages"][0])
        except (*_NOT_JSON, KeyError):
            return None

    @property
    def remembered_bytes(self) -> int:
        """About how much memory the known messages take."""
        return self._cache.held_bytes

    def _parse(self, body: bytes, start: int) -> ChatRequest:
        """Parse messages and all else apart, with the array assumed to begin at `start`.

        The array is read message by message; in its place the rest has a 0. If that 0 is the value of `messages` in
        a valid object, and each message is a valid object, then the body is valid and the assumption was right.
        """
        messages, stop = self._messages(body, start)
        rest = b"".join((body[:start], b"0", body[stop:]))
        self._check(rest)
        text = looking(rest)
        spans = members(text)
        if spans.get("messages") != (start, start + 1):
            raise NotUnderstood("the array stands elsewhere")
        values = {key: text[slice(*spans[key])] for key in _LOOKED_AT if key in spans}
        return ChatRequest(
            model=_NAME.decode(values.get("model", NULL)) or "",
            messages=messages,
            body=body,
            schemas=tuple(rest[slice(*spans[key])] for key in spans if key in SCHEMA_KEYS),
            max_output_tokens=_count(values.get("max_completion_tokens", b"")) or _count(values.get("max_tokens", b"")),
            stream=_FLAG.decode(values.get("stream", NULL)) or False,
            user=_string(values.get("user", NULL)),
            span=(start, stop),
        )

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
            before = seen
            end = position + len(seen.raw)
            if body.startswith((b",{", b", {"), end):
                position = body.index(b"{", end)
                continue
            position = _after(_BETWEEN, body, end)
            if body[position - 1] == _CLOSING:
                return tuple(messages), position


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


def _checked_message(raw: bytes) -> Message:
    check(raw, MAX_DEPTH - 2)
    return message_of(raw)


def render(request: ChatRequest, messages: Sequence[bytes]) -> bytes:
    """The client's body with another message array; all other keys, their order and spacing stay."""
    start, stop = request.span
    return b"".join((request.body[:start], b"[", b",".join(messages), b"]", request.body[stop:]))


def message_json(role: str, content: str, **more: object) -> bytes:
    """A message of our own."""
    return msgspec.json.encode({"role": role, "content": content, **more})


def with_content(raw: bytes, content: str) -> bytes:
    """A client's message with another `content`; all other keys, their order and spacing stay.

    Raises:
        NotUnderstood, msgspec.DecodeError: `raw` did not come from a parsed message.
    """
    text = msgspec.json.encode(content)
    spans = members(looking(raw))
    if "content" in spans:
        start, stop = spans["content"]
        return raw[:start] + text + raw[stop:]
    end = raw.rindex(b"}")
    return b"".join((raw[:end], b"," if spans else b"", b'"content":', text, raw[end:]))


class Completion(msgspec.Struct, frozen=True):
    """What a plain answer says."""

    messages: tuple[Message, ...] = ()  # the assistant's, one a choice
    usage: Usage | None = None
    finish_reasons: tuple[str | None, ...] = ()  # one a choice


def completion_in(body: bytes) -> Completion:
    """A plain answer as a value; empty where there is none."""
    try:
        text = looking(body)
        shape = _COMPLETION.decode(text)
    except _NOT_JSON:
        return Completion()
    reasons = tuple(_reason(choice.finish_reason) for choice in shape.choices or ())
    return Completion(_answers(body, text, shape), usage_of(shape.usage), reasons)


def _reason(raw: Raw) -> str | None:
    try:
        return _string(raw)
    except UnicodeDecodeError:
        return None


def _answers(body: bytes, text: bytes, shape: "_Completion") -> tuple[Message, ...]:
    """The messages of all choices; () where one of them is none."""
    try:
        raws = [raw for choice in shape.choices or () if (raw := bytes(choice.message)) != NULL]
        starts = [text.index(raw) for raw in raws]  # in the body it may differ by half a surrogate pair
        return tuple(message_of(body[start : start + len(raw)]) for raw, start in zip(raws, starts, strict=True))
    except _NOT_JSON:
        return ()


def usage_of(usage: object) -> Usage | None:
    """A `usage` object; None when there are no counts in it.

    Cached tokens: `prompt_tokens_details.cached_tokens` (OpenAI), else `prompt_cache_hit_tokens` (DeepSeek).
    """
    if not isinstance(usage, Mapping) or not {"prompt_tokens", "completion_tokens"} & usage.keys():
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(
        input_tokens=_natural(usage.get("prompt_tokens")),
        cached_tokens=_natural(usage.get("prompt_cache_hit_tokens") if cached is None else cached),
        output_tokens=_natural(usage.get("completion_tokens")),
    )


def message_of(raw: bytes) -> Message:
    """A message object as a value.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: not a message.
    """
    looked = looking(raw)
    fields = {key: looked[start:stop] for key, (start, stop) in members(looked).items()}
    role = _STRING.decode(fields.get("role", NULL))
    text, media = _content(fields.get("content", NULL))
    name = _string(fields.get("name", NULL))
    return Message(
        role=role,
        text=text,
        raw=raw,
        name=name,
        calls=_calls(fields),
        call_id=name if role == "function" else _string(fields.get("tool_call_id", NULL)),
        media=(*media, *_spoken(fields.get("audio", NULL))),
    )


# Content parts


def _content(raw: bytes) -> tuple[str, tuple[Media, ...]]:
    if raw == NULL:
        return "", ()
    if raw.startswith(b'"'):
        return _STRING.decode(raw), ()
    texts: list[str] = []
    media: list[Media] = []
    for part in _ARRAY.decode(raw):
        match _part(bytes(part)):
            case str(text):
                texts.append(text)
            case Media() as medium:
                media.append(medium)
    return "\n".join(texts), tuple(media)


def _part(raw: bytes) -> str | Media | None:
    """A part as text or media; None for a refusal, which does not count for identity."""
    part = _PART.decode(raw)
    if part.type in TEXT_PARTS and isinstance(part.text, str):
        return part.text
    if part.type == "image_url" and (url := _inner(part.image_url, "url")):
        width, height = images.size(url) or (None, None)
        return Media("image", _digest(url.encode()), width, height, _inner(part.image_url, "detail") or "auto")
    if part.type == "input_audio" and (data := _inner(part.input_audio, "data")):
        return Media("audio", _digest(data.encode()))
    if part.type == "file" and (file := _inner(part.file, "file_data") or _inner(part.file, "file_id")):
        return Media("file", _digest(file.encode()))
    if part.type == "refusal":
        return None
    return Media("file", _digest(raw))  # unknown to us, so compared byte by byte


def _spoken(raw: bytes) -> tuple[Media, ...]:
    """`audio: {"id": ...}` of an assistant's spoken answer."""
    spoken = _inner(Raw(raw), "id") if raw != NULL else ""
    return (Media("audio", _digest(spoken.encode())),) if spoken else ()


def _inner(raw: Raw, key: str) -> str:
    """A string inside an object, else ""; where a client sends a string in place of the object, it is the url."""
    try:
        found = _OBJECT.decode(raw).get(key, NULL)
    except msgspec.ValidationError:
        found = raw if key == "url" else NULL
    return _string(found) or ""


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=DIGEST_BYTES).digest()


# Tool calls


def _calls(fields: Mapping[str, bytes]) -> tuple[ToolCall, ...]:
    """Calls of any shape; what is not as the API says becomes a call whose arguments are the JSON text."""
    calls: list[ToolCall] = []
    raw = fields.get("tool_calls", NULL)
    if raw.startswith(b"["):
        calls += [_call(bytes(call)) for call in _ARRAY.decode(raw)]
    elif raw != NULL:
        calls.append(ToolCall("", "", raw.decode()))
    legacy = fields.get("function_call", NULL)
    if legacy != NULL:
        name, arguments = _function(legacy)
        calls.append(ToolCall(name, name, arguments))  # its result names the function, not the call
    return tuple(calls)


def _call(raw: bytes) -> ToolCall:
    try:
        call = _CALL.decode(raw)
    except msgspec.ValidationError:
        return ToolCall("", "", raw.decode())
    name, arguments = _function(_given(call.function, call.custom) or raw)
    return ToolCall(_string(call.id) or "", name, arguments)


def _function(raw: bytes) -> tuple[str, str]:
    """Name and arguments (or a custom tool's input)."""
    try:
        function = _FUNCTION.decode(raw)
    except msgspec.ValidationError:
        return "", raw.decode()
    arguments = _given(function.arguments, function.input) or b'""'
    written = _string(arguments)
    return _string(function.name) or "", arguments.decode() if written is None else written


# Single values


def _given(*raws: Raw) -> bytes | None:
    """The first that is neither absent nor null."""
    return next((value for value in map(bytes, raws) if value != NULL), None)


def _string(raw: Raw | bytes) -> str | None:
    """A string; None for anything else."""
    value = bytes(raw)
    return _STRING.decode(value) if value.startswith(b'"') else None


def _count(raw: bytes) -> int | None:
    """A whole number from 1; None for anything else."""
    return int(raw) if raw.isdigit() and len(raw) < 16 and int(raw) > 0 else None


def _natural(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < 1e15 else 0


# Shapes


class _Part(msgspec.Struct):
    type: object = None
    text: object = None
    image_url: Raw = Raw(NULL)
    input_audio: Raw = Raw(NULL)
    file: Raw = Raw(NULL)


class _ToolCall(msgspec.Struct):
    id: Raw = Raw(NULL)
    function: Raw = Raw(NULL)
    custom: Raw = Raw(NULL)


class _Function(msgspec.Struct):
    name: Raw = Raw(NULL)
    arguments: Raw = Raw(NULL)
    input: Raw = Raw(NULL)


class _Choice(msgspec.Struct):
    message: Raw = Raw(NULL)
    finish_reason: Raw = Raw(NULL)


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: object = None


_ARRAY_BEGINS = re.compile(rb'"messages"\s*:\s*\[')
_OPENING = re.compile(rb"\[\s*")
_BETWEEN = re.compile(rb"\s*(?:,\s*|\])")
_CLOSING = b"]"[0]
_LOOKED_AT = ("model", "max_completion_tokens", "max_tokens", "stream", "user")
_NAME = msgspec.json.Decoder(str | None)
_FLAG = msgspec.json.Decoder(bool | None)
_STRING = msgspec.json.Decoder(str)
_ARRAY = msgspec.json.Decoder(list[Raw])
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_PART = msgspec.json.Decoder(_Part)
_CALL = msgspec.json.Decoder(_ToolCall)
_FUNCTION = msgspec.json.Decoder(_Function)
_COMPLETION = msgspec.json.Decoder(_Completion)
