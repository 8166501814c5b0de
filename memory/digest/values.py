"""Which words and short spans of a text are facts: values that nobody can guess and that somebody may need.

Rules on words, in time linear in the text: a pattern never starts inside what another start of it has passed,
and the finer ones only see single words of bounded length.
"""
# ruff: noqa: RUF001 - the punctuation of other scripts is meant

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

WORD_CHARS = 240  # longer words are blobs, not names


class FactKind(StrEnum):
    """The value is the word that a facts line uses."""

    ID = "ids"  # letters and digits mixed, long numbers
    PATH = "paths"
    URL = "urls"
    EMAIL = "emails"
    CODE = "code"  # dotted.names, camelCase, snake_case
    ERROR = "errors"
    MONEY = "money"
    AMOUNT = "amounts"  # a number and its unit
    DATE = "dates"
    VERSION = "versions"
    NAME = "names"
    CAPS = "caps"  # MCO, USD
    SHORT = "codes"  # h5, 3L: letters and digits, too short for an id
    QUOTE = "quotes"
    NUMBER = "numbers"


WORTH: Mapping[FactKind, float] = {
    FactKind.ID: 4.0,
    FactKind.PATH: 3.5,
    FactKind.ERROR: 3.5,
    FactKind.EMAIL: 3.0,
    FactKind.MONEY: 3.0,
    FactKind.DATE: 3.0,
    FactKind.URL: 2.5,
    FactKind.CODE: 2.5,
    FactKind.AMOUNT: 2.0,
    FactKind.VERSION: 2.0,
    FactKind.NAME: 2.0,
    FactKind.CAPS: 1.0,
    FactKind.QUOTE: 1.0,
    FactKind.SHORT: 0.7,
    FactKind.NUMBER: 0.7,
}


@dataclass(frozen=True, slots=True)
class Fact:
    value: str
    kind: FactKind
    times: int = 1  # in its text

    @property
    def worth(self) -> float:
        return WORTH[self.kind] + min(self.times - 1, 4) * 0.25


Kinds = tuple[tuple[str, FactKind], ...]  # what one word holds: value and kind, rarely more than one

CAPITAL = "A-ZÀ-ÖØ-ÞŁŚŽŠČŘĐΑ-ΩА-ЯЁ"
UNITS = (
    "%|percent|bytes?|[KMGT]i?B|kbps|Mbps|Gbps|[mµn]s|secs?|seconds?|min(?:ute)?s?|h|hrs?|hours?|days?|weeks?|months?"
    "|years?|tokens?|rows?|lines?|files?|requests?|users?|items?|km/h|km|cm|mm|m|miles?|ft|kg|g|mg|lbs?|oz|l|ml"
    "|°C|°F|K|k|M|px|pt|GHz|MHz|kHz|Hz|W|kW|kWh|V|A|USD|EUR|GBP|CHF|JPY|INR|dollars?|euros?|pounds?|[€$£¥₹]"
)
CURRENCIES = frozenset(re.findall(r"\S+", "$ € £ ¥ ₹ USD EUR GBP CHF JPY INR dollar dollars euro euros pound pounds"))
MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
MONTH_TAIL = "(?:an|eb|ar|pr|ay|un|ul|ug|ep|ct|ov|ec)[a-z]{0,6}"

SEPARATORS = "\"'`´‘’“”«»<>(){}[],;|=\\"
TO_SPACES = str.maketrans(dict.fromkeys(SEPARATORS, " "))
WORD = re.compile(rf"[^\s{re.escape(SEPARATORS)}\u3000-\u9fff\uac00-\ud7af\uff00-\uffef]++")
NUMBER = r"[\d,]*+(?:\.\d++)?+"
MONEY = re.compile(rf"[$€£¥₹](?<!\w.) ?\d{NUMBER}(?: ?[KMBkmb]n?(?!\w))?")
AMOUNT = re.compile(rf"\d(?<![\w.,$€£¥₹].){NUMBER}(?: ({MONTH} \d{{4}})| ?({UNITS}))(?!\w)")
MONTH_DAY = re.compile(rf"[JFMASOND](?<!\w.){MONTH_TAIL}\.? \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?(?!\w)")
URL = re.compile(r"https?+://[^\s\"'<>`{}|\\]++")
NAME = re.compile(rf"[{CAPITAL}](?<!\w.)[^\W\d_]++(?: [{CAPITAL}](?:[^\W\d_]++|\.))++")
NAME_INSIDE = re.compile(rf"[{CAPITAL}](?<=[a-zß-ÿа-яё,] .)[^\W\d_]{{2,}}+(?!\w)")
QUOTE = re.compile(r"[\"`“„«](?:(?<=\")([^\"\n]{3,80})\"|(?<=`)([^`\n]{3,80})`|(?<=[“„«])([^“„«”»\n]{3,80})[”»])")

