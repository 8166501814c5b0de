"""Putting whole pieces of text into a number of tokens. Pieces go in or stay out; none is cut here."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

CountTokens = Callable[[str], int]  # the tokens of a text

CHARS_IN_A_TOKEN = 128  # no token of OpenAI's vocabularies is longer, so more text than this never fits
EXAMINED_CHARS = 200_000  # of one text, from both its ends; a digest shows a small part of that
WORD_START = re.compile(r"[^\s\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]*+")  # of a script with spaces
REPLACED = [*range(9), 11, 12, *range(14, 32), 127, *range(0xD800, 0xE000)]  # controls, lone surrogates
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
TO_REPLACEMENT = dict.fromkeys(REPLACED, "\ufffd")


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that is kept whole or left out."""

    place: int  # where it stood: the output keeps this order
    text: str
    worth: float  # more is kept sooner


def clean(text: str) -> str:
    """Text without control characters and lone surrogates, which neither a prompt nor a table takes well."""
    text = text.replace("\r\n", "\n")
    return text.translate(TO_REPLACEMENT) if UNPRINTABLE.search(text) else text


def excerpt(text: str, chars: int = EXAMINED_CHARS) -> str:
    """Both ends of a very long text, cut between words: what a digest looks at stays bounded."""
    if len(text) <= chars:
        return text
    return f"{to_word_end(text[: chars * 2 // 3])}\n{to_word_start(text[-(chars // 3) :])}"


def to_word_end(text: str) -> str:
    """Text without its last word, which may be half of one; scripts without spaces lose nothing."""
    half = WORD_START.match(text[::-1])
    return text[: len(text) - half.end()].rstrip() if half else text


def to_word_start(text: str) -> str:
    """Text without its first word, which may be half of one."""
    half = WORD_START.match(text)
    return text[half.end() :].lstrip() if half else text


def fits(text: str, budget_tokens: int, count: CountTokens) -> bool:
    return len(text) <= budget_tokens * CHARS_IN_A_TOKEN and count(text) <= budget_tokens


def choose(pieces: Iterable[Piece], budget_tokens: int, count: CountTokens, joint_tokens: int = 1) -> list[Piece]:
    """The most worthy pieces that fit, each followed by `joint_tokens`, in the order in which they stood.

    A piece that is too long for what is left is passed over; after a few such the rest is not tried, since
    counting costs more than the gap is worth.
    """
    chosen: list[Piece] = []
    room, passed_over = budget_tokens, 0
    for piece in sorted(pieces, key=lambda piece: (-piece.worth, piece.place)):
        if room <= joint_tokens or passed_over > 8:
            break
        cost = tokens_or_more(piece.text, room, count) + joint_tokens
        if cost > room:
            passed_over += 1
            continue
        chosen.append(piece)
        room -= cost
    return sorted(chosen, key=lambda piece: piece.place)


def tokens_or_more(text: str, room: int, count: CountTokens) -> int:
    """The tokens of a text; for a text that cannot fit into `room`, some number above it."""
    return room + 1 if len(text) > room * CHARS_IN_A_TOKEN else count(text)


def trim(lines: Sequence[str], budget_tokens: int, count: CountTokens, joint: str = "\n") -> str:
    """Lines joined, without the last ones if they do not fit: tokens of parts do not quite add up to those of all."""
    kept = [line for line in lines if line]
    while kept and not fits(joint.join(kept), budget_tokens, count):
        kept.pop()
    return joint.join(kept)
