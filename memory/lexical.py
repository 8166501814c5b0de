"""Text as counted terms, and BM25 over them. What is searched, and how scores are joined, is in `rank.py`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

K1 = 1.2  # how soon more of the same term stops counting
B = 0.75  # how much a long text is held back

FEW_TERMS = 50  # up to here asking each text for each term is quicker than comparing whole sets

CACHED_RUN_CHARS = 60  # a longer run of characters is seldom met again
DENSE_RUN_CHARS = 20  # text with longer runs on average has few spaces to cut at
WHOLE_CHARS = 80  # a longer path, URL or key counts by its parts alone
SPLIT_CACHE_RUNS = 16_384

PUNCTUATION = ".,;:!?()[]{}<>\"'`*#=+-/|"

# Words joined by a sign that joins names, paths, versions, addresses and dates; \u2019 is the curly apostrophe.
RUN = re.compile(r"\w+(?:['\u2019.\-/:@\\]\w+)*")
PART = re.compile(r"[^\W_]+")
CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]+")
LAST_NAME = re.compile(r"[^/\\:]+$")

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = (
    r"\b(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b"
)
MONTH_WORD = re.compile(MONTH, re.I)
DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)?[ -]{MONTH}\.?(?:,?[ -](\d{{4}})\b)?", re.I)
MONTH_FIRST = re.compile(rf"{MONTH}\.?[ -](\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?[ -](\d{{4}})\b)?", re.I)
MONTH_YEAR = re.compile(rf"{MONTH}\.?,?(?: of)?[ -](\d{{4}})\b", re.I)
NUMERIC = re.compile(r"\b(\d{4})[-/](\d{1,2})[-/](\d{1,2})\b")


@dataclass(frozen=True, slots=True)
class Terms:
    """A text for lexical search: how often each term stands in it, and how many words it has."""

    counts: Mapping[str, int]
    length: int


def terms(text: str) -> Terms:
    """Count the terms of a text.

    Case is folded and English endings are cut. `parseDate`, `max_tokens`, `src/app.py`, `4.18.2` count
    whole and by their parts. Chinese, Japanese and Korean count by pairs of characters. A date counts as
    day, month and year besides its words, so `8 May 2023` and `2023-05-08` meet.
    """
    runs = text.split()
    if len(text) > len(runs) * DENSE_RUN_CHARS:
        runs = RUN.findall(text)  # minified JSON, Chinese: cut at its signs
    counts: dict[str, int] = {}
    length = 0
    months: set[str] = set()
    for run, times in Counter(runs).items():
        found, words, is_month = split(run) if len(run) <= CACHED_RUN_CHARS else pieces(run)
        length += times * words
        if is_month:
            months.add(run)
        for term in found:
            counts[term] = counts.get(term, 0) + times
    for term in spoken_dates(runs, months):
        counts[term] = counts.get(term, 0) + 1
    return Terms(counts, length)


class Pieces(NamedTuple):
    """What a run of characters without white space counts as."""

    found: tuple[str, ...]
    words: int  # how many of these are words; the rest are compounds and dates
    is_month: bool  # names a month, so its neighbours may make it a date


@lru_cache(SPLIT_CACHE_RUNS)
def split(run: str) -> Pieces:
    return pieces(run)


def pieces(run: str) -> Pieces:
    bare = run.strip(PUNCTUATION)
    if bare.isascii() and bare.isalpha() and (bare.islower() or bare[1:].islower() or len(bare) == 1):
        return Pieces((stem(bare.lower()),), 1, bare[:3].lower() in MONTHS and MONTH_WORD.fullmatch(bare) is not None)
    words: list[str] = []
    wholes: list[str] = []
    for joined in RUN.findall(run):
        parts = split_joined(joined)
        words.extend(parts)
        wholes.extend(compounds(joined, len(parts)))
    has_month = any(word[:3] in MONTHS for word in words) and MONTH_WORD.search(run) is not None
    dates = named_date(run) if has_month else numeric_dates(run)
    extra = [whole for whole in dict.fromkeys(wholes) if whole not in words]
    return Pieces((*words, *extra, *dates), len(words), has_month and not dates)


def split_joined(joined: str) -> list[str]:
    plain = without_possessive(joined).replace("'", "")
    if plain.isascii() and plain.isalnum() and plain.islower():
        return [stem(plain)]
    return [stem(word.lower()) for part in PART.findall(plain) for word in humps(part)]


def compounds(joined: str, words: int) -> Iterator[str]:
    """A name of several words as a whole; of a path also its last name, and each name in it."""
    plain = without_possessive(joined).lower()
    if words < 2 or len(plain) > WHOLE_CHARS or CJK.search(plain):
        return
    yield stem(plain)
    yield from LAST_NAME.findall(plain)
    for part in PART.findall(joined):
        if len(humps(part)) > 1:
            yield stem(part.lower())


def without_possessive(run: str) -> str:
    plain = run.replace("\u2019", "'")
    return plain[:-2] if plain.endswith(("'s", "'S")) else plain


def humps(part: str) -> list[str]:
    """Cut an identifier at its humps, and scripts without spaces into pairs of characters."""
    if CJK.search(part):
        return list(pairs(part))
    if not part.isascii() or part.islower() or part.isdigit():
        return [part]
    return CAMEL.findall(part)


def pairs(part: str) -> Iterator[str]:
    end = 0
    for run in CJK.finditer(part):
        if run.start() > end:
            yield part[end : run.start()]
        text, end = run.group(), run.end()
        yield from (text[i : i + 2] for i in range(max(1, len(text) - 1)))
    if end < len(part):
        yield part[end:]


def stem(word: str) -> str:
    """Cut the commonest English endings.

    >>> [stem(word) for word in ("paints", "painted", "painting", "hiking", "hike", "stories", "story", "class")]
    ['paint', 'paint', 'paint', 'hik', 'hik', 'stori', 'stori', 'class']
    """
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    word = singular(word)
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and any(vowel in rest for vowel in "aeiouy"):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    if len(word) > 3 and word.endswith("e"):
        return word[:-1]
    if len(word) > 3 and word.endswith("y"):
        return word[:-1] + "i"
    return word


def singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def spoken_dates(runs: Sequence[str], months: Set[str]) -> Iterator[str]:
    """Dates as terms that name their month in a word and have day or year in the words beside it."""
    if not months:
        return
    for at, run in enumerate(runs):
        if run in months:
            yield from named_date(" ".join(runs[max(0, at - 2) : at + 3]))


def numeric_dates(text: str) -> list[str]:
    return [term for y, m, d in NUMERIC.findall(text) for term in date_terms(y, int(m), int(d))]


def named_date(text: str) -> list[str]:
    if date := DAY_FIRST.search(text):
        return date_terms(date[3], month_number(date[2]), int(date[1]))
    if date := MONTH_FIRST.search(text):
        return date_terms(date[3], month_number(date[1]), int(date[2]))
    if date := MONTH_YEAR.search(text):
        return date_terms(date[2], month_number(date[1]), 0)
    return []


def month_number(name: str) -> int:
    return MONTHS.index(name[:3].lower()) + 1


def date_terms(year: str | None, month: int, day: int) -> list[str]:
    """As much of a date as is said: `d:2023-05-08`, `d:05-08`, `d:2023-05`. Day 0: none."""
    if not (1 <= month <= 12 and 0 <= day <= 31):
        return []
    found = [f"d:{month:02}-{day:02}"] if day else []
    if year:
        found.append(f"d:{year}-{month:02}")
    if year and day:
        found.append(f"d:{year}-{month:02}-{day:02}")
    return found


def frequencies(texts: Sequence[Terms], wanted: Sequence[str]) -> Floats:
    """How often each wanted term stands in each text: (terms, texts), so that neighbours in memory are neighbours."""
    if len(wanted) <= FEW_TERMS:
        counts = [text.counts for text in texts]
        rows = [[count.get(term, 0) for count in counts] for term in wanted]
        return np.array(rows, dtype=np.float32).reshape(len(wanted), len(texts))
    row_of = {term: row for row, term in enumerate(wanted)}
    found = np.zeros((len(wanted), len(texts)), dtype=np.float32)
    for column, text in enumerate(texts):
        for term in text.counts.keys() & row_of.keys():
            found[row_of[term], column] = text.counts[term]
    return found


def bm25(tf: Floats, lengths: Floats, weights: Floats, k1: float = K1, b: float = B) -> Floats:
    """BM25 of each text: the sum over terms of weight x saturated frequency, which is 0 to 1.

    Args:
        tf: (terms, texts) frequencies.
        lengths: (texts,) words of each text.
        weights: (terms,) of the query, rarity included.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """
    mean = float(lengths.mean()) if lengths.size else 0.0
    norm = k1 * (1 - b + b * lengths / mean) if mean > 0 else np.full_like(lengths, k1)
    scores: Floats = weights @ (tf / (tf + norm))
    return scores


def rarity(tf: Floats) -> Floats:
    """Inverse document frequency, ln(1 + (n - df + .5) / (df + .5)): (terms,), never negative, as Lucene has it."""
    having = np.count_nonzero(tf, axis=1)
    found: Floats = np.log1p((tf.shape[1] - having + 0.5) / (having + 0.5)).astype(np.float32)
    return found