OTHER_URL = re.compile(r"[a-z][a-z0-9+.-]{1,15}://\S+", re.IGNORECASE)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
DATE = re.compile(
    r"\d{4}-\d{2}(?:-\d{2})?(?:T[\d:.]+Z?(?:[+-]\d\d:?\d\d)?)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d{4}/\d{1,2}/\d{1,2}"
)
CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:am|pm)?", re.IGNORECASE)
SUFFIX = r"[-.+]?(?:rc|alpha|beta|dev|post|SNAPSHOT|RELEASE)[\w.]*"
VERSION = re.compile(rf"[vV]\d+(?:\.\d+){{0,4}}(?:{SUFFIX})?|\d+(?:\.\d+){{2,4}}(?:{SUFFIX})?|\d+(?:\.\d+)+{SUFFIX}")
DECIMAL = re.compile(r"[+-]?\d+\.\d+")
ORDINAL = re.compile(r"\d+(?:st|nd|rd|th|s)", re.IGNORECASE)
DOTTED = re.compile(r"[^\W\d][\w$-]*(?:\.[\w$-]+)+")
HUMP = re.compile(r"[a-zß-ÿ0-9][A-ZÀ-Þ]|[A-Z]{2}[a-z]")
ERROR_ENDS = ("Error", "Exception", "Failure", "Fault", "Warning")
FILE_ENDINGS = frozenset(
    re.findall(
        r"\w+",
        "py pyi ipynb java kt scala groovy js jsx ts tsx mjs cjs vue svelte c h cc cpp hpp cs go rs rb php "
        "swift sh bash ps1 bat sql html htm css scss less xml json jsonl yaml yml toml ini cfg conf env "
        "properties gradle lock md rst txt log csv tsv parquet pdf doc docx xls xlsx ppt pptx png jpg jpeg "
        "gif svg webp ico mp3 mp4 wav zip tar gz tgz bz2 xz jar war whl so dll exe bin db sqlite pem key crt "
        "proto tf dockerfile patch diff out bak tmp",
    )
)
OPENERS = frozenset(
    re.findall(r"\w+", "Hey Hi Hello Dear Thanks The This That These Those Yes No Oh And But Please If When Here")
)
URL_EDGES = ".,:;!?*)]"
EDGES = ".,:;!?*~…)>-–—&"  # punctuation that belongs to the sentence


def scan(text: str) -> list[Fact]:
    """The facts of a text, none twice: spans, then words, each in the order of their first appearance."""
    found: dict[str, Fact] = {}
    for fact in spans(text):
        found.setdefault(fact.value, fact)
    for word, times in Counter(words_of(text)).items():
        for value, kind in kinds_of(word):
            found.setdefault(value, Fact(value, kind, times))
    return list(found.values())


def words_of(text: str) -> list[str]:
    """Words with the punctuation that ids, paths and numbers have inside; CJK text is left out."""
    return text.translate(TO_SPACES).split() if text.isascii() else WORD.findall(text)


def kinds_of(word: str) -> Kinds:
    """What a word is: nothing for a word of a language, one fact for an id, two for `file.py:ValueError`."""
    value = word.strip(EDGES)
    if not 2 <= len(value) <= WORD_CHARS or (value.isalpha() and (value.islower() or value.istitle())):
        return ()
    if (kind := kind_of(value)) is not None:
        return ((value, kind),)
    if ":" not in value or "://" in value:
        return ()
    parts = [part.strip(EDGES) for part in value.split(":")]
    return tuple((part, kind) for part in parts if len(part) > 1 and (kind := kind_of(part)) is not None)


