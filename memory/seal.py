"""What is sealed: digests of texts in quarantine, and how messages are searched for them. Pure."""

import json
import re
from collections.abc import Iterator
from hashlib import blake2b

DIGEST_BYTES = 16
SAFE_RUN = re.compile(rb"[ !#-\[\]-~]+")  # ASCII that stands in JSON as it is
MOST_NEEDLE_BYTES = 200
SHORT_CHARS = 8  # a shorter text is looked for as a whole: its letters stand everywhere


def text_digest(text: str) -> bytes:
    """Of the words, without the white space around them."""
    return blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def needle(text: str) -> bytes:
    """Bytes that stand in every JSON writing of a text; b"" where there are none worth a search.

    >>> needle('say "the password is swordfish" twice')
    b'the password is swordfish'
    """
    runs = SAFE_RUN.findall(text.strip().encode("utf-8", "surrogatepass").replace(b"/", b'"'))
    longest: bytes = max(runs, key=len, default=b"")[:MOST_NEEDLE_BYTES]
    return longest if len(longest) >= SHORT_CHARS else b""


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
