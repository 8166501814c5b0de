"""Messages to values: texts, calls, media. For looking; a message's raw bytes are what is forwarded.

Stored messages carry no dialect, so this reads those of all.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
from msgspec import Raw

from memory.messages import Media, Message, ToolCall
from proxy.wire import images, items
from proxy.wire.blocks import RESULT, Blocks, digest, plainly
from proxy.wire.slices import NotUnderstood, few, looking, members

NULL = b"null"
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotUnderstood)
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
THOUGHTS = ("reasoning_content", "reasoning")  # as DeepSeek and OpenRouter name them, and those who follow them
PICTURES = frozenset({"input_image", "computer_screenshot"})  # the picture's URL or id itself, not in an object


def message_of(raw: bytes) -> Message:
    """A message object as a value, or an item of the Responses API, or an array of items that are one message.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: not a message.
    """
    looked = looking(raw)
    if looked.startswith(b"["):
        return items.joined([_item(bytes(item)) for item in few(_ARRAY.decode(looked))], raw)
    fields = {key: looked[start:stop] for key, (start, stop) in members(looked).items()}
    if "role" not in fields or string(fields.get("type", NULL)) in items.KINDS:
        return items.item_of(raw, fields, lambda content: _content(content, Blocks()))
    role = _STRING.decode(fields.get("role", NULL))
    blocks = Blocks()
    text, media = _content(fields.get("content", NULL), blocks)
    name = string(fields.get("name", NULL))
    answers = name if role == "function" else string(fields.get("tool_call_id", NULL))
    return Message(
        role="tool" if role == "user" and blocks.results else role,
        text=text,
        raw=raw,
        name=name,
        calls=(*_calls(fields), *blocks.calls),
        call_id=blocks.results[0] if blocks.results else answers,
        more_call_ids=tuple(blocks.results[1:]),
        media=(*media, *_spoken(fields.get("audio", NULL))),
        unseen=blocks.unseen + (_thoughts(fields) if role == items.ASSISTANT else 0),
        has_user_words=role == "user" and bool(blocks.results) and blocks.has_more,
    )


def _item(raw: bytes) -> Message:
    if not raw.startswith(b"{"):
        raise NotUnderstood("not an item")
    return message_of(raw)


# Content parts


def _content(raw: bytes, blocks: Blocks) -> tuple[str, tuple[Media, ...]]:
    if raw == NULL:
        return "", ()
    if raw.startswith(b'"'):
        return _STRING.decode(raw), ()
    texts: list[str] = []
    media: list[Media] = []
    for part in map(bytes, few(_ARRAY.decode(raw))):
        shape = _PART.decode(part)
        if not isinstance(shape.type, str):
            shape.type = ""
        said = None if shape.type in TEXT_PARTS else blocks.read(shape.type, part)
        found = (_part(shape, part),) if said is None else said
        for piece in found:
            match piece:
                case str(text) if text:  # SDKs leave empty ones out when they send an answer back
                    texts.append(text)
                case Media() as medium:
                    media.append(medium)
        if shape.type != RESULT and any(piece.strip() if isinstance(piece, str) else piece for piece in found):
            blocks.has_more = True
    return "\n".join(texts), tuple(media)


def _part(part: "_Part", raw: bytes) -> str | Media | None:
    """A part as text or media; None for a refusal, which does not count for identity."""
    if part.type in TEXT_PARTS and isinstance(part.text, str):
        return part.text
    if part.type in PICTURES and (picture := string(part.image_url) or string(part.file_id)):
        width, height = images.size(picture) or (None, None)
        return Media("image", digest(picture.encode()), width, height, string(part.detail) or "auto")
    if part.type == "input_file" and (held := given(part.file_data, part.file_id, part.file_url)):
        return Media("file", digest(held))
    if part.type == "image_url" and (url := _inner(part.image_url, "url")):
        width, height = images.size(url) or (None, None)
        return Media("image", digest(url.encode()), width, height, _inner(part.image_url, "detail") or "auto")
    if part.type == "input_audio" and (data := _inner(part.input_audio, "data")):
        return Media("audio", digest(data.encode()))
    if part.type == "file" and (file := _inner(part.file, "file_data") or _inner(part.file, "file_id")):
        return Media("file", digest(file.encode()))
    if part.type == "refusal":
        return None
    return Media("file", digest(plainly(raw)))  # unknown to us, so all of it counts


def _spoken(raw: bytes) -> tuple[Media, ...]:
    """`audio: {"id": ...}` of an assistant's spoken answer."""
    spoken = _inner(Raw(raw), "id") if raw != NULL else ""
    return (Media("audio", digest(spoken.encode())),) if spoken else ()