def kind_of(word: str) -> FactKind | None:
    """The kind of one word, None for words of a language."""
    if word.isalpha():
        if word.isupper() and word.isascii():
            return FactKind.CAPS if 2 <= len(word) <= 6 else None
        return kind_of_identifier(word)
    if "://" in word:
        return FactKind.URL if OTHER_URL.fullmatch(word) and not word.startswith("http") else None
    if "@" in word and EMAIL.fullmatch(word):
        return FactKind.EMAIL
    if any(map(str.isdigit, word)):
        return kind_with_digits(word)
    return kind_without_digits(word) if any(map(str.isalpha, word)) else None


def kind_with_digits(word: str) -> FactKind | None:
    if word.isdigit():
        return None if len(word) < 3 else FactKind.ID if len(word) > 6 else FactKind.NUMBER
    if DATE.fullmatch(word) or CLOCK.fullmatch(word):
        return FactKind.DATE
    if VERSION.fullmatch(word):
        return FactKind.VERSION
    if DECIMAL.fullmatch(word):
        return FactKind.NUMBER
    if "/" in word:
        return FactKind.PATH if any(map(str.isalpha, word)) and is_long_path(word) else None
    if ORDINAL.fullmatch(word) or ":" in word or word[0] in "$€£¥₹":
        return None
    if DOTTED.fullmatch(word):
        return FactKind.PATH if is_file(word) else FactKind.CODE
    if not any(map(str.isalpha, word)):
        return FactKind.ID if "-" in word else None
    return FactKind.ID if len(word) > 3 else FactKind.SHORT


def kind_without_digits(word: str) -> FactKind | None:
    if "/" in word:
        return FactKind.PATH if is_long_path(word) else None
    if ":" in word:
        return None
    if DOTTED.fullmatch(word) and len(word) > 4:
        return FactKind.PATH if is_file(word) else FactKind.CODE
    return kind_of_identifier(word)


def kind_of_identifier(word: str) -> FactKind | None:
    """camelCase, snake_case, __dunder__ and SomeError; other words are none."""
    if not word.isidentifier():
        return None
    if word.endswith(ERROR_ENDS) and word[0].isupper():
        return FactKind.ERROR
    joined = "_" in word.strip("_") or (word.startswith("__") and word.endswith("__"))
    return FactKind.CODE if joined or HUMP.search(word) else None


def is_file(word: str) -> bool:
    return word.rpartition(".")[2].lower() in FILE_ENDINGS


def is_long_path(word: str) -> bool:
    """Neither `and/or` nor the `/div` of a closing tag."""
    return word.count("/") > 1 or "." in word or "_" in word or (word[0] in "/~" and len(word) > 8)


def spans(text: str) -> Iterator[Fact]:
    """Facts that may be several words, or hold what separates words: URLs, amounts, names, quotes."""
    yield from figures(text)
    yield from names(text)
    yield from counted(("".join(groups) for groups in QUOTE.findall(text)), FactKind.QUOTE)


def figures(text: str) -> Iterator[Fact]:
    """URLs, money, amounts and written dates."""
    if "://" in text:
        yield from counted((url.rstrip(URL_EDGES) for url in URL.findall(text)), FactKind.URL)
    yield from counted(MONEY.findall(text), FactKind.MONEY)
    for match in AMOUNT.finditer(text):
        month, unit = match.groups()
        yield Fact(match[0], FactKind.DATE if month else FactKind.MONEY if unit in CURRENCIES else FactKind.AMOUNT)
    yield from counted((match.group() for match in MONTH_DAY.finditer(text)), FactKind.DATE)


def names(text: str) -> Iterator[Fact]:
    """Proper names: capitals in a row, and single ones inside a sentence, unless the language capitalises its nouns."""
    several = Counter(NAME.findall(text))
    for name, times in several.items():
        first, _, rest = name.partition(" ")
        yield Fact(rest if first in OPENERS else name, FactKind.NAME, times)
    single = NAME_INSIDE.findall(text)
    if single and (len(single) < 4 or len(single) * 8 < text.count(" ")):
        told = {word for name in several for word in name.split()} | OPENERS
        yield from counted((name for name in single if name not in told), FactKind.NAME)


def counted(values: Iterable[str], kind: FactKind) -> Sequence[Fact]:
    return [Fact(value, kind, times) for value, times in Counter(values).items()]
