"""Which kind of content a text is, from its looks."""

import re
from enum import StrEnum

from memory.digest.data import parse_json
from memory.digest.prose import is_words

LOOKED_AT_CHARS = 4_000  # a text's kind shows early


class Kind(StrEnum):
    PROSE = "prose"
    JSON = "json"
    LOG = "log"
    OTHER = "other"  # code, listings, tables, blobs


STAMP = re.compile(
    r"\s{0,4}\W?(?:\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d|\d\d:\d\d:\d\d|\w{3} [ \d]\d \d\d:\d\d:\d\d|\d\d/\w{3}/\d{4}"
    r"|\d{10,13}(?:\.\d+)?\s|\[?(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|FATAL|CRITICAL|SEVERE)\]?[\s:])"
)


def pick(text: str) -> Kind:
    """Prose, a JSON array or object, a log, or something else whose lines only stand as they are."""
    if text.lstrip()[:1] in ("{", "[") and parse_json(text) is not None:
        return Kind.JSON
    lines = [line for line in sample(text).splitlines() if line.strip()]
    if not lines:
        return Kind.PROSE
    stamped = sum(1 for line in lines if STAMP.match(line))
    if len(lines) >= 3 and stamped * 2 > len(lines):
        return Kind.LOG
    return Kind.PROSE if looks_like_prose(lines) else Kind.OTHER


def sample(text: str) -> str:
    """Some of the head and some of the middle: code may open with a page of licence."""
    if len(text) <= LOOKED_AT_CHARS:
        return text
    half, middle = LOOKED_AT_CHARS // 2, len(text) // 2
    return f"{text[:half]}\n{text[middle : middle + half]}"


def looks_like_prose(lines: list[str]) -> bool:
    """Whether most of the text, by characters, stands in lines made of words, and few lines are indented."""
    indented = sum(1 for line in lines if line[:2].isspace() and line.lstrip()[0] not in "-*+\u2022")
    if len(lines) > 4 and indented * 3 > len(lines):
        return False
    return sum(len(line) for line in lines if is_words(line.strip())) * 2 > sum(map(len, lines))
