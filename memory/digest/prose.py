"""Prose: whole sentences, chosen, in the order in which they stood. Sentences of any script."""
# ruff: noqa: RUF001 - the punctuation of other scripts is meant

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from memory.digest.fit import CountTokens, Piece, choose, clean, excerpt

GAP = " … "  # something was left out here
NO_SENTENCE = -2.0  # the worth of code, listings, blobs
MOST_SENTENCES = 4_000  # of one text; more are lines of something that is no prose
SENTENCE_CHARS = 1_500  # a longer one is no sentence: it ends at the next line, and is never told

# A sentence ends behind terminal punctuation and white space, behind CJK punctuation, and at the end of a line.
# Patterns here begin with a set of characters, which the engine searches for three times faster than a look-behind.
BOUNDARY = re.compile(
    r"[.!?…。！？｡।؟\n]"
    r"(?:(?<=[.!?…])[\"'”’»)\]*_]{0,3}+\s++|(?<=\n)\s*+|(?<=[。！？｡।؟])[」』”’）]{0,2}+\s*+)"
)
ABBREVIATION = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|No|Fig|approx|[A-Z])\.$")
INITIALS = re.compile(r"\b\w\.\w\.$")  # p.m., U.S.: no end of a sentence before a small letter
WORD = re.compile(r"\w+")
FIGURE = re.compile(r"\d(?<!\w.)")
CAPITAL = re.compile(r"[A-ZÀ-ÞΑ-ΩА-Я](?<!\w.)")
NUMBERED = re.compile(r"\d+(?:[|\t]|:(?!\d))|[<@}{/]|--")  # how lines of listings, tags, comments and diffs begin
CODE = re.compile(r"[=(){}\[\]<>;_|\\/#]")
CODE_ENDS = tuple("{};>\\")
SENTENCE_ENDS = tuple(".!?:…。！？｡।؟*\"'”)」）")

DENIALS = frozenset(
    WORD.findall(
        "not no never none nothing nobody neither nor cannot without dont doesnt didnt isnt wont cant"
        " nicht kein keine keinen nie niemals pas jamais aucun nunca jamás ningún não нет не никогда"
    )
)
DECISIONS = frozenset(
    WORD.findall(
        "decided decide decision agreed agree must prefer prefers preferred instead changed switch switched confirmed"
        " confirm always require requires required deadline chose choose chosen cancelled canceled approved remember"
        " important entschieden muss müssen stattdessen décidé doit decidido debe решили должен"
    )
)
DENIAL_CJK = re.compile("[不没沒别未]|ない|ません|않|없")
DECISION_CJK = re.compile("必须|必須|决定|決定|改为|해야")


def shorten_prose(text: str, budget_tokens: int, count: CountTokens) -> str:
    """The sentences that stand for a text, whole and in order, gaps marked by an ellipsis; "" when none fits."""
    found = sentences(excerpt(clean(text)))
    pieces = map(Piece, range(len(found)), found, worths(found))
    chosen = choose((p for p in pieces if p.worth > NO_SENTENCE), budget_tokens, count, joint_tokens=2)
    while chosen:
        told = join(chosen, len(found))
        if count(told) <= budget_tokens:
            return told
        chosen.remove(min(chosen, key=lambda piece: piece.worth))
    return ""


