"""The facts of many messages in one book: who said a value first, who asked for it, who used it, how often."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec

from memory.digest.data import Json
from memory.digest.fit import CountTokens
from memory.digest.values import WORTH, Fact, FactKind, figures, kinds_of, spans, words_of

VALUE_CHARS = 160  # longer values are texts
LINE_CHARS = 320  # of a facts line, so that a later digest can drop facts by the line
DEPTH = 64
FIELDS = "fields"  # the label of keys
PLAIN_WORTH = 0.8  # of a value that is words
CROWD = 0.3  # how much each doubling of the values that look alike takes from the worth of one
DIGITS = re.compile(r"\d++")
TRIES = 24  # values too long for the room that is left, before we stop looking


Found = tuple[str, str, float]  # value, label, worth


@dataclass(slots=True)
class Entry:
    value: str
    source: str  # the role that said it first
    label: str  # the key of its record, else the kind of fact
    worth: float  # of its kind
    messages: int = 0
    asked: float = 0.0  # 1: a user said it in a short message; less in a long one, which a user may have pasted
    used: bool = False  # it stood in a call's arguments or in a command
    last: int = 0  # the number of the text where it stood last

    def score(self, texts: int) -> float:
        """How likely it is needed again. The weights come from a small search over agent transcripts; near them
        the share of values that later actions need changes little."""
        repeated = math.log2(1 + min(self.messages, 16))
        return self.worth + 1.5 * repeated + 2.0 * self.asked + 3.0 * self.used + 2.5 * self.last / max(texts, 1)


class Ledger:
    """Collects facts text by text; gives them as lines, most likely needed first."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.texts = 0
        self.known: dict[str, tuple[Found, ...]] = {}

    def enter(self, source: str, text: str, asked: float = 0.0, used: bool = False, spoken: bool = True) -> None:
        """Take the facts of one text; JSON gives its scalars under their keys. Only what is `spoken` has names."""
        data = parse(text)
        if data is not None:
            self.take(source, members(data, "values", DEPTH), asked, used)
        else:
            several = spans(text) if spoken else figures(text)
            self.take(source, chain(map(found, several), self.words(text)), asked, used)

    def enter_call(self, source: str, name: str, arguments: str) -> None:
        """Take a call's name and the values of its arguments."""
        self.take(source, [(name, "calls", WORTH[FactKind.CODE])], used=True)
        self.enter(source, arguments, used=True)

    def words(self, text: str) -> Iterator[Found]:
        """The facts among the words of a text; what a word is, is found once."""
        known = self.known
        for word in dict.fromkeys(words_of(text)):
            facts = known.get(word)
            if facts is None:
                if word.isalpha() and word.islower():  # most words, without a call
                    continue
                facts = known[word] = tuple(found(Fact(value, kind)) for value, kind in kinds_of(word))
            yield from facts

    def take(self, source: str, facts: Iterable[Found], asked: float = 0.0, used: bool = False) -> None:
        self.texts += 1
        for value, label, worth in facts:
            entry = self.entries.get(value)
            if entry is None:
                entry = self.entries[value] = Entry(value, source, label, worth)
            if asked > entry.asked:
                entry.asked = asked
            entry.used |= used
            entry.messages += entry.last != self.texts
            entry.last = self.texts

    def lines(self, shown: str, budget_tokens: int, count: CountTokens, without: str = "") -> list[str]:
        """Facts that `shown` does not show, as `tool facts: label: value, value; label: value`."""
        groups: dict[str, dict[str, list[str]]] = {}
        crowds = Counter(template(entry.value) for entry in self.entries.values())
        room, passed_over = budget_tokens - 4, 0
        for entry in sorted(
            self.entries.values(), key=lambda e: CROWD * math.log2(crowds[template(e.value)]) - e.score(self.texts)
        ):
            if room < 3 or passed_over > TRIES:
                break
            if entry.value in shown or entry.label == without:
                continue
            labels = groups.get(entry.source, {})
            cost = count(" " + entry.value) + 1 + (0 if entry.label in labels else count(entry.label) + 3)
            if cost > room:
                passed_over += 1
                continue
            room -= cost
            shown = f"{shown}\n{entry.value}\n{entry.label}"
            groups.setdefault(entry.source, {}).setdefault(entry.label, []).append(entry.value)
        return [line for source, labels in groups.items() for line in pack(f"{source} facts: ".lstrip(), labels)]


def template(value: str) -> str:
    """A value without its digits: hundreds alike tell less than a lone one."""
    return DIGITS.sub("#", value)


def found(fact: Fact) -> Found:
    return fact.value, fact.kind.value, WORTH[fact.kind]


def pack(head: str, labels: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Labelled values in lines of some `LINE_CHARS`."""
    current = ""
    for label, values in labels.items():
        told = f"{label}: {', '.join(v for v in values if label != FIELDS or v not in labels)}"
        if current and len(current) + len(told) > LINE_CHARS:
            yield head + current
            current = ""
        current = f"{current}; {told}" if current else told
    if current:
        yield head + current


def parse(text: str) -> Json:
    """The value of a JSON object or array, None for other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return msgspec.json.decode(text)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def members(value: Json, key: str, depth: int) -> Iterator[Found]:
    """Scalars under their keys, and the keys themselves; keys that look like ids are values."""
    if depth == 0:
        return
    if isinstance(value, dict):
        for name, member in value.items():
            if any(map(str.isdigit, name)):
                yield name, key, WORTH[FactKind.ID]
                yield from members(member, key, depth - 1)
            else:
                if kind_worth(name) > PLAIN_WORTH:
                    yield name, FIELDS, WORTH[FactKind.CODE]
                yield from members(member, name, depth - 1)
    elif isinstance(value, list):
        for member in value:
            yield from members(member, key, depth - 1)
    elif isinstance(value, str):
        if 0 < len(value) <= VALUE_CHARS and "\n" not in value and tells_alone(value):
            yield value, key, kind_worth(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) >= 100:
        yield str(value), key, WORTH[FactKind.NUMBER]


def tells_alone(value: str) -> bool:
    """Whether a value says something without its record: `no` and `2` do not."""
    return len(value) > 2 and not (value.isascii() and value.isalpha() and value.islower())


def kind_worth(value: str) -> float:
    kinds = () if " " in value else kinds_of(value)
    return max((WORTH[kind] for _, kind in kinds), default=PLAIN_WORTH)
