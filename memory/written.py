"""What a stored message says, for people and statistics: its words, its calls, and of which call it is the result.

Stored messages are what clients of any dialect wrote, and carry no dialect: a message object, an item of the Responses
API, or an array of items that are one message of the assistant's.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]

CALLED = ("arguments", "input", "action", "actions", "operation", "code", "queries")  # where items keep what they ask
MOST_DEPTH = 8  # of results within results
SAID = ("output", "result", "results", "outputs", "tools")  # and what they got


def parts_of(raw: bytes) -> list[Json]:
    """The object, or the objects of the array; [] for anything else."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return []
    return [part for part in (found if isinstance(found, list) else [found]) if isinstance(part, dict)]


def content_of(raw: bytes) -> object:
    """What a message says, as its `content` would: as written where it has one, else in words; None for nothing."""
    parts = parts_of(raw)
    if len(parts) == 1:
        return told(parts[0])
    said = [words(found) for part in parts if (found := told(part)) not in (None, "", [])]
    return "\n".join(said) if said else None


def told(part: Json) -> object:
    """An item's words: its content or output as written, or a call as name(arguments) with its result below it."""
    kind = str(part.get("type") or "")
    if "content" in part or "role" in part:
        return part.get("content") if kind != "reasoning" else None
    if kind.endswith("_output"):
        return next((part[key] for key in SAID if part.get(key) is not None), part.get("status"))
    if kind == "mcp_approval_response":
        return "approved" if part.get("approve") else "denied"
    if not kind.endswith(("_call", "_request")) and kind != "program":
        return None
    asked = next((part[key] for key in CALLED if part.get(key) is not None), "")
    result = next((part[key] for key in SAID if part.get(key) is not None), None)
    name = part.get("name") or kind.removesuffix("_call")
    return f"{name}({words(asked)})" + (f"\n{words(result)}" if result is not None else "")


def said(raw: bytes) -> str:
    """The words of a message, and below them each call as name(arguments): what a reader is told of it.

    Images, files and thoughts have none. "" for what is no message.
    """
    return "\n".join(line for part in parts_of(raw) for line in lines_of(part) if line.strip())


def lines_of(part: Json) -> Iterator[str]:
    content = told(part)
    if isinstance(content, list):
        for block in content:
            yield from lines_of_block(block)
    elif content is not None:
        yield words(content)
    calls = part.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield f"{function.get('name')}({words(function.get('arguments') or '')})"


def lines_of_block(block: object, depth: int = 0) -> Iterator[str]:
    """A part of a message's content, of any dialect."""
    if isinstance(block, str):
        yield block
    if not isinstance(block, dict) or depth > MOST_DEPTH:
        return
    if isinstance(text := block.get("text") or block.get("refusal"), str):
        yield text
    elif block.get("type") == "tool_use":
        yield f"{block.get('name')}({words(block.get('input') or '')})"
    elif block.get("type") == "tool_result":
        inner = block.get("content")
        for part in inner if isinstance(inner, list) else [inner]:
            yield from lines_of_block(part, depth + 1)


def words(value: object) -> str:
    """A value to read: text as it is, text parts by their text, all else as JSON."""
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "\n".join(part["text"] for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def calls_in(raw: bytes) -> Iterator[tuple[object, object]]:
    """The id and the name of each call that a message makes."""
    for part in parts_of(raw):
        calls = part.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                function = call.get("function")
                yield call.get("id"), function.get("name") if isinstance(function, Mapping) else None
        kind = str(part.get("type") or "")
        if kind.endswith("_call") and part.get("call_id") and "role" not in part:
            yield part["call_id"], part.get("name") or kind.removesuffix("_call")
        yield from ((block.get("id"), block.get("name")) for block in blocks_of(part, "tool_use"))


def results_in(raw: bytes) -> Iterator[tuple[str, str]]:
    """Of which calls a message holds results, and their texts."""
    part = next(iter(parts_of(raw)), {})
    blocks = blocks_of(part, "tool_result")
    for block in blocks:
        failed = "Error: " if block.get("is_error") is True else ""
        yield str(block.get("tool_use_id")), failed + words(block.get("content", ""))
    if not blocks:
        id = part.get("tool_call_id") or part.get("call_id") or part.get("id")
        content = told(part)
        yield str(id), content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def blocks_of(part: Json, kind: str) -> list[Json]:
    """The content blocks of a kind, as the Messages API has them."""
    content = part.get("content")
    blocks = content if isinstance(content, list) else ()
    return [block for block in blocks if isinstance(block, dict) and block.get("type") == kind]
