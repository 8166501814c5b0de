"""The facts of one text: as a list, and what a shorter telling of it lost."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memory.digest.prose import WORD, denies, is_telling, sentences
from memory.digest.values import FactKind, scan

SENTENCE_WORTH = 2.2  # of a sentence that denies or decides, among facts
SENTENCE_CHARS = 160  # longer ones are no facts
COMMON = frozenset({FactKind.NUMBER, FactKind.QUOTE, FactKind.CAPS, FactKind.SHORT})  # too common to be asked for


def facts(text: str) -> tuple[str, ...]:
    """Ids, paths, amounts, dates, names, and short sentences that deny or decide: most telling first, none twice."""
    found = [(fact.worth, fact.value) for fact in scan(text)]
    found += [(SENTENCE_WORTH, sentence) for sentence in telling_sentences(text)]
    found.sort(key=lambda pair: -pair[0])
    return tuple(dict.fromkeys(value for _, value in found))


def missing_facts(original: str, shorter: str) -> tuple[str, ...]:
    """Facts of a text that its shorter telling does not show, most telling first.

    Values must stand there letter for letter (case and thousands separators aside). A sentence that denies or
    decides counts as told when a sentence of the shorter text shares more than half of its longer words, by their
    beginnings; and for one that denies, only a sentence that denies counts. Bare numbers, quotes and words in
    capitals are too common to be asked for.
    """
    there = plain(shorter)
    told = [Sense.of(sentence) for sentence in sentences(shorter)]
    lost = [
        (fact.worth, fact.value)
        for fact in scan(original)
        if fact.kind not in COMMON and plain(fact.value) not in there
    ]
    for sentence in telling_sentences(original):
        sense = Sense.of(sentence)
        if plain(sentence) not in there and not any(sense.is_in(other) for other in told):
            lost.append((SENTENCE_WORTH, sentence))
    lost.sort(key=lambda pair: -pair[0])
    return tuple(dict.fromkeys(value for _, value in lost))


@dataclass(frozen=True, slots=True)
class Sense:
    """What a sentence is about, roughly, and whether it denies it."""

    stems: frozenset[str]
    denies: bool

    @classmethod
    def of(cls, sentence: str) -> "Sense":
        lowered = sentence.casefold()
        words = WORD.findall(lowered)
        stems = {word[:4] for word in words if len(word) > 3 and word.isascii()}
        stems.update(word[i : i + 2] for word in words if not word.isascii() for i in range(len(word) - 1))
        return cls(frozenset(stems), denies(lowered, words))

    def is_in(self, other: "Sense") -> bool:
        return other.denies >= self.denies and len(self.stems & other.stems) * 2 > len(self.stems)


def plain(text: str) -> str:
    return " ".join(re.sub(r"(?<=\d),(?=\d)", "", text).casefold().split())  # a sentence may go over two lines


def telling_sentences(text: str) -> Iterator[str]:
    return (s for s in sentences(text) if len(s) <= SENTENCE_CHARS and is_telling(s))