def join(pieces: Sequence[Piece], total: int) -> str:
    """Sentences in one line, with a mark where some were left out."""
    told: list[str] = []
    expected = pieces[0].place
    for piece in pieces:
        if told:
            told.append(" " if piece.place == expected else GAP)
        told.append(piece.text)
        expected = piece.place + 1
    return "".join(told) + ("" if expected == total else GAP.rstrip())


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped, in order; a line that is none (list, heading, code) stands for itself.

    At most `MOST_SENTENCES`.

    >>> sentences("Dr. No came. He left!\\n- one thing\\n- another")
    ['Dr. No came.', 'He left!', '- one thing', '- another']
    """
    found: list[str] = []
    start = line_start = 0
    for match in BOUNDARY.finditer(text):
        at, end = match.span()
        is_break = text[at] == "\n"
        if end - start < SENTENCE_CHARS and (
            continues(text, line_start, at, end) if is_break else abbreviates(text, start, at, end)
        ):
            line_start = end if is_break else line_start
            continue
        if piece := text[start:end].strip():
            found.append(piece.replace("\n", " "))
            if len(found) == MOST_SENTENCES:
                return found
        start = end
        line_start = end if text[end - 1] == "\n" else line_start
    if rest := text[start:].strip():
        found.append(rest.replace("\n", " "))
    return found


def abbreviates(text: str, start: int, at: int, end: int) -> bool:
    """Whether a full stop belongs to a short form."""
    ending = text[max(start, at - 7) : at + 1]
    if INITIALS.search(ending):
        return text[end : end + 1].islower()
    return ABBREVIATION.search(ending) is not None


def continues(text: str, line_start: int, at: int, end: int) -> bool:
    """Whether a line break only wraps a line: a long line without an end, and a small letter behind it."""
    return (
        50 <= at - line_start <= 120
        and text.find("\n", at + 1, end) < 0
        and text[end : end + 1].islower()
        and text[at - 1] not in ".!?:;"
    )


def is_telling(sentence: str) -> bool:
    """Whether a sentence denies or decides something."""
    lowered = sentence.lower()
    return tells(lowered, WORD.findall(lowered))


def tells(lowered: str, words: Collection[str]) -> bool:
    return denies(lowered, words) or decides(lowered, words)


def denies(lowered: str, words: Collection[str]) -> bool:
    if not DENIALS.isdisjoint(words) or "n't" in lowered or "n’t" in lowered:
        return True
    return not lowered.isascii() and DENIAL_CJK.search(lowered) is not None


def decides(lowered: str, words: Collection[str]) -> bool:
    return not DECISIONS.isdisjoint(words) or (not lowered.isascii() and DECISION_CJK.search(lowered) is not None)


def worths(found: Sequence[str]) -> Iterator[float]:
    """How well each sentence stands for all: by its place, words that others share, and what it says."""
    looked = [look(sentence) for sentence in found]
    long = [{word for word in words if len(word) > 3} for _, words in looked]
    shared = Counter(chain.from_iterable(long))
    for i, ((worth, words), bag) in enumerate(zip(looked, long, strict=True)):
        if worth == NO_SENTENCE:
            yield worth
            continue
        themes = sum(map(math.log, map(shared.__getitem__, bag))) / (4 + len(words))
        yield worth + themes + 0.6 * (i == 0) + 0.3 * (i == len(found) - 1)


def look(sentence: str) -> tuple[float, list[str]]:
    """What speaks for a sentence wherever it stands (figures, capitals, denials, decisions), and its words.

    What is no sentence is worth `NO_SENTENCE`.
    """
    if len(sentence) > SENTENCE_CHARS:
        return NO_SENTENCE, []
    lowered = sentence.lower()
    words = WORD.findall(lowered)
    if not is_words(sentence, sum(map(len, words))):
        return NO_SENTENCE, words
    capitals = len(CAPITAL.findall(sentence)) / (4 + len(words))
    figures = min(4, len(FIGURE.findall(sentence)))
    return 0.25 * figures + 0.8 * capitals + 0.8 * tells(lowered, words) - 0.5 * (len(words) < 4), words


def is_words(line: str, letters: int | None = None) -> bool:
    """A line that could be read aloud: mostly letters, and neither numbered nor punctuated like code."""
    if NUMBERED.match(line) or line.endswith(CODE_ENDS):
        return False
    if len(line) > 400 and " " not in line[:400] and line[:400].isascii():
        return False
    spaces = line.count(" ")
    letters = sum(map(len, WORD.findall(line))) if letters is None else letters
    if letters + spaces < 0.75 * len(line) or len(CODE.findall(line)) > 1 + 0.04 * len(line):
        return False
    return line.endswith(SENTENCE_ENDS) or spaces >= 3 or not line.isascii() or line.replace(" ", "").isalpha()
