"""What is sealed: digests of texts in quarantine, and how messages are searched for them. Pure."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from memory.identify import Line
from memory.messages import Message, ToolCall

HELD = "(held in quarantine)"
DIGEST_BYTES = 16
SAFE_RUN = re.compile(rb"[ !#-%(-;=?-\[\]-~]+")  # ASCII that stands in JSON as it is, whoever writes it
MOST_NEEDLE_BYTES = 200
MOST_PIECES = 64
PLAIN_ENDS = re.compile(rb"[\"\\/<>&'\x00-\x1f\x7f]+|\xe2\x80[\xa8\xa9]")  # what some writer of JSON escapes
ESCAPED_ENDS = re.compile(rb"\\[^u]|[\"/<>&'\x7f]|\\u00(?:[01][0-9a-f]|7f)")
SHORT_CHARS = 8  # a shorter text is looked for as a whole: its letters stand everywhere


def text_digest(text: str) -> bytes:
    """Of the words, without the white space around them."""
    return blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def without_sealed(line: Line, seals: Collection[bytes]) -> Line:
    """A line as what we make of it may tell it: sealed messages keep place, role and bytes, and lose their words."""
    if not seals:
        return line
    return replace(line, messages=tuple(masked(m) if is_sealed(m, seals) else m for m in line.messages))


def is_sealed(message: Message, seals: Collection[bytes]) -> bool:
    return message.digest in seals or text_digest(message.text) in seals


def masked(message: Message) -> Message:
    """Its `raw` stays: the client's bytes go upstream as they came; only words of ours are made from the rest."""
    calls = tuple(ToolCall(c.id, c.name, "{}") for c in message.calls)
    return replace(message, text=HELD, calls=calls, has_user_words=False)


def needle(text: str) -> bytes:
    """Bytes that stand in every JSON writing of a text; b"" where there are none worth a search.

    >>> needle('say "the password is swordfish" twice')
    b'the password is swordfish'
    """
    runs = SAFE_RUN.findall(text.strip().encode("utf-8", "surrogatepass").replace(b"/", b'"'))
    longest: bytes = max(runs, key=len, default=b"")[:MOST_NEEDLE_BYTES]
    return longest if len(longest) >= SHORT_CHARS else b""


def pieces(text: str) -> tuple[list[bytes], list[bytes]]:
    """What stands in every JSON writing of a text in UTF-8, and in every one in ASCII: a message with all of either
    holds the text. None where it is too short for that, or has no such pieces.

    >>> pieces("the first line\\nand the second")
    ([b'the first line', b'and the second'], [])
    """
    words = text.strip()
    if len(words) < SHORT_CHARS:
        return [], []
    plain = longest(PLAIN_ENDS.split(words.encode("utf-8", "surrogatepass")))
    return plain, [] if words.isascii() else longest(ESCAPED_ENDS.split(json.dumps(words)[1:-1].encode()))


def longest(found: Sequence[bytes]) -> list[bytes]:
    kept = [piece[:MOST_NEEDLE_BYTES] for piece in sorted(found, key=len, reverse=True)[:MOST_PIECES] if piece]
    return kept if sum(map(len, kept)) >= SHORT_CHARS else []


def holds(raw: bytes, text: str) -> bool:
    """Whether a message says a text, however its JSON writes it; what is no JSON is searched as it is."""
    wanted = text.strip()
    if len(wanted) < SHORT_CHARS:
        return any(said.strip() == wanted for said in spoken(raw))
    return any(wanted in said for said in spoken(raw))


def spoken(raw: bytes) -> Iterator[str]:
    """All texts of a message, also those within arguments of calls, which are JSON in JSON."""
    try:
        waiting: list[object] = [json.loads(raw)]
    except (ValueError, RecursionError):
        yield raw.decode("utf-8", "replace")
        return
    while waiting:
        match waiting.pop():
            case str() as said:
                yield said
                if said.startswith(("{", "[")):
                    waiting.extend(inner(said))
            case list() as parts:
                waiting.extend(parts)
            case dict() as fields:
                waiting.extend(fields.values())


def inner(said: str) -> Iterator[object]:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict | list):
        yield found
