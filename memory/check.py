"""What a caller gives, checked: the one place that validates, so the class, REST, tools and import say the same.

Messages name the field and what is allowed, and never quote content.
"""

import json
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from memory.errors import InvalidRequest, NotFound, TooLarge

MOST_LIMIT = 1_000  # items in one answer
MOST_PASSAGES = 20  # that are read for one answer
MOST_TYPE_CHARS = 100
MOST_NAME_CHARS = 500
MOST_LIST = 1_000
MOST_METADATA_BYTES = 64 * 1024
MOST_DEPTH = 32

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL's text takes neither
THREAD = re.compile(r"thread_[0-9a-f]{32}")
JSON_INTEGERS = range(-(2**63), 2**64)  # what JSON libraries read back unchanged

E = TypeVar("E", bound=StrEnum)


def text(value: object, field: str, most_chars: int | None = None, empty: bool = False) -> str:
    """Text that can be stored; not blank, unless `empty`."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} must be text, got {kind(value)}", field)
    if not empty and not value.strip():
        raise InvalidRequest(f"{field} must not be empty", field)
    if most_chars is not None and len(value) > most_chars:
        raise InvalidRequest(f"{field} must have at most {most_chars:,} characters, got {len(value):,}", field)
    if bad := UNSTORABLE.search(value):
        where = f"at character {bad.start() + 1}"
        raise InvalidRequest(f"{field} must not hold NUL or half a surrogate pair ({where})", field)
    return value


def content(value: object, most_bytes: int, field: str = "content") -> str:
    """Text of an item.

    Raises:
        TooLarge: more than `most_bytes` in UTF-8.
    """
    checked = text(value, field)
    size = len(checked) if checked.isascii() else len(checked.encode())
    if size > most_bytes:
        raise TooLarge(f"{field} must have at most {most_bytes:,} bytes, got {size:,}", field)
    return checked


def integer(value: object, field: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`; True and 5.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{field} must be a whole number from {low:,} to {high:,}, got {kind(value)}", field)
    if not low <= value <= high:
        raise InvalidRequest(f"{field} must be {low:,} to {high:,}, got {shown(value)}", field)
    return value


def number(value: object, field: str, low: float, high: float) -> float:
    """A finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{field} must be a number from {low:,} to {high:,}, got {kind(value)}", field)
    if not low <= value <= high or not math.isfinite(value):
        raise InvalidRequest(f"{field} must be {low:,} to {high:,}, got {shown(value)}", field)
    return float(value)


def flag(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{field} must be true or false, got {kind(value)}", field)
    return value


def choice(value: object, field: str, members: type[E]) -> E:
    """The member that `value`, a member or its text, names."""
    if isinstance(value, str) and value in {member.value for member in members}:
        return members(value)
    got = shown(value) if isinstance(value, str) else kind(value)
    raise InvalidRequest(f"{field} must be one of {', '.join(members)}, got {got}", field)


def texts(value: object, field: str, most: int = MOST_LIST, most_chars: int = MOST_NAME_CHARS) -> tuple[str, ...]:
    """A list of short texts; None is the empty one."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{field} must be a list of texts, got {kind(value)}", field)
    if len(value) > most:
        raise InvalidRequest(f"{field} must have at most {most:,} entries, got {len(value):,}", field)
    return tuple(text(entry, f"{field}[{place}]", most_chars) for place, entry in enumerate(value))


def metadata(value: object, field: str = "metadata") -> str | None:
    """JSON text of an object, keys sorted; None for an empty one."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{field} must be an object, got {kind(value)}", field)
    check_json(value, field)
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, default=dict)
    if (size := len(written.encode())) > MOST_METADATA_BYTES:
        raise InvalidRequest(f"{field} must have at most {MOST_METADATA_BYTES:,} bytes as JSON, got {size:,}", field)
    return written if value else None


def metadata_of(stored: str | None) -> dict[str, Any]:
    """What `metadata` wrote."""
    return json.loads(stored) if stored else {}


def check_json(value: object, field: str) -> None:
    """Refuse what would not come back from JSON text as it was."""
    waiting, seen = [(value, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        seen += 1
        if seen > MOST_METADATA_BYTES:  # each has a byte at least; what holds itself twice would never end
            raise InvalidRequest(f"{field} must have at most {MOST_METADATA_BYTES:,} bytes as JSON", field)
        if depth > MOST_DEPTH:
            raise InvalidRequest(f"{field} must not be nested deeper than {MOST_DEPTH}", field)
        if isinstance(part, Mapping):
            if not all(isinstance(key, str) for key in part):
                raise InvalidRequest(f"{field} must have texts as keys", field)
            waiting.extend((inner, depth + 1) for pair in part.items() for inner in pair)
        elif isinstance(part, list | tuple):
            waiting.extend((inner, depth + 1) for inner in part)
        else:
            check_scalar(part, field)


def check_scalar(value: object, field: str) -> None:
    match value:
        case None | bool():
            pass
        case str():
            text(value, field, empty=True)
        case int():
            if value not in JSON_INTEGERS:
                raise InvalidRequest(f"{field} must hold whole numbers of at most 64 bits", field)
        case float():
            if not math.isfinite(value):
                raise InvalidRequest(f"{field} must hold finite numbers", field)
        case _:
            raise InvalidRequest(f"{field} must hold JSON values, got {kind(value)}", field)


def item_id(value: object, field: str = "item_id") -> UUID:
    """The id of an item, a task, an agent or a human request.

    Raises:
        NotFound: it has another shape, so it names nothing; told as an unknown id is, in the same words.
    """
    if isinstance(value, UUID):
        return value
    try:
        found = UUID(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or str(found) != str(value).lower():
        raise NotFound.of(field)
    return found


def thread_id(value: object) -> str:
    """The id of a quarantined thread; NotFound for another shape."""
    if not isinstance(value, str) or not THREAD.fullmatch(value):
        raise NotFound.of("thread_id")
    return value


def kind(value: object) -> str:
    """What a value is, as its sender would say it."""
    return "null" if value is None else type(value).__name__


def shown(value: str | int | float) -> str:
    """A short value as it was sent, else the beginning of it."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print very long ones
        return "a number of more than 128 bits"
    told = repr(str(value)) if isinstance(value, str) else f"{value}"
    return told if len(told) <= 60 else told[:57] + "..."
