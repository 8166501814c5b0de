"""Where things stand in a JSON text: spans of members and elements, so that text can be cut and replaced unparsed.

msgspec checks the grammar while it skips; what it leaves open (UTF-8, depth, half surrogates, a key twice) is checked
here. Spans are byte offsets (start, stop). Everything is linear, for broken and hostile texts too.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec
from msgspec import Raw

MOST_TOKENS = 1_000_000  # brackets and strings of a message: more were not written for a model
MOST_PARTS = 10_000  # of a message: a small body can hold millions of empty ones
MAX_DEPTH = 256  # arrays and objects inside each other; a top-level object has depth 1

Span = tuple[int, int]

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'  # possessive: a string without an end is not tried again and again

_elements = msgspec.json.Decoder(list[Raw])
_members = msgspec.json.Decoder(dict[str, Raw])
_KEY = re.compile(rb"\s*[{,]\s*" + _STRING + rb"\s*:\s*", re.DOTALL)
_OBJECT_END = re.compile(rb"\s*\}\s*\Z")
_EMPTY_OBJECT = re.compile(rb"\s*\{\s*\}\s*\Z")
_WHOLE_STRING = re.compile(_STRING, re.DOTALL)
_TOKEN = re.compile(_STRING + rb'|["\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    rb"|.)",  # any other escape, so that `\\ud800` is a backslash and a word
    re.DOTALL,
)


_LONE_QUOTE = b'"'  # a string without an end
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


class NotUnderstood(ValueError):
    """This JSON is not what we look for; whoever relays it passes it on as it is."""


def check(text: bytes, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what msgspec would skip over: bytes that are not UTF-8, and deep nesting.

    Raises:
        NotUnderstood
    """
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise NotUnderstood("not UTF-8") from error
    if text.count(b"[") + text.count(b"{") > max_depth:
        depth = 0
        for token in _TOKEN.finditer(text):
            depth += _STEP.get(token[0], 0)
            if depth > max_depth or token[0] == _LONE_QUOTE:
                raise NotUnderstood("nested too deeply")


def looking(text: bytes) -> bytes:
    r"""A copy to look at: half surrogate pairs (`\ud800`), legal in JSON but not in UTF-8, become `\ufffd`.

    Offsets stay, because both have six bytes. Texts without such escapes are returned as they are.
    """
    if b"\\u" not in text or _SURROGATE.search(text) is None:
        return text
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], text)


def members(text: bytes) -> dict[str, Span]:
    """Where the value of each key stands in a JSON object, in the object's order.

    Raises:
        NotUnderstood: a key stands there twice.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: not a JSON object.
    """
    values = _members.decode(text)
    spans: dict[str, Span] = {}
    position = 0
    for key, value in values.items():
        before = _KEY.match(text, position)
        # Of two equal keys the decoder keeps the first place and the last value, so the walk gets out of step.
        if before is None or not text.startswith(value, before.end()):
            raise NotUnderstood("a key stands there twice")
        position = before.end() + len(memoryview(value))
        spans[key] = (before.end(), position)
    if not (_OBJECT_END.match(text, position) if spans else _EMPTY_OBJECT.match(text)):
        raise NotUnderstood("a key stands there twice")
    return spans


def with_value(raw: bytes, key: str, value: bytes) -> bytes:
    """A JSON object with another value under a key; all other keys, their order and spacing stay.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: see `members`.
    """
    spans = members(looking(raw))
    if key in spans:
        start, stop = spans[key]
        return raw[:start] + value + raw[stop:]
    end = raw.rindex(b"}")
    return b"".join((raw[:end], b"," if spans else b"", msgspec.json.encode(key), b":", value, raw[end:]))


def replaced(raw: bytes, values: Mapping[str, bytes | None]) -> bytes:
    """A JSON object with other values under keys that it has, and without those whose new value is None.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: see `members`.
    """
    spans = members(looking(raw))
    wanted = [values.get(key, raw[slice(*span)]) for key, span in spans.items()]
    return _woven(raw, list(spans.values()), wanted, b"{}")


def rearranged(array: bytes, wanted: Sequence[bytes | None]) -> bytes:
    """A JSON array of objects with another value for each element, and without those whose value is None.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: see `elements`.
    """
    return _woven(array, elements(looking(array)), wanted, b"[]")


def _woven(text: bytes, spans: Sequence[Span], wanted: Sequence[bytes | None], empty: bytes) -> bytes:
    """Values in the place of others, with what stood between those that stay."""
    out: list[bytes] = []
    position = 0
    for (start, stop), value in zip(spans, wanted, strict=True):
        if value is not None:
            before = text[position:start]  # begins with the bracket or the comma
            out += (before if out or position == 0 else before.replace(b",", empty[:1], 1), value)
        position = stop
    return b"".join((*out, text[position:])) if out else empty


def parts(raw: bytes) -> dict[str, bytes]:
    """The values of a JSON object, as they are written.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: see `members`.
    """
    return {key: raw[slice(*span)] for key, span in members(looking(raw)).items()}


def each(array: bytes) -> list[bytes]:
    """The elements of a JSON array of objects, as they are written.

    Raises:
        NotUnderstood, msgspec.DecodeError, UnicodeDecodeError, RecursionError: see `elements`.
    """
    return [array[slice(*span)] for span in elements(looking(array))]


def elements(text: bytes) -> list[Span]:
    """Where the elements of a JSON array of objects stand.

    Raises:
        NotUnderstood: not an array of objects.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: not a JSON array.
    """
    spans: list[Span] = []
    position = 0
    for value in _elements.decode(text):
        start = text.find(b"{", position)
        if start < 0 or not text.startswith(value, start):
            raise NotUnderstood("not an array of objects")
        position = start + len(memoryview(value))
        spans.append((start, position))
    return spans


def few(parts: list[Raw]) -> list[Raw]:
    """Refuse what nobody wrote for a model: reading it would take minutes.

    Raises:
        NotUnderstood
    """
    if len(parts) > MOST_PARTS:
        raise NotUnderstood("too many parts")
    return parts


def object_end(text: bytes, start: int) -> int:
    """Where the object that begins at `start` ends, going by its brackets and strings alone.

    Raises:
        NotUnderstood: no object begins there, it has no end, it nests deeper than `MAX_DEPTH`, or it has more than
            `MOST_TOKENS`.
    """
    depth = 0
    tokens = _TOKEN.finditer(text, start) if text.startswith(b"{", start) else iter(())
    for token in islice(tokens, MOST_TOKENS):
        depth += _STEP.get(token[0], 0)
        if depth == 0:
            return token.end()
        if depth > MAX_DEPTH or token[0] == _LONE_QUOTE:
            break
    raise NotUnderstood("not an object")


def string_end(text: bytes, start: int) -> int:
    """Where the string that begins at `start` ends.

    Raises:
        NotUnderstood: no string begins there, or it has no end.
    """
    found = _WHOLE_STRING.match(text, start)
    if found is None:
        raise NotUnderstood("not a string")
    return found.end()
