"""Text as counted terms, and BM25 over them. What is searched, and how scores are joined, is in `rank.py`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

K1 = 1.2  # how soon more of the same term stops counting
B = 0.75  # how much a long text is held back

WHOLE_CHARS = 80  # a longer path, URL or id counts by its parts alone
STEM_CACHE_WORDS = 50_000

RUN = re.compile(r"\w+(?:['’.\-/:@\\]\w+)*")
PART = re.compile(r"[^\W_]+")
CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]+")

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)?[ -]{MONTH}(?:,?[ -]+(\d{{4}}))?\b", re.I)
MONTH_FIRST = re.compile(rf"\b{MONTH}[ -](\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?[ -]+(\d{{4}})\b)?", re.I)
MONTH_YEAR = re.compile(rf"\b{MONTH}(?:,| of)?[ -]+(\d{{4}})\b", re.I)
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
    day, month and year besides its words, however it is written.
    """
    counts: Counter[str] = Counter()
    length = 0
    for run, times in Counter(RUN.findall(text)).items():
        pieces = split(run)
        length += times * len(pieces.words)
        for term in pieces.words:
            counts[term] += times
        for term in pieces.wholes:
            counts[term] += times
    for date in dates(text):
        counts[date] += 1
    return Terms(counts, length)


@dataclass(frozen=True, slots=True)
class Pieces:
    words: tuple[str, ...]
    wholes: tuple[str, ...]  # compounds, in addition to the words they are made of


@lru_cache(STEM_CACHE_WORDS)
def split(run: str) -> Pieces:
    """Cut one run of word characters into its words; a compound is kept whole, too."""
    if run.isascii() and run.isalnum() and (run.islower() or run.isdigit() or run[1:].islower()):
        return Pieces((stem(run.lower()),), ())
    plain = run.replace("’", "'")
    for ending in ("'s", "'S"):
        plain = plain.removesuffix(ending)
    words: list[str] = []
    wholes: list[str] = []
    for part in PART.findall(plain.replace("'", "")):
        pieces = bigrams(part) if CJK.search(part) else camel(part)
        words.extend(stem(piece.lower()) for piece in pieces)
        if len(pieces) > 1 and pieces is not None and not CJK.search(part):
            wholes.append(part.lower())
    if len(words) > 1 and not CJK.search(plain):
        if len(plain) <= WHOLE_CHARS:
            wholes.append(plain.lower())
        name = re.split(r"[/\\:]", plain)[-1].lower()
        wholes.append(name)
    known = set(words)
    return Pieces(tuple(words), tuple(whole for whole in dict.fromkeys(wholes) if whole not in known))


def camel(part: str) -> list[str]:
    """Cut at the humps of an identifier; text in other scripts stays as it is."""
    if not part.isascii() or part.islower() or part.isdigit():
        return [part]
    return CAMEL.findall(part)


def bigrams(part: str) -> list[str]:
    """Pairs of neighbouring characters of Chinese, Japanese and Korean; other letters between stay words."""
    found: list[str] = []
    end = 0
    for run in CJK.finditer(part):
        found.extend([part[end : run.start()]] if run.start() > end else [])
        text, end = run.group(), run.end()
        found.extend([text] if len(text) == 1 else [text[i : i + 2] for i in range(len(text) - 1)])
    return [*found, part[end:]] if end < len(part) else found


def stem(word: str) -> str:
    """Cut the commonest English endings, so that `paints`, `painted` and `painting` are one term."""
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("s"):
        word = singular(word)
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and any(vowel in rest for vowel in "aeiouy"):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    if word.endswith("y") and len(word) > 3:
        word = word[:-1] + "i"
    return word


def singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word[:-1]


def dates(text: str) -> list[str]:
    """Dates as terms: `d:2023-05-08`, `d:05-08`, `d:2023-05`, as much of it as is said."""
    found: list[str] = []
    for day, month, year in DAY_FIRST.findall(text):
        found.extend(date_terms(year, month_number(month), int(day)))
    for month, day, year in MONTH_FIRST.findall(text):
        found.extend(date_terms(year, month_number(month), int(day)))
    for month, year in MONTH_YEAR.findall(text):
        found.extend(date_terms(year, month_number(month), 0))
    for year, month, day in NUMERIC.findall(text):
        found.extend(date_terms(year, int(month), int(day)))
    return found


def month_number(name: str) -> int:
    return MONTHS.index(name[:3].lower()) + 1


def date_terms(year: str, month: int, day: int) -> list[str]:
    if not (1 <= month <= 12 and 0 <= day <= 31):
        return []
    found = [f"d:{month:02}-{day:02}"] if day else []
    if year:
        found.append(f"d:{year}-{month:02}")
    if year and day:
        found.append(f"d:{year}-{month:02}-{day:02}")
    return found


def frequencies(texts: Sequence[Terms], wanted: Sequence[str]) -> NDArray[np.float64]:
    """How often each wanted term stands in each text: (texts, wanted)."""
    rows: Iterable[float] = (text.counts.get(term, 0) for text in texts for term in wanted)
    flat = np.fromiter(rows, dtype=np.float64, count=len(texts) * len(wanted))
    return flat.reshape(len(texts), len(wanted))


def bm25(
    tf: NDArray[np.float64], lengths: NDArray[np.float64], weights: NDArray[np.float64], k1: float = K1, b: float = B
) -> NDArray[np.float64]:
    """BM25 of each text: sum over terms of weight x idf x saturated frequency.

    Args:
        tf: (texts, terms) frequencies.
        lengths: (texts,) words of each text.
        weights: (terms,) weight of each term in the query.

    idf = ln(1 + (n - df + .5) / (df + .5)), never negative, as Lucene has it.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """
    idf = inverse_frequency(tf)
    mean = lengths.mean() if lengths.size and lengths.any() else 1.0
    norm = k1 * (1 - b + b * lengths / mean)
    scores: NDArray[np.float64] = (tf / (tf + norm[:, None])) @ (idf * weights)
    return scores


def inverse_frequency(tf: NDArray[np.float64]) -> NDArray[np.float64]:
    having = (tf > 0).sum(axis=0)
    found: NDArray[np.float64] = np.log1p((len(tf) - having + 0.5) / (having + 0.5))
    return found
