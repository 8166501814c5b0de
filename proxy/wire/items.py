"""Items of the Responses API that are no messages, as messages: calls, their outputs, reasoning, what the provider ran.

Source of the list: `types/responses/response_input_item_param.py` and `response_output_item.py` of openai-python 2. An
item that is not in it is the assistant's, and known by its bytes.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from memory.messages import Media, Message, ToolCall
from proxy.wire import images
from proxy.wire.blocks import bare, digest
from proxy.wire.slices import NotUnderstood

Fields = Mapping[str, bytes]  # of an item, each value as written
ReadContent = Callable[[bytes], tuple[str, tuple[Media, ...]]]

NULL = b"null"
ASSISTANT, TOOL, DEVELOPER = "assistant", "tool", "developer"
CHARS_A_TOKEN = 4  # of what only the provider reads; encrypted reasoning is base64 of more than the words

# Calls that an item of its own answers: the tool's name (None: the item tells it) and where the arguments stand.
CALLS: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
    "function_call": (None, ("arguments",)),
    "custom_tool_call": (None, ("input",)),
    "mcp_approval_request": (None, ("arguments",)),
    "tool_search_call": ("tool_search", ("arguments",)),
    "local_shell_call": ("local_shell", ("action",)),
    "shell_call": ("shell", ("action",)),
    "apply_patch_call": ("apply_patch", ("operation",)),
    "computer_call": ("computer", ("actions", "action")),
    "program": ("program", ("code",)),
}
NAMED_BY_ID = frozenset({"mcp_approval_request", "local_shell_call", "local_shell_call_output"})  # without a `call_id`
# Where an output says its text, if not in `output`.
SAYS = {"program_output": "result", "tool_search_output": "tools"}
SEEN_BY_PROVIDER = {  # neither compared nor told; clients drop it or send it back as they like
    "reasoning": ("encrypted_content", "content", "summary"),
    "mcp_list_tools": ("tools",),
}


def item_of(raw: bytes, fields: Fields, content: ReadContent) -> Message:
    """An item without a role as a message.

    Args:
        content: reads texts and media of a string or of content parts.

    Raises:
        NotUnderstood: it names an item whose words only the provider has, or it is no item.
    """
    kind = _text(fields, "type")
    if kind == "item_reference" or not kind:
        raise NotUnderstood("an item without words of its own")
    if kind == "additional_tools":
        return Message(DEVELOPER, fields.get("tools", b"").decode(), raw)
    if kind in SEEN_BY_PROVIDER:
        chars = sum(len(fields.get(key, b"")) for key in SEEN_BY_PROVIDER[kind])
        return Message(ASSISTANT, "", raw, unseen=chars // CHARS_A_TOKEN)
    if kind == "mcp_approval_response":
        return Message(TOOL, _approval(fields), raw, call_id=_text(fields, "approval_request_id"))
    if kind.endswith("_output"):
        return _output(raw, kind, fields, content)
    if kind in HOSTED:
        text, media = HOSTED[kind](fields)
        return Message(ASSISTANT, text, raw, media=media)
    call = _call(kind, fields)
    if call is not None:
        return Message(ASSISTANT, "", raw, calls=(call,))
    media = (Media("item", digest(_without_ids(raw, fields))),)
    role = DEVELOPER if kind == "compaction" else ASSISTANT  # a history that nobody else can read keeps its place
    return Message(role, "", raw, media=media, unseen=len(raw) // CHARS_A_TOKEN)


def joined(run: Sequence[Message], raw: bytes | None = None) -> Message:
    """What was said in several items as one message of the assistant; `raw`: as it is written, if it is.

    What is of the developer stands beside it when it is sent back, so it is not compared.
    """
    said = [message for message in run if not message.is_system]
    return Message(
        role=ASSISTANT,
        text="\n".join(message.text for message in said if message.text),
        raw=raw or b"[" + b",".join(message.raw for message in run) + b"]",
        calls=tuple(call for message in said for call in message.calls),
        media=tuple(media for message in said for media in message.media),
        unseen=sum(message.unseen for message in run),
    )


# Calls and their outputs


def _call(kind: str, fields: Fields) -> ToolCall | None:
    """A call that an output answers; None for what nobody answers, such as a search of tools by the provider."""
    name, keys = CALLS.get(kind, (kind, ("arguments", "input", "action", "operation")))
    id = _text(fields, "call_id") or (
        _text(fields, "id") if kind in ("mcp_approval_request", "local_shell_call") else ""
    )
    if not id and kind not in ("function_call", "custom_tool_call"):
        return None
    given = next((fields[key] for key in keys if fields.get(key, NULL) != NULL), b'""')
    return ToolCall(id, name or _text(fields, "name"), _written(given))


def _output(raw: bytes, kind: str, fields: Fields, content: ReadContent) -> Message:
    """What came of a call; a search of tools by the provider names none."""
    said = fields.get(SAYS.get(kind, "output"), NULL)
    id = _text(fields, "call_id") or (_text(fields, "id") if kind in NAMED_BY_ID else "")
    media: tuple[Media, ...] = ()
    if kind == "tool_search_output":
        text = said.decode()
    elif kind == "shell_call_output":
        text = "\n".join(_texts(said, "stdout", "stderr"))
    else:
        try:
            text, media = content(b"[" + said + b"]" if said.startswith(b"{") else said)
        except msgspec.ValidationError:
            text = said.decode()
    text = text or (_text(fields, "status") if kind == "apply_patch_call_output" else "")
    if kind == "tool_search_output" and not id:
        return Message(ASSISTANT, text, raw)
    return Message(TOOL, text, raw, call_id=id, media=media)


def _approval(fields: Fields) -> str:
    decided = "approved" if fields.get("approve") == b"true" else "denied"
    reason = _text(fields, "reason")
    return f"{decided}: {reason}" if reason else decided


# What the provider ran by itself: call and result in one item


def _web_search(fields: Fields) -> tuple[str, tuple[Media, ...]]:
    action = fields.get("action", NULL)
    asked = _texts(action, "queries") or _texts(action, "query")
    return _told("web_search", [*asked, *_texts(action, "url", "pattern")], ()), ()


def _file_search(fields: Fields) -> tuple[str, tuple[Media, ...]]:
    asked = _texts(b'{"queries":' + fields.get("queries", NULL) + b"}", "queries")
    return _told("file_search", asked, _texts(fields.get("results", NULL), "text")), ()


def _code_interpreter(fields: Fields) -> tuple[str, tuple[Media, ...]]:
    outputs = fields.get("outputs", NULL)
    pictures = tuple(_picture(url) for url in _texts(outputs, "url"))
    return _told("code_interpreter", [_text(fields, "code")], _texts(outputs, "logs")), pictures


def _mcp(fields: Fields) -> tuple[str, tuple[Media, ...]]:
    result = _text(fields, "output") or _written(fields.get("error", b'""')).removeprefix("null")
    return _told(_text(fields, "name"), [_written(fields.get("arguments", b'""'))], [result] if result else ()), ()


def _image(fields: Fields) -> tuple[str, tuple[Media, ...]]:
    picture = _text(fields, "result")
    return "", (_picture("data:image/png;base64," + picture),) if picture else ()


HOSTED: Mapping[str, Callable[[Fields], tuple[str, tuple[Media, ...]]]] = {
    "web_search_call": _web_search,
    "file_search_call": _file_search,
    "code_interpreter_call": _code_interpreter,
    "mcp_call": _mcp,
    "image_generation_call": _image,
}
KINDS = frozenset((*CALLS, *HOSTED, *SEEN_BY_PROVIDER, "additional_tools", "item_reference"))


def _told(name: str, asked: Sequence[str], results: Sequence[str]) -> str:
    return "\n".join((f"{name}({'; '.join(asked)})", *results))


# Values


def _text(fields: Fields, key: str) -> str:
    """A string; "" for anything else."""
    value = fields.get(key, NULL)
    return _STRING.decode(value) if value.startswith(b'"') else ""


def _written(value: bytes) -> str:
    """A string's words; of any other value the JSON, without what is null."""
    return _STRING.decode(value) if value.startswith(b'"') else _bare_json(value)


def _texts(value: bytes, *keys: str) -> list[str]:
    """The texts that stand under some keys of an object, or of the objects in a list, in the order of the keys."""
    found = msgspec.json.decode(value)
    texts = []
    for one in found if isinstance(found, list) else [found]:
        for key in keys if isinstance(one, dict) else ():
            said = one.get(key)
            texts += [text for text in (said if isinstance(said, list) else [said]) if isinstance(text, str) and text]
    return texts


def _without_ids(raw: bytes, fields: Fields) -> bytes:
    """What an item says, without what clients drop."""
    kept = {key: msgspec.Raw(value) for key, value in fields.items() if key not in ("id", "status")}
    return _bare_json(msgspec.json.encode(kept)).encode()


def _bare_json(value: bytes) -> str:
    """JSON with sorted keys and without members that are null, which some clients write and others leave out."""
    try:
        return msgspec.json.encode(bare(msgspec.json.decode(value)), order="sorted").decode()
    except (OverflowError, msgspec.MsgspecError):  # a number that cannot be written again
        return value.decode()


def _picture(url: str) -> Media:
    width, height = images.size(url) or (None, None)
    return Media("image", digest(url.encode()), width, height)


_STRING = msgspec.json.Decoder(str)