def _inner(raw: Raw, key: str) -> str:
    """A string inside an object, else ""; where a client sends a string in place of the object, it is the url."""
    try:
        found = _OBJECT.decode(raw).get(key, NULL)
    except msgspec.ValidationError:
        found = raw if key == "url" else NULL
    return string(found) or ""


def _thoughts(fields: Mapping[str, bytes]) -> int:
    """Tokens, about, of reasoning that a client sends back in a chat message; what it says twice counts once."""
    told = [text for key in THOUGHTS if (text := string(fields.get(key, NULL)))]
    details = fields.get("reasoning_details", NULL)
    details = details if details.startswith(b"[") else b""
    if told and len(told) + bool(details) > 1:
        told = _once(told, _told_in(details) if details else "")
    return (sum(map(len, told)) + len(details)) // items.CHARS_A_TOKEN


def _once(texts: Sequence[str], elsewhere: str) -> list[str]:
    """Each text once, without those that are told elsewhere; white space does not count."""
    by_words = {"".join(text.split()): text for text in texts}
    known = "".join(elsewhere.split())
    return [text for words, text in by_words.items() if not words or words not in known]


def _told_in(details: bytes) -> str:
    """The words of OpenRouter's `reasoning_details`, which repeats `reasoning` there, piece by piece."""
    words: list[object] = []
    for raw in few(_ARRAY.decode(details)):
        with suppress(msgspec.ValidationError):
            detail = _DETAIL.decode(raw)
            words += (detail.text, detail.summary)
    return "".join(text for text in words if isinstance(text, str))


# Tool calls


def _calls(fields: Mapping[str, bytes]) -> tuple[ToolCall, ...]:
    """Calls of any shape; what is not as the API says becomes a call whose arguments are the JSON text."""
    calls: list[ToolCall] = []
    raw = fields.get("tool_calls", NULL)
    if raw.startswith(b"["):
        calls += [_call(bytes(call)) for call in few(_ARRAY.decode(raw))]
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
    name, arguments = _function(given(call.function, call.custom) or raw)
    return ToolCall(string(call.id) or "", name, arguments)


def _function(raw: bytes) -> tuple[str, str]:
    """Name and arguments (or a custom tool's input)."""
    try:
        function = _FUNCTION.decode(raw)
    except msgspec.ValidationError:
        return "", raw.decode()
    arguments = given(function.arguments, function.input) or b'""'
    written = string(arguments)
    return string(function.name) or "", arguments.decode() if written is None else written


# Single values


def given(*raws: Raw) -> bytes | None:
    """The first that is neither absent nor null."""
    return next((value for value in map(bytes, raws) if value != NULL), None)


def string(raw: Raw | bytes) -> str | None:
    """A string; None for anything else."""
    value = bytes(raw)
    return _STRING.decode(value) if value.startswith(b'"') else None


# Shapes


class _Part(msgspec.Struct):
    type: object = None
    text: object = None
    image_url: Raw = Raw(NULL)
    input_audio: Raw = Raw(NULL)
    file: Raw = Raw(NULL)
    detail: Raw = Raw(NULL)
    file_id: Raw = Raw(NULL)
    file_data: Raw = Raw(NULL)
    file_url: Raw = Raw(NULL)


class _Detail(msgspec.Struct):
    text: object = None
    summary: object = None


class _ToolCall(msgspec.Struct):
    id: Raw = Raw(NULL)
    function: Raw = Raw(NULL)
    custom: Raw = Raw(NULL)


class _Function(msgspec.Struct):
    name: Raw = Raw(NULL)
    arguments: Raw = Raw(NULL)
    input: Raw = Raw(NULL)


_STRING = msgspec.json.Decoder(str)
_ARRAY = msgspec.json.Decoder(list[Raw])
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_PART = msgspec.json.Decoder(_Part)
_DETAIL = msgspec.json.Decoder(_Detail)
_CALL = msgspec.json.Decoder(_ToolCall)
_FUNCTION = msgspec.json.Decoder(_Function)
